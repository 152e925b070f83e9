"""What the trial purchase tries, leaves alone, and hands to the daemon that it starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pylon.demo.trial_purchase import Trial, buy_from_oneself, choose
from pylon.doctor.findings import Finding, Level
from pylon.lock import instance_lock
from pylon.nostr.keys import SecretKey
from pylon.paths import paths_under
from pylon.settings import OllamaBackendSettings, OpenAIBackendSettings, Settings, load_settings

KEY = SecretKey(b"\x07" * 32)
API_KEY = "sk-of-the-operator"
EMBEDDED = {"name": "e", "kind": "embedded", "gguf": "/nowhere/model.gguf", "start_timeout_s": 200}
HOSTED = {"name": "h", "kind": "openai", "url": "http://127.0.0.1:1/v1", "api_key": API_KEY}
OLLAMA = {"name": "o", "kind": "ollama", "pull": True}


def settings(*models: dict[str, Any]) -> Settings:
    return Settings.model_validate(
        {"payment": {"mode": "free"}, "backends": [EMBEDDED, HOSTED, OLLAMA], "models": models}
    )


def chosen(*models: dict[str, Any], held: bool = False) -> Trial:
    trial, skipped = choose(settings(*models), held=held)
    assert trial is not None
    assert skipped == ()
    return trial


def sold(trial: Trial, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Return what the daemon that sells it reads."""
    monkeypatch.setenv("PYLON_WALLET_TOKEN", "the operator's")
    environ = trial.environment(Path("/nowhere"), KEY)
    assert environ["PYLON_HOME"] == "/nowhere"
    assert "PYLON_WALLET_TOKEN" not in environ
    return load_settings(None, {"payment.mode": "free"}, environ).settings


def test_the_first_model_is_tried_on_all_of_its_backends(monkeypatch: pytest.MonkeyPatch) -> None:
    first = {"name": "m", "backend": "e", "backend_model": "m-q4", "also_on": ["h=big-m"], "base_msats": 7}
    trial = chosen(first, {"name": "n", "backend": "o"})
    assert trial.place == "m on e or h"
    assert trial.loading_s == 200
    theirs = sold(trial, monkeypatch)
    assert [each.name for each in theirs.backends] == ["e", "h"]
    (model,) = theirs.models
    assert (model.name, model.base_msats) == ("m", 7)
    assert model.routes == (("e", "m-q4"), ("h", "big-m"))
    assert theirs.identity.nsec is not None
    assert theirs.identity.nsec.get_secret_value() == KEY.reveal_nsec()


def test_a_secret_reaches_the_daemon_and_shows_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    trial = chosen({"name": "m", "backend": "h"})
    assert API_KEY not in repr(trial)
    (backend,) = sold(trial, monkeypatch).backends
    assert isinstance(backend, OpenAIBackendSettings)
    assert backend.api_key is not None
    assert backend.api_key.get_secret_value() == API_KEY


def test_a_diagnosis_downloads_no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    (backend,) = sold(chosen({"name": "m", "backend": "o"}), monkeypatch).backends
    assert isinstance(backend, OllamaBackendSettings)
    assert backend.pull is False


def test_what_a_running_daemon_holds_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    spare = chosen({"name": "m", "backend": "e", "also_on": ["h=big-m"]}, held=True)
    assert sold(spare, monkeypatch).models[0].routes == (("h", "big-m"),)
    trial, skipped = choose(settings({"name": "m", "backend": "e"}, {"name": "n", "backend": "h"}), held=True)
    assert trial is not None
    assert trial.model.name == "n"
    assert [each.name for each in skipped] == ["m"]


def test_the_request_keeps_to_what_is_sold() -> None:
    draft = chosen({"name": "m", "backend": "h", "max_output_tokens": 4, "kinds": [5002]}).draft(KEY.public_hex)
    assert draft.kind == 5002
    assert ("param", "max_tokens", "4") in [tuple(tag) for tag in draft.tags]
    assert ("param", "language", "es") in [tuple(tag) for tag in draft.tags]
    assert ("p", KEY.public_hex) in [tuple(tag) for tag in draft.tags]


# --- where nothing is started ---------------------------------------------------------------------------------


async def only(home: Path, text: str) -> Finding:
    (home / "pylon.toml").write_text(text)
    (finding,) = await buy_from_oneself(paths_under(home), environ={"PYLON_HOME": str(home)})
    assert (finding.what + finding.fix).isprintable()
    assert finding.fix
    assert finding.check == "purchase"
    return finding


async def test_nothing_for_sale(tmp_path: Path) -> None:
    finding = await only(tmp_path, "")
    assert (finding.level, finding.what) == (Level.FAIL, "nothing was bought: no model is on offer")


async def test_settings_that_are_not_valid(tmp_path: Path) -> None:
    finding = await only(tmp_path, "relays = 7\n")
    assert (finding.level, finding.what) == (Level.FAIL, "nothing was bought: the settings are not valid")


async def test_an_embedded_model_is_not_loaded_beside_a_running_daemon(tmp_path: Path) -> None:
    with instance_lock(paths_under(tmp_path).lock_file):
        finding = await only(
            tmp_path,
            '[payment]\nmode = "free"\n'
            '[[backends]]\nname = "e"\nkind = "embedded"\ngguf = "/nowhere/model.gguf"\n'
            '[[models]]\nname = "m"\nbackend = "e"\n',
        )
    assert finding.level is Level.WARN
    assert finding.what.startswith("m on e was not bought: the running pylon has loaded the model")
