"""Pylon: a Nostr NIP-90 service provider daemon."""

__version__ = "0.1.0"
