"""Which IP addresses are the public internet, and which must not be reached on a stranger's word.

The standard library's `is_global` changed its mind between Python releases, so the networks stand here, from the
IANA special-purpose registries. IPv6 works by permission: only 2000::/3, less what is carved out of it.
"""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Final

IPAddress = IPv4Address | IPv6Address

_REFUSED_V4: Final = tuple(
    (IPv4Network(network), why)
    for network, why in (
        ("0.0.0.0/8", "unspecified"),
        ("10.0.0.0/8", "private"),
        ("100.64.0.0/10", "carrier-grade NAT"),  # also 100.100.100.200, a metadata service
        ("127.0.0.0/8", "loopback"),
        ("169.254.0.0/16", "link-local"),  # also 169.254.169.254, the metadata service of most clouds
        ("172.16.0.0/12", "private"),
        ("192.0.0.0/24", "reserved"),
        ("192.0.2.0/24", "documentation"),
        ("192.31.196.0/24", "reserved"),
        ("192.52.193.0/24", "reserved"),
        ("192.88.99.0/24", "reserved"),
        ("192.168.0.0/16", "private"),
        ("192.175.48.0/24", "reserved"),
        ("198.18.0.0/15", "benchmarking"),
        ("198.51.100.0/24", "documentation"),
        ("203.0.113.0/24", "documentation"),
        ("224.0.0.0/4", "multicast"),
        ("240.0.0.0/4", "reserved"),  # also the broadcast address
    )
)

_GLOBAL_V6: Final = IPv6Network("2000::/3")
_REFUSED_V6: Final = tuple(
    (IPv6Network(network), why)
    for network, why in (
        ("2001::/23", "reserved"),  # Teredo, ORCHID, benchmarking
        ("2001:db8::/32", "documentation"),
        ("2002::/16", "6to4"),
        ("2620:4f:8000::/48", "reserved"),
        ("3fff::/20", "documentation"),
    )
)
# Names for the refusals that people meet; everything else outside 2000::/3 is "reserved".
_NAMED_V6: Final = tuple(
    (IPv6Network(network), why)
    for network, why in (
        ("::/128", "unspecified"),
        ("::1/128", "loopback"),
        ("fc00::/7", "private"),  # also fd00:ec2::254, a metadata service
        ("fe80::/10", "link-local"),
        ("ff00::/8", "multicast"),
    )
)
_NAT64: Final = IPv6Network("64:ff9b::/96")


def why_not_public(address: IPAddress) -> str | None:
    """Return what kind of non-public address this is, or None when it is on the public internet.

    IPv4 inside IPv6 (mapped `::ffff:0:0/96`, NAT64 `64:ff9b::/96`) is judged by the IPv4 address in it, since that
    is where the packets go; 6to4 and Teredo are refused whole.
    """
    if isinstance(address, IPv4Address):
        return _first_match(address, _REFUSED_V4)
    if address.scope_id is not None:
        return "link-local"
    if address.ipv4_mapped is not None:
        return why_not_public(address.ipv4_mapped)
    if address in _NAT64:
        return why_not_public(IPv4Address(int(address) & 0xFFFFFFFF))
    if address in _GLOBAL_V6:
        return _first_match(address, _REFUSED_V6)
    return _first_match(address, _NAMED_V6) or "reserved"


def parse_address(text: str) -> IPAddress | None:
    """Return the address that `text` spells canonically, or None."""
    try:
        return ip_address(text)
    except ValueError:
        return None


def _first_match(address: IPAddress, networks: Iterable[tuple[IPv4Network | IPv6Network, str]]) -> str | None:
    return next((why for network, why in networks if address in network), None)
