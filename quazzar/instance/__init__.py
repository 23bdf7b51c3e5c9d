"""The Cloud OS: what runs on each server."""
