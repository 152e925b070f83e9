"""Owner first: when the machine works for customers, and when it is left to the person whose it is.

`hours` and `rules` are pure: what is allowed when, and what the machine's state makes of it. `sensors` looks at the
machine, `orders` remembers what the owner ordered, and `desk` makes the daemon follow both.
"""
