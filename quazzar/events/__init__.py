"""The feed of events: what happened, newest first or as it happens."""
