"""Fragments of a few datagrams, in any order and shape, against the model; and what only looks like fragments.

Nothing may raise, and no limit may be passed.
"""

from __future__ import annotations

from httpx_wireguard._netstack.fragments import MAX_LENGTH, FragmentReassembler
from tests.fragment_model import DatagramModel, add
from tests.fuzz.harness import Script
from tests.fuzz.packets import admitted

MAX_BYTES, MAX_DATAGRAMS, TIMEOUT = 4096, 3, 30.0
MODEL_STEPS = 24  # the model's cost grows with the square


def run(data: bytes) -> None:
    script = Script(data)
    if script.flag():
        run_against_model(script)
    else:
        run_within_limits(script)


def run_against_model(script: Script) -> None:
    """Without a limit in reach: one reassembler, a model for each datagram."""
    reassembler = FragmentReassembler()
    models: dict[tuple[int, int], DatagramModel] = {}
    for _ in range(MODEL_STEPS):
        if not script:
            return
        version, identification = script.choose((4, 6)), script.byte() % 3
        offset, more = 8 * (script.byte() % 12), script.flag()
        content = script.take(script.choose((8, 16, 24, 40, 1, 0, 3, 9)))
        if not offset and not more:
            continue  # no fragment
        fragment = (offset, content, more)
        model = models.setdefault((version, identification), DatagramModel())
        rebuilt = add(reassembler, version, identification, fragment)
        assert rebuilt == model.add(fragment)
        if rebuilt is not None:
            del models[version, identification]
        assert reassembler.bytes_held == sum(len(f[1]) for m in models.values() for f in m.fragments)


def run_within_limits(script: Script) -> None:
    """With small limits, time that passes, and headers made up too."""
    reassembler = FragmentReassembler(max_bytes=MAX_BYTES, max_datagrams=MAX_DATAGRAMS, timeout=TIMEOUT)
    now = 0.0
    while script:
        version, identification = script.choose((4, 6)), script.byte() % 8
        offset = 8 * script.number(2) if script.flag() else 8 * (script.byte() % 12)
        if script.byte() % 8 == 0:
            now += script.byte()
            reassembler.handle_timeout(now)
        elif script.flag():
            for packet in admitted(bytes([version << 4 | 5]) + script.take(script.byte())):
                whole = (reassembler.add_ipv4 if version == 4 else reassembler.add_ipv6)(packet, now)
                assert whole is None or whole[0] == packet[0]
        else:
            content = script.take(script.byte()) * script.choose((1, 1, 1, 64))
            if offset + len(content) < MAX_LENGTH:
                add(reassembler, version, identification, (offset & 0xFFF8, content, script.flag()), now)
        check_limits(reassembler, now)
    reassembler.handle_timeout(now + TIMEOUT)
    assert len(reassembler) == reassembler.bytes_held == 0
    assert reassembler.next_timeout() is None


def check_limits(reassembler: FragmentReassembler, now: float) -> None:
    assert 0 <= reassembler.bytes_held <= MAX_BYTES
    assert len(reassembler) <= MAX_DATAGRAMS
    due = reassembler.next_timeout()
    assert (due is None) == (len(reassembler) == 0)
    assert due is None or due <= now + TIMEOUT
    assert all(count >= 0 for count in reassembler.drops.values())
