"""Relays: one connection each, the pool over them, and the outbox publisher."""
