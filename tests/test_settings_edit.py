"""`config set` changes one line and nothing else, or nothing at all."""

from __future__ import annotations

import tomllib
from difflib import unified_diff
from pathlib import Path

import pytest

from pylon.settings import SettingsError
from pylon.settings.edit import add_tables, holds_secret_key, set_value
from pylon.settings.example import render_example

BACKEND = '\n[[backends]]  # mine\nname = "e"  # a comment\nkind = "echo"\n'


def changes(before: str, after: str) -> list[str]:
    lines = unified_diff(before.splitlines(), after.splitlines(), lineterm="", n=0)
    return [line for line in lines if not line.startswith(("---", "+++", "@@"))]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "home" / "pylon.toml"


@pytest.mark.parametrize(
    ("key", "text", "was", "now"),
    [
        ("name", 'a "b" é', '#name = "pylon"', 'name = "a \\"b\\" é"'),
        ("relays.connect_timeout_s", "20", "#connect_timeout_s = 10", "connect_timeout_s = 20"),
        ("jobs.success_feedback", "no", "#success_feedback = true", "success_feedback = false"),
        ("log.format", "json", '#format = "auto"', 'format = "json"'),
        ("wallet.url", "http://h:1/", '#url = "http://127.0.0.1:3338"', 'url = "http://h:1"'),
    ],
)
def test_in_a_new_file_the_shown_default_becomes_the_value(
    file: Path, key: str, text: str, was: str, now: str
) -> None:
    set_value(file, key, text, {})
    assert changes(render_example(), file.read_text()) == [f"-{was}", f"+{now}"]
    assert file.stat().st_mode & 0o777 == 0o600
    assert file.parent.stat().st_mode & 0o777 == 0o700


def test_lists_are_given_by_commas(file: Path) -> None:
    assert set_value(file, "relays.urls", "wss://a, ws://B:80/", {}) == ["wss://a", "ws://b"]
    assert tomllib.loads(file.read_text())["relays"]["urls"] == ["wss://a", "ws://b"]


def test_a_value_is_changed_in_place_and_its_comment_stays(file: Path) -> None:
    set_value(file, "log.level", "debug", {})
    before = file.read_text() + BACKEND
    file.write_text(before)
    set_value(file, "backends.0.name", "z", {})
    assert changes(before, file.read_text()) == ['-name = "e"  # a comment', '+name = "z"  # a comment']
    set_value(file, "backends.0.slots", "4", {})
    assert tomllib.loads(file.read_text())["backends"] == [{"name": "z", "kind": "echo", "slots": 4}]


def test_a_file_of_one_s_own_keeps_its_layout(file: Path) -> None:
    file.parent.mkdir()
    file.write_text("relays.urls = ['wss://a']\n\n[jobs]\nqueue_size = 3")
    file.chmod(0o644)
    set_value(file, "relays.urls", "wss://b", {})
    set_value(file, "jobs.max_attempts", "4", {})
    set_value(file, "log.level", "debug", {})
    assert tomllib.loads(file.read_text()) == {
        "relays": {"urls": ["wss://b"]},
        "jobs": {"queue_size": 3, "max_attempts": 4},
        "log": {"level": "debug"},
    }
    assert file.stat().st_mode & 0o777 == 0o644, "no secret in it: its mode is the owner's choice"


def test_a_file_with_a_secret_becomes_private(file: Path) -> None:
    file.parent.mkdir()
    file.write_text("# mine\n")
    file.chmod(0o644)
    set_value(file, "wallet.token", "secret", {})
    assert file.stat().st_mode & 0o777 == 0o600
    assert holds_secret_key("wallet.token")
    assert not holds_secret_key("wallet.kind")


