"""The Docker Engine API as the drivers that speak it need it: connection, failures, objects, logs."""
