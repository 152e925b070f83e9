"""What runs the work: one file per kind of inference server."""
