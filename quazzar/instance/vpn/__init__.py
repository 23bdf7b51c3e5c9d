"""The WireGuard network of a server and its peers."""
