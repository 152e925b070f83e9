"""The one guarded way to reach a host that a stranger named."""
