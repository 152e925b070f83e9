"""The whole market on one machine, for `pylon demo`."""
