"""GGUF files without weights: the head of one, written as the format says."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping

Value = str | int | bool | list[str] | list[int]


def gguf_bytes(values: Mapping[str, Value], tensors: Iterable[tuple[str, int]] = (), version: int = 3) -> bytes:
    """Return a file with these values, and the descriptions of tensors: name and offset of the data."""
    tensors = list(tensors)
    parts = [b"GGUF", struct.pack("<IQQ", version, len(tensors), len(values))]
    for key, value in values.items():
        parts += [_text(key), _typed(value)]
    for name, offset in tensors:
        parts += [_text(name), struct.pack("<IQQIQ", 2, 4, 4, 0, offset)]
    return b"".join(parts)


def model_bytes(context_tokens: int = 2048) -> bytes:
    """Return what passes for a model."""
    return gguf_bytes({"general.architecture": "llama", "llama.context_length": context_tokens})


def _text(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _typed(value: Value) -> bytes:
    if isinstance(value, bool):
        return struct.pack("<I?", 7, value)
    if isinstance(value, int):
        return struct.pack("<II", 4, value)
    if isinstance(value, str):
        return struct.pack("<I", 8) + _text(value)
    items = [_text(each) if isinstance(each, str) else struct.pack("<I", each) for each in value]
    return struct.pack("<IIQ", 9, 8 if isinstance(value[0], str) else 4, len(value)) + b"".join(items)
