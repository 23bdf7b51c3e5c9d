"""The server itself: what it has left."""
