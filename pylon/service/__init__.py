"""Pylon under a service manager: what it tells systemd, and the units by which systemd and launchd run it."""
