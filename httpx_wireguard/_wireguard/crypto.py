"""The primitives, all of them from `cryptography`, `hashlib` and `hmac`.

Keys never appear in a `repr`. Python cannot erase memory: destroying a key means dropping the last reference.
"""

from __future__ import annotations

import hmac
import struct
from hashlib import blake2s

from cryptography.exceptions import InvalidTag as AuthenticationFailure

from httpx_wireguard._errors import MalformedPacket
from httpx_wireguard._wireguard.constants import MAC_SIZE

# What `cryptography` publishes under these names comes from its compiled module, by way of thirty others that take
# 10 ms to import: a quarter of what a first request waits for. Where there are no such names, the published ones serve.
try:
    from cryptography.hazmat.bindings._rust import openssl as _openssl

    ChaCha20Poly1305 = _openssl.aead.ChaCha20Poly1305
    _private_key, _public_key = _openssl.x25519.from_private_bytes, _openssl.x25519.from_public_bytes
except (ImportError, AttributeError):
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
    from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

    _private_key, _public_key = X25519PrivateKey.from_private_bytes, X25519PublicKey.from_public_bytes

__all__ = [
    "Aead",
    "AuthenticationFailure",
    "PrivateKey",
    "aead_open",
    "aead_seal",
    "constant_time_equal",
    "hash_of",
    "hchacha20",
    "hmac_of",
    "kdf",
    "keyed_mac",
    "xaead_open",
    "xaead_seal",
]

Aead = ChaCha20Poly1305  # `encrypt(nonce, data, aad)`, `decrypt(...)`; raises AuthenticationFailure

_ZERO_NONCE = bytes(12)
_EIGHT_WORDS = struct.Struct("<4I32x4I")
_FOUR_WORDS = struct.Struct("<4I")
_CHACHA_CONSTANTS = struct.unpack("<4I", b"expand 32-byte k")  # RFC 8439 2.3


class PrivateKey:
    """An X25519 private key (RFC 7748); the library clamps it on use."""

    __slots__ = ("_key", "public")

    def __init__(self, raw: bytes) -> None:
        """Take 32 bytes; raises ValueError for another length."""
        self._key = _private_key(raw)
        self.public: bytes = self._key.public_key().public_bytes_raw()

    def exchange(self, public: bytes) -> bytes:
        """Return the shared secret.

        Raises:
            MalformedPacket: `public` is one of the points of low order, so the secret would be zero (RFC 7748 6.1).
        """
        try:
            return self._key.exchange(_public_key(public))
        except ValueError:
            raise MalformedPacket("public key of low order") from None

    def __repr__(self) -> str:
        return f"<PrivateKey of public key {self.public[:3].hex()}...>"


def hash_of(*parts: bytes) -> bytes:
    """BLAKE2s-256 (RFC 7693) of the concatenated parts."""
    return blake2s(b"".join(parts)).digest()


def keyed_mac(key: bytes, data: bytes | memoryview) -> bytes:
    """The paper's MAC: keyed BLAKE2s, 16 bytes out."""
    return blake2s(data, key=key, digest_size=MAC_SIZE).digest()


def hmac_of(key: bytes, data: bytes) -> bytes:
    """The paper's HMAC: RFC 2104 over BLAKE2s-256, not its keyed mode."""
    return hmac.new(key, data, blake2s).digest()


def kdf(count: int, key: bytes, material: bytes) -> list[bytes]:
    """The paper's KDF1 to KDF3: HKDF (RFC 5869) with HMAC-BLAKE2s, `count` outputs of 32 bytes."""
    secret = hmac_of(key, material)
    outputs: list[bytes] = []
    previous = b""
    for number in range(1, count + 1):
        previous = hmac_of(secret, previous + bytes([number]))
        outputs.append(previous)
    return outputs


def constant_time_equal(one: bytes, other: bytes) -> bool:
    return hmac.compare_digest(one, other)


def aead_seal(key: bytes, plaintext: bytes, associated: bytes) -> bytes:
    """ChaCha20-Poly1305 (RFC 8439) under nonce 0: for keys that are used once."""
    return ChaCha20Poly1305(key).encrypt(_ZERO_NONCE, plaintext, associated)


def aead_open(key: bytes, sealed: bytes, associated: bytes) -> bytes:
    """Reverse `aead_seal`.

    Raises:
        MalformedPacket: wrong key, or altered.
    """
    return _open(key, _ZERO_NONCE, sealed, associated)


def hchacha20(key: bytes, nonce: bytes) -> bytes:
    """HChaCha20 (draft-irtf-cfrg-xchacha 2.2): a 32-byte key from a 32-byte key and a 16-byte nonce.

    A ChaCha20 block is the state after the rounds plus the state before them; HChaCha20 is the first and last row
    after the rounds. So take a key stream block and subtract what those rows held before: constants and nonce.
    """
    from cryptography.hazmat.primitives.ciphers import Cipher  # here: only cookies need it
    from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20

    block = Cipher(ChaCha20(key, nonce), mode=None).encryptor().update(bytes(64))
    before = _CHACHA_CONSTANTS + _FOUR_WORDS.unpack(nonce)
    after = _EIGHT_WORDS.unpack(block)
    return struct.pack("<8I", *((b - a) % 2**32 for a, b in zip(before, after, strict=True)))


def xaead_seal(key: bytes, nonce: bytes, plaintext: bytes, associated: bytes) -> bytes:
    """XChaCha20-Poly1305 (draft-irtf-cfrg-xchacha 2.3); the nonce has 24 bytes."""
    inner = bytes(4) + nonce[16:]
    return ChaCha20Poly1305(hchacha20(key, nonce[:16])).encrypt(inner, plaintext, associated)


def xaead_open(key: bytes, nonce: bytes, sealed: bytes, associated: bytes) -> bytes:
    """Reverse `xaead_seal`.

    Raises:
        MalformedPacket: wrong key, or altered.
    """
    return _open(hchacha20(key, nonce[:16]), bytes(4) + nonce[16:], sealed, associated)


def _open(key: bytes, nonce: bytes, sealed: bytes, associated: bytes) -> bytes:
    try:
        return ChaCha20Poly1305(key).decrypt(nonce, sealed, associated)
    except AuthenticationFailure:
        raise MalformedPacket("authentication failed") from None
