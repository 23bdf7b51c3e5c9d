"""Private registries: the logins that pulls of images are made with."""
