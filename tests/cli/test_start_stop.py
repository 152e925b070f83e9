"""`pylon start` hands over what it was given; `pylon stop` asks, waits and says what happened."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pylon.cli.app import run
from pylon.lock import lock_holder
from pylon.nostr.keys import SecretKey
from pylon.paths import Paths, paths_under
from pylon.settings import LoadedSettings, Settings
from tests.support.fake_daemon import fake_daemon

Captured = pytest.CaptureFixture[str]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PYLON_HOME", str(tmp_path))
    return tmp_path


def test_stop_waits_for_the_end(home: Path, capsys: Captured) -> None:
    with fake_daemon(home) as process:
        assert run(["stop"]) == 0
        assert capsys.readouterr().out == "pylon has stopped\n"
        assert lock_holder(paths_under(home).lock_file) is None
        assert process.wait(5) == 0


def test_stop_of_nothing_is_no_error(home: Path, capsys: Captured) -> None:
    assert run(["stop"]) == 0
    assert capsys.readouterr().out == "pylon is not running\n"


def test_stop_falls_back_to_a_signal(home: Path, capsys: Captured) -> None:
    with fake_daemon(home, "mute"):
        assert run(["stop", "--timeout", "10"]) == 0
    assert capsys.readouterr().out == "pylon has stopped\n"


def test_stop_says_when_the_deadline_has_passed(home: Path, capsys: Captured) -> None:
    with fake_daemon(home, "deaf") as process:
        assert run(["stop", "--timeout", "0.2"]) == 1
        said = capsys.readouterr().err
        assert said.startswith(f"pylon: pylon (process {process.pid}) has not ended within 0.2 s")
        assert process.poll() is None


def test_kill_only_when_asked_and_after_the_deadline(home: Path, capsys: Captured) -> None:
    with fake_daemon(home, "stubborn") as process:
        assert run(["stop", "--timeout", "0.2", "--kill"]) == 0
        assert capsys.readouterr().out.startswith("pylon was killed")
        assert process.wait(5) == -9


def test_a_pid_that_is_not_there_is_not_signalled(home: Path, capsys: Captured) -> None:
    lock = paths_under(home).lock_file
    with fake_daemon(home, "mute"):
        lock.write_text("1")
        assert run(["stop", "--timeout", "0.1", "--kill"]) == 1
    assert "its process is not known" in capsys.readouterr().err


class Started:
    """Stands for `pylon.daemon`: remembers what it was started with."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.debug = False
        self.calls: list[tuple[LoadedSettings, Paths, SecretKey]] = []
        module: Any = types.ModuleType("pylon.daemon")
        module.run_daemon = self.run_daemon
        monkeypatch.setitem(sys.modules, "pylon.daemon", module)

    def run_daemon(
        self,
        loaded: LoadedSettings,
        paths: Paths,
        key: SecretKey,
        *,
        read_again: Callable[[], Settings],
        debug: bool = False,
    ) -> int:
        self.debug, self.read_again = debug, read_again
        self.calls.append((loaded, paths, key))
        return 42


def test_start_lays_the_flags_over_the_settings(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started = Started(monkeypatch)
    key = SecretKey.generate()
    monkeypatch.setenv("PYLON_NSEC", key.reveal_nsec())
    other = home / "other.toml"
    other.write_text('name = "other"\n')
    flags = ["--relay", "wss://a.example", "--relay", "wss://b.example", "--log-level", "debug"]
    code = run(["--config", str(other), "start", "--debug", "--free", *flags, "--log-format", "json"])
    assert code == 42
    ((loaded, paths, used),) = started.calls
    assert loaded.settings.name == "other"
    assert loaded.settings.payment.mode == "free"
    assert loaded.settings.relays.urls == ("wss://a.example", "wss://b.example")
    assert (loaded.settings.log.level, loaded.settings.log.format) == ("debug", "json")
    assert paths == paths_under(home)
    assert used.public_hex == key.public_hex
    assert started.debug


def test_start_leaves_the_settings_alone_without_flags(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started = Started(monkeypatch)
    monkeypatch.setenv("PYLON_NSEC", SecretKey.generate().reveal_nsec())
    assert run(["start"]) == 42
    assert dict(started.calls[0][0].origins).keys() == {"identity.nsec"}


def test_start_without_identity_says_what_to_do(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    Started(monkeypatch)
    assert run(["start"]) == 1
    err = capsys.readouterr().err
    assert "pylon init" in err
    assert err.count("\n") == 1


def test_bad_settings_are_2(home: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    Started(monkeypatch)
    assert run(["start", "--relay", "http://x"]) == 2
    assert "relays.urls" in capsys.readouterr().err
