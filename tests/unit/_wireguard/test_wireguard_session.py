"""One pair of transport keys: counters, padding, limits, and the fast path against the readable one."""

from __future__ import annotations

from collections import Counter

import pytest

from httpx_wireguard._wireguard.constants import REJECT_AFTER_MESSAGES, REKEY_AFTER_MESSAGES
from httpx_wireguard._wireguard.drops import Drop
from httpx_wireguard._wireguard.session import Session

KEY_ONE, KEY_TWO = b"1" * 32, b"2" * 32
MTU = 1420


def sessions() -> tuple[Session, Session]:
    """Both ends of one session, made at time 0."""
    return Session((KEY_ONE, KEY_TWO), 7, 9, True, 0.0), Session((KEY_TWO, KEY_ONE), 9, 7, False, 0.0)


class Drops(Counter[Drop]):
    def __call__(self, reason: Drop) -> None:
        self[reason] += 1


def seal(session: Session, *packets: bytes, mtu: int = MTU) -> list[bytes]:
    buffers, sizes = session.seal_run(packets, mtu)
    messages = [buffers[2 * i] + buffers[2 * i + 1] for i in range(len(sizes))]
    assert [len(message) for message in messages] == sizes
    return messages


def test_message_begins_with_type_receiver_and_counter() -> None:
    """Paper 5.4.6, little-endian."""
    sender, _ = sessions()
    first, second = seal(sender, b"one", b"two")
    assert first[:16] == bytes.fromhex("04000000 09000000 0000000000000000")
    assert second[:16] == bytes.fromhex("04000000 09000000 0100000000000000")


def test_counters_go_on_from_run_to_run() -> None:
    sender, _ = sessions()
    messages = seal(sender, b"a") + seal(sender, b"b", b"c") + seal(sender) + seal(sender, b"d")
    assert [int.from_bytes(m[8:16], "little") for m in messages] == [0, 1, 2, 3]
    assert sender.sent == 4


@pytest.mark.parametrize(
    ("length", "padded"), [(0, 0), (1, 16), (16, 16), (17, 32), (1403, 1408), (1409, 1420), (1420, 1420), (1500, 1500)]
)
def test_packets_are_padded_to_16_but_not_past_the_mtu(length: int, padded: int) -> None:
    """Paper 5.4.6; a 1420-byte packet stays 1420, or the outer one would exceed the path."""
    sender, receiver = sessions()
    (message,) = seal(sender, b"x" * length)
    assert len(message) == 32 + padded
    (plaintext,) = receiver.open(memoryview(message), Drops())
    assert plaintext == b"x" * length + bytes(padded - length)


def test_run_of_one_size_opens_in_order() -> None:
    sender, receiver = sessions()
    packets = [bytes([number]) * 1420 for number in range(45)]
    data = b"".join(seal(sender, *packets))
    assert receiver.open_run(memoryview(data), 1452, Drops()) == (packets, len(data))


def test_shorter_last_message_is_opened_with_the_run() -> None:
    sender, receiver = sessions()
    packets = [b"a" * 160, b"b" * 160, b"c" * 32]
    data = b"".join(seal(sender, *packets))
    assert receiver.open_run(memoryview(data), 192, Drops()) == (packets, len(data))


def test_run_ends_where_another_session_begins() -> None:
    sender, receiver = sessions()
    other = Session((KEY_ONE, KEY_TWO), 7, 10, True, 0.0)
    own = seal(sender, b"a" * 16, b"b" * 16)
    foreign = seal(other, b"c" * 16)
    data = b"".join([*own, *foreign, *own])
    assert receiver.open_run(memoryview(data), 48, Drops()) == ([b"a" * 16, b"b" * 16], 96)


def test_short_tail_of_another_session_is_left() -> None:
    sender, receiver = sessions()
    other = Session((KEY_ONE, KEY_TWO), 7, 10, True, 0.0)
    data = b"".join([*seal(sender, b"a" * 16, b"b" * 16), *seal(other, b"")])
    assert receiver.open_run(memoryview(data), 48, Drops())[1] == 96


def test_duplicates_and_forgeries_inside_a_run_are_dropped_alone() -> None:
    sender, receiver = sessions()
    packets = [bytes([number]) * 16 for number in range(6)]
    messages = seal(sender, *packets)
    forged = messages[3][:-1] + bytes([messages[3][-1] ^ 1])
    far = messages[4][:8] + (2**50).to_bytes(8, "little") + messages[4][16:]
    order = [messages[0], messages[0], messages[2], messages[1], forged, far, messages[3], messages[4], messages[5]]
    drops = Drops()
    opened, _ = receiver.open_run(memoryview(b"".join(order)), 48, drops)
    assert opened == [packets[number] for number in (0, 2, 1, 3, 4, 5)]
    assert drops == {Drop.REPLAYED: 1, Drop.NOT_AUTHENTIC: 2}


def test_run_is_remembered_against_replay() -> None:
    sender, receiver = sessions()
    data = memoryview(b"".join(seal(sender, *[b"x" * 16] * 20)))
    assert len(receiver.open_run(data, 48, Drops())[0]) == 20
    drops = Drops()
    assert receiver.open_run(data, 48, drops) == ([], len(data))
    assert drops == {Drop.REPLAYED: 20}


def test_run_that_reaches_the_counter_limit_is_cut_there() -> None:
    """Paper 6.1: REJECT_AFTER_MESSAGES, also in the middle of a batch."""
    sender, receiver = sessions()
    sender.sent = REJECT_AFTER_MESSAGES - 2
    drops = Drops()
    opened, _ = receiver.open_run(memoryview(b"".join(seal(sender, *[b"x" * 16] * 4))), 48, drops)
    assert len(opened) == 2
    assert drops == {Drop.REPLAYED: 2}


def test_session_may_not_send_past_the_counter_limit() -> None:
    """Paper 6.1: a counter is never used twice."""
    session, _ = sessions()
    session.sent = REJECT_AFTER_MESSAGES - 2
    assert session.can_send(2, 1.0)
    assert not session.can_send(3, 1.0)


def test_session_ends_at_180_seconds() -> None:
    """Paper 6.1: REJECT_AFTER_TIME."""
    session, _ = sessions()
    assert session.can_send(1, 179.9)
    assert not session.is_expired(179.9)
    assert not session.can_send(1, 180.0)
    assert session.is_expired(180.0)


def test_initiator_rekeys_by_age_and_the_responder_does_not() -> None:
    """Paper 6.2: REKEY_AFTER_TIME."""
    initiator, responder = sessions()
    assert not initiator.wants_rekey_after_sending(119.9)
    assert initiator.wants_rekey_after_sending(120.0)
    assert not responder.wants_rekey_after_sending(179.0)


def test_both_roles_rekey_by_count() -> None:
    """Paper 6.2: REKEY_AFTER_MESSAGES."""
    for session in sessions():
        session.sent = REKEY_AFTER_MESSAGES
        assert not session.wants_rekey_after_sending(1.0)
        session.sent += 1
        assert session.wants_rekey_after_sending(1.0)


def test_rekey_after_receiving_is_asked_once() -> None:
    """Paper 6.2: 180 - 10 - 5 s, only the initiator."""
    initiator, responder = sessions()
    assert not initiator.wants_rekey_after_receiving(164.9)
    assert initiator.wants_rekey_after_receiving(165.0)
    assert not initiator.wants_rekey_after_receiving(166.0)
    assert not responder.wants_rekey_after_receiving(166.0)


def test_keys_do_not_show() -> None:
    session, _ = sessions()
    assert KEY_ONE.decode() not in repr(session)
    assert not hasattr(session, "__dict__")
