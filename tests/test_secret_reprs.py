"""No object that is made of the settings shows a secret in its repr: what a traceback or a debugger would print."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from pylon import assembly
from pylon.nostr.identity import identity_from_mnemonic
from pylon.paths import paths_under
from pylon.settings import LoadedSettings, load_settings
from pylon.settings.identity_file import read_stored, save_identity
from pylon.settings.show import shown_values

WORDS = "leader monkey parrot ring guide accident before fence cannon height naive bean"
IDENTITY = identity_from_mnemonic(WORDS)
PASSPHRASE = "zebra umbrella glacier 77"
API_KEY, TOKEN, WALLET_SECRET = "sk-live-5Zb1kq0Vd7Xw3Rt9", "token-8Hq2Lm5Yc0Zx", "c7" * 32
URI = f"nostr+walletconnect://{IDENTITY.secret.public_hex}?relay=wss://relay.example&secret={WALLET_SECRET}"
SECRETS = (
    IDENTITY.secret.reveal_nsec(),
    IDENTITY.secret.reveal_hex(),
    repr(bytes.fromhex(IDENTITY.secret.reveal_hex())),
    WORDS,
    PASSPHRASE,
    API_KEY,
    TOKEN,
    WALLET_SECRET,
    repr(bytes.fromhex(WALLET_SECRET)),
)


def loaded(folder: Path, kind: str) -> LoadedSettings:
    wallet = f'token = "{TOKEN}"\nurl = "http://127.0.0.1:1"' if kind == "fake" else f'uri = "{URI}"'
    file = folder / "pylon.toml"
    file.write_text(
        f'[identity]\nmnemonic = "{WORDS}"\npassphrase = "{PASSPHRASE}"\n'
        f'[wallet]\nkind = "{kind}"\n{wallet}\n'
        f'[[backends]]\nname = "b"\nkind = "openai"\nurl = "http://127.0.0.1:2/v1"\napi_key = "{API_KEY}"\n'
        '[[models]]\nname = "m"\nbackend = "b"\nbase_msats = 1\n'
    )
    file.chmod(0o600)
    return load_settings(file, {}, {})


def objects(value: Any, seen: set[int]) -> Iterator[Any]:
    """Yield every object of ours, and of pydantic, that can be reached from one."""
    if id(value) in seen or isinstance(value, str | bytes | int | float | type | SecretStr):
        return
    seen.add(id(value))
    if isinstance(value, dict):
        inner = [*value.keys(), *value.values()]
    elif isinstance(value, list | tuple | set | frozenset):
        inner = list(value)
    elif type(value).__module__.partition(".")[0] in ("pylon", "pydantic"):
        yield value
        slots = [name for kind in type(value).__mro__ for name in getattr(kind, "__slots__", ())]
        inner = [*getattr(value, "__dict__", {}).values(), *(getattr(value, name, None) for name in slots)]
    else:
        return
    for each in inner:
        yield from objects(each, seen)


@pytest.mark.parametrize("kind", ["fake", "nwc"])
def test_nothing_made_of_the_settings_shows_a_secret(tmp_path: Path, kind: str) -> None:
    given = loaded(tmp_path, kind)
    settings, paths = given.settings, paths_under(tmp_path)
    made = [
        given,
        IDENTITY,
        assembly.make_wallet(settings, time.time),
        assembly.make_backends(settings, paths),
        assembly.make_pool_config(settings),
        assembly.make_recorder_config(settings),
        assembly.make_runner_config(settings),
        assembly.make_announce_config(settings),
        assembly.make_cashier_config(settings),
        assembly.make_offers(settings),
        shown_values(given),
    ]
    found = list(objects(made, set()))
    assert {type(each).__name__ for each in found} >= {"Settings", "IdentitySettings", "OpenAIConfig", "SecretKey"}
    dumps = [repr(each) for each in found]
    dumps += [str(settings), repr(settings.model_dump()), settings.model_dump_json(), repr(vars(settings))]
    for dump in dumps:
        assert not [secret[:6] for secret in SECRETS if secret in dump], dump[:40]
    hidden = assembly.secrets_of(settings, IDENTITY.secret)
    assert {WORDS, PASSPHRASE, API_KEY} <= set(hidden), "and the log's redactor knows them all"
    assert (TOKEN if kind == "fake" else WALLET_SECRET) in hidden


@pytest.mark.parametrize("passphrase", [None, PASSPHRASE])
def test_what_an_identity_file_holds_is_not_in_its_repr(tmp_path: Path, passphrase: str | None) -> None:
    saved = save_identity(tmp_path / "home" / "identity.json", IDENTITY, passphrase=passphrase)
    stored = read_stored(saved.path)
    for each in objects([saved, stored, stored.open(passphrase)], set()):
        assert not [secret[:6] for secret in SECRETS if secret in repr(each)]
        assert "ncryptsec1" not in repr(each)
