"""Apps: containers that a template describes, kept as the user wants them."""
