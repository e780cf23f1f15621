"""Was a recovery a mistake? RFC 3522 and 4015 (Eifel), RFC 5682 (F-RTO), RFC 3708 (D-SACK)."""

from __future__ import annotations

import pytest

from httpx_wireguard._netstack.recovery import Forward, Recovery
from httpx_wireguard._netstack.scoreboard import Delivery
from httpx_wireguard._netstack.sender import Sender
from tests.senders import MSS, ack, full, send, sender_with


def recovering(data: int = 40 * MSS, *, sack: bool = True) -> Sender:
    """Ten segments left at 0.0, the first was declared lost and sent again at 0.1."""
    sender = sender_with(data, sack=sack)
    assert len(send(sender, 0.0)) == 10
    for number in range(3):
        ack(sender, 0, 0.1, *([(1, 2 + number)] if sack else []))
    assert send(sender, 0.1)[0] == full(0)[0]
    return sender


def timed_out(data: int = 40 * MSS, *, sack: bool = True) -> Sender:
    """Ten segments left at 0.0, the timer ran out, the first was sent again at 1.0."""
    sender = sender_with(data, sack=sack)
    assert len(send(sender, 0.0)) == 10
    sender.on_timeout(1.0)
    assert send(sender, 1.0) == full(0)
    return sender


def undone(sender: Sender) -> bool:
    """The window is what it was before, and nothing is lost."""
    return sender.congestion.window >= 10 * MSS and sender.board.lost == 0 and sender.recovery is None


# -- Eifel


def test_an_answer_to_the_first_transmission_undoes_a_fast_recovery() -> None:
    """RFC 3522 3.2 (5): the echoed timestamp is older than the retransmission."""
    sender = recovering()
    assert sender.congestion.window < 10 * MSS
    ack(sender, 4, 0.11, echo=0.0)
    assert undone(sender)


def test_an_answer_to_the_first_transmission_undoes_a_timeout() -> None:
    """RFC 3522 3.2 (5)."""
    sender = timed_out()
    ack(sender, 1, 1.01, echo=0.0)
    assert undone(sender)


def test_an_answer_to_the_retransmission_undoes_nothing() -> None:
    """RFC 3522 3.2 (5): an echo as new as the retransmission."""
    for sender, now in (recovering(), 0.1), (timed_out(), 1.0):
        ack(sender, 4, now + 0.1, echo=now)
        assert not undone(sender)


def test_only_the_first_answer_counts() -> None:
    """RFC 3522 3.2: later ones may echo what was in flight with the retransmission."""
    sender = recovering()
    ack(sender, 4, 0.2, echo=0.1)
    ack(sender, 5, 0.21, echo=0.0)
    assert not undone(sender)


def test_an_acknowledgment_of_less_than_was_sent_again_is_no_answer() -> None:
    """RFC 3522 3.2: of the segment that was sent again."""
    recovery = Recovery(1000, 0.0, after_timeout=False, prr=None, reduced=True)
    recovery.on_sent(400, 500, 1.0, again=True)
    nothing = Delivery(None, 0.0, 1.1)
    assert not recovery.is_spurious(nothing, 400, 500)
    assert recovery.is_spurious(nothing, 500, 500)


def test_without_timestamps_nobody_knows() -> None:
    sender = recovering()
    ack(sender, 4, 0.11)
    assert not undone(sender)


def test_an_undone_recovery_credits_the_path_with_reordering() -> None:
    """RFC 8985 6.2 step 4: the window for reordering is used from now on."""
    sender = recovering()
    ack(sender, 4, 0.11, echo=0.0)
    send(sender, 0.2)
    ack(sender, 4, 0.3, (5, 8))
    assert sender.board.lost == 0
    assert sender.rack.recheck_at is not None


# -- F-RTO


def test_after_a_timeout_new_data_asks_whether_it_was_a_mistake() -> None:
    """RFC 5682 3.1 step 2b: two segments."""
    sender = timed_out()
    ack(sender, 1, 1.1)
    assert send(sender, 1.1) == full(10, 11)


def test_never_more_than_two_segments_of_new_data_ask() -> None:
    """RFC 5682 3.1 step 2b, however large the window is, and in however many calls."""
    sender = timed_out()
    ack(sender, 1, 1.1)
    sender.congestion.window = 20 * MSS
    assert send(sender, 1.1) == full(10, 11)
    assert not sender.more_due
    assert send(sender, 1.1) == []


def test_a_question_that_was_put_waits_for_its_answer() -> None:
    """RFC 5682 3.1 step 2b: one segment is enough."""
    sender = timed_out(11 * MSS)
    ack(sender, 1, 1.1)
    sender.congestion.window = 20 * MSS
    assert send(sender, 1.1) == full(10)
    assert send(sender, 1.1) == []
    ack(sender, 2, 1.11)
    assert undone(sender)


