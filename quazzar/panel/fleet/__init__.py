"""The panel's fleet: instances, the groups and tokens that bring them in, and the line that each one holds."""
