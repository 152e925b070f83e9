"""The `pylon` command: one file per noun, no logic beyond parsing and printing."""
