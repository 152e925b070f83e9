"""`pylon service` on temporary homes, with a systemctl, a journalctl and a launchctl that the tests script."""

from __future__ import annotations

import json
import os
import plistlib
import subprocess
import sys
from pathlib import Path

import pytest

from pylon.cli.app import run
from pylon.service.manager import Places, manager_of
from pylon.service.steps import Run, Write, carry_out, refuse_changed
from pylon.service.units import Scope, ServiceError, UnitFacts

Captured = pytest.CaptureFixture[str]

SHOWN = """\
LoadState=loaded
UnitFileState=enabled
ActiveState={active}
SubState={sub}
StatusText=takes jobs
MainPID=4242
NRestarts=2
Result={result}
"""


class Tools:
    """Programs on PATH that note how they were called, and answer as told."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.calls = folder / "calls"
        self.calls.touch()

    def script(self, name: str, *, out: str = "", err: str = "", code: int = 0, only: str = "") -> None:
        """Have a program answer; with `only` when that is among its words, else it is silent and succeeds."""
        (self.folder / f"{name}.out").write_text(out)
        (self.folder / f"{name}.err").write_text(err)
        path = self.folder / name
        path.write_text(
            "#!/bin/sh\n"
            f'echo "{name} $*" >> {self.calls}\n'
            f'case " $* " in *"{only}"*) ;; *) exit 0 ;; esac\n'
            f"cat {self.folder}/{name}.out; cat {self.folder}/{name}.err >&2; exit {code}\n"
        )
        path.chmod(0o755)

    @property
    def called(self) -> list[str]:
        """How they were called so far."""
        return self.calls.read_text().splitlines()


@pytest.fixture
def tools(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tools:
    """A user's home with systemd's programs, and nothing of this machine."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.delenv("PYLON_HOME")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    made = Tools(folder)
    for name in ("systemctl", "journalctl", "systemd-sysusers", "install", "launchctl"):
        made.script(name)
    return made


@pytest.fixture
def unit(tools: Tools, tmp_path: Path) -> Path:
    return tmp_path / "config" / "systemd" / "user" / "pylon.service"


def test_install_shows_what_it_does_and_does_it_once(tools: Tools, unit: Path, capsys: Captured) -> None:
    assert run(["service", "install", "--user"]) == 0
    said = capsys.readouterr().out
    assert said.splitlines()[:3] == [
        f"wrote {unit}",
        "ran systemctl --user daemon-reload",
        "ran systemctl --user enable pylon.service",
    ]
    assert "start it: pylon service start" in said
    assert "loginctl enable-linger" in said
    assert tools.called == [
        "systemctl --user show --property=Version",
        "systemctl --user daemon-reload",
        "systemctl --user enable pylon.service",
    ]
    text = unit.read_text()
    assert f'Environment="XDG_CONFIG_HOME={unit.parents[2]}" "XDG_STATE_HOME=' in text
    assert unit.stat().st_mode & 0o777 == 0o644
    assert run(["service", "install", "--user", "--now"]) == 0
    assert f"{unit} is as it should be" in capsys.readouterr().out
    assert tools.called[-1] == "systemctl --user start pylon.service"
    assert list(unit.parent.iterdir()) == [unit]


