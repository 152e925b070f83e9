"""A second, harder yardstick: the bare provider tuned by hand. It stores nothing, asks nothing, limits nothing.

The same as `bare_provider.py` with faster libraries (orjson, coincurve), called as sparingly as they allow, and
without compression. It takes nothing from Pylon: it checks each request's id and signature and answers with the
prompt, over one connection that it opens again when the relay closes it.

usage: python -m benchmarks.tuned_provider RELAY_URL
"""

from __future__ import annotations

import asyncio
import hashlib
import signal
import sys
import time
from typing import Any

import orjson
from coincurve import PrivateKey, PublicKeyXOnly
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed


def event_id(event: dict[str, Any]) -> bytes:
    parts = [0, event["pubkey"], event["created_at"], event["kind"], event["tags"], event["content"]]
    return hashlib.sha256(orjson.dumps(parts)).digest()


def is_valid(event: dict[str, Any]) -> bool:
    digest = event_id(event)
    key = PublicKeyXOnly(bytes.fromhex(event["pubkey"]))
    return digest.hex() == event["id"] and key.verify(bytes.fromhex(event["sig"]), digest)


def sign(event: dict[str, Any], key: PrivateKey) -> dict[str, Any]:
    digest = event_id(event)
    return {**event, "id": digest.hex(), "sig": key.sign_schnorr(digest).hex()}


def answer(request: dict[str, Any], key: PrivateKey, pubkey: str) -> str:
    prompt = next(tag[1] for tag in request["tags"] if tag[0] == "i")
    tags = [["request", orjson.dumps(request).decode()], ["e", request["id"]], ["p", request["pubkey"]]]
    result = {"pubkey": pubkey, "created_at": int(time.time()), "kind": 6050, "tags": tags, "content": prompt}
    return orjson.dumps(["EVENT", sign(result, key)]).decode()


async def serve(url: str, key: PrivateKey) -> None:
    pubkey = key.public_key.format()[1:].hex()
    since = int(time.time())
    seen: set[str] = set()
    while True:
        try:
            async with connect(url, compression=None) as relay:
                await relay.send(orjson.dumps(["REQ", "jobs", {"kinds": [5050], "since": since}]).decode())
                print("READY", flush=True)
                async for frame in relay:
                    message = orjson.loads(frame)
                    if message[0] == "EVENT" and message[2]["id"] not in seen and is_valid(message[2]):
                        seen.add(message[2]["id"])
                        await relay.send(answer(message[2], key, pubkey))
        except (ConnectionClosed, OSError):
            continue


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    asyncio.run(serve(sys.argv[1], PrivateKey()))
