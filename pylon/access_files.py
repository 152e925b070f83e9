"""The operator's lists of customers, from their files to the rules that intake checks."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Final

from pylon.jobs.access import MAX_LISTED, Access, parse_key_list
from pylon.settings import Settings, SettingsError

_MAX_BYTES: Final = MAX_LISTED * 100


def read_access(settings: Settings) -> Access:
    """Return the rules of `[intake]` with the lists as they are on disk now.

    Raises `SettingsError` with one sentence when a file is missing or wrong: half a list must not let anybody in.
    """
    intake = settings.intake
    return Access(
        allow=_keys("intake.allow_file", intake.allow_file),
        deny=_keys("intake.deny_file", intake.deny_file),
        allow_only=intake.allow_only,
        targeted_only=intake.targeted_only,
        min_pow_bits=intake.min_pow_bits,
    )


def _keys(key: str, path: Path | None) -> frozenset[str]:
    if path is None:
        return frozenset()
    try:
        with path.open(encoding="utf-8") as file:
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode) or found.st_size > _MAX_BYTES:
                raise SettingsError(key, f"{path} is no plain file of up to {_MAX_BYTES} bytes")
            return parse_key_list(file)
    except UnicodeDecodeError:
        raise SettingsError(key, f"{path} is not UTF-8 text") from None
    except OSError as error:
        raise SettingsError(key, f"{path} cannot be read: {error.strerror}") from None
    except SettingsError:
        raise
    except ValueError as error:
        raise SettingsError(key, f"{path}, {error}") from None
