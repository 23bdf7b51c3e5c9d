"""Who belongs to a tenant, who is invited, and how one joins."""
