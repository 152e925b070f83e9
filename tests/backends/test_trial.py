"""Asking backends outside the daemon, where one of them does not keep to the protocol."""

from __future__ import annotations

from pylon.backends.echo import EchoBackend, EchoConfig
from pylon.backends.trial import check_backends
from pylon.jobs.ports import BackendHealth, BackendState


class Broken(EchoBackend):
    async def check(self) -> BackendState:
        raise KeyError("a plug-in's fault")


async def test_one_that_raises_is_down_and_the_others_are_told() -> None:
    states = await check_backends({"a": Broken(EchoConfig()), "b": EchoBackend(EchoConfig())})
    assert (states["a"].health, states["b"].health) == (BackendHealth.DOWN, BackendHealth.READY)
    assert "KeyError" in states["a"].detail
