"""Backend plug-ins: what is registered is found, and what is wrong with one is a sentence."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from importlib.metadata import entry_points, version
from pathlib import Path

import pytest

from pylon import assembly
from pylon.nostr.keys import SecretKey
from pylon.paths import paths_under
from pylon.settings import LoadedSettings, Settings, SettingsError, load_settings
from pylon.settings.edit import holds_secret_key, set_value
from pylon.settings.kinds import GROUP, PLUGIN_API, installed_kinds
from pylon.settings.load import holds_secret
from pylon.settings.offers import BACKEND_TYPES
from pylon.settings.show import MASK, shown_values
from tests.support.plugins import API, install_plugin

ROOT = Path(__file__).parents[1]
OURS = ("echo", "embedded", "llama_cpp", "ollama", "openai")
BACKEND = '[[backends]]\nname = "b"\nkind = "mirror"\n'
MIRROR = (
    API
    + """
from pydantic import Field, model_validator

class Inner(Section):
    token: Secret = None
    depth: Whole = Field(default=1, ge=1, le=9, description="How deep.")

class Mine(BackendSettings):
    shine: Whole = Field(default=3, ge=1, le=5, description="How much.")
    grip: Secret = Field(default=None, description="A secret.")
    inner: Inner = Inner()

    @model_validator(mode="after")
    def _both(self):
        if self.shine == 5 and self.grip is None:
            raise KeyFault("grip", "missing, with shine = 5")
        if self.shine == 4:
            raise RuntimeError("the validator broke on " + self.grip.get_secret_value())
        return self

def make(settings, site):
    if settings.shine == 2:
        raise OSError("no mirror for " + settings.grip.get_secret_value())
    return site

KIND = BackendKind(api=1, settings=Mine, make=make)
"""
)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on the path where plug-ins are installed."""
    folder = tmp_path / "site"
    monkeypatch.syspath_prepend(str(folder))
    return folder


@pytest.fixture
def mirror(site: Path, request: pytest.FixtureRequest) -> str:
    """An installed kind `mirror`, under a module name of this test's own: modules stay imported."""
    dist = f"mirror-{abs(hash(request.node.name))}"
    install_plugin(site, dist, {"mirror": f"{dist.replace('-', '_')}:KIND"}, MIRROR)
    return dist


def load(tmp_path: Path, text: str, mode: int = 0o600) -> LoadedSettings:
    file = tmp_path / "pylon.toml"
    file.write_text(text)
    file.chmod(mode)
    return load_settings(file, None, {"PYLON_HOME": str(tmp_path)})


def fault(tmp_path: Path, text: str, mode: int = 0o600) -> str:
    with pytest.raises(SettingsError) as caught:
        load(tmp_path, text, mode)
    said = str(caught.value)
    assert "\n" not in said and "hidden" not in said
    return said.replace(str(tmp_path / "pylon.toml") + ": ", "")


def test_ours_are_registered_as_any_other_is() -> None:
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"][GROUP]
    ours = [point for point in entry_points(group=GROUP) if point.value.startswith("pylon.")]
    assert {point.name: point.value for point in ours} == declared, "install once more: make .venv/.dev"
    assert set(declared) == set(BACKEND_TYPES)
    for point in ours:
        kind = point.load()
        assert (kind.api, kind.settings) == (PLUGIN_API, BACKEND_TYPES[point.name])


def test_an_unknown_kind_is_answered_with_those_that_are_installed(tmp_path: Path, mirror: str) -> None:
    assert installed_kinds() == ("echo", "embedded", "llama_cpp", "mirror", "ollama", "openai")
    said = fault(tmp_path, '[[backends]]\nname = "b"\nkind = "miror"')
    assert said == "backends.0.kind: 'miror' is unknown; allowed: echo, embedded, llama_cpp, mirror, ollama, openai"


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ("shine = 7", "backends.0.shine: 7 is out of range; allowed: 1 to 5"),
        ('shine = "x"', "backends.0.shine: 'x' is not a whole number; allowed: 1 to 5"),
        ("shin = 1", "backends.0.shin: unknown key; did you mean backends.0.shine?"),
        ('url = "http://h"', "backends.0.url: unknown key; allowed: name, kind, slots, shine, grip, inner"),
        ("grip = 7", "backends.0.grip: the value is not text"),
        ("inner.depth = 0", "backends.0.inner.depth: 0 is out of range; allowed: 1 to 9"),
        ("inner.dept = 1", "backends.0.inner.dept: unknown key; did you mean backends.0.inner.depth?"),
        ("inner.token = 7", "backends.0.inner.token: the value is not text"),
        ("slots = 0", "backends.0.slots: 0 is out of range; allowed: 1 to 1024"),
        ("shine = 5", "backends.0.grip: missing, with shine = 5"),
        ('shine = 4\ngrip = "hidden"', "backends.0: the plug-in of 'mirror' broke on reading it (RuntimeError)"),
    ],
)
def test_a_fault_in_a_plug_in_s_own_keys_is_told_as_ours_are(
    tmp_path: Path, mirror: str, lines: str, said: str
) -> None:
    assert fault(tmp_path, BACKEND + lines) == said


