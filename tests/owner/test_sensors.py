"""What this machine tells of its owner: sessions, power supplies, and programs that are not there."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import anyio.lowlevel
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pylon.owner import programs
from pylon.owner.idleness import NOBODY, idle_s, least_idle_s, parse_ioreg, parse_properties, parse_sessions
from pylon.owner.power import on_mains, parse_pmset, read_supplies
from pylon.owner.programs import Silent, ask_program
from pylon.owner.rules import OwnerRules, Readings, Unknown
from pylon.owner.sensors import MachineSensors

NOW = 1_700_000_000.0
LIST = "     2 1000 ann  seat0 tty2  active no -\n    c1  120 gdm  seat0 tty1  online no -\n"


def session(**told: str) -> str:
    return "".join(f"{key}={value}\n" for key, value in told.items())


class Programs:
    """Answers for the programs of a system."""

    def __init__(self, **answers: str) -> None:
        self.answers = answers
        self.asked: list[Sequence[str]] = []

    async def __call__(self, command: Sequence[str]) -> str:
        self.asked.append(command)
        name = Path(command[0]).name + ("_list" if "list-sessions" in command else "")
        if name not in self.answers:
            raise Silent(f"{name} is not installed")
        return self.answers[name]


async def linux(ask: Programs, terminals: dict[str, float] | None = None, **environ: str) -> float | Unknown:
    read_at = (terminals or {}).get
    return await idle_s(NOW, platform="linux", environ=environ, ask=ask, read_at=read_at)


# --- idleness ---------------------------------------------------------------------------------------------------


async def test_a_desktop_tells_by_its_hint() -> None:
    since = int((NOW - 900) * 1e6)
    shown = session(Id="2", Class="user", Type="wayland", TTY="tty2", IdleHint="yes", IdleSinceHint=str(since))
    greeter = session(Id="c1", Class="greeter", Type="wayland", TTY="tty1", IdleHint="no", IdleSinceHint="0")
    ask = Programs(loginctl_list=LIST, loginctl=f"{shown}\n{greeter}")
    assert await linux(ask) == pytest.approx(900)
    assert ask.asked[1][-2:] == ["2", "c1"]
    used = shown.replace("IdleHint=yes", "IdleHint=no")
    assert await linux(Programs(loginctl_list=LIST, loginctl=f"{used}\n{greeter}")) == 0


async def test_our_own_x_server_tells_to_the_second() -> None:
    shown = session(Id="2", Class="user", Type="x11", TTY="tty2", IdleHint="no", IdleSinceHint="0")
    told = {"loginctl_list": LIST, "loginctl": shown, "xprintidle": "61500\n"}
    assert await linux(Programs(**told), DISPLAY=":0") == 61.5
    assert await linux(Programs(**told)) == 0, "of a session that is not ours it says nothing"
    assert await linux(Programs(**told), DISPLAY=":0", XDG_SESSION_TYPE="wayland") == 0, "X does not see every key"
    assert await linux(Programs(**told | {"xprintidle": "no display"}), DISPLAY=":0") == 0
    del told["xprintidle"]
    assert await linux(Programs(**told), DISPLAY=":0") == 0


async def test_a_terminal_tells_itself_and_who_used_it_last_counts() -> None:
    shown = session(Id="2", Class="user", Type="tty", TTY="tty2", IdleHint="no", IdleSinceHint="0")
    ssh = session(Id="7", Class="user", Type="tty", TTY="pts/3", IdleHint="no", IdleSinceHint="0")
    ask = Programs(loginctl_list=LIST, loginctl=f"{shown}\n{ssh}")
    assert await linux(ask, {"tty2": NOW - 5_000, "pts/3": NOW - 12}) == 12
    assert await linux(ask, {"tty2": NOW - 5_000}) == 5_000
    assert await linux(ask, {"tty2": NOW + 30}) == 0, "a clock that was set back"


async def test_where_nobody_is_logged_in_nobody_is_there() -> None:
    assert await linux(Programs(loginctl_list="")) == NOBODY
    cron = session(Id="4", Class="background", Type="unspecified", TTY="", IdleHint="no", IdleSinceHint="0")
    assert await linux(Programs(loginctl_list="4 1000 ann - - - - -\n", loginctl=cron)) == NOBODY


async def test_without_logind_it_is_not_known() -> None:
    assert await linux(Programs()) == Unknown("loginctl_list is not installed")
    assert await idle_s(NOW, platform="plan9", environ={}, ask=Programs()) == Unknown(
        "on plan9 nothing is known to ask"
    )


async def test_macos_tells_nanoseconds() -> None:
    said = '    | |   "HIDIdleTime" = 125000000000\n    | "HIDIdleTime"=3000000000\n'
    ask = Programs(ioreg=said)
    assert await idle_s(NOW, platform="darwin", environ={}, ask=ask) == 3
    assert parse_ioreg("nothing") == Unknown("the I/O registry tells no HIDIdleTime")
    assert await idle_s(NOW, platform="darwin", environ={}, ask=Programs()) == Unknown("ioreg is not installed")


@given(st.text(), st.text())
def test_nothing_that_is_said_breaks_it(listed: str, shown: str) -> None:
    assert all(parse_sessions(listed))
    idle = least_idle_s(parse_properties(shown), NOW, lambda terminal: None, None)
    assert isinstance(idle, float)


# --- power ------------------------------------------------------------------------------------------------------


def supplies(root: Path, **told: dict[str, str]) -> Path:
    for name, files in told.items():
        (root / name).mkdir(parents=True)
        for file, text in files.items():
            (root / name / file).write_text(text + "\n")
    return root


BATTERY = {"type": "Battery", "status": "Discharging", "scope": "System"}


@pytest.mark.parametrize(
    ("told", "mains"),
    [
        ({}, True),
        ({"AC": {"type": "Mains", "online": "1"}, "BAT0": BATTERY}, True),
        ({"AC": {"type": "Mains", "online": "0"}, "BAT0": BATTERY}, False),
        ({"AC": {"type": "Mains", "online": "0"}, "BAT0": BATTERY | {"status": "Full"}}, False),
        ({"AC": {"type": "Mains", "online": "0"}, "usb": {"type": "USB", "online": "1"}, "BAT0": BATTERY}, True),
        ({"BAT0": BATTERY}, False),
        ({"BAT0": BATTERY | {"status": "Charging"}}, True),
        ({"hidpp_battery_0": BATTERY | {"scope": "Device"}}, True),
        ({"ups": {"type": "UPS", "status": "Discharging"}}, False),
        ({"strange": {}}, True),
    ],
)
def test_power_supplies_tell(tmp_path: Path, told: dict[str, dict[str, str]], mains: bool) -> None:
    root = tmp_path / "power_supply"
    root.mkdir()
    assert read_supplies(supplies(root, **told)) is mains


async def test_power_without_a_source_is_not_known(tmp_path: Path) -> None:
    gone = tmp_path / "none"
    assert await on_mains(platform="linux", supplies=gone) == Unknown(f"there is no {gone}")
    assert await on_mains(platform="plan9") == Unknown("on plan9 nothing is known to ask")
    assert await on_mains(platform="darwin", ask=Programs()) == Unknown("pmset is not installed")


async def test_pmset_tells() -> None:
    for source, mains in (("AC Power", True), ("Battery Power", False), ("UPS Power", False)):
        ask = Programs(pmset=f"Now drawing from '{source}'\n -InternalBattery-0 (id=1)\t85%; discharging\n")
        assert await on_mains(platform="darwin", ask=ask) is mains
    assert isinstance(parse_pmset(""), Unknown)


# --- programs and sensors ---------------------------------------------------------------------------------------


async def test_a_program_is_asked_within_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYLON_NSEC", "secret-of-the-operator")
    monkeypatch.setattr(programs, "TIMEOUT_S", 20.0)
    said = await ask_program([sys.executable, "-c", "import os; print(dict(os.environ))"])
    assert "secret-of-the-operator" not in said and "LC_ALL" in said
    with pytest.raises(Silent, match="failed with code 3"):
        await ask_program([sys.executable, "-c", "import sys; sys.exit(3)"])
    with pytest.raises(Silent, match="no-such-program is not installed"):
        await ask_program(["no-such-program"])
    monkeypatch.setattr(programs, "TIMEOUT_S", 0.05)
    with pytest.raises(Silent, match="did not answer within"):
        await ask_program([sys.executable, "-c", "import time; time.sleep(60)"])


async def test_only_what_a_rule_asks_for_is_looked_at() -> None:
    looked = 0

    async def gpu() -> int | Unknown:
        nonlocal looked
        looked += 1
        await anyio.lowlevel.checkpoint()
        return 5

    sensors = MachineSensors(lambda: NOW, {}, gpu)
    seen = await sensors.read(OwnerRules())
    assert (seen, looked) == (Readings(*[Unknown("no rule asks for it")] * 3), 0)
    everything: Any = await sensors.read(OwnerRules(idle_s=600, ac_only=True, gpu_floor_bytes=1))
    assert (everything.gpu_bytes, looked) == (5, 1)
    assert everything.idle_s != Unknown("no rule asks for it")
    assert everything.on_mains != Unknown("no rule asks for it")
