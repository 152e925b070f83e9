"""A free provider of kind 5050 made with `nostr-dvm`; its own environment's Python runs this, not the project's.

    PYTHON foreign_provider.py RELAY_URL SECRET_KEY_HEX

It announces itself (kind 31990), and says each prompt back behind "dvm: ".
"""

import json
import sys

from nostr_dvm.framework import DVMFramework
from nostr_dvm.interfaces.dvmtaskinterface import DVMTaskInterface
from nostr_dvm.utils.admin_utils import AdminConfig
from nostr_dvm.utils.dvmconfig import DVMConfig
from nostr_dvm.utils.nip89_utils import NIP89Config
from nostr_sdk import Kind


class Echo(DVMTaskInterface):
    KIND = Kind(5050)
    TASK = "text-to-text"
    FIX_COST = 0

    async def is_input_supported(self, tags, client=None, dvm_config=None):
        return True

    async def create_request_from_nostr_event(self, event, client=None, dvm_config=None):
        inputs = [tag.to_vec()[1] for tag in event.tags() if tag.to_vec()[0] == "i"]
        return {"options": json.dumps({"prompt": inputs[0]})}

    async def process(self, request_form):
        return "dvm: " + self.set_options(request_form)["prompt"]


def main(relay_url, secret_key):
    config = DVMConfig()
    config.PRIVATE_KEY = secret_key
    config.IDENTIFIER = "foreign-echo"
    config.RELAY_LIST = config.ANNOUNCE_RELAY_LIST = config.SYNC_DB_RELAY_LIST = [relay_url]
    announcement = NIP89Config()
    announcement.DTAG = "foreign-echo"
    announcement.CONTENT = json.dumps(
        {
            "name": "Foreign Echo",
            "picture": "https://example.com/echo.png",
            "about": "I say it back.",
            "supportsEncryption": True,
            "acceptsNutZaps": False,
            "nip90Params": {"language": {"required": False, "values": ["en", "de"]}},
        }
    )
    admin = AdminConfig()
    admin.REBROADCAST_NIP89 = True
    framework = DVMFramework()
    framework.add(Echo(name="Foreign Echo", dvm_config=config, nip89config=announcement, admin_config=admin))
    framework.run()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
