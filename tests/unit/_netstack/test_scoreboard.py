"""What is in flight and what is known of its fate (RFC 2018, RFC 6675, RFC 8985 6.1)."""

from __future__ import annotations

import pytest

from httpx_wireguard._netstack.scoreboard import MAXIMUM_TRANSMISSIONS, Delivery, Scoreboard, Transmission


def board_with(*ends: int, start: int = 0) -> Scoreboard:
    """Transmissions that end at `ends`, sent a second apart."""
    board = Scoreboard()
    for number, end in enumerate(ends):
        one = Transmission(start, end)
        one.sent_at = float(number)
        board.add(one)
        start = end
    return board


def delivery(now: float = 99.0, *, echo: int | None = None, minimum: float = 0.0) -> Delivery:
    return Delivery(echo, minimum, now)


def picture(board: Scoreboard) -> list[tuple[int, int, str]]:
    """(start, end, what is known) of each transmission."""
    return [(one.start, one.end, "held" if one.sacked else "lost" if one.lost else "") for one in board.transmissions]


# -- acknowledgments


def test_an_acknowledgment_takes_what_is_below_it() -> None:
    board, found = board_with(10, 20, 30), delivery()
    board.acknowledge(20, found)
    assert picture(board) == [(20, 30, "")]
    assert (found.length, board.highest) == (20, 20)


def test_an_acknowledgment_in_the_middle_leaves_the_rest() -> None:
    board, found = board_with(10, 20), delivery()
    board.acknowledge(4, found)
    assert picture(board) == [(4, 10, ""), (10, 20, "")]
    assert found.length == 4
    assert found.newest_end == 4


def test_bytes_that_were_held_are_not_delivered_twice() -> None:
    board, found = board_with(30), delivery()
    board.sack(10, 20, found)
    assert found.length == 10
    again = delivery()
    board.acknowledge(15, again)
    assert again.length == 10
    assert board.sacked == 5
    board.acknowledge(30, again)
    assert again.length == 20
    assert (board.sacked, board.transmissions) == (0, [])


def test_lost_bytes_that_are_acknowledged_are_not_lost() -> None:
    board = board_with(10, 20)
    board.lose_all()
    board.acknowledge(4, delivery())
    assert board.lost == 16
    board.acknowledge(10, delivery())
    assert board.lost == 10


def test_highest_never_falls() -> None:
    """RACK.fack."""
    board = board_with(30)
    board.sack(20, 30, delivery())
    board.acknowledge(10, delivery())
    assert board.highest == 30


# -- selective acknowledgments


def test_a_block_cuts_what_it_touches() -> None:
    board, found = board_with(30), delivery()
    board.sack(10, 20, found)
    assert picture(board) == [(0, 10, ""), (10, 20, "held"), (20, 30, "")]
    assert (board.sacked, found.length, board.highest) == (10, 10, 20)


def test_the_parts_of_what_was_cut_remember_everything() -> None:
    board = board_with(30)
    one = board.transmissions[0]
    one.sent_at, one.delivered, one.delivered_at, one.first_sent_at = 1.0, 2, 3.0, 4.0
    one.app_limited, one.in_flight, one.lost_before, one.retransmitted = True, 5, 6, True
    board.mark_lost(one)
    tail = one.split(10)
    for name in Transmission.__slots__:
        if name not in ("start", "end"):
            assert getattr(tail, name) == getattr(one, name)


def test_neighbours_that_are_held_become_one() -> None:
    board = board_with(10, 20, 30, 40)
    for start in 10, 30, 20:
        board.sack(start, start + 10, delivery())
    assert picture(board) == [(0, 10, ""), (10, 40, "held")]
    assert (board.sacked, board.pieces_sacked) == (30, 3)


def test_a_block_over_what_is_held_delivers_the_rest() -> None:
    board = board_with(10, 20, 30, 40)
    board.sack(20, 30, delivery())
    found = delivery()
    board.sack(10, 40, found)
    assert picture(board) == [(0, 10, ""), (10, 40, "held")]
    assert found.length == 20
    board.sack(10, 40, found)
    assert found.length == 20


def test_a_block_beside_what_is_held_takes_all_that_it_covers() -> None:
    board, found = board_with(10, 20, 30, 40, 50), delivery()
    board.sack(10, 20, found)
    board.sack(20, 50, found)
    assert picture(board) == [(0, 10, ""), (10, 50, "held")]
    assert found.length == 40


