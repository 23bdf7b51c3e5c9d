"""Invitations into both realms: who is asked in, as what, and the one link that lets them."""
