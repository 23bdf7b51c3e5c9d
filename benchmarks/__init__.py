"""Measurements: every figure that the README quotes, as a ratio within one run."""