def test_lost_bytes_that_are_held_are_not_lost() -> None:
    board = board_with(30)
    board.lose_all()
    board.sack(10, 20, delivery())
    assert picture(board) == [(0, 10, "lost"), (10, 20, "held"), (20, 30, "lost")]
    assert board.lost == 20
    board.forget_sacks()
    assert picture(board)[1] == (10, 20, "")


def test_the_count_of_pieces_begins_anew_when_nothing_is_held() -> None:
    """RFC 8985 6.2 step 4: of segments held now."""
    board = board_with(10, 20, 30, 40)
    board.sack(10, 20, delivery())
    board.acknowledge(20, delivery())
    board.sack(30, 40, delivery())
    assert board.pieces_sacked == 1


def test_a_full_board_takes_no_block_that_would_cut() -> None:
    """CVE-2019-11478: blocks of single bytes may not make endless pieces."""
    board = Scoreboard()
    for number in range(MAXIMUM_TRANSMISSIONS - 1):
        board.add(Transmission(number * 10, number * 10 + 10))
    full = [board.full]
    board.add(Transmission(number * 10 + 10, number * 10 + 20))
    assert [*full, board.full] == [False, True]
    found = delivery()
    for start, end in (12, 15), (12, 20), (10, 15):
        board.sack(start, end, found)
    assert (board.sacked, found.length, len(board.transmissions)) == (0, 0, MAXIMUM_TRANSMISSIONS)
    board.sack(12, 30, found)  # the whole one in it can be taken
    assert picture(board)[1:3] == [(10, 20, ""), (20, 30, "held")]


# -- what an acknowledgment tells


def test_the_newest_of_what_arrived_is_the_one_that_left_last() -> None:
    board, found = board_with(10, 20, 30), delivery()
    board.transmissions[0].sent_at = 9.0
    board.transmissions[0].retransmitted = True
    first, second = board.transmissions[:2]
    board.acknowledge(20, found)
    assert found.newest is first
    assert found.clean is None  # the second waited for the first
    assert found.oldest_original == 1.0
    assert second.sent_at == 1.0


def test_of_what_left_at_once_the_newest_is_the_one_with_the_higher_end() -> None:
    found = delivery()
    for start, end in (0, 10), (20, 30), (10, 20):
        found.add(Transmission(start, end), end, 0, None)
    assert found.newest_end == 30


def test_behind_a_hole_that_was_repaired_nothing_is_measured_but_a_block_of_the_same_acknowledgment_is() -> None:
    """Karn's algorithm: it waited for the hole, the block did not."""
    board, found = board_with(10, 20, 30, 40), delivery()
    board.transmissions[0].retransmitted = True
    board.acknowledge(20, found)
    measured = [found.clean]
    board.sack(30, 40, found)
    measured.append(found.clean)
    assert [one and one.sent_at for one in measured] == [None, 3.0]


def test_what_was_held_before_the_hole_was_repaired_hinders_no_measurement() -> None:
    board = board_with(10, 20)
    board.transmissions[0].retransmitted = True
    board.sack(0, 10, delivery())
    found = delivery()
    board.acknowledge(20, found)
    assert found.clean is not None


def test_the_first_of_the_originals_is_remembered() -> None:
    """RFC 5682 3.1 step 3b."""
    board, found = board_with(10, 20, 30), delivery()
    board.sack(20, 30, found)
    assert found.oldest_original == 2.0
    board.sack(10, 20, found)
    assert found.oldest_original == 1.0
    board.sack(0, 10, found)
    assert found.oldest_original == 0.0


def test_an_answer_that_is_too_early_is_of_an_earlier_transmission() -> None:
    """RFC 8985 6.2 step 2; by the last digits of a steady path it is not."""
    for early, expected in (0.01, False), (1e-9, True), (-0.01, True):
        one = Transmission(0, 10)
        one.sent_at, one.retransmitted = 5.0, True
        found = delivery(5.1 - early, minimum=0.1)
        found.add(one, 10, 0, None)
        assert (found.newest is one) == expected


def test_the_echo_counts_in_whole_milliseconds() -> None:
    """RFC 7323 5.4: both are the same tick."""
    one = Transmission(0, 10)
    one.sent_at, one.retransmitted = 5.0009, True
    for echo, expected in (4999, False), (5000, True):
        found = delivery(5.1, echo=echo)
        found.add(one, 10, 0, echo)
        assert (found.newest is one) == expected


# -- losses


