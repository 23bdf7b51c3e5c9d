"""Sessions that users of the panel open on this instance."""
