"""A job's life: what is accepted, what it costs, how it runs, and what is owed."""
