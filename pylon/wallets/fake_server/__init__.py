"""The fake wallet: a Lightning wallet as its own process, real in everything but the sats.

`python -m pylon.wallets.fake_server --db PATH` keeps its own SQLite database and makes real signed BOLT11 invoices
(regtest prefix, real preimages). Two bearer tokens divide it: the owner's (make, look up, pay, watch) and a
payer's, whose unlimited fake balance pays this wallet's invoices as a customer would. It can also lie the way real
wallets do: see `faults`. `app` documents the HTTP API; `pylon.wallets.fake` is its client.
"""
