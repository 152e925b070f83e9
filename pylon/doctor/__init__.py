"""`pylon doctor`: everything a provider needs, tried once, each finding with its fix.

`examine.py` runs the checks at once; `home.py` looks at files, `trade.py` at relays, clock, backends and wallet,
`twin.py` for another host that uses our key. It changes nothing.
"""