def test_what_left_before_the_timeout_and_once_only_proves_it_a_mistake() -> None:
    """RFC 5682 3.1 step 3b, by SND.UNA or by SACK."""
    for segments, blocks in (2, ()), (1, ((5, 6),)):
        sender = timed_out()
        ack(sender, 1, 1.05)  # sooner than the retransmission could be answered
        send(sender, 1.05)
        ack(sender, segments, 1.06, *blocks)
        assert undone(sender)


def test_without_sack_progress_proves_it_a_mistake() -> None:
    """RFC 5682 2.1 step 3b."""
    sender = timed_out(sack=False)
    ack(sender, 1, 1.1)
    assert send(sender, 1.1) == full(10, 11)
    ack(sender, 2, 1.11)
    assert undone(sender)


def test_without_sack_a_duplicate_proves_the_loss() -> None:
    """RFC 5682 2.1 step 3a."""
    sender = timed_out(sack=False)
    ack(sender, 1, 1.1)
    send(sender, 1.1)
    ack(sender, 1, 1.2)
    assert not undone(sender)
    assert full(1)[0] in send(sender, 1.2)


def test_new_data_that_arrives_alone_proves_the_loss() -> None:
    """RFC 5682 3.1 step 3a: what the timeout declared lost is sent again."""
    sender = timed_out()
    ack(sender, 1, 1.1)
    send(sender, 1.1)
    ack(sender, 1, 1.2, (10, 11))
    assert not undone(sender)
    assert send(sender, 1.2)[:1] == full(1)


def test_without_new_data_the_rest_is_sent_again() -> None:
    """RFC 5682 3.1 step 2b: or if the far side's window is full."""
    for sender in timed_out(10 * MSS), timed_out():
        sender.update_window(501, 100, 10 * MSS)
        ack(sender, 1, 1.1)
        sender.update_window(502, 100, 9 * MSS)
        assert send(sender, 1.1) == full(1, 2)


def test_an_acknowledgment_of_everything_leaves_no_question() -> None:
    """RFC 5682 3.1 step 2a."""
    sender = timed_out()
    ack(sender, 10, 1.1)
    assert sender.congestion.threshold == 5 * MSS
    assert sender.congestion.window < 10 * MSS


def test_a_timeout_in_the_middle_of_a_recovery_asks_nothing() -> None:
    """RFC 5682 3.1 step 1: something had been lost before."""
    sender = recovering()
    sender.on_timeout(1.0)
    send(sender, 1.0)
    ack(sender, 4, 1.1)
    assert send(sender, 1.1) == full(4, 5)


def test_what_is_reported_anew_after_two_timeouts_is_neither_measured_nor_proof() -> None:
    """RFC 2018 8: the SACKs were forgotten, the far side held it all along."""
    sender = sender_with(40 * MSS)
    send(sender, 0.0)
    ack(sender, 0, 0.1, (2, 4))
    sender.on_timeout(1.0)
    send(sender, 1.0)
    sender.on_timeout(3.0)
    send(sender, 3.0)
    ack(sender, 1, 3.1)
    assert send(sender, 3.1) == full(10, 11)
    ack(sender, 1, 3.15, (2, 4))
    assert not undone(sender)
    assert sender.rtt.latest == pytest.approx(0.1)
    sender.congestion.window = 10 * MSS
    send(sender, 3.15)
    ack(sender, 5, 3.25)
    assert sender.rtt.latest == pytest.approx(0.1)


# -- D-SACK


def test_a_report_of_all_that_was_sent_again_undoes_the_recovery() -> None:
    """RFC 3708 2."""
    sender = recovering()
    ack(sender, 0, 0.11, (1, 4), twice=(0, 1))
    assert undone(sender)


def test_a_report_credits_the_path_with_reordering_too() -> None:
    """RFC 8985 6.2 step 4: the first transmission came late, which no acknowledgment of its own showed."""
    sender = recovering()
    ack(sender, 10, 0.2, twice=(0, 1))
    assert undone(sender)
    send(sender, 0.3)
    sent_next = (sender.next - 100) // MSS
    ack(sender, sent_next - 5, 0.4)
    ack(sender, sent_next - 5, 0.4, (sent_next - 4, sent_next - 1))
    assert sender.board.lost == 0
    assert sender.rack.recheck_at is not None


