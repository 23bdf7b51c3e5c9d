"""The audit log: reading it, handing it out, and proving that it is whole."""
