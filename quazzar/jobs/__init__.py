"""Background jobs as users see them: what runs, how far it is, what it said, and stopping or repeating it."""