def test_a_report_that_comes_after_the_end_undoes_it_too() -> None:
    """RFC 3708 2: it cannot come before, since the first transmission ends the recovery."""
    sender = recovering()
    ack(sender, 10, 0.2)
    assert sender.congestion.window == 5 * MSS
    ack(sender, 10, 0.21, twice=(0, 1))
    assert undone(sender)


def test_a_report_of_the_half_undoes_nothing() -> None:
    """RFC 3708 2: each retransmission has to be reported, in any pieces."""
    sender = sender_with(40 * MSS)
    send(sender, 0.0)
    ack(sender, 0, 0.1, (2, 3), (4, 10))
    assert send(sender, 0.1)[:3] == full(0, 1, 3)
    ack(sender, 3, 0.2, (4, 10), twice=(0, 1))
    ack(sender, 10, 0.2, twice=(3, 4))
    sender.on_ack(100 + 10 * MSS, [], (100 + MSS, 100 + MSS + 400), True, None, 0.2)
    assert not undone(sender)
    sender.on_ack(100 + 10 * MSS, [], (100 + MSS + 400, 100 + 2 * MSS), True, None, 0.2)
    assert undone(sender)


def test_what_was_sent_again_in_two_goes_is_reported_in_two() -> None:
    """RFC 3708 2: all of it; beginning with either."""
    for first, second in ((0, 10), (10, 20)), ((10, 20), (0, 10)):
        recovery = Recovery(1000, 0.0, after_timeout=False, prr=None, reduced=True)
        recovery.on_sent(0, 10, 0.0, again=True)
        recovery.on_sent(10, 20, 0.1, again=True)
        recovery.on_duplicate_reported(*first)
        assert not recovery.proven_needless()
        recovery.on_duplicate_reported(*second)
        assert recovery.proven_needless()


def test_copies_made_by_the_network_prove_nothing() -> None:
    """RFC 3708 2: only of what was sent again does a report tell; and the same one counts once."""
    sender = recovering()
    for number in (2, 2, 3, 5):
        ack(sender, 0, 0.2, (1, 6), twice=(number, number + 1))
    assert not undone(sender)


def test_it_is_forgotten_when_more_is_acknowledged() -> None:
    sender = recovering()
    sent_next = (sender.next - 100) // MSS
    ack(sender, 10, 0.2)
    send(sender, 0.2)
    ack(sender, sent_next, 0.3)
    ack(sender, (sender.next - 100) // MSS, 0.4)
    window = sender.congestion.window
    ack(sender, (sender.next - 100) // MSS, 0.4, twice=(0, 1))
    assert sender.recovery is None
    assert sender.congestion.window == window


# -- what is undone


def test_all_that_arrives_before_anything_was_sent_again_was_not_lost() -> None:
    sender = sender_with(10 * MSS)
    send(sender, 0.0)
    ack(sender, 0, 0.1, (1, 5))
    assert sender.board.lost
    ack(sender, 10, 0.1)
    assert undone(sender)


def test_the_answer_to_an_echo_of_congestion_stays_when_a_recovery_is_undone() -> None:
    """RFC 3168 6.1.2: one reduction for a window of data, and that was for the mark."""
    sender = sender_with(40 * MSS)
    send(sender, 0.0)
    sender.on_ecn_echo(0.05)
    ack(sender, 0, 0.1, (1, 4))
    assert send(sender, 0.1) == full(0)
    ack(sender, 4, 0.11, echo=0.0)
    assert sender.recovery is None
    assert sender.congestion.window == 5 * MSS


def test_a_smaller_path_brings_no_old_window_back() -> None:
    """RFC 1191 6.5: no congestion response, so none to be undone; the last one was for a loss."""
    sender = recovering()
    sent_next = (sender.next - 100) // MSS
    ack(sender, sent_next, 0.2)
    assert len(send(sender, 0.2)) == 5
    sender.set_mss(500, 0.21)
    ack(sender, sent_next + 5, 0.3)
    assert sender.recovery is None
    assert sender.congestion.window <= 5 * MSS


def test_a_smaller_path_in_the_middle_of_a_recovery_ends_it_at_the_threshold() -> None:
    """RFC 9937 6.4: what PRR had let go until then is no window for what follows."""
    sender = recovering()
    sender.set_mss(500, 0.11)
    assert sender.congestion.window == sender.congestion.threshold == 5 * MSS


def test_a_smaller_path_is_no_timeout_to_ask_about() -> None:
    """RFC 5682 is about timeouts: all is sent again at once."""
    sender = sender_with(40 * MSS)
    send(sender, 0.0)
    sender.set_mss(500, 0.1)
    assert sender.recovery is not None
    assert sender.recovery.forward is Forward.OFF
    ack(sender, 1, 0.2)
    assert not sender.tries_new_data
