"""What a relay that floods the daemon costs its jobs: quiet and flooded in turn, on the same daemon, in one run.

The daemon (free mode, echo backend, everything durable) has two relays: jobs come over a good one, and the other,
a process of its own, sends as fast as it is read: requests with wrong signatures, the same valid event again and
again, rubbish or pings. Printed are the jobs' figures on both sides, how many events were checked and dropped a
second, and for comparison how many a core can check. Traffic stays on loopback and is bounded.

usage: python -m benchmarks.flood [--jobs 1000] [--outstanding 1 16] [--json FILE]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from dataclasses import asdict
from pathlib import Path

from benchmarks.market import Figures, measure
from benchmarks.processes import echo_daemon, relay
from pylon.control.client import ControlClient
from pylon.control.views import RelayLine
from pylon.nostr.event import verify
from pylon.nostr.keys import SecretKey
from pylon.nostr.messages import EventMessage, parse_relay_message
from tests.support.hostile_relay import hostile_process, unsigned_requests

ATTACKS = ("invalid-signatures", "duplicates", "junk", "pings")
CHECKED = 5_000


def checks_per_s() -> float:
    """Return how many events with a wrong signature one core parses and checks a second."""
    frames = [f'["EVENT","requests",{event.to_json()}]' for event in unsigned_requests(CHECKED)]
    started_at = time.perf_counter()
    for frame in frames:
        message = parse_relay_message(frame)
        if not isinstance(message, EventMessage) or verify(message.event):
            raise SystemExit("a wrong signature was taken for a right one")
    return CHECKED / (time.perf_counter() - started_at)


def line_of(control: ControlClient, url: str) -> RelayLine:
    return next(line for line in control.status().relays if line.url == url)


def show(name: str, outstanding: int, figures: Figures, dropped_per_s: float, detail: str) -> None:
    print(
        f"{name:20}{outstanding:>7}{figures.jobs_per_s:>8.0f}{figures.p50_ms:>8.2f}{figures.p99_ms:>8.2f}"
        f"{figures.cpu_ms_per_job:>8.2f}{figures.rss_mb:>8.1f}{dropped_per_s:>11.0f}  {detail}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=1000, help="jobs a side, at most 1,000")
    parser.add_argument("--outstanding", type=int, nargs="*", default=[1, 16])
    parser.add_argument("--attacks", nargs="*", choices=ATTACKS, default=list(ATTACKS))
    parser.add_argument("--port", type=int, default=7791)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    jobs = min(options.jobs, 1000)
    report: dict[str, object] = {"checks_per_s": checks_per_s()}
    print(f"one core parses and checks {report['checks_per_s']:.0f} wrong signatures a second")
    print(f"{'':20}{'outst.':>7}{'jobs/s':>8}{'p50 ms':>8}{'p99 ms':>8}{'CPU ms':>8}{'RSS MB':>8}{'dropped/s':>11}")
    for attack in options.attacks:
        key = SecretKey.generate()
        with (
            relay(options.port) as good,
            hostile_process(attack, key.public_hex) as bad,
            echo_daemon(good, bad.url, key=key) as (process, control),
        ):
            for outstanding in options.outstanding:
                figures = asyncio.run(measure(good, process, jobs, outstanding))
                show("quiet", outstanding, figures, 0.0, "")
                report[f"{attack} {outstanding} quiet"] = asdict(figures)
            bad.attack()
            for outstanding in options.outstanding:
                before, started_at = line_of(control, bad.url), time.perf_counter()
                figures = asyncio.run(measure(good, process, jobs, outstanding))
                took_s = time.perf_counter() - started_at
                after = line_of(control, bad.url)
                dropped_per_s = (after.dropped - before.dropped) / took_s
                show(attack, outstanding, figures, dropped_per_s, after.detail)
                report[f"{attack} {outstanding}"] = {**asdict(figures), "dropped_per_s": dropped_per_s}
    if options.json:
        options.json.write_text(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