@pytest.mark.parametrize(
    ("key", "text", "said"),
    [
        ("log.level", "loud", "log.level: 'loud' is unknown; allowed: debug, info"),
        ("log.levle", "info", "did you mean log.level?"),
        ("lgo.level", "info", "did you mean log?"),
        ("log", "info", "is a table; name a key in it; allowed: level, format"),
        ("backends", "[]", r"write backends\.0\.<key>"),
        ("backends.0.slots", "3", r"there are 0 \[\[backends\]\]"),
        ("relays.urls.0", "x", r"relays\.urls\.0: unknown key"),
        ("payment.lookup_min_s", "100", "is more than lookup_max_s"),
        ("wallet.kind", "fake", r"wallet\.url: missing"),
        ("", "x", "unknown key"),
    ],
)
def test_what_is_not_valid_as_a_whole_is_not_written(file: Path, key: str, text: str, said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        set_value(file, key, text, {})
    assert not file.exists()


def test_a_broken_file_is_left_as_it_is(file: Path) -> None:
    file.parent.mkdir()
    file.write_text("[log\n")
    with pytest.raises(SettingsError, match="not valid TOML"):
        set_value(file, "log.level", "debug", {})
    assert file.read_text() == "[log\n"


def test_a_bad_value_can_be_mended_by_setting_it(file: Path) -> None:
    file.parent.mkdir()
    file.write_text('[log]\nlevel = "loud"\n')
    set_value(file, "log.level", "debug", {})
    assert file.read_text() == '[log]\nlevel = "debug"\n'


def test_a_link_to_the_file_stays_a_link(file: Path, tmp_path: Path) -> None:
    real = tmp_path / "real.toml"
    real.write_text('name = "a"\n')
    file.parent.mkdir()
    file.symlink_to(real)
    set_value(file, "name", "b", {})
    assert file.is_symlink()
    assert real.read_text() == 'name = "b"\n'
    assert sorted(path.name for path in tmp_path.iterdir()) == ["home", "real.toml"], "nothing is left over"


def test_tables_are_added_whole_or_not_at_all(file: Path) -> None:
    add_tables(file, BACKEND, {})
    assert file.read_text() == render_example().rstrip() + "\n\n" + BACKEND
    before = file.read_text()
    with pytest.raises(SettingsError, match=r"backends\.1\.name"):
        add_tables(file, BACKEND, {})
    assert file.read_text() == before


@pytest.mark.parametrize("wanted", ["wss://a,wss://b,wss://c", "wss://b", "wss://a,wss://c", "wss://b,wss://a"])
def test_a_list_is_changed_item_by_item_and_its_comments_stay(file: Path, wanted: str) -> None:
    file.parent.mkdir()
    file.write_text('[relays]\nurls = [\n    "wss://a",  # mine\n    # the second\n    "wss://b"\n]  # end\n')
    assert set_value(file, "relays.urls", wanted, {}) == wanted.split(",")
    after = file.read_text()
    assert tomllib.loads(after)["relays"]["urls"] == wanted.split(",")
    assert "\n    # the second\n" in after
    assert after.endswith("]  # end\n")
    assert ("# mine" in after) == ("wss://a" in wanted)


SOLD = BACKEND + '\n[[models]]\nname = "m"\nbackend = "e"\nbase_msats = 1000  # a sat\n\n[log]\nlevel = "info"\n'


def test_a_price_of_one_kind_is_set_under_its_model(file: Path) -> None:
    file.parent.mkdir()
    file.write_text(SOLD)
    set_value(file, "models.0.prices.5050.base_msats", "3000", {})
    set_value(file, "models.0.prices.5050.min_msats", "5000", {})
    assert tomllib.loads(file.read_text())["models"][0]["prices"] == {
        "5050": {"base_msats": 3000, "min_msats": 5000}
    }
    added = [line[1:] for line in changes(SOLD, file.read_text())]
    assert [line for line in added if line] == ["[models.prices.5050]", "base_msats = 3000", "min_msats = 5000"]
    before = file.read_text()
    for key, said in (
        ("models.0.prices", r"is a table; name a key in it, such as models\.0\.prices\.5050\.base_msats"),
        ("models.0.prices.5050.base_msat", r"did you mean models\.0\.prices\.5050\.base_msats"),
        ("models.0.prices.5002.base_msats", "5002 is not among the kinds"),
    ):
        with pytest.raises(SettingsError, match=said):
            set_value(file, key, "1", {})
    assert file.read_text() == before
