"""Section 6 of the WireGuard paper as data."""

from __future__ import annotations

from httpx_wireguard._wireguard.timers import NEVER, PeerTimers, Timer


def timers(persistent_keepalive: float = 0.0, jitter: float = 0.25) -> PeerTimers:
    return PeerTimers(persistent_keepalive, lambda: jitter)


def test_nothing_runs_at_first() -> None:
    assert timers().next_expiry() == NEVER
    assert timers().take_expired(1e9) == []


def test_persistent_keepalive_is_due_at_once() -> None:
    assert timers(25).take_expired(1.0) == [Timer.PERSISTENT_KEEPALIVE]


def test_persistent_keepalive_counts_from_the_last_authentic_message() -> None:
    """wg(8): whichever direction."""
    clock = timers(25)
    clock.on_authenticated_sent(10.0)
    assert clock.next_expiry() == 35.0
    clock.on_authenticated_received(12.0)
    assert clock.next_expiry() == 37.0


def test_initiation_is_retried_after_five_seconds_and_jitter() -> None:
    clock = timers()
    clock.on_initiation_sent(10.0)
    assert clock.next_expiry() == 15.25
    assert not clock.may_initiate(14.9)
    assert clock.may_initiate(15.0)


def test_response_counts_as_a_handshake_message_sent() -> None:
    """So that it is not followed by an initiation of our own."""
    clock = timers()
    clock.on_response_sent(10.0)
    assert not clock.may_initiate(14.9)
    assert clock.next_expiry() == NEVER


def test_handshake_wanted_too_early_is_postponed() -> None:
    clock = timers()
    clock.on_response_sent(10.0)
    clock.on_initiation_postponed()
    assert clock.next_expiry() == 15.25
    clock.on_handshake_complete()
    assert clock.next_expiry() == NEVER


def test_attempts_end_after_ninety_seconds() -> None:
    clock = timers()
    clock.on_handshake_wanted(10.0)
    assert not clock.gives_up(99.9)
    assert clock.gives_up(100.0)


def test_sent_data_expects_an_answer_within_15_seconds() -> None:
    """Counted from the first packet that is unanswered."""
    clock = timers()
    clock.on_data_sent(10.0)
    clock.on_data_sent(12.0)
    assert clock.next_expiry() == 25.25
    clock.on_authenticated_received(13.0)
    assert clock.next_expiry() == NEVER


def test_received_data_is_answered_within_10_seconds() -> None:
    """Counted from the first packet that is unanswered."""
    clock = timers()
    clock.on_data_received(10.0)
    clock.on_data_received(12.0)
    assert clock.next_expiry() == 20.0
    clock.on_authenticated_sent(13.0)
    assert clock.next_expiry() == NEVER
    assert not clock.take_another_keepalive()


def test_second_packet_while_a_keepalive_waits_owes_another() -> None:
    clock = timers()
    clock.on_data_received(10.0)
    assert not clock.take_another_keepalive()
    clock.on_data_received(11.0)
    assert clock.take_another_keepalive()
    assert not clock.take_another_keepalive()


def test_keys_are_erased_540_seconds_after_the_last_session() -> None:
    clock = timers()
    clock.on_session_derived(10.0)
    clock.on_session_derived(20.0)
    assert clock.next_expiry() == 560.0


def test_giving_up_arms_the_erasure_only_if_it_was_not() -> None:
    clock = timers()
    clock.on_session_derived(10.0)
    clock.on_given_up(300.0)
    assert clock.next_expiry() == 550.0
    fresh = timers()
    fresh.on_given_up(300.0)
    assert fresh.next_expiry() == 840.0


def test_timers_due_together_are_taken_once() -> None:
    clock = timers()
    clock.on_data_sent(0.0)
    clock.on_data_received(0.0)
    assert clock.take_expired(9.9) == []
    assert clock.take_expired(20.0) == [Timer.NEW_HANDSHAKE, Timer.KEEPALIVE]
    assert clock.take_expired(20.0) == []
