"""The plug-in of `docs/plugins.md`, taken from the page: installed, configured, and a job sold with it."""

from __future__ import annotations

import os
import re
import tomllib
from pathlib import Path
from typing import Any

import anyio.to_thread
import pytest

from tests.support.plugins import install_plugin
from tests.support.provider import market_settings, provider
from tests.support.relay import relay_process
from tests.support.shop import shop

pytestmark = pytest.mark.e2e

PAGE = (Path(__file__).parents[2] / "docs" / "plugins.md").read_text()
SOURCE, PROJECT, SETTINGS = re.findall(r"^```(?:python|toml)\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


def installed(folder: Path, source: str) -> dict[str, str]:
    """Install what the page shows, and return the environment that has it."""
    project = tomllib.loads(PROJECT)["project"]
    kinds = project["entry-points"]["pylon.backends"]
    install_plugin(folder, project["name"], kinds, source, project["version"])
    return {"PYTHONPATH": os.pathsep.join(filter(None, (str(folder), os.environ.get("PYTHONPATH"))))}


def settings(relay_url: str) -> dict[str, Any]:
    return {**market_settings(relay_url), **tomllib.loads(SETTINGS)}


def test_it_has_at_most_forty_lines() -> None:
    assert len(SOURCE.splitlines()) <= 40


async def test_the_daemon_sells_a_job_with_it(tmp_path: Path) -> None:
    environ = installed(tmp_path / "site", SOURCE)
    with relay_process() as relay:
        async with (
            provider(tmp_path, settings(relay.url), environ=environ) as daemon,
            shop(relay.url, provider=daemon.pubkey) as customer,
        ):
            order = await customer.order("olleh dlrow")
            assert (await order.result()).content == "Here: world hello"
            (line,) = (await anyio.to_thread.run_sync(daemon.control.status)).backends
            assert (line.name, line.kind, line.health) == ("mirror", "backwards", "ready")


async def test_one_that_cannot_be_imported_is_told_by_doctor_and_by_start(tmp_path: Path) -> None:
    environ = installed(tmp_path / "site", "import no_such_module_at_all\n" + SOURCE)
    async with provider(tmp_path, settings("ws://127.0.0.1:9"), environ=environ, started=False) as daemon:
        sentence = (
            "backends.0.kind: the plug-in pylon-backwards 1.0 cannot be imported: "
            "ModuleNotFoundError: No module named 'no_such_module_at_all'"
        )
        for command in (("doctor",), ("start",), ("backends", "list")):
            ran = await daemon.pylon(*command)
            assert ran.returncode != 0
            assert sentence in (said := ran.stdout + ran.stderr)
            assert "Traceback" not in said
        assert len((await daemon.pylon("start")).stderr.splitlines()) == 1
