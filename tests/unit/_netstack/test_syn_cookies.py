"""SYN cookies: what a SYN said comes back in the acknowledgment of the answer (RFC 4987 3.6)."""

from __future__ import annotations

import pytest

from httpx_wireguard._netstack.syn_cookies import COOKIE_PERIOD, SynCookies
from httpx_wireguard._wire.tcp import Flags, TcpHeader, TcpOptions

KEY, KEY6 = bytes(range(12)), bytes(range(36))
OWN = TcpOptions(mss=1380, window_scale=8, sack_permitted=True, timestamp_value=70_000)
NOW = 1000.0


def syn(options: TcpOptions | None = None, sequence: int = 5000) -> TcpHeader:
    return TcpHeader(40000, 80, sequence, 0, int(Flags.SYN), 65535, options=options or TcpOptions())


def acknowledgment(of: TcpHeader, timestamp: int | None = 900) -> TcpHeader:
    """What the far side says to our SYN,ACK."""
    options = TcpOptions()
    if of.options.timestamp_value is not None and timestamp is not None:
        options.timestamp_value, options.timestamp_echo = timestamp, of.options.timestamp_value
    sequence, acknowledged = of.acknowledgment, (of.sequence + 1) % 2**32
    return TcpHeader(40000, 80, sequence, acknowledged, int(Flags.ACK), 500, options=options)


def recalled(options: TcpOptions, key: bytes = KEY) -> TcpOptions:
    cookies = SynCookies(b"secret")
    answer = cookies.answer(key, syn(options), OWN, 16384, NOW)
    found = cookies.recall(key, acknowledgment(answer), NOW + 1)
    assert found is not None
    assert found.flags == Flags.SYN
    return found.options


def test_the_answer_acknowledges_the_syn() -> None:
    """RFC 9293 3.10.7.2 third."""
    answer = SynCookies(b"secret").answer(KEY, syn(sequence=2**32 - 1), OWN, 16384, NOW)
    assert answer.flags == Flags.SYN | Flags.ACK
    assert (answer.source_port, answer.destination_port) == (80, 40000)
    assert (answer.acknowledgment, answer.window, answer.options.mss) == (0, 16384, 1380)


@pytest.mark.parametrize("sequence", [0, 1, 2**32 - 1])
def test_the_syn_is_recalled(sequence: int) -> None:
    cookies = SynCookies(b"secret")
    answer = cookies.answer(KEY, syn(sequence=sequence), OWN, 16384, NOW)
    found = cookies.recall(KEY, acknowledgment(answer), NOW + 1)
    assert found is not None
    assert (found.source_port, found.destination_port, found.sequence) == (40000, 80, sequence)


@pytest.mark.parametrize(
    "offered, remembered", [(20, 88), (88, 88), (1219, 536), (1220, 1220), (1379, 1340), (1380, 1380), (9000, 1460)]
)
def test_of_the_mss_the_next_smaller_of_eight_is_remembered(offered: int, remembered: int) -> None:
    assert recalled(TcpOptions(mss=offered)).mss == remembered


def test_without_an_mss_option_the_default_of_the_family_is_remembered() -> None:
    """RFC 9293 MUST-15."""
    assert (recalled(TcpOptions()).mss, recalled(TcpOptions(), KEY6).mss) == (536, 1220)


@pytest.mark.parametrize("scale", [None, 0, 7, 14])
@pytest.mark.parametrize("sack", [False, True])
def test_the_timestamp_remembers_the_other_options(scale: int | None, sack: bool) -> None:
    """RFC 7323 3.2: the far side sends it back."""
    options = recalled(TcpOptions(mss=1400, window_scale=scale, sack_permitted=sack, timestamp_value=800))
    assert options == TcpOptions(mss=1380, window_scale=scale, sack_permitted=sack, timestamp_value=900)


@pytest.mark.parametrize("clock", [70_000, 70_063, 3, 2**32 - 1])
def test_the_clock_that_remembers_is_at_most_64_ms_slow(clock: int) -> None:
    """RFC 7323 5.3: the timestamps that follow must not seem older."""
    own = TcpOptions(mss=1380, window_scale=8, timestamp_value=clock)
    for scale in range(15):
        options = TcpOptions(window_scale=scale, timestamp_value=1)
        told = SynCookies(b"secret").answer(KEY, syn(options), own, 16384, NOW).options.timestamp_value
        assert told is not None
        assert 0 <= (clock - told) % 2**32 < 64


def test_only_what_was_offered_is_answered() -> None:
    """RFC 7323 2.2, RFC 2018 2; without timestamps there is nothing to remember scale and SACK by."""
    cookies = SynCookies(b"secret")
    options = TcpOptions(mss=1400, window_scale=7, sack_permitted=True)
    assert cookies.answer(KEY, syn(options), OWN, 16384, NOW).options == TcpOptions(mss=1380)
    answer = cookies.answer(KEY, syn(TcpOptions(timestamp_value=5)), OWN, 16384, NOW).options
    assert (answer.window_scale, answer.sack_permitted, answer.timestamp_echo) == (None, False, 5)


@pytest.mark.parametrize("changed", ["sequence", "acknowledgment", "key", "secret", "mss"])
def test_any_other_acknowledgment_is_none(changed: str) -> None:
    cookies = SynCookies(b"secret")
    header = acknowledgment(cookies.answer(KEY, syn(), OWN, 16384, NOW))
    assert cookies.recall(KEY, header, NOW) is not None
    if changed == "secret":
        cookies = SynCookies(b"another")
        cookies.answer(KEY, syn(), OWN, 16384, NOW)
    elif changed == "mss":
        header.acknowledgment ^= 1 << 31
    elif changed != "key":
        setattr(header, changed, getattr(header, changed) + 1)
    assert cookies.recall(KEY[:-1] + b"?" if changed == "key" else KEY, header, NOW) is None


def test_a_cookie_is_good_for_its_period_and_the_next() -> None:
    cookies = SynCookies(b"secret")
    start = 10 * COOKIE_PERIOD
    header = acknowledgment(cookies.answer(KEY, syn(), OWN, 16384, start))
    later = acknowledgment(cookies.answer(KEY, syn(sequence=9), OWN, 16384, start + 1.5 * COOKIE_PERIOD))
    assert cookies.recall(KEY, header, start + 1.9 * COOKIE_PERIOD) is not None
    assert cookies.recall(KEY, header, start + 2 * COOKIE_PERIOD) is None
    assert cookies.recall(KEY, later, start + 2 * COOKIE_PERIOD) is not None


def test_where_no_cookie_was_sent_none_is_taken() -> None:
    """Then nobody can guess one either."""
    cookies = SynCookies(b"secret")
    header = acknowledgment(SynCookies(b"secret").answer(KEY, syn(), OWN, 16384, NOW))
    assert cookies.recall(KEY, header, NOW) is None
