"""Tenants of the panel and who belongs to them."""
