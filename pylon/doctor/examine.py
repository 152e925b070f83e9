"""All of the doctor's checks, run at once within one time limit."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Final

import anyio

from pylon import assembly
from pylon.doctor import home, owner, trade, twin
from pylon.doctor.findings import Finding, Level, Scene, fail, ok, warn
from pylon.errors import describe_error
from pylon.jobs.ports import Clock
from pylon.paths import Paths
from pylon.settings import LoadedSettings, SettingsError, load_settings
from pylon.text import printable

DEFAULT_LIMIT_S: Final = 15.0

_LEAST_LEFT_S: Final = 1.0
_MARGIN_S: Final = 2.0

Check = Callable[[], Awaitable[list[Finding]]]


async def examine(
    paths: Paths,
    *,
    clock: Clock,
    config: Path | None = None,
    environ: Mapping[str, str] | None = None,
    limit_s: float = DEFAULT_LIMIT_S,
) -> tuple[Finding, ...]:
    """Return all findings, in the order of the parts. Never raises; takes `limit_s` (at least 3) at most."""
    deadline = anyio.current_time() + limit_s
    loaded, findings = _load(config, os.environ if environ is None else environ)
    findings += await _in_thread(home.check_folders, paths)
    daemon, about_daemon = await anyio.to_thread.run_sync(home.check_daemon, paths, abandon_on_cancel=True)
    findings += about_daemon
    left_s = max(_LEAST_LEFT_S, deadline - anyio.current_time() - _MARGIN_S)
    checks: dict[str, Check] = {
        "disk": partial(_in_thread, home.check_disk, paths),
        "database": partial(_in_thread, home.check_database, paths, left_s),
    }
    if loaded is not None:
        key, about_identity = await anyio.to_thread.run_sync(home.check_identity, loaded.settings, paths)
        findings += about_identity
        scene = Scene(loaded.settings, paths, key, daemon, clock)
        checks |= {
            "elsewhere": partial(twin.check_twin, scene, left_s),
            "relay": partial(trade.check_all_relays, scene, left_s),
            "backend": partial(trade.check_backends, scene, left_s),
            "wallet": partial(trade.check_wallet, scene, left_s),
            "owner": partial(owner.check_owner, scene),
        }
    found = await _run(checks, left_s + _MARGIN_S)
    return (*findings, *found)


def worst(findings: tuple[Finding, ...]) -> Level:
    """Return the worst level among findings."""
    levels = {finding.level for finding in findings}
    return next((level for level in (Level.FAIL, Level.WARN) if level in levels), Level.OK)


def _load(config: Path | None, environ: Mapping[str, str]) -> tuple[LoadedSettings | None, list[Finding]]:
    try:
        loaded = load_settings(config, None, environ)
    except SettingsError as error:
        fix = "correct it; until then relays, backends and wallet cannot be checked"
        return None, [fail("settings", printable(error, limit=500), fix)]
    file = loaded.config_file
    where = "no file, all defaults" if file is None else f"{printable(file, limit=500)} is valid"
    try:
        assembly.check_startable(loaded.settings)
    except SettingsError as error:
        return loaded, [
            fail(
                "settings",
                printable(error, limit=500),
                "correct it with pylon config set, or in the file; until then pylon does not start",
            )
        ]
    return loaded, [ok("settings", where)]


async def _run(checks: Mapping[str, Check], limit_s: float) -> list[Finding]:
    """Run the checks beside each other; one that fails or takes too long is a finding itself."""
    found: dict[str, list[Finding]] = {}

    async def one(name: str, check: Check) -> None:
        try:
            with anyio.fail_after(limit_s):
                found[name] = await check()
        except TimeoutError:
            found[name] = [warn(name, f"not told within {limit_s:.0f} s", "run the doctor again")]
        except Exception as error:  # noqa: BLE001 - a check that breaks must not take the others' findings along
            found[name] = [fail(name, f"the check broke: {describe_error(error)}", "report this as a bug")]

    async with anyio.create_task_group() as tasks:
        for name, check in checks.items():
            tasks.start_soon(one, name, check)
    return [finding for name in checks for finding in found[name]]


async def _in_thread(check: Callable[..., list[Finding]], *arguments: object) -> list[Finding]:
    return await anyio.to_thread.run_sync(partial(check, *arguments), abandon_on_cancel=True)
