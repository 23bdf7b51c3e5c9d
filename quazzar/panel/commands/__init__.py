"""Commands: what a tenant has its instances do, rolled out step by step."""
