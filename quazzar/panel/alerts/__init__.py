"""Alerts of the panel: rules over the fleet, what they find, and whom they tell."""