def test_print_and_dry_run_do_nothing(tools: Tools, unit: Path, capsys: Captured) -> None:
    assert run(["service", "install", "--user", "--print"]) == 0
    printed = capsys.readouterr().out
    assert "\nExecStart=" in printed
    assert run(["service", "install", "--user", "--dry-run", "--now"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"would write {unit}",
        "would run systemctl --user daemon-reload",
        "would run systemctl --user enable pylon.service",
        "would run systemctl --user start pylon.service",
    ]
    assert not unit.exists()
    assert tools.called == []
    assert run(["service", "install", "--user"]) == 0
    assert unit.read_text() == printed


def test_what_somebody_changed_stays_unless_forced(tools: Tools, unit: Path, capsys: Captured) -> None:
    run(["service", "install", "--user"])
    changed = unit.read_text().replace("RestartSec=5", "RestartSec=50")
    unit.write_text(changed)
    capsys.readouterr()
    calls = len(tools.called)
    for verb in ("install", "uninstall"):
        assert run(["service", verb, "--user"]) == 1
        err = capsys.readouterr().err
        assert err.startswith(f"pylon: {unit} was changed")
        assert err.count("\n") == 1
    assert unit.read_text() == changed
    assert not any("enable" in call or "disable" in call for call in tools.called[calls:]), "half of it was done"
    assert run(["service", "install", "--user", "--dry-run"]) == 0
    assert "changed by hand: only with --force" in capsys.readouterr().out
    assert run(["service", "install", "--user", "--force"]) == 0
    assert "what was there is in" in capsys.readouterr().out
    assert (unit.parent / "pylon.service.old").read_text() == changed
    assert "RestartSec=5\n" in unit.read_text()


def test_an_older_one_of_ours_is_updated(tools: Tools, unit: Path, capsys: Captured) -> None:
    run(["service", "install", "--user"])
    before = unit.read_text()
    config = unit.parents[2] / "pylon" / "pylon.toml"
    config.parent.mkdir()
    config.write_text("[daemon]\nstop_timeout_s = 120\n")
    capsys.readouterr()
    assert run(["service", "install", "--user"]) == 0
    assert f"updated {unit}\n" in capsys.readouterr().out
    assert unit.read_text() != before
    assert "TimeoutStopSec=150\n" in unit.read_text()


def test_uninstall_takes_the_unit_away_and_leaves_the_rest(tools: Tools, unit: Path, capsys: Captured) -> None:
    run(["service", "install", "--user"])
    capsys.readouterr()
    assert run(["service", "uninstall", "--user"]) == 0
    assert not unit.exists()
    assert tools.called[-2:] == [
        "systemctl --user disable --now pylon.service",
        "systemctl --user daemon-reload",
    ]
    assert run(["service", "uninstall", "--user"]) == 0
    assert "not installed as a service of the user" in capsys.readouterr().out


def test_secrets_beside_the_settings_become_credentials(tools: Tools, unit: Path, capsys: Captured) -> None:
    folder = unit.parents[2] / "pylon" / "credentials"
    folder.mkdir(parents=True)
    secret = folder / "wallet_token"
    secret.write_text("s3cret")
    assert run(["service", "install", "--user"]) == 1
    assert f"others can read {secret}" in capsys.readouterr().err
    secret.chmod(0o600)
    assert run(["service", "install", "--user"]) == 0
    assert f"\nLoadCredential=wallet_token:{secret}\n" in unit.read_text()
    assert "s3cret" not in unit.read_text()
    (folder / "nsec.cred").write_text("sealed")
    assert run(["service", "install", "--user"]) == 1
    assert "only the system's service" in capsys.readouterr().err


def test_what_is_set_in_the_shell_is_not_forgotten_in_silence(
    tools: Tools, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYLON_WALLET_TOKEN", "s3cret")
    assert run(["service", "install", "--user"]) == 0
    said = capsys.readouterr().out
    assert "set in this shell and not for the service: PYLON_WALLET_TOKEN" in said
    assert "s3cret" not in said


def test_start_and_stop_go_through_systemd(tools: Tools, capsys: Captured) -> None:
    assert run(["service", "start", "--user"]) == 1
    assert "pylon service install first" in capsys.readouterr().err
    run(["service", "install", "--user"])
    assert run(["service", "start", "--user"]) == 0
    assert tools.called[-1] == "systemctl --user start pylon.service"
    assert run(["service", "stop", "--user"]) == 0
    assert tools.called[-1] == "systemctl --user stop pylon.service"
    tools.script("systemctl", err="Job for pylon.service failed.\nSee more", code=1, only=" start ")
    capsys.readouterr()
    assert run(["service", "start", "--user"]) == 1
    assert capsys.readouterr().err == (
        "pylon: systemctl --user start pylon.service failed: Job for pylon.service failed.\n"
    )


@pytest.mark.parametrize(
    ("active", "sub", "result", "code"),
    [
        ("active", "running", "success", 0),
        ("reloading", "reload", "success", 0),
        ("activating", "start", "success", 1),
        ("failed", "failed", "watchdog", 1),
        ("inactive", "dead", "success", 3),
    ],
)
def test_status_is_a_look_and_an_exit_code(
    tools: Tools, capsys: Captured, active: str, sub: str, result: str, code: int
) -> None:
    run(["service", "install", "--user"])
    capsys.readouterr()
    tools.script("systemctl", out=SHOWN.format(active=active, sub=sub, result=result))
    assert run(["service", "status", "--user"]) == code
    said = capsys.readouterr().out
    assert f"{active} ({sub})" in said
    assert (result if result != "success" else "takes jobs") in said
    assert run(["service", "status", "--user", "--json"]) == code
    told = json.loads(capsys.readouterr().out)
    assert (told["pid"], told["restarts"], told["changed_by_hand"]) == (4242, 2, False)


def test_logs_are_the_journals(tools: Tools, capfd: pytest.CaptureFixture[str]) -> None:
    tools.script("journalctl", out="a line\n")
    assert run(["service", "logs", "--user", "--lines", "7", "--follow"]) == 0
    assert capfd.readouterr().out == "a line\n"
    assert tools.called == ["journalctl --user-unit pylon.service --no-pager --output=short-iso --lines 7 --follow"]


def test_where_systemd_is_not_that_is_one_sentence(
    tools: Tools, unit: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    not_booted = "System has not been booted with systemd as init system (PID 1). Can't operate.\n"
    tools.script("systemctl", err=not_booted, code=1)
    for verb in ("install", "status"):
        assert run(["service", verb, "--user"]) == 1
        err = capsys.readouterr().err
        assert err.startswith("pylon: the user's manager does not answer (System has not been booted")
        assert "pylon start --detach" in err
        assert err.count("\n") == 1
    assert not unit.exists()
    monkeypatch.setenv("PATH", str(tools.folder / "nothing"))
    assert run(["service", "install", "--user"]) == 1
    err = capsys.readouterr().err
    assert err.startswith("pylon: this machine has no systemd (systemctl is not on this machine)")
    assert err.count("\n") == 1
    monkeypatch.setattr(sys, "platform", "sunos5")
    with pytest.raises(ServiceError, match="no service manager is known for sunos5"):
        manager_of(Scope.USER, Places(Path("/"), Path("/"), {}, 0), "sunos5")


def test_a_wrong_question_is_refused(tools: Tools, capsys: Captured) -> None:
    assert run(["service", "status", "--user", "--system"]) == 2
    assert "exclude each other" in capsys.readouterr().err
    assert run(["service", "install", "--user", "--executable", "/nowhere/pylon"]) == 1
    assert "no program that can be run" in capsys.readouterr().err


# --- the machine's own ----------------------------------------------------------------------------------------


def test_the_systems_service_has_a_user_and_a_home_of_its_own(tools: Tools, capsys: Captured) -> None:
    program = tools.folder / "systemctl"
    assert run(["service", "install", "--system", "--dry-run", "--executable", str(program)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "would write /etc/sysusers.d/pylon.conf",
        "would run systemd-sysusers /etc/sysusers.d/pylon.conf",
        "would run install -d -o pylon -g pylon -m 0700 /var/lib/pylon",
        "would write /etc/systemd/system/pylon.service",
        "would run systemctl daemon-reload",
        "would run systemctl enable pylon.service",
    ]
    assert run(["service", "install", "--system", "--print", "--gpu"]) == 0
    printed = capsys.readouterr().out
    assert 'Environment="PYLON_HOME=/var/lib/pylon"' in printed
    assert "DeviceAllow=char-nvidia* rw" in printed
    assert run(["--home", "/srv/other", "service", "install", "--system", "--print"]) == 1
    assert "has its home in /var/lib/pylon" in capsys.readouterr().err


@pytest.mark.parametrize("where", ["/home/me/.venv/bin/pylon", "/root/pylon", "/tmp/pylon"])
def test_a_program_that_the_systems_service_cannot_see_is_refused(
    tools: Tools, capsys: Captured, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    monkeypatch.setattr(os, "access", lambda *_: True)
    assert run(["service", "install", "--system", "--executable", where]) == 1
    err = capsys.readouterr().err
    assert f"the system's service cannot see {where}" in err
    assert "--user" in err


def test_its_steps_below_another_root(tools: Tools, tmp_path: Path) -> None:
    places = Places(tmp_path / "root", tmp_path, {}, 0)
    manager = manager_of(Scope.SYSTEM, places, "linux")
    facts = UnitFacts(Scope.SYSTEM, ("/opt/pylon/bin/pylon",))
    steps = manager.install(facts, now=True)
    refuse_changed(steps)
    done = [carry_out(step) for step in steps]
    unit, users = tmp_path / "root/etc/systemd/system/pylon.service", tmp_path / "root/etc/sysusers.d/pylon.conf"
    assert done == [
        f"wrote {users}",
        f"ran systemd-sysusers {users}",
        "ran install -d -o pylon -g pylon -m 0700 /var/lib/pylon",
        f"wrote {unit}",
        "ran systemctl daemon-reload",
        "ran systemctl enable pylon.service",
        "ran systemctl start pylon.service",
    ]
    assert "u pylon -" in users.read_text()
    for step in manager.uninstall():
        carry_out(step)
    assert not unit.exists() and not users.exists()
    denied = Write(Path("/proc/nothing/pylon.service"), "x")
    with pytest.raises(ServiceError, match=r"cannot write /proc/nothing/pylon\.service"):
        carry_out(denied)
    tools.script("systemctl", err="", out="", code=5)
    with pytest.raises(ServiceError, match="systemctl start failed: exit code 5"):
        carry_out(Run(("systemctl", "start")))


# --- launchd --------------------------------------------------------------------------------------------------

PRINTED = """\
gui/501/org.nostr.pylon = {
	active count = 1
	path = /Users/me/Library/LaunchAgents/org.nostr.pylon.plist
	state = %s

	program = /opt/pylon/bin/pylon
	runs = 3
	pid = 4242
	last exit code = %s

	spawn type = daemon (3)
	sub = {
		state = active
	}
}
"""


@pytest.fixture
def mac(tools: Tools, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same home on a Mac; returns where its property list lies."""
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    return tmp_path / "me" / "Library/LaunchAgents/org.nostr.pylon.plist"


def test_launchd_keeps_an_agent(tools: Tools, mac: Path, tmp_path: Path) -> None:
    target, domain = f"gui/{os.getuid()}/org.nostr.pylon", f"gui/{os.getuid()}"
    manager = manager_of(Scope.USER, Places(Path("/"), tmp_path / "me", {}, os.getuid()), "darwin")
    assert manager.unit_path == mac
    facts = UnitFacts(Scope.USER, ("/opt/pylon/bin/pylon",), {"HOME": "/Users/me"})
    manager.check()
    for step in manager.install(facts, now=True):
        carry_out(step)
    assert plistlib.loads(mac.read_bytes())["Label"] == "org.nostr.pylon"
    for step in (*manager.stop(), *manager.uninstall()):
        carry_out(step)
    assert tools.called == [
        f"launchctl print {domain}",
        f"launchctl enable {target}",
        f"launchctl bootstrap {domain} {mac}",
        f"launchctl kickstart {target}",
        f"launchctl kill SIGTERM {target}",
        f"launchctl bootout {target}",
    ]
    assert not mac.exists()
    assert manager.log_command(facts, lines=5, follow=True) == ("tail", "-n", "5", "-F", str(facts.log_file))


@pytest.mark.parametrize(
    ("state", "ended", "code"),
    [("running", "(never exited)", 0), ("not running", "0", 3), ("not running", "78: EX_CONFIG", 1)],
)
def test_status_under_launchd(tools: Tools, mac: Path, capsys: Captured, state: str, ended: str, code: int) -> None:
    mac.parent.mkdir(parents=True)
    assert run(["service", "install", "--user"]) == 0
    tools.script("launchctl", out=PRINTED % (state, ended))
    capsys.readouterr()
    assert run(["service", "status", "--user"]) == code
    assert f"state     {state}" in capsys.readouterr().out
    tools.script("launchctl", err="Could not find service", code=113, only="org.nostr.pylon")
    assert run(["service", "status", "--user"]) == 3
    assert "not loaded" in capsys.readouterr().out


def test_a_macs_own_service_runs_as_who_installs_it(tools: Tools, mac: Path, capsys: Captured) -> None:
    environ = {"SUDO_USER": "me"}
    from pylon.cli.service_facts import gather

    places = Places(Path("/"), Path("/Users/me"), environ, 0)
    assert gather(Scope.SYSTEM, places).run_as == "me"
    manager = manager_of(Scope.SYSTEM, places, "darwin")
    assert manager.unit_path == Path("/Library/LaunchDaemons/org.nostr.pylon.plist")
    assert run(["service", "install", "--system", "--print"]) == 1
    assert "run this with sudo" in capsys.readouterr().err


def test_the_tools_are_stand_ins(tools: Tools) -> None:
    """Else the tests above would have spoken with this machine's own manager."""
    found = subprocess.run(["sh", "-c", "command -v systemctl"], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == str(tools.folder / "systemctl")
