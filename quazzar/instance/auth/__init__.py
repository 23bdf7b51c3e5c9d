"""The first setup of an instance, and what its users log in with."""
