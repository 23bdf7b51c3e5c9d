"""Users of the panel: registration, login, profile."""
