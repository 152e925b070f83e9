"""The whole market on one machine: for `pylon demo`, and for the job that `pylon doctor --buy` buys."""
