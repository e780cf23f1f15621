"""Noise IKpsk2 against the published vector, and what a failed message may not do."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from httpx_wireguard._errors import MalformedPacket
from httpx_wireguard._wireguard.constants import NO_PRESHARED_KEY
from httpx_wireguard._wireguard.crypto import Aead, PrivateKey
from httpx_wireguard._wireguard.handshake import InitiatorHandshake, ResponderHandshake

VECTOR = json.loads((Path(__file__).parents[2] / "vectors" / "noise_ikpsk2.json").read_text())
NAME = VECTOR["protocol_name"].encode()
MESSAGES = [(bytes.fromhex(m["payload"]), bytes.fromhex(m["ciphertext"])) for m in VECTOR["messages"]]


def raw(name: str) -> bytes:
    return bytes.fromhex(VECTOR[name])


def key(name: str) -> PrivateKey:
    return PrivateKey(raw(name))


def vector_initiator() -> InitiatorHandshake:
    static, remote = key("init_static"), raw("init_remote_static")
    return InitiatorHandshake(
        static, remote, static.exchange(remote), key("init_ephemeral"), raw("psk"), NAME, raw("prologue")
    )


def vector_responder(message: bytes) -> tuple[ResponderHandshake, bytes]:
    static = key("resp_static")
    handshake = ResponderHandshake(static, message, NAME, raw("prologue"))
    return handshake, handshake.read_payload(static.exchange(handshake.remote_static))


def test_initiation_matches_the_published_vector() -> None:
    payload, ciphertext = MESSAGES[0]
    assert vector_initiator().write_initiation(payload) == ciphertext


def test_responder_reads_the_published_initiation() -> None:
    payload, ciphertext = MESSAGES[0]
    handshake, read = vector_responder(ciphertext)
    assert read == payload
    assert handshake.remote_static == key("init_static").public


def test_response_matches_the_published_vector() -> None:
    payload, ciphertext = MESSAGES[1]
    handshake, _ = vector_responder(MESSAGES[0][1])
    assert handshake.write_response(key("resp_ephemeral"), raw("psk"), payload) == ciphertext
    assert handshake.transcript == raw("handshake_hash")


def test_initiator_reads_the_published_response() -> None:
    handshake = vector_initiator()
    handshake.write_initiation(MESSAGES[0][0])
    assert handshake.read_response(MESSAGES[1][1]) == MESSAGES[1][0]
    assert handshake.transcript == raw("handshake_hash")


def test_transport_keys_seal_the_published_messages() -> None:
    """Messages 3 to 6 alternate, each side with its own counter."""
    initiator = vector_initiator()
    initiator.write_initiation(MESSAGES[0][0])
    initiator.read_response(MESSAGES[1][1])
    responder, _ = vector_responder(MESSAGES[0][1])
    responder.write_response(key("resp_ephemeral"), raw("psk"), MESSAGES[1][0])
    assert initiator.split() == responder.split()[::-1]
    senders = [Aead(initiator.split()[0]), Aead(responder.split()[0])]
    for number, (payload, ciphertext) in enumerate(MESSAGES[2:]):
        nonce = bytes(4) + (number // 2).to_bytes(8, "little")
        assert senders[number % 2].encrypt(nonce, payload, None) == ciphertext


def pair(initiator_psk: bytes, responder_psk: bytes) -> tuple[InitiatorHandshake, bytes]:
    """A WireGuard handshake up to the response."""
    client, server = PrivateKey(b"c" * 32), PrivateKey(b"s" * 32)
    shared = client.exchange(server.public)
    initiator = InitiatorHandshake(client, server.public, shared, PrivateKey(b"e" * 32), initiator_psk)
    responder = ResponderHandshake(server, initiator.write_initiation(b"timestamp..."))
    assert responder.read_payload(shared) == b"timestamp..."
    return initiator, responder.write_response(PrivateKey(b"f" * 32), responder_psk)


@pytest.mark.parametrize("at", [0, 31, 32, 47])
def test_altered_response_fails_and_the_genuine_one_still_works(at: int) -> None:
    """A handshake that a forged answer could kill would be a denial of service."""
    initiator, response = pair(NO_PRESHARED_KEY, NO_PRESHARED_KEY)
    altered = bytearray(response)
    altered[at] ^= 1
    with pytest.raises(MalformedPacket):
        initiator.read_response(bytes(altered))
    assert initiator.read_response(response) == b""


def test_response_with_an_ephemeral_key_of_low_order_fails() -> None:
    """Paper 5.4.3: ee and se would be zero."""
    initiator, response = pair(NO_PRESHARED_KEY, NO_PRESHARED_KEY)
    with pytest.raises(MalformedPacket):
        initiator.read_response(bytes(32) + response[32:])
    assert initiator.read_response(response) == b""


def test_different_preshared_key_fails() -> None:
    initiator, response = pair(b"1" * 32, b"2" * 32)
    with pytest.raises(MalformedPacket):
        initiator.read_response(response)


@pytest.mark.parametrize("at", [0, 31, 32, 79])
def test_altered_initiation_does_not_reveal_a_sender(at: int) -> None:
    message = bytearray(MESSAGES[0][1])
    message[at] ^= 1
    with pytest.raises(MalformedPacket):
        ResponderHandshake(key("resp_static"), bytes(message), NAME, raw("prologue"))


def test_initiation_without_the_senders_private_key_fails() -> None:
    """The static key alone is public: the payload is under static-static."""
    handshake = ResponderHandshake(key("resp_static"), MESSAGES[0][1], NAME, raw("prologue"))
    with pytest.raises(MalformedPacket):
        handshake.read_payload(b"w" * 32)


def test_initiation_with_an_ephemeral_key_of_low_order_fails() -> None:
    with pytest.raises(MalformedPacket):
        ResponderHandshake(key("resp_static"), bytes(32) + MESSAGES[0][1][32:], NAME, raw("prologue"))


def test_short_protocol_name_is_padded_instead_of_hashed() -> None:
    """Noise 5.2: a name of at most 32 bytes is the first hash itself."""
    client, server = PrivateKey(b"c" * 32), PrivateKey(b"s" * 32)
    shared = client.exchange(server.public)
    short, padded = (
        InitiatorHandshake(client, server.public, shared, PrivateKey(b"e" * 32), protocol_name=name)
        for name in (b"Noise_Short", b"Noise_Short".ljust(32, b"\0"))
    )
    assert short.write_initiation(b"") == padded.write_initiation(b"")
