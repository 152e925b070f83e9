"""Where settings come from, which source wins, and what a fault says."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pylon.settings import LoadedSettings, OriginKind, SettingsError, load_settings
from pylon.settings.errors import allowed, find_field, is_secret
from pylon.settings.load import merge_settings
from pylon.settings.model import Settings, section_types
from pylon.settings.offers import BACKEND_TYPES, ModelSettings
from pylon.settings.show import MASK, shown_values
from pylon.settings.values import Section
from pylon.text import printable

WORDS = "leader monkey parrot ring guide accident before fence cannon height naive bean"
NSEC = "nsec10allq0gjx7fddtzef0ax00mdps9t2kmtrldkyjfs8l5xruwvh2dq0lhhkp"
OTHER_HEX = "11" * 32
ECHO = '[[backends]]\nname = "e"\nkind = "echo"\n'


def load(
    tmp_path: Path, text: str = "", flags: Mapping[str, object] | None = None, env: Mapping[str, str] | None = None
) -> LoadedSettings:
    file = tmp_path / "pylon.toml"
    file.write_text(text)
    file.chmod(0o600)
    return load_settings(file, flags, env or {})


def fault(tmp_path: Path, text: str = "", **given: Any) -> str:
    with pytest.raises(SettingsError) as caught:
        load(tmp_path, text, **given)
    said = str(caught.value)
    assert "\n" not in said
    assert caught.value.exit_code == 2
    return said.replace(str(tmp_path / "pylon.toml"), "FILE")


def test_without_any_source_the_defaults_hold(tmp_path: Path) -> None:
    loaded = load_settings(None, {}, {"PYLON_HOME": str(tmp_path)})
    assert loaded.config_file is None
    assert loaded.settings.relays.urls == ("wss://nexus.openagents.com", "wss://relay.damus.io", "wss://nos.lol")
    assert loaded.settings.payment.mode == "prepay"
    assert loaded.settings.backends == ()
    assert loaded.origin("relays.urls").kind is OriginKind.DEFAULT


def test_the_home_s_file_is_read_without_being_named(tmp_path: Path) -> None:
    (tmp_path / "pylon.toml").write_text('name = "mine"')
    loaded = load_settings(None, None, {"PYLON_HOME": str(tmp_path)})
    assert loaded.settings.name == "mine"
    assert loaded.config_file == tmp_path / "pylon.toml"


def test_each_source_wins_over_those_before_it(tmp_path: Path) -> None:
    text = "[relays]\nping_interval_s = 11\npong_timeout_s = 11\npublish_timeout_s = 11\n"
    env = {"PYLON_RELAYS__PONG_TIMEOUT_S": "12", "PYLON_RELAYS__PUBLISH_TIMEOUT_S": "12"}
    loaded = load(tmp_path, text, {"relays.publish_timeout_s": 13, "relays.urls": None}, env)
    relays = loaded.settings.relays
    assert (relays.connect_timeout_s, relays.ping_interval_s) == (10, 11)
    assert (relays.pong_timeout_s, relays.publish_timeout_s) == (12, 13)
    keys = ("connect_timeout_s", "ping_interval_s", "pong_timeout_s", "publish_timeout_s", "urls")
    assert [loaded.origin(f"relays.{key}").kind for key in keys] == [
        "default",
        "file",
        "environment",
        "flag",
        "default",
    ]
    assert str(loaded.origin("relays.ping_interval_s")) == str(tmp_path / "pylon.toml")
    assert str(loaded.origin("relays.pong_timeout_s")) == "PYLON_RELAYS__PONG_TIMEOUT_S"


def test_lists_are_replaced_whole_and_may_be_parted_by_commas_or_json(tmp_path: Path) -> None:
    by_commas = load(tmp_path, env={"PYLON_RELAYS__URLS": "wss://a.example, ws://b.example"})
    assert by_commas.settings.relays.urls == ("wss://a.example", "ws://b.example")
    by_json = load(tmp_path, env={"PYLON_RELAYS__URLS": '["wss://a.example"]'})
    assert by_json.settings.relays.urls == ("wss://a.example",)


def test_relay_urls_are_spelled_in_one_way_each_once(tmp_path: Path) -> None:
    text = (
        '[relays]\nurls = ["WSS://Relay.Example:443/", "wss://relay.example", "ws://h:80/p?q=1", "ws://[::1]:7777"]'
    )
    assert load(tmp_path, text).settings.relays.urls == ("wss://relay.example", "ws://h/p?q=1", "ws://[::1]:7777")


def test_arrays_come_from_the_environment_as_json(tmp_path: Path) -> None:
    env = {"PYLON_BACKENDS": '[{"name": "x", "kind": "echo", "slots": 3}]', "PYLON_PAYMENT__MODE": "free"}
    loaded = load(tmp_path, ECHO + 'slots = 9\n[[models]]\nname = "m"\nbackend = "x"\n', env=env)
    assert [backend.name for backend in loaded.settings.backends] == ["x"]
    assert loaded.origin("backends.0.slots").place == "PYLON_BACKENDS"
    assert loaded.origin("models.0.name").kind is OriginKind.FILE
    assert loaded.origin("models.0.aliases").kind is OriginKind.DEFAULT


def test_a_blank_variable_counts_as_not_set_and_strange_ones_are_left_alone(tmp_path: Path) -> None:
    env = {
        "PYLON_RELAYS__PONG_TIMEOUT_S": " ",
        "PYLON_THING": "x",
        "PYLON_HOME": "/h",
        "HOME": "/",
        "pylon_name": "low",
    }
    loaded = load(tmp_path, env=env)
    assert loaded.settings.relays.pong_timeout_s == 20
    assert loaded.settings.name == "low"
    assert loaded.origin("name").place == "pylon_name"


FAULTS = [
    (
        "[relays]\nconnect_timeout_s = 'abc'",
        "FILE: relays.connect_timeout_s: 'abc' is not a number; allowed: 1 to 120",
    ),
    ("[relays]\nconnect_timeout_s = 0", "FILE: relays.connect_timeout_s: 0 is out of range; allowed: 1 to 120"),
    ("[relays]\nconnect_timeout_s = inf", "FILE: relays.connect_timeout_s: inf is out of range; allowed: 1 to 120"),
    ("[relays]\nconnect_timeout_s = nan", "FILE: relays.connect_timeout_s: nan is out of range; allowed: 1 to 120"),
    ("[relays]\nconnect_timeout_s = true", "FILE: relays.connect_timeout_s: true: not a number; allowed: 1 to 120"),
    (
        "[relays]\nconnect_timeout = 3",
        "FILE: relays.connect_timeout: unknown key; did you mean relays.connect_timeout_s?",
    ),
    ("[relay]\n", "FILE: relay: unknown key; did you mean relays?"),
    ("[log]\nzzz = 1", "FILE: log.zzz: unknown key; allowed: level, format"),
    ("relays = 3", "FILE: relays: 3 is not a table"),
    (
        "[relays]\nurls = []",
        "FILE: relays.urls: the value has too few entries; allowed: 1 to 32 URLs that start with",
    ),
    ("[relays]\nurls = ['http://x']", "FILE: relays.urls: http://x does not start with ws:// or wss://; allowed: "),
    ("[payment]\nmode = 'fre'", "FILE: payment.mode: 'fre' is unknown; allowed: prepay, postpay, free"),
    (
        "[payment]\ninvoice_expiry_s = 99.5",
        "FILE: payment.invoice_expiry_s: 99.5 is not a whole number; allowed: 30 to",
    ),
    ("[payment]\nlookup_min_s = 50", "FILE: payment.lookup_min_s: 50 is more than lookup_max_s"),
    (
        "[payment]\ncredit_msats = 1_000_001",
        "FILE: payment.credit_msats: 1000001 is more than credit_max_msats",
    ),
    (
        "[payment]\ncredit_msats = 3\ncredit_max_msats = 4\ncredit_daily_msats = 2",
        "FILE: payment.credit_msats: 3 is more than credit_daily_msats",
    ),
    (
        "[relays]\nbackoff_min_s = 50\nbackoff_max_s = 5",
        "FILE: relays.backoff_min_s: 50 is more than backoff_max_s",
    ),
    (
        "[jobs]\nsuccess_feedback = 'maybe'",
        "FILE: jobs.success_feedback: 'maybe' is neither true nor false; allowed: true",
    ),
    ("[wallet]\nkind = 'fake'", "FILE: wallet.url: missing, and a fake wallet needs it"),
    (
        "[[backends]]\nname = 'x'",
        "FILE: backends.0.kind: missing; allowed: echo, embedded, llama_cpp, ollama, openai",
    ),
    (
        "[[backends]]\nname = 'x'\nkind = 'olama'",
        "FILE: backends.0.kind: 'olama' is unknown; allowed: echo, embedded, llama_cpp, ollama, openai",
    ),
    (
        "[[backends]]\nname = 'x'\nkind = 'openai'",
        "FILE: backends.0.url: missing; allowed: an http:// or https:// URL",
    ),
    (
        "[[backends]]\nname = 'x'\nkind = 'ollama'\nkeep_alive_s = -2",
        "FILE: backends.0.keep_alive_s: -2 is out of range; allowed: -1 to 31536000",
    ),
    (ECHO + "slot = 2", "FILE: backends.0.slot: unknown key; did you mean backends.0.slots?"),
    (ECHO + ECHO, "FILE: backends.1.name: 'e' is the name of another backend too"),
    (ECHO + "[[models]]\nname = 'm'\nbackend = 'y'", "FILE: models.0.backend: 'y' is not a backend; allowed: e"),
    (
        "[[models]]\nname = 'm'\nbackend = 'y'",
        "FILE: models.0.backend: 'y' is not a backend; allowed: none, there is no",
    ),
    (
        ECHO + "[[models]]\nname = 'm'\nbackend = 'e'",
        "FILE: models.0.base_msats: no price is set; set one, or payment",
    ),
    (
        ECHO + "[[models]]\nname = 'm'\nbackend = 'e'\nbase_msats = 1\naliases = ['k', 'm']",
        "FILE: models.0.aliases: 'm' already names a model",
    ),
    (
        ECHO
        + "[[models]]\nname = 'm'\nbackend = 'e'\nbase_msats = 1\nmax_output_tokens = 5\ndefault_output_tokens = 6",
        "FILE: models.0.default_output_tokens: 6 is more than max_output_tokens",
    ),
    ("models = 3", "FILE: models: 3 is not a list"),
    ("name = ''", "FILE: name: '' is empty"),
    ("name = 'x'\n[relays\n", "FILE: not valid TOML: "),
]


@pytest.mark.parametrize(("text", "said"), FAULTS, ids=[said[6:60] for _, said in FAULTS])
def test_a_fault_is_one_line_with_place_key_fault_and_what_is_allowed(tmp_path: Path, text: str, said: str) -> None:
    assert fault(tmp_path, text).startswith(said)


def test_a_syntax_fault_tells_the_line(tmp_path: Path) -> None:
    assert "(at line 3, column 3)" in fault(tmp_path, 'name = "x"\n\na b')


def test_a_fault_of_the_environment_names_the_variable(tmp_path: Path) -> None:
    said = fault(tmp_path, env={"PYLON_RELAYS__CONNECT_TIMEOUT_S": "abc"})
    assert said.startswith("PYLON_RELAYS__CONNECT_TIMEOUT_S: relays.connect_timeout_s: 'abc' is not a number")
    assert "did you mean relays?" in fault(tmp_path, env={"PYLON_RELAY__URLS": "x"})
    assert "did you mean relays.urls?" in fault(tmp_path, env={"PYLON_RELAYS__URL": "x"})
    assert "relays.a: unknown key" in fault(tmp_path, env={"PYLON_RELAYS__A__B": "x"})
    assert "set whole, by PYLON_BACKENDS" in fault(tmp_path, env={"PYLON_BACKENDS__0__SLOTS": "1"})
    assert "not a JSON list" in fault(tmp_path, env={"PYLON_MODELS": "[{"})


def test_a_fault_of_a_flag_names_only_the_key(tmp_path: Path) -> None:
    said = fault(tmp_path, flags={"payment.mode": "gratis"})
    assert said == "payment.mode: 'gratis' is unknown; allowed: prepay, postpay, free"


def test_a_flag_reaches_into_an_array_and_leaves_its_neighbours(tmp_path: Path) -> None:
    loaded = load(tmp_path, ECHO, {"backends.0.slots": "7"})
    assert loaded.settings.backends[0].slots == 7
    assert loaded.origin("backends.0.slots").kind is OriginKind.FLAG
    assert loaded.origin("backends.0.name").kind is OriginKind.FILE
    assert "there are 1 [[backends]]" in fault(tmp_path, ECHO, flags={"backends.1.slots": "7"})


def test_a_file_that_was_named_must_be_readable_text(tmp_path: Path) -> None:
    missing = tmp_path / "none.toml"
    with pytest.raises(SettingsError, match=r"none\.toml: cannot be read: No such file"):
        load_settings(missing, {}, {})
    missing.write_bytes(b"name = 'x'\n#\xff")
    with pytest.raises(SettingsError, match=r"not UTF-8 \(at line 2\)"):
        load_settings(missing, {}, {})


SOLD = ECHO + '[[models]]\nname = "m"\nbackend = "e"\nkinds = [5050, 5001]\nbase_msats = 1000\nmin_msats = 2000\n'
OWN_PRICE = SOLD + "[models.prices.5001]\nbase_msats = 3000\noutput_msats_per_1k = 7\n"


def test_a_kind_takes_from_its_model_what_it_does_not_set(tmp_path: Path) -> None:
    loaded = load(tmp_path, OWN_PRICE)
    (model,) = loaded.settings.models
    keys = ("base_msats", "input_msats_per_1k", "output_msats_per_1k", "min_msats")
    assert tuple(model.price_of(5001)[key] for key in keys) == (3000, 0, 7, 2000)
    assert tuple(model.price_of(5050)[key] for key in keys) == (1000, 0, 0, 2000)
    shown = {item.key: item for item in shown_values(loaded)}
    assert shown["models.0.prices.5001.base_msats"].value == 3000
    assert shown["models.0.prices.5001.base_msats"].origin.kind is OriginKind.FILE
    assert shown["models.0.prices.5001.min_msats"].value is None
    assert shown["models.0.prices.5001.min_msats"].origin.kind is OriginKind.DEFAULT


def test_a_kind_s_price_comes_from_the_environment_and_from_flags_too(tmp_path: Path) -> None:
    models = '[{"name": "m", "backend": "e", "base_msats": 1, "prices": {"5050": {"base_msats": 9}}}]'
    loaded = load(tmp_path, ECHO, env={"PYLON_MODELS": models})
    assert loaded.settings.models[0].price_of(5050)["base_msats"] == 9
    assert loaded.origin("models.0.prices.5050.base_msats").place == "PYLON_MODELS"
    loaded = load(tmp_path, OWN_PRICE, {"models.0.prices.5001.base_msats": "4"})
    assert loaded.settings.models[0].price_of(5001)["base_msats"] == 4
    assert loaded.settings.models[0].price_of(5001)["output_msats_per_1k"] == 7


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (SOLD + "[models.prices.5002]\nbase_msats = 1", "models.0.prices.5002: 5002 is not among the kinds that"),
        (SOLD + "[models.prices.text]\nbase_msats = 1", "models.0.prices.text: "),
        (
            SOLD + "[models.prices.7]\nbase_msats = 1",
            "models.0.prices.7: '7': 7 is not a job kind that can be sold",
        ),
        (SOLD + "[models.prices]\n5001 = 3", "models.0.prices.5001: "),
        (
            SOLD + "[models.prices.5001]\nbase_msat = 1",
            "models.0.prices.5001.base_msat: unknown key; did you mean models.0.prices.5001.base_msats?",
        ),
        (
            SOLD + "[models.prices.5001]\nmin_msats = -1",
            "models.0.prices.5001.min_msats: -1 is out of range; allowed: 0 to",
        ),
        (
            SOLD + "[models.prices.5001]\nmin_msats = 0\nbase_msats = 0",
            "models.0.prices.5001.base_msats: no price is set",
        ),
    ],
)
def test_a_fault_of_a_kind_s_price_tells_where_it_stands(tmp_path: Path, text: str, said: str) -> None:
    assert fault(tmp_path, text).startswith(f"FILE: {said}")


def test_a_least_price_for_all_jobs_is_a_price(tmp_path: Path) -> None:
    nothing = ECHO + "[[models]]\nname = 'm'\nbackend = 'e'\n"
    assert load(tmp_path, nothing + "[payment]\nmin_price_msats = 1000").settings.models
    assert "no price is set" in fault(tmp_path, nothing)


# --- secrets --------------------------------------------------------------------------------------------------


def test_secrets_stay_out_of_repr_and_show(tmp_path: Path) -> None:
    backend = '[[backends]]\nname = "b"\nkind = "openai"\nurl = "http://h/v1"\napi_key = "sk-hidden"\n'
    loaded = load(tmp_path, f'[identity]\nnsec = "{NSEC}"\n[wallet]\ntoken = "tok-hidden"\n{backend}')
    shown = {item.key: item.value for item in shown_values(loaded)}
    assert shown["identity.nsec"] == shown["wallet.token"] == shown["backends.0.api_key"] == MASK
    assert shown["identity.mnemonic"] is None
    for text in (repr(loaded), str(loaded.settings), repr(shown)):
        assert NSEC not in text
        assert "hidden" not in text
    assert loaded.settings.identity.nsec is not None
    assert loaded.settings.identity.nsec.get_secret_value() == NSEC


@pytest.mark.parametrize(
    ("text", "env"),
    [
        (f'nsec = "{NSEC}"', {}),
        (f'name = ["{NSEC}"]', {}),
        (f'identity = "{NSEC}"', {}),
        (f'[identity]\nnsec = "{NSEC}x"', {}),
        (f'[identity]\nnsec = ["{NSEC}"]', {}),
        (f'[identity]\nmnemonic = "{NSEC}"', {}),
        (f'[payment]\nmode = "{NSEC}"', {}),
        (f'[relays]\nconnect_timeout_s = "{NSEC}"', {}),
        ("", {"PYLON_MNEMONIC": f"{NSEC} {NSEC}"}),
        ("", {"PYLON_NSEC": NSEC, "PYLON_IDENTITY__NSEC": OTHER_HEX}),
        ("", {"PYLON_BACKENDS": f'[{{"name":"x","kind":"{NSEC}"}}]'}),
        (f'[[backends]]\nname = "x"\nkind = "openai"\nurl = "http://u:{NSEC}@h"', {}),
        (f'[relays]\nurls = ["wss://u:{NSEC}@h"]', {}),
    ],
)
def test_no_fault_repeats_a_secret(tmp_path: Path, text: str, env: dict[str, str]) -> None:
    assert NSEC[:12] not in fault(tmp_path, text, env=env)


def test_a_file_with_a_secret_must_be_private(tmp_path: Path) -> None:
    file = tmp_path / "pylon.toml"
    file.write_text('[wallet]\ntoken = "t"')
    file.chmod(0o640)
    with pytest.raises(
        SettingsError, match=r"wallet\.token: a secret in a file that others can read; run: chmod 600"
    ):
        load_settings(file, {}, {})
    file.write_text('[wallet]\ntoken = ""')
    assert load_settings(file, {}, {}).settings.wallet.token is None


def test_credentials_of_systemd_lie_between_file_and_environment(tmp_path: Path) -> None:
    folder = tmp_path / "credentials"
    folder.mkdir()
    (folder / "nsec").write_text(OTHER_HEX + "\n")
    (folder / "wallet_token").write_text("from-credential\n")
    env = {"CREDENTIALS_DIRECTORY": str(folder)}
    text = f'[identity]\nmnemonic = "{WORDS}"\n[wallet]\ntoken = "from-file"\n'
    loaded = load(tmp_path, text, env=env)
    assert loaded.settings.wallet.token is not None
    assert loaded.settings.wallet.token.get_secret_value() == "from-credential"
    assert loaded.origin("wallet.token").place == str(folder / "wallet_token")
    assert loaded.settings.identity.mnemonic is None, "the file's words give way to the credential's key"
    over = load(tmp_path, text, env={**env, "PYLON_WALLET_TOKEN": "from-env", "PYLON_MNEMONIC": WORDS})
    assert over.settings.wallet.token is not None
    assert over.settings.wallet.token.get_secret_value() == "from-env"
    assert over.settings.identity.nsec is None
    assert over.origin("identity.mnemonic").place == "PYLON_MNEMONIC"


def test_an_unreadable_credential_is_a_fault_not_a_fallback(tmp_path: Path) -> None:
    (tmp_path / "nsec").write_bytes(b"\xff\xfe")
    said = fault(tmp_path, env={"CREDENTIALS_DIRECTORY": str(tmp_path)})
    assert "identity.nsec: the credential cannot be read" in said


def test_only_one_identity_can_be_set_in_one_place(tmp_path: Path) -> None:
    assert "only one can be the identity" in fault(tmp_path, env={"PYLON_NSEC": NSEC, "PYLON_MNEMONIC": WORDS})
    assert load(tmp_path, env={"PYLON_NSEC": NSEC, "PYLON_IDENTITY__NSEC": NSEC}).settings.identity.nsec


def test_a_flag_into_a_table_that_is_none_is_named() -> None:
    with pytest.raises(SettingsError, match=r"backends\.0\.name: what backends\.0 is set to is no table"):
        merge_settings(None, {}, {"backends": [None], "backends.0.name": "x"}, {})


# --- anything at all ------------------------------------------------------------------------------------------

_KEYS = [
    *Settings.model_fields,
    *(f"{name}.{key}" for name, section in section_types().items() for key in section.model_fields),
    *(
        f"{array}.0.{key}"
        for array in ("backends", "models")
        for key in ("name", "kind", "slots", "x", "base_msats")
    ),
]
_SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20), st.just(NSEC), st.just("wss://[::1")
)
_VALUES = st.recursive(
    _SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
)
_DOCUMENTS = st.dictionaries(st.sampled_from(list(Settings.model_fields)), _VALUES, max_size=3)


@given(document=_DOCUMENTS, flags=st.dictionaries(st.sampled_from(_KEYS), _VALUES, max_size=4))
def test_whatever_is_set_holds_or_is_one_printable_line(document: dict[str, Any], flags: dict[str, Any]) -> None:
    try:
        merge_settings(Path("/x/pylon.toml"), document, flags, {})
    except SettingsError as error:
        assert printable(error, limit=10_000) == str(error)
        assert NSEC not in str(error)


@given(st.dictionaries(st.sampled_from([f"PYLON_{key.upper().replace('.', '__')}" for key in _KEYS]), st.text()))
def test_whatever_the_environment_holds_holds_or_is_one_printable_line(env: dict[str, str]) -> None:
    try:
        merge_settings(None, {}, {}, env)
    except SettingsError as error:
        assert printable(error, limit=10_000) == str(error)


def test_every_key_is_described_and_bounded() -> None:
    """A number without bounds, or a key without a word on it, does not get in."""
    sections: list[type[Section]] = [*section_types().values(), *BACKEND_TYPES.values(), ModelSettings]
    for section in sections:
        for key, field in section.model_fields.items():
            assert field.description, key
            assert field.description.endswith("."), key
            if field.annotation in (int, float):
                assert " to " in allowed(field), key
    assert is_secret(find_field(("backends", 0, "api_key")))
    assert is_secret(find_field(("wallet", "token")))
    assert not is_secret(find_field(("wallet", "url")))


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("lud16", "nobody", "not a Lightning address"),
        ("lud16", "a@b@c", "not a Lightning address"),
        ("lud16", "a b@c.example", "not a Lightning address"),
        ("picture", "ftp://a.example/x.png", "not an http:// or https:// URL"),
        ("picture", "https://", "not an http:// or https:// URL"),
        ("picture", "https://a.example/\x1b[2J", "no control characters"),
        ("about", "\ud800", "as a unicode string"),
        ("about", "a" * 1_001, "too long"),
    ],
)
def test_what_cannot_be_announced_is_refused(key: str, value: str, said: str) -> None:
    with pytest.raises(SettingsError, match=f"announce.{key}") as caught:
        merge_settings(Path("x.toml"), {"announce": {key: value}}, {}, {})
    assert said in str(caught.value)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("key", "value"), [("lud16", "you@pay.example:8080"), ("picture", "https://a.example/x?y=1")]
)
def test_what_can_be_announced_is_taken(key: str, value: str) -> None:
    announce = merge_settings(Path("x.toml"), {"announce": {key: value}}, {}, {}).settings.announce
    assert getattr(announce, key) == value
