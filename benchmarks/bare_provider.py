"""The yardstick: a service provider with nothing but the protocol, as one writes it in an hour.

With the libraries of the field: pynostr for keys and events, websockets at its defaults, and Python's own json.
It stores nothing, asks nothing, limits nothing, and takes nothing from Pylon. `tuned_provider.py` is the same thing
tuned by hand.

usage: python -m benchmarks.bare_provider RELAY_URL
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import time
from typing import Any

from pynostr.event import Event
from pynostr.key import PrivateKey
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed


def answer(request: dict[str, Any], key: PrivateKey) -> str:
    prompt = next(tag[1] for tag in request["tags"] if tag[0] == "i")
    tags = [["request", json.dumps(request)], ["e", request["id"]], ["p", request["pubkey"]]]
    result = Event(content=prompt, pubkey=key.public_key.hex(), kind=6050, tags=tags)
    result.sign(key.hex())
    return str(result.to_message())


async def serve(url: str, key: PrivateKey) -> None:
    since = int(time.time())
    seen: set[str] = set()
    while True:
        try:
            async with connect(url) as relay:
                await relay.send(json.dumps(["REQ", "jobs", {"kinds": [5050], "since": since}]))
                print("READY", flush=True)
                async for frame in relay:
                    message = json.loads(frame)
                    if message[0] == "EVENT" and message[2]["id"] not in seen:
                        event = Event.from_dict(message[2])
                        if event.id == message[2]["id"] and event.verify():
                            seen.add(message[2]["id"])
                            await relay.send(answer(message[2], key))
        except (ConnectionClosed, OSError):
            continue


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    asyncio.run(serve(sys.argv[1], PrivateKey()))
