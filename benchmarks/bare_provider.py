"""The yardstick: a service provider with nothing but the protocol. It stores nothing, asks nothing, limits nothing.

It checks each request's signature and answers with the prompt, over one connection that it opens again when the
relay closes it. usage: python -m benchmarks.bare_provider RELAY_URL
"""

from __future__ import annotations

import asyncio
import signal
import sys
import time

import orjson
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from pylon.nostr.event import Draft, parse_event, verify
from pylon.nostr.keys import SecretKey


async def serve(url: str, key: SecretKey) -> None:
    since = int(time.time())
    seen: set[str] = set()
    while True:
        try:
            async with connect(url, compression=None) as relay:
                await relay.send(orjson.dumps(["REQ", "jobs", {"kinds": [5050], "since": since}]).decode())
                print("READY", flush=True)
                async for frame in relay:
                    message = orjson.loads(frame)
                    if message[0] != "EVENT":
                        continue
                    request = parse_event(message[2])
                    if request.id in seen or not verify(request):
                        continue
                    seen.add(request.id)
                    prompt = next(tag[1] for tag in request.tags if tag[0] == "i")
                    tags = (("request", request.to_json()), ("e", request.id), ("p", request.pubkey))
                    result = Draft(6050, prompt, tags).sign(key, int(time.time()))
                    await relay.send(f'["EVENT",{result.to_json()}]')
        except (ConnectionClosed, OSError):
            continue


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        import uvloop

        uvloop.run(serve(sys.argv[1], SecretKey.generate()))
    except ImportError:
        asyncio.run(serve(sys.argv[1], SecretKey.generate()))