BROKEN = {
    "raise ValueError('not\\ntoday')": "cannot be imported: ValueError: not\\x0atoday",
    "raise SystemExit(3)": "cannot be imported: SystemExit: 3",
    "import no_such_module": "cannot be imported: ModuleNotFoundError: No module named 'no_such_module'",
    "from pylon.plugin import Newer": "cannot be imported: ImportError: cannot import name 'Newer' from",
    "OTHER = 1": "cannot be imported: AttributeError: module",
    "KIND = 3": "registers {module}:KIND, which is no pylon.plugin.BackendKind",
    API + "KIND = BackendKind(1, dict, print)": "has settings that are no subclass of pylon.plugin.BackendSettings",
    API + "KIND = BackendKind(2, BackendSettings, print)": (
        "is written for version 2 of the plug-in protocol, and this Pylon has version 1:"
        " install versions of the two that go together"
    ),
}


@pytest.mark.parametrize("source", BROKEN)
def test_a_plug_in_that_cannot_be_used_is_one_sentence(tmp_path: Path, site: Path, source: str) -> None:
    dist = f"broken-{list(BROKEN).index(source)}"
    module = dist.replace("-", "_")
    install_plugin(site, dist, {"mirror": f"{module}:KIND"}, source)
    said = fault(tmp_path, BACKEND)
    assert said.startswith(f"backends.0.kind: the plug-in {dist} 1.0 {BROKEN[source].format(module=module)}")


def test_a_kind_that_two_bring_is_refused(tmp_path: Path, site: Path) -> None:
    install_plugin(site, "other-echo", {"echo": "other_echo:KIND"})
    said = fault(tmp_path, '[[backends]]\nname = "b"\nkind = "echo"')
    assert said.startswith("backends.0.kind: two plug-ins are installed for 'echo': ")
    assert "other-echo 1.0" in said and "pylon-nostr" in said and said.endswith("; uninstall one of them")


def test_what_nobody_configured_is_not_imported(tmp_path: Path, site: Path) -> None:
    install_plugin(site, "unused-plugin", {"unused": "unused_plugin:KIND"}, "raise RuntimeError('imported')")
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from pathlib import Path\n"
        "from pylon.settings import load_settings\n"
        "print(load_settings(Path(sys.argv[2]), None, {}).settings.backends[0].kind)\n"
        "assert 'unused_plugin' not in sys.modules\n"
        "heavy = [name for name in sys.modules if name.startswith(('pylon.backends', 'pylon.wallets', 'httpx'))]\n"
        "assert not heavy, heavy\n"
    )
    file = tmp_path / "pylon.toml"
    file.write_text('[[backends]]\nname = "e"\nkind = "echo"\n')
    ran = subprocess.run(
        [sys.executable, "-c", code, str(site), str(file)], capture_output=True, text=True, check=False
    )
    assert (ran.stdout, ran.stderr) == ("echo\n", "")


def test_its_secrets_are_kept_as_ours_are(tmp_path: Path, mirror: str) -> None:
    text = BACKEND + 'grip = "hidden-1"\ninner.token = "hidden-2"\n'
    loaded = load(tmp_path, text)
    shown = {each.key: each.value for each in shown_values(loaded)}
    assert (shown["backends.0.grip"], shown["backends.0.inner.token"]) == (MASK, MASK)
    assert (shown["backends.0.shine"], shown["backends.0.inner.depth"]) == (3, 1)
    assert {"hidden-1", "hidden-2"} <= set(assembly.secrets_of(loaded.settings, SecretKey.generate()))
    for secret in ('grip = "hidden-1"', 'inner.token = "hidden-2"'):
        assert "chmod 600" in fault(tmp_path, BACKEND + secret, mode=0o644)
    assert holds_secret(tomllib.loads(BACKEND)) is None
    assert holds_secret_key("backends.0.grip")


def test_its_keys_are_changed_by_config_set(tmp_path: Path, mirror: str) -> None:
    file = tmp_path / "pylon.toml"
    file.write_text(BACKEND)
    assert set_value(file, "backends.0.shine", "1", {}) == 1
    assert tomllib.loads(file.read_text())["backends"][0]["shine"] == 1


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ('shine = 2\ngrip = "hidden"', "cannot make it: OSError: no mirror for [secret]"),
        ("", "makes something that has no name, running, state, check, unload, generate"),
    ],
)
def test_a_plug_in_that_makes_no_backend_is_one_sentence(
    tmp_path: Path, mirror: str, lines: str, said: str
) -> None:
    loaded = load(tmp_path, BACKEND + lines)
    with pytest.raises(SettingsError) as caught:
        assembly.make_backends(loaded.settings, paths_under(tmp_path))
    assert str(caught.value) == f"backends.0: the plug-in of 'mirror' {said}"


def test_our_engines_are_told_with_their_versions_where_they_are_installed() -> None:
    embedded = Settings.model_validate({"backends": [{"name": "b", "kind": "embedded", "gguf": "/m.gguf"}]})
    assert embedded.backends[0].software == f"xllamacpp {version('xllamacpp')}"
    elsewhere = {"name": "b", "kind": "llama_cpp", "path": "/m", "python": "/opt/other/bin/python"}
    assert Settings.model_validate({"backends": [elsewhere]}).backends[0].software == "", "nobody asked that Python"
    assert Settings.model_validate({"backends": [{"name": "e", "kind": "echo"}]}).backends[0].software == ""