def test_the_first_lost_is_found_whatever_was_found_before() -> None:
    """RFC 6675 4 NextSeg rule 1."""
    board = board_with(10, 20, 30, 40)
    assert board.first_lost() is None
    board.mark_lost(board.transmissions[2])
    assert board.first_lost() is board.transmissions[2]
    board.mark_lost(board.transmissions[1])
    assert board.first_lost() is board.transmissions[1]
    board.send_again(board.transmissions[1], 20)
    assert board.first_lost() is board.transmissions[2]
    board.mark_lost(board.transmissions[0])
    assert board.first_lost() is board.transmissions[0]


def test_what_is_sent_again_in_part_leaves_the_rest_lost() -> None:
    board = board_with(30, 40, 50)
    board.acknowledge(0, delivery())
    board.mark_lost(board.transmissions[0])
    part = board.send_again(board.transmissions[0], 10)
    assert picture(board) == [(0, 10, ""), (10, 30, "lost"), (30, 40, ""), (40, 50, "")]
    assert part is board.transmissions[0]
    assert (part.retransmitted, board.transmissions[1].retransmitted) == (True, False)
    assert board.lost == 20


def test_the_first_segment_is_lost_once() -> None:
    """RFC 5681 3.2: of a peer without SACK, SND.UNA is all that is known."""
    board = board_with(30, 40, 50)
    one = board.lose_first(10)
    assert one is not None
    assert picture(board) == [(0, 10, "lost"), (10, 30, ""), (30, 40, ""), (40, 50, "")]
    assert board.lose_first(10) is None
    assert board_with().lose_first(10) is None


def test_the_first_segment_is_not_lost_if_it_is_held() -> None:
    board = board_with(30)
    board.sack(0, 10, delivery())
    assert board.lose_first(10) is None


@pytest.mark.parametrize("length", [5, 10])
def test_a_first_segment_that_is_no_longer_than_one_is_lost_as_it_is(length: int) -> None:
    board = board_with(length, 30)
    board.lose_first(10)
    assert picture(board) == [(0, length, "lost"), (length, 30, "")]


def test_a_timeout_loses_what_is_not_held() -> None:
    board = board_with(10, 20, 30)
    board.mark_lost(board.transmissions[0])
    board.sack(10, 20, delivery())
    board.lose_all()
    assert picture(board) == [(0, 10, "lost"), (10, 20, "held"), (20, 30, "lost")]
    assert board.lost == 20


def test_a_mistake_leaves_nothing_lost() -> None:
    board = board_with(10, 20)
    board.lose_all()
    board.unmark()
    assert picture(board) == [(0, 10, ""), (10, 20, "")]
    assert board.lost == 0
    assert board.first_lost() is None


def test_forgotten_blocks_are_in_flight_as_if_sent_again() -> None:
    """RFC 2018 8."""
    board = board_with(10, 20, 30)
    board.sack(10, 20, delivery())
    board.duplicates = 2
    board.forget_sacks()
    assert picture(board) == [(0, 10, ""), (10, 20, ""), (20, 30, "")]
    assert (board.sacked, board.pieces_sacked, board.duplicates) == (0, 0, 0)
    assert [one.retransmitted for one in board.transmissions] == [False, True, False]


def test_a_cleared_board_is_empty() -> None:
    board = board_with(10, 20, 30)
    board.sack(10, 20, delivery())
    board.lose_all()
    board.duplicates = 1
    board.clear()
    assert (board.transmissions, board.sacked, board.lost, board.pieces_sacked, board.duplicates) == ([], 0, 0, 0, 0)


# -- the last segment


@pytest.mark.parametrize(
    ("length", "fin", "start"),
    [(10, False, 0), (20, False, 10), (25, False, 20), (1, True, 0), (11, True, 0), (12, True, 10), (5, False, 0)],
)
def test_the_last_segment_is_what_left_in_it(length: int, fin: bool, start: int) -> None:
    """Of ten bytes at most, and a FIN."""
    board = board_with(103 + length, start=103)
    last = board.last_segment(10, fin=fin)
    assert last is board.transmissions[-1]
    assert (last.start, last.end) == (103 + start, 103 + length)
    assert all(one.start < one.end for one in board.transmissions)


def test_there_is_no_last_segment_if_it_is_held_or_nothing_is_in_flight() -> None:
    assert board_with().last_segment(10, fin=False) is None
    board = board_with(30)
    board.sack(20, 30, delivery())
    assert board.last_segment(10, fin=False) is None
