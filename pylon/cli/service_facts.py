"""What a unit must know of this installation: the program, the home, the time a stop takes, the secrets' files."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pylon.cli.output import fail, warn
from pylon.paths import HOME_VARIABLE, Paths, paths_under, resolve_paths
from pylon.service.manager import Places
from pylon.service.units import Credential, Scope, UnitFacts

if TYPE_CHECKING:
    from pylon.settings import LoadedSettings

SYSTEM_HOME: Final = Path("/var/lib/pylon")
SYSTEM_CREDENTIALS: Final = Path("/etc/pylon/credentials")

_HIDDEN: Final = ("/home", "/root", "/run/user", "/tmp", "/var/tmp")  # noqa: S108 - what a system's service never sees
_FOLDERS: Final = ("XDG_CONFIG_HOME", "XDG_STATE_HOME")


def gather(
    scope: Scope,
    places: Places,
    *,
    config: Path | None = None,
    credentials: Path | None = None,
    executable: Path | None = None,
    gpu: bool = False,
) -> UnitFacts:
    """Return the facts of this installation. Raises `UserError`."""
    config = config.expanduser().absolute() if config else None
    mac = sys.platform == "darwin"
    environ, paths, variables, state = _homes(scope, places.environ, mac=mac)
    folder = credentials.expanduser().absolute() if credentials else _credentials_folder(scope, paths)
    return UnitFacts(
        scope=scope,
        program=_program(executable),
        variables=variables,
        config=config,
        stop_timeout_s=_stop_timeout_s(config, environ),
        credentials=() if mac else tuple(_found(folder, scope)),
        credentials_folder=folder,
        home=paths.state_dir,
        state=state,
        gpu=gpu,
        log_file=paths.log_file,
        run_as=_run_as(places.environ) if mac and scope is Scope.SYSTEM else "",
    )


def refuse_hidden(facts: UnitFacts) -> None:
    """Raise `UserError` for files in homes, which the system's service does not see."""
    if facts.scope is not Scope.SYSTEM or sys.platform == "darwin":
        return
    named = [Path(facts.program[0]), *([facts.config] if facts.config else [])]
    for path in named:
        if any(path.is_relative_to(hidden) for hidden in _HIDDEN):
            remedy = "install pylon where everybody can read it, such as /opt/pylon, or use --user"
            fail(f"the system's service cannot see {path}: {remedy}")


def notes(facts: UnitFacts, *, now: bool) -> Iterator[str]:
    """Yield what the operator should know once it is installed."""
    home = f"--home {facts.home} " if facts.scope is Scope.SYSTEM and sys.platform != "darwin" else ""
    as_user = f"sudo -u {facts.state} " if home else ""
    if home and not (facts.home / "pylon.toml").exists():
        yield f"make its settings: {as_user}{facts.program[0]} {home}init"
    if not now:
        yield "start it: pylon service start"
    if facts.scope is Scope.USER and sys.platform != "darwin":
        yield "it runs while you are logged in; for longer than that: loginctl enable-linger"
    hidden = sorted(name for name in os.environ if name.startswith("PYLON_") and name != HOME_VARIABLE)
    if hidden:
        yield f"set in this shell and not for the service: {', '.join(hidden)}"


def _homes(
    scope: Scope, environ: Mapping[str, str], *, mac: bool
) -> tuple[Mapping[str, str], Paths, dict[str, str], str]:
    """Return the environment of the service, its paths, the variables of its unit, and the folder to be made."""
    given = environ.get(HOME_VARIABLE, "").strip()
    if scope is Scope.SYSTEM and not mac:
        if given and resolve_paths(environ).state_dir != SYSTEM_HOME:
            fail(f"the system's service has its home in {SYSTEM_HOME}: leave --home and ${HOME_VARIABLE} out")
        own = {HOME_VARIABLE: str(SYSTEM_HOME)}
        return own, paths_under(SYSTEM_HOME), own, SYSTEM_HOME.name
    paths = resolve_paths(environ)
    if given:
        variables = {HOME_VARIABLE: str(paths.state_dir)}
    else:
        variables = {name: environ[name] for name in _FOLDERS if environ.get(name)}
    if mac:
        variables = {"HOME": environ.get("HOME", str(Path.home())), **variables}
    return environ, paths, variables, "" if variables else "pylon"


def _program(executable: Path | None) -> tuple[str, ...]:
    if executable is not None:
        path = executable.expanduser().absolute()
        if not os.access(path, os.X_OK):
            fail(f"{path} is no program that can be run")
        return (str(path),)
    script = Path(sys.executable).with_name("pylon")
    return (str(script),) if script.exists() else (sys.executable, "-m", "pylon")


def _stop_timeout_s(config: Path | None, environ: Mapping[str, str]) -> float:
    from pylon.settings import Settings, SettingsError, load_settings

    try:
        loaded: LoadedSettings = load_settings(config, None, environ)
    except SettingsError as error:
        warn(f"the settings are wrong, and the unit is made for the default time of a stop: {error}")
        return Settings().daemon.stop_timeout_s
    return loaded.settings.daemon.stop_timeout_s


def _credentials_folder(scope: Scope, paths: Paths) -> Path:
    return SYSTEM_CREDENTIALS if scope is Scope.SYSTEM else paths.config_dir / "credentials"


def _found(folder: Path, scope: Scope) -> Iterator[Credential]:
    """Yield the secrets whose files are there. Raises `UserError` for one that others can read."""
    from pylon.settings.load import CREDENTIALS

    for name in CREDENTIALS:
        plain, sealed = folder / name, folder / f"{name}.cred"
        if plain.is_file():
            if stat.S_IMODE(plain.stat().st_mode) & 0o077:
                fail(f"others can read {plain}: chmod 600 {plain}")
            yield Credential(name, plain)
        elif sealed.is_file():
            if scope is Scope.USER:
                fail(f"{sealed}: only the system's service can have encrypted credentials")
            yield Credential(name, sealed, encrypted=True)


def _run_as(environ: Mapping[str, str]) -> str:
    user = environ.get("SUDO_USER", "")
    if not user or user == "root":
        fail("a Mac's service runs as the user who installs it: run this with sudo from that user's account")
    return user
