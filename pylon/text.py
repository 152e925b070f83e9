"""Text of strangers: made fit for a terminal or a log line, and measured."""

from __future__ import annotations

import unicodedata


def printable(text: object, *, limit: int = 200, keep_newlines: bool = False) -> str:
    r"""Return `text` with every control, format, surrogate and odd space character shown as an escape.

    `limit` counts characters of the input; what is cut is marked by an ellipsis. With `keep_newlines` (for the body
    of a result) line feeds, tabs and the spaces of other scripts stay; what could steer a terminal never does.
    """
    raw = text if isinstance(text, str) else str(text)
    cut = raw[:limit]
    if cut.isascii() and cut.isprintable():
        return cut if len(raw) <= limit else cut + "…"
    out = []
    for char in cut:
        # Python counts as not printable: controls, format, surrogates, private, unassigned, all spaces but " ".
        if char.isprintable() or (keep_newlines and (char in "\n\t" or unicodedata.category(char) == "Zs")):
            out.append(char)
        else:
            out.append(_escape(ord(char)))
    return "".join(out) if len(raw) <= limit else "".join(out) + "…"


def utf8_bytes(text: str) -> int:
    """Return how many bytes of UTF-8 a text takes; a lone surrogate counts as three."""
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))


def _escape(code: int) -> str:
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
