"""One module for each domain of the panel: how its things are made, and a row for each of its operations."""
