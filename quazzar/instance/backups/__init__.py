"""Backups of apps and of the system."""
