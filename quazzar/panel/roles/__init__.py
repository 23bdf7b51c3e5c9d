"""Roles of a tenant: the built-in ones, and those that it makes for itself."""
