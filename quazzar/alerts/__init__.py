"""Alerts: what is watched, and what is said when a limit is crossed."""
