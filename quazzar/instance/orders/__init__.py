"""What the panel tells this instance to do: taken once, carried out at most once, reported until the panel knows."""
