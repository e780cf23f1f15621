"""MAC1, MAC2, cookies, load and token buckets (WireGuard paper 5.3, 5.4.4, 5.4.7)."""

from __future__ import annotations

import pytest

from httpx_wireguard._errors import MalformedPacket
from httpx_wireguard._wireguard import crypto
from httpx_wireguard._wireguard.constants import MAX_TOKEN_BUCKETS
from httpx_wireguard._wireguard.cookies import CookieChecker, LoadMeter, MacStamper, TokenBuckets
from httpx_wireguard._wireguard.messages import CookieReply, Initiation
from tests.simnet import SeededEntropy

SERVER = bytes(range(32))
SOURCE = ("192.0.2.7", 4000)
MESSAGE = Initiation(1, bytes(108)).serialize()


def cookie_exchange(now: float = 0.0) -> tuple[CookieChecker, MacStamper]:
    """A server, and a client that has its cookie."""
    checker, stamper = CookieChecker(SERVER, SeededEntropy(1)), MacStamper(SERVER)
    stamper.receive_reply(checker.reply_to(stamper.stamp(MESSAGE, now), 1, SOURCE, now), now)
    return checker, stamper


def test_mac1_is_keyed_with_label_and_receivers_key() -> None:
    """Paper 5.4.4: Mac(Hash(LabelMac1 || S_pub), all before it)."""
    stamped = MacStamper(SERVER).stamp(MESSAGE, 0.0)
    key = crypto.hash_of(b"mac1----", SERVER)
    assert stamped == MESSAGE[:116] + crypto.keyed_mac(key, MESSAGE[:116]) + bytes(16)
    assert CookieChecker(SERVER, SeededEntropy(1)).mac1_valid(stamped)


def test_mac1_for_another_key_is_invalid() -> None:
    stamped = MacStamper(b"x" * 32).stamp(MESSAGE, 0.0)
    assert not CookieChecker(SERVER, SeededEntropy(1)).mac1_valid(stamped)


def test_altered_message_has_an_invalid_mac1() -> None:
    stamped = bytearray(MacStamper(SERVER).stamp(MESSAGE, 0.0))
    stamped[50] ^= 1
    assert not CookieChecker(SERVER, SeededEntropy(1)).mac1_valid(bytes(stamped))


def test_message_without_a_cookie_has_no_valid_mac2() -> None:
    stamped = MacStamper(SERVER).stamp(MESSAGE, 0.0)
    assert not CookieChecker(SERVER, SeededEntropy(1)).mac2_valid(stamped, SOURCE, 0.0)


def test_cookie_makes_mac2_valid_from_the_same_source_only() -> None:
    """Paper 5.4.7: the cookie is bound to address and port."""
    checker, stamper = cookie_exchange()
    stamped = stamper.stamp(MESSAGE, 5.0)
    assert checker.mac2_valid(stamped, SOURCE, 5.0)
    assert not checker.mac2_valid(stamped, ("192.0.2.8", 4000), 5.0)
    assert not checker.mac2_valid(stamped, ("192.0.2.7", 4001), 5.0)


def test_cookie_is_not_used_in_its_last_five_seconds() -> None:
    """Paper 5.4.4: younger than 120 s, less what the message needs to arrive."""
    _, stamper = cookie_exchange()
    assert stamper.stamp(MESSAGE, 114.9)[-16:] != bytes(16)
    assert stamper.stamp(MESSAGE, 115.0)[-16:] == bytes(16)


def test_secret_changes_every_two_minutes() -> None:
    """Paper 5.4.7: old cookies stop working."""
    checker, stamper = cookie_exchange()
    stamped = stamper.stamp(MESSAGE, 100.0)
    assert checker.mac2_valid(stamped, SOURCE, 119.9)
    assert not checker.mac2_valid(stamped, SOURCE, 120.0)


