"""The primitives against published vectors and against their definitions."""

from __future__ import annotations

import importlib.util
import json
from hashlib import blake2s
from pathlib import Path

import pytest
from cryptography.hazmat.bindings._rust import openssl
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from httpx_wireguard._errors import MalformedPacket
from httpx_wireguard._wireguard import crypto
from httpx_wireguard._wireguard.crypto import PrivateKey

VECTORS = json.loads((Path(__file__).parents[2] / "vectors" / "xchacha20_poly1305.json").read_text())

# RFC 7748: the seven encodings of points of small order that are below 2^255
P = 2**255 - 19
LOW_ORDER = [
    0,
    1,
    325606250916557431795983626356110631294008115727848805560023387167927233504,
    39382357235489614581723060781553021112529911719440698176882885853963445705823,
    P - 1,
    P,
    P + 1,
]


def vector(section: str, name: str) -> bytes:
    return bytes.fromhex(VECTORS[section][name])


def test_hchacha20_matches_the_draft() -> None:
    """draft-irtf-cfrg-xchacha-03 2.2.1."""
    subkey = crypto.hchacha20(vector("hchacha20", "key"), vector("hchacha20", "nonce"))
    assert subkey == vector("hchacha20", "subkey")


def test_xchacha20_poly1305_matches_the_draft() -> None:
    """draft-irtf-cfrg-xchacha-03 A.3.1."""
    key, nonce, associated, plaintext, sealed = (
        vector("aead", name) for name in ("key", "nonce", "associated", "plaintext", "sealed")
    )
    assert crypto.xaead_seal(key, nonce, plaintext, associated) == sealed
    assert crypto.xaead_open(key, nonce, sealed, associated) == plaintext


def test_altered_text_does_not_open() -> None:
    sealed = crypto.aead_seal(b"k" * 32, b"text", b"aad")
    assert crypto.aead_open(b"k" * 32, sealed, b"aad") == b"text"
    for wrong in (sealed[:-1] + bytes([sealed[-1] ^ 1]), sealed[:-1], b"", sealed + b"\0"):
        with pytest.raises(MalformedPacket):
            crypto.aead_open(b"k" * 32, wrong, b"aad")
    with pytest.raises(MalformedPacket):
        crypto.xaead_open(b"k" * 32, bytes(24), sealed, b"aad")


def test_blake2s_matches_the_rfc() -> None:
    """RFC 7693 appendix B: BLAKE2s-256 of "abc"."""
    expected = "508c5e8c327c14e2e1a72ba34eeb452f37458b209ed63a294d999b4c86675982"
    assert crypto.hash_of(b"abc").hex() == expected
    assert crypto.hash_of(b"a", b"", b"bc").hex() == expected


def test_mac_is_the_keyed_mode_with_16_bytes() -> None:
    """Paper 5.4: Mac is keyed BLAKE2s, Hmac is not."""
    assert crypto.keyed_mac(b"key", b"data") == blake2s(b"data", key=b"key", digest_size=16).digest()
    assert crypto.hmac_of(b"key", b"data")[:16] != crypto.keyed_mac(b"key", b"data")


def test_hmac_follows_rfc_2104() -> None:
    """Inner and outer hash over the block of 64 bytes."""
    key = b"key".ljust(64, b"\0")
    inner = blake2s(bytes(b ^ 0x36 for b in key) + b"data").digest()
    assert crypto.hmac_of(b"key", b"data") == blake2s(bytes(b ^ 0x5C for b in key) + inner).digest()


def test_kdf_is_hkdf_with_counting_bytes() -> None:
    """Paper 5.4: tau_1 = Hmac(tau_0, 1), tau_n = Hmac(tau_0, tau_(n-1) || n)."""
    secret = crypto.hmac_of(b"c" * 32, b"input")
    one = crypto.hmac_of(secret, b"\1")
    two = crypto.hmac_of(secret, one + b"\2")
    three = crypto.hmac_of(secret, two + b"\3")
    assert crypto.kdf(3, b"c" * 32, b"input") == [one, two, three]
    assert crypto.kdf(1, b"c" * 32, b"input") == [one]


def test_key_exchange_matches_the_rfc() -> None:
    """RFC 7748 6.1."""
    alice = PrivateKey(bytes.fromhex("77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a"))
    bob = PrivateKey(bytes.fromhex("5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb"))
    shared = "4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742"
    assert alice.exchange(bob.public).hex() == bob.exchange(alice.public).hex() == shared


@pytest.mark.parametrize("point", LOW_ORDER)
def test_points_of_low_order_are_refused(point: int) -> None:
    """Paper 5.4 and RFC 7748 6.1: the shared secret would be zero whatever our key."""
    key = PrivateKey(b"\1" * 32)
    for encoded in (point, point | 1 << 255):
        with pytest.raises(MalformedPacket):
            key.exchange(encoded.to_bytes(32, "little"))


def test_private_key_is_clamped_on_use() -> None:
    """RFC 7748 5: three low bits and the two high ones do not count."""
    raw = bytes([0xFF]) + b"\5" * 30 + bytes([0xFF])
    clamped = bytes([0xF8]) + b"\5" * 30 + bytes([0x7F])
    assert PrivateKey(raw).public == PrivateKey(clamped).public


def test_private_key_does_not_show_itself() -> None:
    key = PrivateKey(b"secret-secret-secret-secret-1234")
    assert "secret" not in repr(key)
    assert b"secret".hex() not in repr(key)
    assert not hasattr(key, "__dict__")


def test_the_primitives_are_those_that_cryptography_publishes() -> None:
    assert crypto.Aead is ChaCha20Poly1305
    assert isinstance(crypto.PrivateKey(bytes(range(32)))._key, X25519PrivateKey)


def test_where_the_compiled_module_has_other_names_the_published_ones_serve(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.delattr(openssl.x25519, "from_private_bytes")
        spec = importlib.util.spec_from_file_location("crypto_again", crypto.__file__)
        assert spec is not None and spec.loader is not None
        again = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(again)
    raw = bytes(range(32))
    assert again._private_key == X25519PrivateKey.from_private_bytes
    assert again.PrivateKey(raw).public == crypto.PrivateKey(raw).public
