"""What the settings say of backends, and how each of them is at this moment."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pylon.cli.output import warn
from pylon.cli.views import control_client
from pylon.control.client import ControlError

if TYPE_CHECKING:
    from pylon.benches import Bench
    from pylon.jobs.ports import Backend, BackendState
    from pylon.nostr.nip89 import Measured
    from pylon.paths import Paths
    from pylon.settings import BackendSettings, Settings

_DAEMON_TIMEOUT_S = 5.0
_ADDRESSES = ("url", "gguf", "path")


@dataclass(frozen=True, slots=True)
class SoldModel:
    """A model that is sold on a backend; `available` tells that it is ready and lists the model.

    `measured` is what the last bench of it says, `stale` why it does not hold any more.
    """

    name: str
    backend_model: str
    available: bool
    measured: Measured | None = None
    stale: str = ""


@dataclass(frozen=True, slots=True)
class BackendNow:
    """The present state of a backend, as in `pylon status`, or `stopped` where only the daemon starts it."""

    state: str
    detail: str = ""
    listed: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ConfiguredBackend:
    """One backend of the settings. `address` is its URL, its model's file or its folder, empty when it has none."""

    name: str
    kind: str
    address: str
    slots: int
    now: BackendNow
    sold: tuple[SoldModel, ...]


def configured_backends(settings: Settings, paths: Paths) -> tuple[ConfiguredBackend, ...]:
    """Return what is configured, each asked for its present state."""
    from pylon.benches import holding

    states, told = _states(settings, paths)
    fresh, stale = holding(known_benches(paths), settings, told)
    claims = {place: bench.claim for place, bench in fresh.items()}
    return tuple(
        ConfiguredBackend(
            name=each.name,
            kind=each.kind,
            address=str(next(filter(None, (getattr(each, key, None) for key in _ADDRESSES)), "")),
            slots=each.slots,
            now=states[each.name],
            sold=tuple(
                replace(sold, measured=claims.get((each.name, sold.backend_model)), stale=stale.get(place, ""))
                for sold in _sold(settings, each.name, states[each.name])
                if (place := (each.name, sold.backend_model))
            ),
        )
        for each in settings.backends
    )


def _sold(settings: Settings, backend: str, now: BackendNow) -> Iterator[SoldModel]:
    for model in settings.models:
        for name, there in model.routes:
            if name == backend:
                yield SoldModel(model.name, there, now.state == "ready" and there in now.listed)


def known_benches(paths: Paths) -> dict[tuple[str, str], Bench]:
    """Return what was measured here; a file that cannot be read is told and counts as none."""
    from pylon.benches import BadBenches, read_benches

    try:
        return read_benches(paths.benches_file)
    except BadBenches as bad:
        warn(str(bad))
        return {}


def _states(settings: Settings, paths: Paths) -> tuple[dict[str, BackendNow], dict[str, BackendState]]:
    """Return how each backend is now, and what those that could be asked said themselves."""
    import anyio

    from pylon.assembly import make_backends
    from pylon.backends.trial import check_backends

    # What lies in the daemon's memory, or in that of its child with a key of its own, it alone can ask.
    in_daemon = [each for each in settings.backends if each.in_daemon]
    made = make_backends(settings, paths)
    for each in in_daemon:
        del made[each.name]
    asked = anyio.run(check_backends, made)
    states = {
        name: BackendNow(state.health, state.detail, tuple(model.name for model in state.models))
        for name, state in asked.items()
    }
    running = running_backends(paths) if in_daemon else {}
    return states | {each.name: running.get(each.name) or _at_rest(each) for each in in_daemon}, asked


def running_backends(paths: Paths) -> dict[str, BackendNow]:
    """Return what a running daemon says of its backends, nothing when none answers."""
    try:
        lines = control_client(paths, timeout_s=_DAEMON_TIMEOUT_S).status().backends
    except ControlError:
        return {}
    return {line.name: BackendNow(line.health, line.detail, line.models) for line in lines}


def _at_rest(backend: BackendSettings) -> BackendNow:
    if backend.fault:
        return BackendNow("down", backend.fault)
    return BackendNow("stopped", "pylon start runs it, pylon backends test tries it")


def model_at_backend(settings: Settings, backend: str, model: str | None) -> str:
    """Return the backend's own name of a model, which may be given by what it is sold as.

    Without a model it is the first that is sold there, or empty when none is.
    """
    sold = [(each, there) for each in settings.models for name, there in each.routes if name == backend]
    if model is None:
        return sold[0][1] if sold else ""
    return next((there for each, there in sold if model in (each.name, *each.aliases)), model)


def backend_for_trial(settings: Settings, paths: Paths, chosen: BackendSettings) -> tuple[Backend, float, str]:
    """Return a backend of our own for a trial, how long it may take to start (s), and what the operator must know.

    The child of an embedded one writes its log apart from that of the daemon's.
    """
    from pylon.assembly import make_backends

    made = make_backends(settings, replace(paths, state_dir=paths.state_dir / "pylon.trial"))[chosen.name]
    twice = chosen.in_daemon and chosen.name in running_backends(paths)
    note = "pylon runs with this model already: for the test it is loaded a second time" if twice else ""
    return made, chosen.loading_s, note
