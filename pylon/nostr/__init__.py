"""Values and codecs of the Nostr protocol; nothing in here does I/O."""
