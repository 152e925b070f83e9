"""The annotated example is the model, and the model is the annotated example."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from pylon.settings.errors import is_secret
from pylon.settings.example import plain, render_example, toml_value, uncommented
from pylon.settings.load import merge_settings
from pylon.settings.model import Settings, section_types
from pylon.settings.offers import BACKEND_TYPES, KindPriceSettings, ModelSettings
from pylon.settings.values import Section

EXAMPLE = Path(__file__).parents[1] / "config" / "pylon.toml"


def test_the_file_in_config_is_up_to_date() -> None:
    assert EXAMPLE.read_text() == render_example(), "run: python -m pylon.settings.example"


def test_as_it_stands_it_changes_nothing() -> None:
    document = tomllib.loads(EXAMPLE.read_text())
    assert merge_settings(EXAMPLE, document, {}, {}).settings == Settings()


def test_every_default_that_it_shows_is_the_default() -> None:
    shown = tomllib.loads(uncommented(EXAMPLE.read_text()))
    for name, section in section_types().items():
        assert list(shown[name]) == list(section.model_fields), name
        for key, field in section.model_fields.items():
            if field.default is not None:
                assert shown[name][key] == plain(field.default), f"{name}.{key}"
    assert shown["name"] == Settings.model_fields["name"].default
    assert set(shown) == set(Settings.model_fields)


def test_every_key_of_backends_and_models_is_in_it_with_its_default() -> None:
    shown = tomllib.loads(uncommented(EXAMPLE.read_text()))
    assert [table["kind"] for table in shown["backends"]] == list(BACKEND_TYPES)
    for table in (*shown["backends"], *shown["models"]):
        model = BACKEND_TYPES[table["kind"]] if "kind" in table else ModelSettings
        assert set(table) == set(model.model_fields)
        for key, field in model.model_fields.items():
            if not field.is_required() and field.default is not None and key != "prices":
                assert table[key] == plain(field.default), key
    (model,) = shown["models"]
    assert set(model["prices"]["5050"]) == set(KindPriceSettings.model_fields), "one kind is shown with every key"


def test_with_every_line_made_real_it_is_valid() -> None:
    shown: dict[str, Any] = tomllib.loads(uncommented(EXAMPLE.read_text()))
    settings = merge_settings(EXAMPLE, shown, {"payment.mode": "free"}, {}).settings
    assert [backend.name for backend in settings.backends] == ["local", "ollama", "own", "files", "echo"]
    assert settings.identity.nsec is None, "an empty secret is none"


def test_every_description_is_in_it() -> None:
    words = " ".join(line.removeprefix("# ") for line in EXAMPLE.read_text().splitlines() if line.startswith("# "))
    sections: list[type[Section]] = [
        *section_types().values(),
        *BACKEND_TYPES.values(),
        ModelSettings,
        KindPriceSettings,
    ]
    for section in sections:
        for key, field in section.model_fields.items():
            assert str(field.description) in words, key


def test_it_holds_no_secret() -> None:
    shown = tomllib.loads(uncommented(EXAMPLE.read_text()))
    for name, section in section_types().items():
        for key, field in section.model_fields.items():
            if is_secret(field):
                assert shown[name][key] == ""


def test_values_are_written_as_toml() -> None:
    for value in ('a "quoted" \\ text\n\x07', 3, 0.5, True, ["x", "y"], "é"):
        assert tomllib.loads(f"x = {toml_value(value)}")["x"] == value
    assert toml_value(10.0) == "10"
