"""The head of a GGUF file: what the model is, and whether the file is whole. Nothing of its weights is read.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, versions 2 and 3, little-endian.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

_MAGIC: Final = b"GGUF"
_VERSIONS: Final = frozenset({2, 3})
_MAX_KEYS: Final = 65_536
_MAX_TENSORS: Final = 1_000_000
_MAX_ELEMENTS: Final = 16_777_216
_MAX_STRING: Final = 16 << 20
_MAX_DIMS: Final = 8
_ALIGNMENT: Final = 32

_STRING: Final = 8
_ARRAY: Final = 9
_NUMBERS: Final = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}


class BadGguf(Exception):
    """Why a file is no model that can be loaded: a clause that goes on from the file's name."""


@dataclass(frozen=True, slots=True)
class Gguf:
    """What a file says of itself. `context_tokens` is what the model was trained for, None where it does not say.

    `part` and `parts` number the files of a model that was split, both 1 for one that was not.
    """

    architecture: str
    context_tokens: int | None = None
    part: int = 1
    parts: int = 1
    kind: str = "model"

    @property
    def generates(self) -> bool:
        """Whether it may be a model of its own that writes text, and not an adapter or the eyes of another one."""
        return self.kind == "model" and self.architecture not in {"clip", "mmproj"}


def read_gguf(path: Path) -> Gguf:
    """Return what the head of a file says. Blocks for up to some 100 ms. Raises `BadGguf` and `OSError`."""
    with path.open("rb") as file:
        try:
            return _read(file, os.fstat(file.fileno()).st_size)
        except (struct.error, EOFError, UnicodeDecodeError):
            raise BadGguf("ends in the middle of its own description: it was not downloaded whole") from None


def _read(file: BinaryIO, size: int) -> Gguf:
    if file.read(4) != _MAGIC:
        raise BadGguf("is no GGUF file")
    version = _number(file, "I")
    if version not in _VERSIONS:
        raise BadGguf("is a GGUF file of a version that is not known here")
    tensors, keys = _number(file, "Q"), _number(file, "Q")
    if keys > _MAX_KEYS or tensors > _MAX_TENSORS:
        raise BadGguf("is no GGUF file that makes sense: its counts are absurd")
    values: dict[str, Any] = {}
    for _ in range(keys):
        key = _text(file)
        value = _value(file, _number(file, "I"))
        if value is not None:
            values[key] = value
    last = max((_tensor_offset(file) for _ in range(tensors)), default=0)
    alignment = _whole(values.get("general.alignment")) or _ALIGNMENT
    begin = -(-file.tell() // alignment) * alignment
    if tensors and begin + last >= size:
        raise BadGguf("ends before its weights do: it was not downloaded whole")
    architecture = values.get("general.architecture")
    if not isinstance(architecture, str):
        raise BadGguf("does not say what model it holds")
    kind = values.get("general.type")
    return Gguf(
        architecture,
        context_tokens=_whole(values.get(f"{architecture}.context_length")),
        part=(_whole(values.get("split.no")) or 0) + 1,
        parts=_whole(values.get("split.count")) or 1,
        kind=kind if isinstance(kind, str) else "model",
    )


def _whole(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


def _number(file: BinaryIO, code: str) -> Any:
    layout = struct.Struct("<" + code)
    return layout.unpack(file.read(layout.size))[0]


def _text(file: BinaryIO) -> str:
    size = _number(file, "Q")
    if size > _MAX_STRING:
        raise BadGguf("is no GGUF file that makes sense: a text in it is absurdly long")
    data = file.read(size)
    if len(data) < size:
        raise EOFError
    return data.decode("utf-8", "replace")


def _value(file: BinaryIO, kind: int) -> Any:
    """Return a value, None for a list: those are the vocabulary, and are passed over."""
    if kind in _NUMBERS:
        return _number(file, _NUMBERS[kind])
    if kind == _STRING:
        return _text(file)
    if kind != _ARRAY:
        raise BadGguf(f"is no GGUF file that makes sense: it has a value of type {kind}")
    of, count = _number(file, "I"), _number(file, "Q")
    if count > _MAX_ELEMENTS:
        raise BadGguf("is no GGUF file that makes sense: a list in it is absurdly long")
    if of in _NUMBERS:
        _skip(file, struct.calcsize("<" + _NUMBERS[of]) * count)
    elif of == _STRING:
        for _ in range(count):
            _skip(file, _number(file, "Q"))
    else:
        raise BadGguf(f"is no GGUF file that makes sense: it has a list of values of type {of}")
    return None


def _skip(file: BinaryIO, size: int) -> None:
    if size > _MAX_ELEMENTS * 8:
        raise BadGguf("is no GGUF file that makes sense: a value in it is absurdly long")
    file.seek(size, os.SEEK_CUR)


def _tensor_offset(file: BinaryIO) -> int:
    """Pass over the description of a tensor and return where its data begins, counted from that of the first."""
    _text(file)
    dimensions = _number(file, "I")
    if dimensions > _MAX_DIMS:
        raise BadGguf("is no GGUF file that makes sense: a tensor in it has too many dimensions")
    _skip(file, 8 * dimensions + 4)
    offset = _number(file, "Q")
    return int(offset)
