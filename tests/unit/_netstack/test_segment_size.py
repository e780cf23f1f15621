"""Segments for a path that tells nothing about its MTU (RFC 4821, RFC 8899)."""

from __future__ import annotations

import pytest

from httpx_wireguard._netstack.segment_size import FIRST_RAISE_INTERVAL, PATIENCE, RAISE_INTERVAL, SMALLER, SegmentSize

FULL = 1368


def fallen(now: float = 0.0) -> SegmentSize:
    size = SegmentSize(FULL)
    assert size.on_timeout(PATIENCE, FULL) == SMALLER[0]
    return size


def test_two_timeouts_in_a_row_may_be_anything() -> None:
    size = SegmentSize(FULL)
    assert [size.on_timeout(retries, FULL) for retries in (1, 2)] == [None, None]


def test_from_the_third_on_each_timeout_tries_a_smaller_size() -> None:
    """RFC 8899 5.1.2: MAX_PROBES."""
    size = SegmentSize(FULL)
    assert [size.on_timeout(retries, 1 << 20) for retries in range(3, 7)] == [*SMALLER, None]


def test_a_segment_that_was_small_tells_nothing_of_large_ones() -> None:
    size = SegmentSize(FULL)
    assert size.on_timeout(9, SMALLER[-1]) is None
    assert size.on_timeout(9, SMALLER[-1] + 1) == SMALLER[-1]


def test_after_a_fall_a_full_segment_is_tried_at_once() -> None:
    """If it passes there was an outage, and no black hole."""
    size = fallen()
    assert size.probe(FULL, 1.0) == FULL
    size.on_probe_sent(5000, 1.0)
    assert size.probe(1 << 20, 1.0) == 0  # one at a time
    assert size.on_ack(4999) is None
    assert size.on_ack(5000) == FULL
    assert size.probe(1 << 20, 1e9) == 0  # nothing to try any more


def test_a_probe_waits_for_as_much_data() -> None:
    assert fallen().probe(FULL - 1, 1.0) == 0


def test_a_probe_that_is_lost_is_tried_again_later_and_later() -> None:
    """RFC 8899 5.1.1: at last every ten minutes."""
    size, now, pauses = fallen(), 100.0, []
    for _ in range(6):
        size.on_probe_sent(5000, now)
        size.on_sent_again(3000, 4999)  # other data
        assert size.probe(FULL, now + 1e9) == 0
        size.on_sent_again(4000, 5000)
        assert size.on_ack(6000) is None
        pause = next(seconds for seconds in range(1, 1000) if size.probe(FULL, now + seconds))
        pauses.append(float(pause))
        now += pause
    assert pauses[0] == FIRST_RAISE_INTERVAL
    assert pauses == sorted(pauses)
    assert pauses[-2:] == [RAISE_INTERVAL] * 2


def test_a_timeout_gives_the_probe_up() -> None:
    size = fallen()
    size.on_probe_sent(5000, 1.0)
    assert size.on_timeout(1, SMALLER[0]) is None
    assert size.on_ack(5000) is None


@pytest.mark.parametrize("limit", [1300, 900])
def test_what_a_router_refused_is_not_tried(limit: int) -> None:
    """RFC 1191: it knows."""
    size = fallen()
    size.limit(limit)
    assert size.probe(1 << 20, 1.0) == (limit if limit > SMALLER[0] else 0)
    size.limit(5000)
    assert size.probe(1 << 20, 1.0) == (limit if limit > SMALLER[0] else 0)
