"""Untrusted text made fit for a terminal or a log line."""

from __future__ import annotations

import unicodedata

# Cc: controls (terminal escapes), Cf: format (bidi overrides, zero width), Cs: surrogates, Co: private use,
# Cn: unassigned, Zl and Zp: line and paragraph separators.
_HIDDEN = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})


def printable(text: object, *, limit: int = 200, keep_newlines: bool = False) -> str:
    r"""Return `text` with every control, format and surrogate character shown as an escape.

    `limit` counts characters of the input; what is cut is marked by an ellipsis. With `keep_newlines`
    line feeds and tabs stay (for the body of a result); everything else that could steer a terminal does not.
    """
    raw = text if isinstance(text, str) else str(text)
    cut = raw[:limit]
    if cut.isascii() and cut.isprintable():
        return cut if len(raw) <= limit else cut + "…"
    out = []
    for char in cut:
        if keep_newlines and char in "\n\t":
            out.append(char)
        elif unicodedata.category(char) in _HIDDEN:
            out.append(_escape(ord(char)))
        else:
            out.append(char)
    return "".join(out) if len(raw) <= limit else "".join(out) + "…"


def _escape(code: int) -> str:
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
