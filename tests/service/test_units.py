"""Units as text: what they say, what they cannot hold, and whether somebody has changed them."""

from __future__ import annotations

import plistlib
from dataclasses import replace
from pathlib import Path

import pytest

from pylon.service.units import (
    Credential,
    Scope,
    ServiceError,
    UnitFacts,
    is_untouched,
    launchd_plist,
    systemd_unit,
)

FACTS = UnitFacts(Scope.SYSTEM, ("/opt/pylon/bin/pylon",), {"PYLON_HOME": "/var/lib/pylon"})
MINE = replace(FACTS, scope=Scope.USER, variables={}, home=Path("/home/me/.local/state/pylon"))


def parsed(text: str) -> dict[str, dict[str, list[str]]]:
    """Return a unit's sections; a key may come more than once."""
    found: dict[str, dict[str, list[str]]] = {}
    section: dict[str, list[str]] = {}
    for line in text.splitlines():
        if line.startswith("["):
            section = found.setdefault(line.strip("[]"), {})
        elif line and not line.startswith("#"):
            key, _, value = line.partition("=")
            section.setdefault(key, []).append(value)
    return found


def test_the_systems_unit_is_watched_and_shut_in() -> None:
    unit = parsed(systemd_unit(FACTS))
    service = {key: values[0] for key, values in unit["Service"].items()}
    assert service["Type"] == "notify"
    assert service["ExecStart"] == "/opt/pylon/bin/pylon start"
    assert service["ExecReload"] == "/opt/pylon/bin/pylon reload"
    assert service["Environment"] == '"PYLON_HOME=/var/lib/pylon"'
    assert (service["User"], service["StateDirectory"], service["UMask"]) == ("pylon", "pylon", "0077")
    assert (service["Restart"], service["KillMode"]) == ("on-failure", "mixed")
    assert int(service["WatchdogSec"]) > 0
    assert service["CapabilityBoundingSet"] == ""
    assert unit["Service"]["SystemCallFilter"] == ["@system-service", "~@privileged"]
    assert unit["Install"]["WantedBy"] == ["multi-user.target"]


def test_the_users_unit_asks_for_nothing_that_a_user_cannot_have() -> None:
    service = parsed(systemd_unit(MINE))["Service"]
    assert not {"User", "ProtectSystem", "ProtectHome", "PrivateTmp", "PrivateDevices"} & service.keys()
    assert service["NoNewPrivileges"] == ["yes"]
    assert service["StateDirectory"] == ["pylon"]
    assert "Environment" not in service
    own = parsed(systemd_unit(replace(MINE, variables={"PYLON_HOME": "/srv/a b"}, state="")))["Service"]
    assert "StateDirectory" not in own
    assert own["Environment"] == ['"PYLON_HOME=/srv/a b"']


@pytest.mark.parametrize("scope", Scope)
def test_nothing_is_left_to_fill_in(scope: Scope) -> None:
    facts = replace(FACTS, scope=scope, config=Path("/etc/p.toml"), gpu=True)
    for line in systemd_unit(facts).splitlines():
        assert line.startswith("#") or line.count("@") <= 1, line


def test_a_stop_may_take_what_running_jobs_may() -> None:
    unit = parsed(systemd_unit(replace(FACTS, stop_timeout_s=299.5)))
    assert unit["Service"]["TimeoutStopSec"] == ["330"]
    assert plistlib.loads(launchd_plist(replace(FACTS, stop_timeout_s=299.5)).encode())["ExitTimeOut"] == 330


def test_words_are_quoted_for_systemd() -> None:
    facts = replace(FACTS, program=("/opt/a b/100%/pylon",), config=Path("/etc/x;y.toml"))
    service = parsed(systemd_unit(facts))["Service"]
    assert service["ExecStart"] == ['"/opt/a b/100%%/pylon" start --config "/etc/x;y.toml"']


@pytest.mark.parametrize("path", ["/opt/$HOME/pylon", '/opt/"/pylon', "/opt/\n[Service]/pylon", "/opt/\\/pylon"])
def test_what_would_mean_something_else_in_a_unit_is_refused(path: str) -> None:
    for facts in (replace(FACTS, program=(path,)), replace(FACTS, credentials=(Credential("nsec", Path(path)),))):
        with pytest.raises(ServiceError, match="no unit can name") as error:
            systemd_unit(facts)
        assert "\n" not in str(error.value)


def test_secrets_come_as_credentials() -> None:
    assert "\n# LoadCredential=nsec:/etc/pylon/credentials/nsec\n" in systemd_unit(FACTS), "an example"
    facts = replace(
        FACTS,
        credentials=(
            Credential("nsec", Path("/etc/pylon/credentials/nsec")),
            Credential("wallet_uri", Path("/etc/pylon/credentials/wallet_uri.cred"), encrypted=True),
        ),
    )
    service = parsed(systemd_unit(facts))["Service"]
    assert service["LoadCredential"] == ["nsec:/etc/pylon/credentials/nsec"]
    assert service["LoadCredentialEncrypted"] == ["wallet_uri:/etc/pylon/credentials/wallet_uri.cred"]


def test_a_gpu_is_seen_only_when_asked_for() -> None:
    assert "DeviceAllow" not in parsed(systemd_unit(FACTS))["Service"]
    service = parsed(systemd_unit(replace(FACTS, gpu=True)))["Service"]
    assert "PrivateDevices" not in service, "the owner's terminals must be seen"
    assert service["DevicePolicy"] == ["closed"]
    assert "char-nvidia* rw" in service["DeviceAllow"]


def test_the_property_list_keeps_it_alive_but_not_after_a_stop() -> None:
    facts = replace(
        MINE,
        program=("/opt/a & <b>/pylon",),
        config=Path("/x.toml"),
        variables={"HOME": "/Users/me"},
        log_file=Path("/Users/me/Library/pylon.log"),
    )
    told = plistlib.loads(launchd_plist(facts).encode())
    assert told["ProgramArguments"] == ["/opt/a & <b>/pylon", "start", "--config", "/x.toml"]
    assert told["EnvironmentVariables"] == {"HOME": "/Users/me"}
    assert told["KeepAlive"] == {"SuccessfulExit": False}
    assert told["RunAtLoad"] is True
    assert told["ThrottleInterval"] == 10
    assert told["StandardErrorPath"] == told["StandardOutPath"] == "/Users/me/Library/pylon.log"
    assert told["Umask"] == 0o077
    assert "UserName" not in told
    assert plistlib.loads(launchd_plist(replace(facts, run_as="me")).encode())["UserName"] == "me"
    with pytest.raises(ServiceError, match="control character"):
        launchd_plist(replace(facts, variables={"HOME": "/Users/\x07"}))


@pytest.mark.parametrize("render", [systemd_unit, launchd_plist])
def test_a_change_by_hand_is_seen(render: object) -> None:
    text = render(FACTS)  # type: ignore[operator]
    assert is_untouched(text)
    assert not is_untouched(text.replace("pylon start", "pylon start --free").replace("<true/>", "<false/>"))
    assert not is_untouched(text + "# a line more\n")
    assert not is_untouched("somebody's own\n")
