"""Whether this machine runs on mains power: Linux's power supplies, or `pmset` on macOS."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Final

from pylon.owner.programs import Ask, Silent, ask_program
from pylon.owner.rules import Unknown

SUPPLIES: Final = Path("/sys/class/power_supply")
_DRAWING: Final = re.compile(r"Now drawing from '([A-Za-z ]{1,40})'")
_STORES: Final = frozenset({"Battery", "UPS"})


async def on_mains(
    *, platform: str = sys.platform, supplies: Path = SUPPLIES, ask: Ask = ask_program
) -> bool | Unknown:
    """Tell whether mains power runs this machine; one without a battery always does. Never raises."""
    if platform == "darwin":
        try:
            return parse_pmset(await ask(["/usr/bin/pmset", "-g", "batt"]))
        except Silent as error:
            return Unknown(str(error))
    if platform != "linux":
        return Unknown(f"on {platform} nothing is known to ask")
    return read_supplies(supplies)


def parse_pmset(said: str) -> bool | Unknown:
    """Return what `pmset -g batt` tells."""
    found = _DRAWING.search(said)
    return found[1] == "AC Power" if found else Unknown("pmset does not tell what it draws from")


def read_supplies(root: Path = SUPPLIES) -> bool | Unknown:
    """Return what Linux's power supplies under `root` tell: on battery is what has one and no mains power."""
    try:
        folders = sorted(root.iterdir())
    except OSError:
        return Unknown(f"there is no {root}")
    stores, mains = [], []
    for folder in folders:
        kind, scope = _read(folder / "type"), _read(folder / "scope")
        if kind in _STORES and scope != "Device":  # a mouse has a battery too
            stores.append(_read(folder / "status"))
        elif kind not in _STORES and (online := _read(folder / "online")):
            mains.append(online != "0")
    if not stores or any(mains):
        return True
    if mains:
        return False
    # Some laptops have no entry for their charger.
    return not any(status == "Discharging" for status in stores)


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(256).decode("utf-8", "replace").strip()
    except OSError:
        return ""
