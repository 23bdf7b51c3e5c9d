"""Host names of apps, and their certificates."""
