"""From the settings to the ways out: the relays, and the web hosts that strangers name."""

from __future__ import annotations

from ipaddress import ip_address
from urllib.parse import urlsplit

from pylon.net.web import Web, WebPolicy
from pylon.relays.state import PoolConfig
from pylon.settings import Settings


def make_pool_config(settings: Settings) -> PoolConfig:
    """Return the relays' configuration."""
    relays = settings.relays
    paced = not all(is_local(url) for url in relays.urls)
    return PoolConfig(
        urls=tuple(relays.urls),
        connect_timeout_s=relays.connect_timeout_s,
        ping_interval_s=relays.ping_interval_s,
        pong_timeout_s=relays.pong_timeout_s,
        backoff_min_s=relays.backoff_min_s,
        backoff_max_s=relays.backoff_max_s,
        max_frame_bytes=relays.max_frame_bytes,
        publish_timeout_s=relays.publish_timeout_s,
        messages_per_s=relays.messages_per_s if paced else 0,
        subscriptions_per_minute=relays.subscriptions_per_minute if paced else 0,
        customer_relays_per_job=relays.customer_relays_per_job,
        customer_relays_total=relays.customer_relays_total,
        allow_private_hosts=relays.allow_private_hosts,
    )


def make_web(settings: Settings) -> Web:
    """Return the guarded way to web hosts that strangers, or a lightning address, name."""
    private = settings.relays.allow_private_hosts
    return Web(WebPolicy(allow_private=private, timeout_s=settings.wallet.timeout_s))


def is_local(url: str) -> bool:
    """Tell whether a relay is on this machine: nobody else is served there, and nothing is paced."""
    host = urlsplit(url).hostname or ""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
