"""From the settings to the places of model servers that detection looks at."""

from __future__ import annotations

from pathlib import Path

from pydantic import SecretStr

from pylon.backends.detect import Place
from pylon.backends.openai_wire import normalise_url
from pylon.settings import Settings


def configured_places(settings: Settings) -> list[Place]:
    """Return where the configured backends are that have a URL, with their keys and authorities."""
    places: list[Place] = []
    for each in settings.backends:
        url, key, ca_file = (getattr(each, name, None) for name in ("url", "api_key", "ca_file"))
        if url and isinstance(url, str):  # a plug-in may call something else so
            secret = key.get_secret_value() if isinstance(key, SecretStr) else None
            trusted = ca_file if isinstance(ca_file, Path) else None
            places.append(Place(normalise_url(url), "", each.name, secret, trusted))
    return places
