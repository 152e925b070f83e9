"""Who is served at all: allow and deny lists, targeted requests only, proof of work (NIP-13). No I/O, no clock.

The lists are the operator's files, read by whoever has the disk (`pylon.access_files`) and put in here whole: what
is checked is always one consistent set.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from pylon.nostr.event import Event
from pylon.nostr.keys import BadKey, parse_public_key
from pylon.nostr.nip90 import Denial, ErrorPrefix

MAX_LISTED: Final = 200_000
_COMMENT: Final = re.compile(r"\s*#.*$")
_NO_ZEROS: Final = "0"


@dataclass(frozen=True, slots=True)
class Access:
    """The rules. An empty `allow` with `allow_only` set serves nobody; `deny` wins over `allow`.

    `min_pow_bits` is asked of everyone who is not on the allow list.
    """

    allow: frozenset[str] = frozenset()
    deny: frozenset[str] = frozenset()
    allow_only: bool = False
    targeted_only: bool = False
    min_pow_bits: int = 0


def parse_key_list(lines: Iterable[str]) -> frozenset[str]:
    """Return the keys of a list, one npub or hex key a line, `#` begins a comment.

    Raises `ValueError` with one sentence that names the line; a list is taken whole or not at all.
    """
    keys: set[str] = set()
    for number, line in enumerate(lines, start=1):
        text = _COMMENT.sub("", line).strip()
        if not text:
            continue
        if len(keys) >= MAX_LISTED:
            raise ValueError(f"line {number}: at most {MAX_LISTED} keys are taken")
        try:
            keys.add(parse_public_key(text))
        except BadKey as error:
            raise ValueError(f"line {number}: {error}") from None
    return frozenset(keys)


def pow_bits(event: Event) -> int:
    """Return the work that an event proves (NIP-13), in bits.

    That is the number of leading zero bits of its id, but no more than its nonce tag commits to: a low target that
    was met by luck proves no more than it aimed at. Without a commitment it proves nothing.
    """
    nonce = event.tag("nonce")
    if nonce is None or len(nonce) < 3 or not nonce[2].isascii() or not nonce[2].isdigit() or len(nonce[2]) > 3:
        return 0
    zeros = 4 * (len(event.id) - len(event.id.lstrip(_NO_ZEROS)))
    rest = event.id.lstrip(_NO_ZEROS)
    if rest:
        zeros += 4 - int(rest[0], 16).bit_length()
    return min(zeros, int(nonce[2]))


def check_access(event: Event, access: Access) -> Denial | None:
    """Return why the author of a request is not served, or None. Its signature was checked before."""
    if event.pubkey in access.deny:
        return Denial(ErrorPrefix.RESTRICTED, "this provider does not serve you")
    if event.pubkey in access.allow:
        return None
    if access.allow_only:
        return Denial(ErrorPrefix.RESTRICTED, "this provider serves only customers whom its operator has listed")
    if access.min_pow_bits and (bits := pow_bits(event)) < access.min_pow_bits:
        sentence = f"the request proves {bits} bits of work (NIP-13), and {access.min_pow_bits} are asked for"
        return Denial(ErrorPrefix.POW_REQUIRED, sentence)
    return None
