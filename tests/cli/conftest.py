"""The homes that commands are run on, and the fake wallet of those that need one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.fake_daemon import fake_daemon
from tests.support.wallet import WalletProcess


@pytest.fixture(scope="module")
def daemon_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The home of a daemon that answers, for all tests of a module."""
    home = tmp_path_factory.mktemp("home")
    with fake_daemon(home):
        yield home


@pytest.fixture
def running(daemon_home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A daemon runs in the home that commands see."""
    monkeypatch.setenv("PYLON_HOME", str(daemon_home))
    return daemon_home


@pytest.fixture
def stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No daemon runs there."""
    monkeypatch.setenv("PYLON_HOME", str(tmp_path))
    return tmp_path


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home, and nothing of this machine's environment."""
    for name in [name for name in os.environ if name.startswith("PYLON_")]:
        monkeypatch.delenv(name)
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    monkeypatch.setenv("PYLON_HOME", str(home))
    return home


@pytest.fixture(scope="module")
def process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WalletProcess]:
    """A fake wallet, for all tests of a module."""
    with WalletProcess(tmp_path_factory.mktemp("wallet")) as wallet:
        yield wallet
