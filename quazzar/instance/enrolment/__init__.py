"""Belonging to a panel: joining, the line to it, and leaving."""
