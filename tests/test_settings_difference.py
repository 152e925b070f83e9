"""What differs between two settings, by the names of things, and never what a secret is."""

from __future__ import annotations

from typing import Any

from pylon.settings.difference import Difference, differences
from pylon.settings.load import merge_settings
from pylon.settings.model import Settings

LOCAL = {"name": "local", "kind": "openai", "url": "http://127.0.0.1:1/v1"}
ECHO = {"name": "e", "kind": "echo"}
SMALL = {"name": "small", "backend": "local", "base_msats": 1000}
BIG = {"name": "big", "backend": "local", "base_msats": 5000}


def settings(*models: dict[str, Any], backends: tuple[dict[str, Any], ...] = (LOCAL,), **rest: Any) -> Settings:
    document = {"backends": list(backends), "models": list(models), **rest}
    return merge_settings(None, {}, document, {}).settings


def told(before: Settings, after: Settings) -> list[tuple[str, str | None, str | None]]:
    return [(each.key, each.before, each.after) for each in differences(before, after)]


def test_the_same_differ_in_nothing() -> None:
    assert differences(settings(SMALL), settings(SMALL)) == ()


def test_each_key_with_its_values() -> None:
    before = settings(SMALL)
    after = settings(
        {**SMALL, "aliases": ["tiny", "s"], "default_output_tokens": 99},
        name="other",
        intake={"targeted_only": True},
        announce={"about": "\x1b[31mred"},
        wallet={"kind": "lnbits", "url": "http://127.0.0.1:2"},
    )
    assert told(before, after) == [
        ("name", "pylon", "other"),
        ("wallet.kind", "none", "lnbits"),
        ("wallet.url", None, "http://127.0.0.1:2"),
        ("intake.targeted_only", "false", "true"),
        ("announce.about", "Sells inference for Lightning payments (NIP-90).", "\\x1b[31mred"),
        ("models[small].aliases", "", "tiny, s"),
        ("models[small].default_output_tokens", None, "99"),
    ]


def test_of_a_secret_only_that_it_is_another_one() -> None:
    wallet = {"kind": "lnbits", "url": "http://127.0.0.1:2"}
    key = {"api_key": "first-api-key"}
    before = settings(SMALL, backends=({**LOCAL, **key},), wallet={**wallet, "token": "first-token"})
    after = settings(
        SMALL,
        backends=({**LOCAL, "api_key": "second-api-key"},),
        wallet={**wallet, "token": "second-token", "pay_token": "third-token"},
    )
    found = differences(before, after)
    assert found == (
        Difference("wallet.token", "(secret)", "(secret)"),
        Difference("wallet.pay_token", None, "(secret)"),
        Difference("backends[local].api_key", "(secret)", "(secret)"),
    )


def test_models_and_backends_go_by_their_names() -> None:
    prices = {"prices": {"5050": {"base_msats": 7}}}
    assert told(settings(SMALL), settings(BIG | prices, SMALL)) == [("models[big]", None, "there")]
    assert told(settings(BIG | prices, SMALL), settings(SMALL)) == [("models[big]", "there", None)]
    assert told(settings(BIG, SMALL), settings(SMALL, BIG)) == [("models", "big, small", "small, big")]
    assert told(settings(BIG), settings(BIG | prices)) == [("models[big].prices[5050]", None, "there")]
    assert told(settings(SMALL), settings(SMALL, backends=(LOCAL, ECHO))) == [("backends[e]", None, "there")]
    assert told(settings(), settings(SMALL)) == [("models[small]", None, "there")]


def test_a_backend_of_another_kind_is_told_by_what_differs() -> None:
    found = {
        key: (old, new)
        for key, old, new in told(
            settings(SMALL), settings(SMALL, backends=({**LOCAL, "kind": "ollama", "url": "http://127.0.0.1:1"},))
        )
    }
    assert found["backends[local].kind"] == ("openai", "ollama")
    assert found["backends[local].pull"] == (None, "false")
