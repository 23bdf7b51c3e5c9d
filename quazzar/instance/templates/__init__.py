"""Templates: Compose files with an `x-quazzar` block that apps are installed from."""
