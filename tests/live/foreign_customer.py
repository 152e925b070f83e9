"""A customer of kind 5050 made of `nostr-dvm`'s own functions; the Python of its own environment runs this.

    PYTHON foreign_customer.py RELAY_URL PROVIDER_HEX PROMPT

Prints each reply as one line of JSON until the result has come: its kind, status and content.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from types import SimpleNamespace
from typing import Any

from nostr_dvm.utils.dvmconfig import DVMConfig
from nostr_dvm.utils.nostr_utils import send_event
from nostr_dvm.utils.sdk_utils import ensure_sdk_callback_loop, handle_notifications
from nostr_sdk import ClientBuilder, EventBuilder, Filter, Keys, Kind, RelayUrl, ReqTarget, SignerAuthenticator, Tag

LIMIT_S = 60.0


async def main(relay_url: str, provider: str, prompt: str) -> None:
    ensure_sdk_callback_loop()
    config = DVMConfig()
    config.RELAY_LIST = config.ANNOUNCE_RELAY_LIST = config.SYNC_DB_RELAY_LIST = [relay_url]
    keys = Keys.generate()
    client = ClientBuilder().authenticator(SignerAuthenticator(keys)).build()
    await client.add_relay(RelayUrl.parse(relay_url))
    await client.connect()
    tags = [["i", prompt, "text"], ["p", provider], ["relays", relay_url], ["output", "text/plain"]]
    request = EventBuilder(Kind(5050), "").tags([Tag.parse(tag) for tag in tags]).finalize(keys)
    replies = Filter().kinds([Kind(6050), Kind(7000)]).event(request.id())
    await client.subscribe(ReqTarget.auto([replies]), None)
    done = asyncio.Event()

    async def handle(relay: Any, subscription: Any, event: Any) -> None:
        event.verify()
        status = [tag.to_vec()[1] for tag in event.tags() if tag.to_vec()[0] == "status"]
        told = {"kind": event.kind().as_u16(), "status": status, "content": event.content()}
        print(json.dumps(told), flush=True)
        if told["kind"] == 6050:
            done.set()

    async def handle_msg(relay: Any, message: Any) -> None:
        return

    listening = asyncio.create_task(
        handle_notifications(client, SimpleNamespace(handle=handle, handle_msg=handle_msg))
    )
    await send_event(request, client, config)
    await asyncio.wait_for(done.wait(), LIMIT_S)
    listening.cancel()
    await client.shutdown()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:4]))
    os._exit(0)  # its old nostr_sdk sometimes crashes while the interpreter ends; everything was said by then
