"""A provider of kind 5050 made with `nostr-dvm`; the Python of its own environment runs this, not the project's.

    PYTHON foreign_provider.py RELAY_URL SECRET_KEY PRICE_SATS

It announces itself (kind 31990) and says each prompt back behind "dvm: ". It has no wallet: where it has a price,
it asks for payment without an invoice.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from nostr_dvm.framework import DVMFramework
from nostr_dvm.interfaces.dvmtaskinterface import DVMTaskInterface
from nostr_dvm.utils.admin_utils import AdminConfig
from nostr_dvm.utils.dvmconfig import DVMConfig
from nostr_dvm.utils.nip89_utils import NIP89Config
from nostr_sdk import Kind

NAME = "Foreign Echo"
ABOUT = {
    "name": NAME,
    "picture": "https://example.com/echo.png",
    "about": "I say it back.",
    "supportsEncryption": True,
    "acceptsNutZaps": False,
    "nip90Params": {"language": {"required": False, "values": ["en", "de"]}},
}


class Echo(DVMTaskInterface):  # type: ignore[misc]
    KIND = Kind(5050)
    TASK = "text-to-text"

    async def is_input_supported(self, tags: Any, client: Any = None, dvm_config: Any = None) -> bool:
        return True

    async def create_request_from_nostr_event(
        self, event: Any, client: Any = None, dvm_config: Any = None
    ) -> dict[str, str]:
        inputs = [tag.to_vec()[1] for tag in event.tags() if tag.to_vec()[0] == "i"]
        return {"options": json.dumps({"prompt": inputs[0]})}

    async def process(self, request_form: dict[str, str]) -> str:
        return f"dvm: {self.set_options(request_form)['prompt']}"


def main(relay_url: str, secret_key: str, price_sats: int) -> None:
    config = DVMConfig()
    config.PRIVATE_KEY = secret_key
    config.IDENTIFIER = "foreign-echo"
    config.FIX_COST = price_sats
    config.RELAY_LIST = config.ANNOUNCE_RELAY_LIST = config.SYNC_DB_RELAY_LIST = [relay_url]
    announcement = NIP89Config()
    announcement.DTAG = config.IDENTIFIER
    announcement.CONTENT = json.dumps(ABOUT)
    admin = AdminConfig()
    admin.REBROADCAST_NIP89 = True
    framework = DVMFramework()
    framework.add(Echo(name=NAME, dvm_config=config, nip89config=announcement, admin_config=admin))
    framework.run()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
