"""Sessions on instances that members of a tenant ask for, and what they do in them."""
