"""The isolation of tenants: every operation of the panel with what is another tenant's in every place of an id."""
