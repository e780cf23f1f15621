"""The SACK scoreboard (RFC 2018, RFC 6675)."""

from __future__ import annotations

from httpx_wireguard._netstack.recovery import MAXIMUM_RANGES, Scoreboard

MSS = 100


def board_with(*ranges: tuple[int, int]) -> Scoreboard:
    board = Scoreboard()
    for start, end in ranges:
        board.add(start, end)
    return board


def test_a_new_range_is_all_news() -> None:
    board = Scoreboard()
    assert board.add(200, 300) == 100
    assert board.sacked == 100
    assert board.holes(100, 400) == [(100, 200), (300, 400)]


def test_what_was_said_before_is_no_news() -> None:
    board = board_with((200, 300))
    assert board.add(200, 300) == 0
    assert board.add(250, 280) == 0
    assert board.sacked == 100


def test_a_range_that_bridges_others_counts_only_what_was_missing() -> None:
    board = board_with((200, 300), (400, 500))
    assert board.add(250, 450) == 100
    assert board.holes(100, 600) == [(100, 200), (500, 600)]
    assert board.sacked == 300


def test_neighbours_become_one_range() -> None:
    board = board_with((200, 300), (300, 400))
    assert board.holes(100, 500) == [(100, 200), (400, 500)]


def test_holes_are_cut_to_what_was_asked() -> None:
    board = board_with((200, 300), (400, 500))
    assert board.holes(250, 450) == [(300, 400)]
    assert board.holes(150, 350) == [(150, 200), (300, 350)]
    assert board.holes(210, 290) == []


def test_an_advance_forgets_what_lies_before_it() -> None:
    board = board_with((200, 300), (400, 500))
    board.release(450)
    assert board.sacked == 50
    assert board.holes(450, 600) == [(500, 600)]


def test_two_full_segments_above_a_hole_do_not_make_it_lost() -> None:
    """RFC 6675 4: more than (DupThresh - 1) * SMSS bytes."""
    board = board_with((200, 400))
    board.mark_lost(MSS)
    assert board.next_hole(100) is None


def test_more_than_two_full_segments_above_a_hole_make_it_lost() -> None:
    """RFC 6675 4 IsLost."""
    board = board_with((200, 401))
    board.mark_lost(MSS)
    assert board.next_hole(100) == (100, 200)


def test_three_separate_ranges_above_a_hole_make_it_lost_however_small() -> None:
    """RFC 6675 4 IsLost: DupThresh discontiguous sequences."""
    board = board_with((110, 120), (130, 140), (150, 160))
    board.mark_lost(MSS)
    assert board.next_hole(100) == (100, 110)
    board.retransmitted_below = 110
    assert board.next_hole(100) is None


def test_only_holes_with_enough_above_them_are_lost() -> None:
    board = board_with((200, 300), (400, 500), (600, 700))
    board.mark_lost(MSS)
    assert board.next_hole(100) == (100, 200)
    board.retransmitted_below = 200
    assert board.next_hole(100) is None


def test_the_next_hole_follows_what_was_retransmitted() -> None:
    """RFC 6675 4 NextSeg (1)."""
    board = board_with((200, 300), (400, 900))
    board.mark_lost(MSS)
    board.retransmitted_below = 150
    assert board.next_hole(100) == (150, 200)
    board.retransmitted_below = 200
    assert board.next_hole(100) == (300, 400)
    board.retransmitted_below = 400
    assert board.next_hole(100) is None


def test_after_a_timeout_the_last_hole_ends_where_sending_ended() -> None:
    board = board_with((200, 300))
    board.lost_below = 450
    board.retransmitted_below = 250
    assert board.next_hole(100) == (300, 450)


def test_in_flight_is_what_was_neither_acknowledged_nor_lost() -> None:
    """RFC 6675 4 SetPipe."""
    board = board_with((200, 300), (400, 900))
    assert board.in_flight(100, 1000, MSS) == 300
    board.mark_lost(MSS)
    assert board.in_flight(100, 1000, MSS) == 100
    board.retransmitted_below = 200
    assert board.in_flight(100, 1000, MSS) == 200


def test_each_duplicate_acknowledgment_says_that_a_segment_left_the_network() -> None:
    """RFC 5681 3.2 (4): for a far side without SACK."""
    board = Scoreboard()
    board.duplicates = 2
    assert board.in_flight(100, 1000, MSS) == 700
    board.duplicates = 50
    assert board.in_flight(100, 1000, MSS) == 0


def test_clearing_forgets_every_range() -> None:
    """RFC 2018 8: the far side may have thrown away what it reported."""
    board = board_with((200, 300))
    board.duplicates = 3
    board.clear()
    assert board.in_flight(100, 400, MSS) == 300
    assert board.holes(100, 400) == [(100, 400)]


def test_ranges_of_single_bytes_are_remembered_up_to_a_limit() -> None:
    """CVE-2019-11478: each costs work at every later acknowledgment."""
    board = Scoreboard()
    for index in range(MAXIMUM_RANGES + 500):
        board.add(100 + 2 * index, 101 + 2 * index)
    assert board.sacked == MAXIMUM_RANGES
    assert board.add(100, 200) == 50
