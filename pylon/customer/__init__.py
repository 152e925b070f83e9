"""The buying side of the market."""
