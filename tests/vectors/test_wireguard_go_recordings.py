"""Conversations recorded with wireguard-go, replayed byte for byte.

Keys, entropy and clock of our side are seeded, so our datagrams must come out as they did, and every datagram of
wireguard-go must be understood as it was. In `initiator` we begin; in `responder` it begins; in `cookie` it was under
load, sent a cookie, and admitted the initiation that carried it.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from httpx_wireguard._config import Config, PeerConfig
from httpx_wireguard._wireguard.crypto import PrivateKey
from httpx_wireguard._wireguard.device import Device
from httpx_wireguard._wireguard.messages import COOKIE_REPLY, INITIATION
from tests.wireguard_net import receive, take_datagrams

RECORDINGS: dict[str, Any] = json.loads((Path(__file__).parent / "wireguard_go.json").read_text())["recordings"]


class RecordedEntropy:
    def __init__(self, seed: int, seconds: int) -> None:
        self._random = random.Random(seed)
        self._seconds = seconds

    def random(self, n: int) -> bytes:
        return self._random.randbytes(n)

    def tai64n(self) -> bytes:
        self._seconds += 1
        return (2**62 + 10 + self._seconds).to_bytes(8, "big") + bytes(4)


def device_of(recording: dict[str, Any]) -> Device:
    peer = PeerConfig(
        public_key=PrivateKey(bytes.fromhex(recording["their_private_key"])).public,
        allowed_ips=("10.99.0.1/32",),
        preshared_key=bytes.fromhex(recording["preshared_key"]),
    )
    config = Config(private_key=bytes.fromhex(recording["our_private_key"]), peers=(peer,))
    return Device(config, RecordedEntropy(recording["seed"], recording["tai64n_base"]))


@pytest.mark.parametrize("role", ["initiator", "responder", "cookie"])
def test_conversation_with_wireguard_go_is_reproduced(role: str) -> None:
    recording = RECORDINGS[role]
    device, endpoint = device_of(recording), tuple(recording["endpoint"])
    if role != "responder":
        device.peers[0].endpoint = endpoint
    sent: list[bytes] = []
    for event in recording["events"]:
        if "sent" in event:
            assert sent.pop(0).hex() == event["sent"]
        elif "received" in event:
            packets = receive(device, bytes.fromhex(event["received"]), endpoint, event["now"])
            assert [packet.hex() for packet in packets] == event["inner"]
        elif "send" in event:
            device.send_packets(device.peers[0], [bytes.fromhex(event["send"])], event["now"])
        else:
            device.handle_timeout(event["now"])
        sent += take_datagrams(device)
    assert sent == []
    assert not device.drops
    assert device.peers[0].last_handshake is not None


def test_recordings_show_both_roles_and_a_cookie() -> None:
    first = {
        role: bytes.fromhex(next(e["sent"] for e in r["events"] if "sent" in e))[0] for role, r in RECORDINGS.items()
    }
    assert first == {"initiator": INITIATION, "responder": 2, "cookie": INITIATION}
    kinds = [bytes.fromhex(e["received"])[0] for e in RECORDINGS["cookie"]["events"] if "received" in e]
    assert kinds[0] == COOKIE_REPLY
