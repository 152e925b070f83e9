"""What a provider trades with: relays, their clocks, backends and the wallet, each used once."""

from __future__ import annotations

import random
from collections.abc import Sequence
from contextlib import aclosing
from statistics import median_low
from typing import Final

import anyio

from pylon import assembly
from pylon.assembly.places import configured_places
from pylon.backends.detect import detect
from pylon.backends.marks import CAVEATS, TITLES
from pylon.control.views import DaemonStatus
from pylon.doctor.findings import Finding, Scene, fail, ok, warn
from pylon.jobs.catalogue import Offer
from pylon.jobs.ports import (
    Backend,
    BackendError,
    BackendHealth,
    BackendState,
    BackendUnavailable,
    GenerationRequest,
    Message,
    WalletAbility,
    WalletError,
)
from pylon.nostr.keys import SecretKey
from pylon.relays.check import RelayCheck, check_relays
from pylon.settings import PaymentMode, Settings, SettingsError
from pylon.text import printable

SKEW_WARN_S: Final = 30
SKEW_FAIL_S: Final = 600
"""Relays refuse a NIP-42 answer that is older, or further ahead, than about ten minutes."""

_LOADING_POLL_S: Final = 0.25
_TRIAL: Final = (Message("user", "Say yes."),)
_TRIAL_TOKENS: Final = 8
_MODELS_SHOWN: Final = 8
_CAVEAT_FIX: Final = 'see that it was started so, or sell its models by kind = "llama_cpp" (docs/llama-cpp.md)'


# --- relays -------------------------------------------------------------------------------------------------------


async def check_all_relays(scene: Scene, limit_s: float) -> list[Finding]:
    """Use every configured relay once, and compare the clocks."""
    checks = await check_relays(
        scene.settings.relays.urls,
        assembly.make_pool_config(scene.settings),
        key=scene.key or SecretKey.generate(),
        clock=scene.clock,
        rng=random.Random(),  # noqa: S311 - jitter, not secrets
        limit_s=limit_s,
    )
    max_event_bytes = scene.settings.relays.max_event_bytes
    findings = [finding for check in checks for finding in relay_findings(check, max_event_bytes)]
    return [*findings, clock_finding([check.skew_s for check in checks if check.skew_s is not None])]


def relay_findings(check: RelayCheck, max_event_bytes: int) -> list[Finding]:
    """Return what the outcome of a check means."""
    if not check.ok:
        fix = f"try again: pylon relays check {check.url}; or do without it: pylon relays remove {check.url}"
        return [fail("relay", f"{check.url}: {fault.sentence}", fix) for fault in check.faults]
    auth = ", AUTH confirmed" if check.authenticated else ""
    said = f"{check.url}: published and read back in {check.round_trip_ms:.0f} ms{auth}"
    limit = check.document.max_message_bytes if check.document is not None else None
    if limit is not None and limit < max_event_bytes:
        what = f"{said}, but it takes messages of {limit:,} bytes only"
        return [warn("relay", what, f"pylon config set relays.max_event_bytes {limit}")]
    return [ok("relay", said)]


def clock_finding(skews_s: Sequence[int]) -> Finding:
    """Return what the relays' clocks say of ours: the middle one counts."""
    if not skews_s:
        return warn(
            "clock",
            "not compared: no relay told its time",
            "see that the clock is right (Linux: timedatectl status)",
        )
    skew_s = median_low(skews_s)
    behind = "behind" if skew_s > 0 else "ahead of"
    said = f"this clock is {abs(skew_s)} s {behind} the relays'" if skew_s else "this clock agrees with the relays'"
    fix = "let the network set the clock (Linux: timedatectl set-ntp true)"
    if abs(skew_s) > SKEW_FAIL_S:
        return fail("clock", f"{said}: they refuse what we sign", fix)
    return warn("clock", said, fix) if abs(skew_s) > SKEW_WARN_S else ok("clock", said)


# --- backends -----------------------------------------------------------------------------------------------------


async def check_backends(scene: Scene, limit_s: float) -> list[Finding]:
    """Ask every backend for its health and models, and have it generate a token of each model on offer."""
    settings = scene.settings
    findings: dict[str, list[Finding]] = {}
    offers = assembly.make_offers(settings)
    backends = assembly.make_backends(settings, scene.paths)
    in_daemon = {each.name for each in settings.backends if each.in_daemon}

    paused = scene.daemon is not None and scene.daemon.owner.stance == "paused"

    async def one(backend: Backend) -> None:
        sold = [offer for offer in offers if offer.backend == backend.name]
        if scene.daemon is not None and (backend.name in in_daemon or paused):
            # A second child would take the memory of the first, and a token that of a pause.
            findings[backend.name] = [_as_daemon_sees_it(scene.daemon, backend.name)]
        else:
            findings[backend.name] = await try_backend(backend, sold, limit_s)

    caveats: dict[str, list[Finding]] = {}

    async def look() -> None:
        if not paused:
            caveats.update(await _caveats(settings))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(look)
        for backend in backends.values():
            tasks.start_soon(one, backend)
    return [finding for name in backends for finding in (*findings[name], *caveats.get(name, ()))]


