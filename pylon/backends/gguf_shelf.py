"""The models that lie in a folder of GGUF files, or the one in a single file, with what is wrong with each."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pylon.backends.gguf import BadGguf, Gguf, read_gguf
from pylon.text import printable

_SPLIT: Final = re.compile(r"(.+)-(\d{5})-of-(\d{5})")
_MAX_FILES: Final = 1_000

Stamp = tuple[int, int]


@dataclass(frozen=True, slots=True)
class ModelFile:
    """One model: its name (the file's, without `.gguf` and the number of a part) and its file, or its first.

    `stamp` changes with the file. `fault` is one sentence for the operator, empty when the model can be loaded as
    far as its head tells.
    """

    name: str
    path: Path
    stamp: Stamp
    context_tokens: int | None = None
    fault: str = ""


class Shelf:
    """Looks at a path again and again; what has not changed is not read twice."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._read: dict[tuple[Path, Stamp], Gguf | str] = {}

    def look(self) -> tuple[ModelFile, ...]:
        """Return what lies there, by name. Blocks. Raises `OSError` where nothing is or nothing can be read."""
        files = [self._path] if self._path.is_file() else _gguf_files(self._path)
        seen: dict[tuple[Path, Stamp], Gguf | str] = {}
        found: dict[str, ModelFile] = {}
        for path in files:
            try:
                stat = path.stat()
            except OSError:
                continue  # it went since the folder was read
            key = (path, (stat.st_mtime_ns, stat.st_size))
            head = seen[key] = self._read.get(key) or _head(path)
            model = _model(path, key[1], head)
            if model is not None:
                found.setdefault(model.name, model)
        self._read = seen
        return tuple(found[name] for name in sorted(found))


def _gguf_files(folder: Path) -> list[Path]:
    files = (each for each in folder.iterdir() if each.suffix.lower() == ".gguf" and each.is_file())
    return sorted(files)[:_MAX_FILES]


def _head(path: Path) -> Gguf | str:
    try:
        return read_gguf(path)
    except BadGguf as bad:
        return str(bad)
    except OSError as error:
        return f"cannot be read: {error.strerror}"


def _model(path: Path, stamp: Stamp, head: Gguf | str) -> ModelFile | None:
    """Return the model that a file holds, None for the further parts of one and for what is none by itself."""
    split = _SPLIT.fullmatch(path.stem)
    name = split[1] if split else path.stem
    if isinstance(head, str):
        return ModelFile(name, path, stamp, fault=f"{printable(path.name)} {head}")
    if head.part != 1 or not head.generates:
        return None
    lacking = _lacking_part(path, split, head.parts) if split else None
    fault = f"{printable(path.name)} has {head.parts} parts, and part {lacking} is not there" if lacking else ""
    return ModelFile(name, path, stamp, head.context_tokens, fault)


def _lacking_part(first: Path, split: re.Match[str], parts: int) -> int | None:
    names = {part: f"{split[1]}-{part:05}-of-{split[3]}{first.suffix}" for part in range(2, parts + 1)}
    return next((part for part, name in names.items() if not first.with_name(name).is_file()), None)
