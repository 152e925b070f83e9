"""systemd's own word on the units: they are correct, and this is how exposed they leave the machine."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from pylon.service.units import Credential, Scope, UnitFacts, systemd_unit
from tests.support.debian import systemd_analyze

pytestmark = pytest.mark.live

DOCS = Path(__file__).parents[2] / "docs" / "service.md"
PROGRAM = Path(sys.executable).with_name("pylon")
SYSTEM = UnitFacts(Scope.SYSTEM, (str(PROGRAM),), {"PYLON_HOME": "/var/lib/pylon"})
USER = replace(SYSTEM, scope=Scope.USER, variables={})
MOST = {Scope.SYSTEM: 3.0, Scope.USER: 6.5}


def analyze(folder: Path, scope: Scope, *words: str) -> subprocess.CompletedProcess[str]:
    """Ask about the unit in a folder, as systemd's manager of this scope sees it."""
    flags = ["--user"] if scope is Scope.USER else []
    folder.chmod(0o700)
    return subprocess.run(
        [systemd_analyze(), *flags, *words, str(folder / "pylon.service")],
        capture_output=True,
        text=True,
        env={**os.environ, "XDG_RUNTIME_DIR": str(folder), "SYSTEMD_COLORS": "0", "SYSTEMD_PAGER": "cat"},
        check=False,
    )


def exposure(folder: Path, facts: UnitFacts) -> float:
    """Return the overall exposure level, 0 to 10."""
    (folder / "pylon.service").write_text(systemd_unit(facts))
    done = analyze(folder, facts.scope, "security", "--offline=true", "--no-pager")
    found = re.search(r"Overall exposure level for pylon\.service: ([\d.]+)", done.stdout)
    assert found is not None, done.stderr
    return float(found[1])


@pytest.mark.parametrize(
    "facts",
    [
        SYSTEM,
        replace(SYSTEM, gpu=True),
        replace(SYSTEM, config=Path("/etc/pylon/100% a.toml"), stop_timeout_s=3600.0),
        replace(
            SYSTEM,
            credentials=(
                Credential("nsec", Path("/etc/pylon/credentials/nsec")),
                Credential("wallet_uri", Path("/etc/pylon/credentials/wallet_uri.cred"), encrypted=True),
            ),
        ),
        USER,
        replace(USER, variables={"PYLON_HOME": "/srv/a b/100%"}, state=""),
    ],
)
def test_systemd_finds_no_fault(tmp_path: Path, facts: UnitFacts) -> None:
    (tmp_path / "pylon.service").write_text(systemd_unit(facts))
    done = analyze(tmp_path, facts.scope, "verify")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_fault_would_be_found(tmp_path: Path) -> None:
    """Else the silence above would mean nothing."""
    (tmp_path / "pylon.service").write_text(systemd_unit(SYSTEM).replace("WatchdogSec=30", "WatchdogSec=often"))
    done = analyze(tmp_path, Scope.SYSTEM, "verify")
    assert re.search(r"pylon\.service:\d+: .*often", done.stderr)


@pytest.mark.parametrize("facts", [SYSTEM, USER], ids=["system", "user"])
def test_how_exposed_it_is(tmp_path: Path, facts: UnitFacts) -> None:
    measured = exposure(tmp_path, facts)
    print(f"exposure of the {facts.scope} unit: {measured}")
    assert measured < MOST[facts.scope]
    version = subprocess.run([systemd_analyze(), "--version"], capture_output=True, text=True, check=True).stdout
    if version.startswith("systemd 252 "):
        assert f"| {facts.scope} | {measured} |" in DOCS.read_text(), "the page tells another number"


def test_a_gpu_costs_little(tmp_path: Path) -> None:
    assert exposure(tmp_path, replace(SYSTEM, gpu=True)) < MOST[Scope.SYSTEM]
