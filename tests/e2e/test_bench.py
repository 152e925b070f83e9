"""A bench of the real model, end to end: measured once, then told to customers before any job was run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pylon.benches import read_benches
from pylon.control.views import DaemonStatus
from pylon.nostr.event import Event
from pylon.nostr.nip89 import AnnouncedModel, parse_announcement
from pylon.nostr.nip90 import FeedbackStatus
from tests.e2e.test_announcing import announced
from tests.support.model import model_path
from tests.support.provider import market_settings, provider
from tests.support.relay import relay_process
from tests.support.shop import shop
from tests.support.wallet import WalletProcess

pytestmark = pytest.mark.e2e

NAME = "smollm2-135m"
EMBEDDED = {
    "name": "own",
    "kind": "embedded",
    "gguf": str(model_path()),
    "threads": 1,
    "gpu_layers": 0,
    "context_tokens": 1024,
}
MODEL = {"name": NAME, "backend": "own", "base_msats": 1000, "output_msats_per_1k": 1000}
MAX_TOKENS = 400


def models_of(event: Event) -> tuple[AnnouncedModel, ...]:
    return parse_announcement(event).models


def is_served(found: list[Event]) -> bool:
    return any(models_of(event) for event in found)


def is_loaded(status: DaemonStatus) -> bool:
    return status.backends[0].health == "ready"


async def test_what_was_measured_is_announced_and_tells_the_first_customer_the_time(tmp_path: Path) -> None:
    with relay_process() as relay, WalletProcess(tmp_path) as wallet:
        settings = market_settings(relay.url, paid_to=wallet, announce={"debounce_s": 1})
        settings |= {"backends": [EMBEDDED], "models": [MODEL]}
        async with provider(tmp_path, settings, wallet=wallet, started=False) as daemon:
            # A level that takes too long on a busy machine counts with what was written until then.
            done = await daemon.pylon(
                "backends", "bench", "own", "--concurrency", "1", "--limit", "30", limit_s=300
            )
            assert (done.returncode, done.stderr) == (0, ""), done
            assert done.stdout.startswith(f"own (embedded), {NAME}, 96.6 MB, Q4_1, xllamacpp ")
            (bench,) = read_benches(daemon.paths.benches_file).values()
            assert (bench.size_bytes, bench.quantization) == (96_576_768, "Q4_1")

            await daemon.start()
            await daemon.until(is_loaded, "loaded")
            (event,) = await announced(relay.url, is_served)
            assert [model.measured for model in models_of(event)] == [bench.claim]
            async with shop(relay.url, provider=daemon.pubkey) as customer:
                order = await customer.order("hello", params=[("max_tokens", [str(MAX_TOKENS)])])
                await order.invoice()
                (asked,) = order.feedback(FeedbackStatus.PAYMENT_REQUIRED)
                told = re.search(r"about (\d+) s", asked.info)
                assert told is not None, asked.info
                assert int(told[1]) == max(1, round(bench.speed.first_token_s + MAX_TOKENS * bench.speed.token_s))
            said = (await daemon.pylon("providers", "--relay", relay.url)).stdout
            assert f"{bench.claim.tokens_per_s:g} tokens/s, first " in said
            assert "a bench is ignored" not in daemon.log()
            await daemon.stop()

            daemon.configure({**settings, "backends": [{**EMBEDDED, "context_tokens": 512}]})
            await daemon.start()
            await daemon.logged("context_tokens of own changed since")
            await daemon.until(is_loaded, "loaded")
            await announced(relay.url, lambda found: is_served(found) and not models_of(found[0])[0].measured)
