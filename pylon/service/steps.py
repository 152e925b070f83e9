"""What an installation does, as values: shown by a dry run, or carried out one after another, each told."""

from __future__ import annotations

import os
import secrets
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pylon.service.units import ServiceError, is_untouched
from pylon.text import printable

_LIMIT_S: Final = 600.0  # a stop waits for running jobs
_UNIT_MODE: Final = 0o644


@dataclass(frozen=True, slots=True)
class Write:
    """A file with this text; one that somebody else changed stays, unless it is forced, and then a copy stays."""

    path: Path
    text: str


@dataclass(frozen=True, slots=True)
class Remove:
    """No such file; one that somebody else changed stays, unless it is forced."""

    path: Path


@dataclass(frozen=True, slots=True)
class Run:
    """A program; `may_fail` where there may be nothing for it to do."""

    words: tuple[str, ...]
    may_fail: bool = False


Step = Write | Remove | Run


def shown(step: Step) -> str:
    """Return what a step would do."""
    match step:
        case Write(path):
            return f"write {path}"
        case Remove(path):
            return f"remove {path}"
        case Run(words):
            return f"run {shlex.join(words)}"


def refuse_changed(steps: Sequence[Step]) -> None:
    """Raise `ServiceError` when a step would overwrite what somebody changed: before any of them is carried out."""
    for step in steps:
        if isinstance(step, Write | Remove) and is_changed(step.path):
            remedy = "look at it beside pylon service install --print; --force goes on and keeps a copy"
            raise ServiceError(f"{step.path} was changed, or is not ours: {remedy}")


def is_changed(path: Path) -> bool:
    """Tell whether a file is there that is not as we wrote it. Raises `ServiceError`."""
    try:
        return not is_untouched(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return False
    except UnicodeDecodeError:
        return True
    except OSError as error:
        raise ServiceError(f"cannot read {path}: {error.strerror}") from error


def carry_out(step: Step) -> str:
    """Do it, and return what was done. Raises `ServiceError`."""
    try:
        match step:
            case Write():
                return _write(step)
            case Remove():
                return _remove(step)
            case Run(words, may_fail):
                done = run(words)
                if done.returncode and not may_fail:
                    raise ServiceError(f"{shlex.join(words)} failed: {said(done)}")
                return f"ran {shlex.join(words)}"
    except OSError as error:
        raise ServiceError(f"cannot {shown(step)}: {error.strerror or error}") from error


def run(words: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Run a program and return what it said. Raises `ServiceError` when it is not there or never ends."""
    try:
        return subprocess.run(
            words,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_LIMIT_S,
            check=False,
            stdin=subprocess.DEVNULL,
        )
    except FileNotFoundError:
        raise ServiceError(f"{words[0]} is not on this machine") from None
    except subprocess.TimeoutExpired:
        raise ServiceError(f"{shlex.join(words)} has not ended within {_LIMIT_S:g} s") from None
    except OSError as error:
        raise ServiceError(f"{words[0]} cannot be run: {error.strerror}") from error


def said(done: subprocess.CompletedProcess[str]) -> str:
    """Return the first line of a program that failed, fit for a terminal."""
    lines = (done.stderr.strip() or done.stdout.strip()).splitlines()
    return printable(lines[0] if lines else f"exit code {done.returncode}", limit=300)


def _write(step: Write) -> str:
    path = step.path
    before = path.read_bytes() if path.exists() else None
    if before == step.text.encode():
        return f"{path} is as it should be"
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = ""
    if before is not None and is_changed(path):
        copy = path.with_name(f"{path.name}.old")
        shutil.copyfile(path, copy)
        kept = f" (what was there is in {copy})"
    new = path.with_name(f".{path.name}.{secrets.token_hex(8)}.new")
    try:
        new.write_text(step.text, encoding="utf-8")
        new.chmod(_UNIT_MODE)
        new.replace(path)
    finally:
        with suppress(FileNotFoundError):
            os.unlink(new)  # noqa: PTH108 - gone already where it took its place
    return f"{'wrote' if before is None else 'updated'} {path}{kept}"


def _remove(step: Remove) -> str:
    try:
        step.path.unlink()
    except FileNotFoundError:
        return f"there is no {step.path}"
    return f"removed {step.path}"
