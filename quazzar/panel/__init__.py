"""The Control Panel: the multi-tenant plane for many servers."""
