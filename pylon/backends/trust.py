"""Whose certificates an https backend may show: the system's authorities, or those of a file alone."""

from __future__ import annotations

import ssl
from pathlib import Path

from pylon.text import printable


class CaFault(ValueError):
    """A file of authorities that cannot be used; the message is one sentence for the operator."""


def context_for(url: str, ca_file: Path | None) -> ssl.SSLContext | bool:
    """Return what `httpx` verifies with: False for plain http, which costs no reading of certificates (tens of ms).

    With `ca_file` (PEM) the authorities in it are trusted, and no others. Raises `CaFault`.
    """
    if not url.strip().startswith("https"):
        return False
    if ca_file is None:
        return ssl.create_default_context()
    try:
        return ssl.create_default_context(cafile=str(ca_file))
    except ssl.SSLError:  # an OSError too
        raise CaFault(f"ca_file {printable(ca_file)} holds no certificate in PEM form") from None
    except OSError as error:
        raise CaFault(f"ca_file {printable(ca_file)} cannot be read: {error.strerror}") from None