async def _caveats(settings: Settings) -> dict[str, list[Finding]]:
    """Return what must be known of the programs behind the configured URLs, by the backend's name."""
    found = await detect(configured_places(settings))
    return {
        at.place.name or "": [warn("backend", f"{at.place.name}: {TITLES[kind]}: {CAVEATS[kind]}", _CAVEAT_FIX)]
        for at in found
        if (kind := at.finding.kind) in CAVEATS and kind is not None
    }


def _as_daemon_sees_it(daemon: DaemonStatus, name: str) -> Finding:
    line = next((line for line in daemon.backends if line.name == name), None)
    if line is None:
        return warn("backend", f"{name}: the running pylon does not have it", "restart it: pylon stop, pylon start")
    if line.health == BackendHealth.LOADING:
        return warn("backend", f"{name}: still loading: {printable(line.detail)}", "give it time: pylon status")
    if line.health != BackendHealth.READY:
        return fail(
            "backend", f"{name}: {line.health}: {printable(line.detail)}", "see its log beside the database"
        )
    return ok("backend", f"{name}: the running pylon has it ready, with {printable(', '.join(line.models))}")


async def try_backend(backend: Backend, sold: Sequence[Offer], limit_s: float) -> list[Finding]:
    """Hold one backend for a trial of at most `limit_s`."""
    deadline = anyio.current_time() + limit_s
    async with backend.running():
        state = await _settled(backend, deadline)
        if state.health is BackendHealth.LOADING:
            what = f"{backend.name}: not loaded within {limit_s:g} s: {printable(state.detail)}"
            return [warn("backend", what, "give it time, then run the doctor again")]
        if state.health is not BackendHealth.READY:
            what = f"{backend.name}: {state.health}: {printable(state.detail)}"
            return [fail("backend", what, "start that server, or correct its [[backends]] in the settings")]
        if not sold:
            what = f"{backend.name}: answers, and nothing of it is on offer"
            return [warn("backend", what, "name one of its models in [[models]], or remove it")]
        findings = []
        for offer in sold:
            findings.append(await _try_model(backend, state, offer, deadline))
        return findings


async def _settled(backend: Backend, deadline: float) -> BackendState:
    """Return the state once nothing is loading any more, or at the deadline."""
    state = backend.state()
    with anyio.move_on_at(deadline):
        state = await backend.check()
        while state.health in (BackendHealth.LOADING, BackendHealth.UNKNOWN):
            await anyio.sleep(_LOADING_POLL_S)
            state = await backend.check()
    return state


async def _try_model(backend: Backend, state: BackendState, offer: Offer, deadline: float) -> Finding:
    place = f"{backend.name}: {printable(offer.backend_model)}"
    listed = [model.name for model in state.models]
    if offer.backend_model not in listed:
        has = printable(", ".join(listed[:_MODELS_SHOWN])) or "none"
        why = f" ({printable(state.detail)})" if state.detail else ""
        return fail(
            "backend", f"{place} is on offer and not there{why}; there are: {has}", "correct [[models]] or load it"
        )
    started_at = anyio.current_time()
    request = GenerationRequest(offer.backend_model, _TRIAL, _TRIAL_TOKENS)
    try:
        with anyio.fail_at(deadline):
            async with aclosing(backend.generate(request)) as chunks:
                async for _ in chunks:
                    took_s = anyio.current_time() - started_at
                    return ok("backend", f"{place} generates, the first token after {took_s:.1f} s")
    except TimeoutError:
        return warn("backend", f"{place} is listed and generated nothing in time", "try again once it is loaded")
    except BackendError as error:
        again = "try again" if isinstance(error, BackendUnavailable) else "see the server's own log"
        return fail("backend", f"{place} does not generate: {printable(error)}", again)
    return fail("backend", f"{place} generates nothing", "see the server's own log")


# --- the wallet ---------------------------------------------------------------------------------------------------


_WALLET_FIX: Final = "see that the wallet runs, and that [wallet] in the settings is right: pylon wallet connect"


async def check_wallet(scene: Scene, limit_s: float) -> list[Finding]:
    """Ask the wallet whether it is there, and for its balance where it can tell."""
    free = scene.settings.payment.mode is PaymentMode.FREE
    try:
        wallet = assembly.make_wallet(scene.settings, scene.clock, scene.key or SecretKey.generate(), scene.paths)
    except (SettingsError, ValueError) as error:
        return [fail("wallet", printable(error, limit=500), "correct [wallet] in the settings")]
    if wallet is None:
        if free:
            return [ok("wallet", "none is connected, and work is given away")]
        return [fail("wallet", "work is to be prepaid and no wallet is connected", "connect one: [wallet]")]
    async with wallet.running():
        try:
            with anyio.fail_after(limit_s):
                state = await wallet.check()
                can_tell = WalletAbility.BALANCE in state.abilities
                balance_msats = await wallet.balance_msats() if state.ready and can_tell else None
        except (WalletError, TimeoutError) as error:
            words = printable(error) or f"no answer within {limit_s:g} s"
            return [fail("wallet", f"{wallet.name}: {words}", _WALLET_FIX)]
    if not state.ready:
        return [fail("wallet", f"{wallet.name}: {printable(state.detail)}", _WALLET_FIX)]
    abilities = ", ".join(sorted(state.abilities)) or "nothing beyond invoices"
    balance = "" if balance_msats is None else f", {balance_msats // 1000:,} sats"
    return [
        ok("wallet", f"{wallet.name} on {printable(state.network) or 'an unknown network'}{balance}; {abilities}")
    ]