def test_cookie_reply_is_accepted_once_for_each_message() -> None:
    checker, stamper = CookieChecker(SERVER, SeededEntropy(1)), MacStamper(SERVER)
    reply = checker.reply_to(stamper.stamp(MESSAGE, 0.0), 1, SOURCE, 0.0)
    stamper.receive_reply(reply, 0.0)
    with pytest.raises(MalformedPacket):
        stamper.receive_reply(reply, 0.1)


def test_cookie_reply_to_another_message_is_refused() -> None:
    """Paper 5.4.7: the additional data is the mac1 that it answers."""
    checker, stamper = CookieChecker(SERVER, SeededEntropy(1)), MacStamper(SERVER)
    reply = checker.reply_to(stamper.stamp(MESSAGE, 0.0), 1, SOURCE, 0.0)
    stamper.stamp(Initiation(2, bytes(108)).serialize(), 5.0)
    with pytest.raises(MalformedPacket):
        stamper.receive_reply(reply, 5.0)


def test_cookie_reply_before_any_message_is_refused() -> None:
    with pytest.raises(MalformedPacket):
        MacStamper(SERVER).receive_reply(CookieReply(1, bytes(24), bytes(32)), 0.0)


def test_forged_cookie_reply_leaves_room_for_the_genuine_one() -> None:
    checker, stamper = CookieChecker(SERVER, SeededEntropy(1)), MacStamper(SERVER)
    reply = checker.reply_to(stamper.stamp(MESSAGE, 0.0), 1, SOURCE, 0.0)
    with pytest.raises(MalformedPacket):
        stamper.receive_reply(CookieReply(1, reply.nonce, bytes(32)), 0.0)
    stamper.receive_reply(reply, 0.0)
    assert stamper.stamp(MESSAGE, 1.0)[-16:] != bytes(16)


def test_load_begins_with_the_threshold_and_ends_after_a_second() -> None:
    meter = LoadMeter(3)
    assert [meter.count(now) for now in (0.0, 0.1, 0.2)] == [False, False, True]
    assert meter.count(0.9)
    assert not meter.count(1.9)


def test_source_gets_five_at_once_and_twenty_a_second() -> None:
    buckets = TokenBuckets()
    assert [buckets.take(SOURCE, 0.0) for _ in range(6)] == [True] * 5 + [False]
    assert [buckets.take(SOURCE, 0.05), buckets.take(SOURCE, 0.05)] == [True, False]
    assert sum(buckets.take(SOURCE, 0.05 + number / 100) for number in range(1, 101)) == 20


def test_ipv6_sources_share_a_bucket_per_64_bit_network() -> None:
    buckets = TokenBuckets()
    for number in range(5):
        assert buckets.take((f"2001:db8:0:1::{number}", 1, 0, 0), 0.0)
    assert not buckets.take(("2001:db8:0:1:ffff::", 9, 0, 0), 0.0)
    assert buckets.take(("2001:db8:0:2::1", 1, 0, 0), 0.0)


def test_ipv4_sources_have_a_bucket_each_however_written() -> None:
    buckets = TokenBuckets()
    for _ in range(5):
        assert buckets.take(("192.0.2.1", 1), 0.0)
    assert not buckets.take(("::ffff:192.0.2.1", 1, 0, 0), 0.0)
    assert buckets.take(("192.0.2.2", 1), 0.0)


def test_link_local_zone_and_unknown_forms_are_no_errors() -> None:
    buckets = TokenBuckets()
    assert buckets.take(("fe80::1%eth0", 1, 0, 2), 0.0)
    assert buckets.take(("in-process", 1), 0.0)


def test_buckets_are_bounded_and_refuse_new_sources_when_full() -> None:
    buckets = TokenBuckets()
    for number in range(MAX_TOKEN_BUCKETS):
        assert buckets.take((str(number), 1), 0.0)
    assert not buckets.take(("one more", 1), 0.1)
    assert buckets.take(("one more", 1), 0.3)
    assert len(buckets._buckets) == MAX_TOKEN_BUCKETS
