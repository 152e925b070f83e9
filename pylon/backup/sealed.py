"""A file sealed by a passphrase: written and read as a stream, authentic to the last byte or refused.

Layout: the magic line (it has the version), scrypt's cost as one byte (log2 of N; r is 8 and p is 1), 16 bytes of
salt, then chunks of 64 KiB, each sealed by ChaCha20-Poly1305 with the whole header as associated data. The nonce
of a chunk is its number and whether it is the last: none can be left out, moved or appended. The key comes from a
fresh salt, so no nonce is ever used twice with it.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from typing import IO, Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

MAGIC: Final = b"pylon backup 1\n"
MIN_PASSPHRASE: Final = 10
"""Characters that a passphrase has at least."""

_FAMILY: Final = b"pylon backup "
_COST: Final = 17  # 128 MiB and a quarter of a second
_COSTS: Final = range(10, 21)  # what is read: 1 MiB to 1 GiB
_SALT_BYTES: Final = 16
_HEADER_BYTES: Final = len(MAGIC) + 1 + _SALT_BYTES
_CHUNK: Final = 64 * 1024
_TAG: Final = 16


class SealBroken(ValueError):
    """The file cannot be opened; the message is one sentence that follows its name."""


class SealedWriter:
    """Seals what is written to it into `file`. Only `finish` makes it complete."""

    def __init__(self, file: IO[bytes], passphrase: str, *, cost: int = _COST) -> None:
        self._file = file
        self._header = MAGIC + bytes([cost]) + secrets.token_bytes(_SALT_BYTES)
        self._cipher = _cipher(self._header, passphrase)
        self._number = 0
        self._rest = bytearray()
        file.write(self._header)

    def write(self, data: bytes) -> int:
        """Take plain bytes; whole chunks go out at once."""
        self._rest += data
        while len(self._rest) > _CHUNK:  # a full one stays: it may be the last
            self._seal(bytes(self._rest[:_CHUNK]), last=False)
            del self._rest[:_CHUNK]
        return len(data)

    def finish(self) -> None:
        """Seal what is left as the last chunk."""
        self._seal(bytes(self._rest), last=True)
        self._rest.clear()

    def _seal(self, chunk: bytes, *, last: bool) -> None:
        self._file.write(self._cipher.encrypt(_nonce(self._number, last=last), chunk, self._header))
        self._number += 1


class SealedReader:
    """Reads what a `SealedWriter` sealed. Nothing that it returns was not checked; the end is, when it is reached.

    Raises `SealBroken`, already on opening where the file is no backup of ours.
    """

    def __init__(self, file: IO[bytes], passphrase: str) -> None:
        header = file.read(_HEADER_BYTES)
        if not header.startswith(_FAMILY):
            raise SealBroken("is not a backup of pylon")
        if not header.startswith(MAGIC):
            raise SealBroken("was written by another version of Pylon, which this one cannot read")
        if len(header) < _HEADER_BYTES or header[len(MAGIC)] not in _COSTS:
            raise SealBroken("is damaged: its header makes no sense")
        self._chunks = _open(file, header, _cipher(header, passphrase))
        self._rest = b""

    def read(self, size: int = -1) -> bytes:
        """Return up to `size` plain bytes (all with -1), nothing at the end."""
        parts = []
        while size:
            if not self._rest and not (chunk := next(self._chunks, b"")):
                break
            elif not self._rest:
                self._rest = chunk
            part = self._rest if size < 0 else self._rest[:size]
            self._rest = self._rest[len(part) :]
            size -= len(part) if size > 0 else 0
            parts.append(part)
        return b"".join(parts)

    def finish(self) -> None:
        """Read to the end: only then is nothing missing."""
        while self.read(_CHUNK):
            pass


def _open(file: IO[bytes], header: bytes, cipher: ChaCha20Poly1305) -> Iterator[bytes]:
    number, block = 0, file.read(_CHUNK + _TAG)
    while True:
        following = file.read(_CHUNK + _TAG)
        try:
            yield cipher.decrypt(_nonce(number, last=not following), block, header)
        except (InvalidTag, ValueError):
            if number == 0:
                raise SealBroken("does not open: another passphrase, or it is damaged") from None
            raise SealBroken("is damaged, or its end is missing") from None
        if not following:
            return
        number, block = number + 1, following


def _cipher(header: bytes, passphrase: str) -> ChaCha20Poly1305:
    cost, salt = header[len(MAGIC)], header[len(MAGIC) + 1 :]
    key = Scrypt(salt=salt, length=32, n=2**cost, r=8, p=1).derive(passphrase.encode())
    return ChaCha20Poly1305(key)


def _nonce(number: int, *, last: bool) -> bytes:
    return number.to_bytes(11, "big") + bytes([last])
