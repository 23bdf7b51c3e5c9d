"""Quazzar: a self-hosting platform with a Cloud OS API for each server and a Control Panel API for many."""

__version__ = "0.1.0"
