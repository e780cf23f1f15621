"""Deadlines of many items: what is due next, at the cost of a dictionary write per move."""

from __future__ import annotations

from httpx_wireguard._deadlines import Deadlines


def deadlines(**due: float) -> Deadlines[str]:
    result: Deadlines[str] = Deadlines()
    for item, when in due.items():
        result.set(item, when)
    return result


def test_an_empty_set_has_no_next_deadline() -> None:
    assert Deadlines[str]().next() is None


def test_the_next_deadline_is_the_earliest() -> None:
    assert deadlines(a=3.0, b=1.0, c=2.0).next() == 1.0


def test_items_come_out_when_they_are_due_and_only_once() -> None:
    timers = deadlines(a=3.0, b=1.0, c=2.0)
    assert timers.take_due(2.0) == ["b", "c"]
    assert timers.take_due(2.0) == []
    assert timers.next() == 3.0


def test_a_dropped_deadline_never_comes() -> None:
    timers = deadlines(a=1.0)
    timers.set("a", None)
    assert timers.next() is None
    assert timers.take_due(9.0) == []


def test_dropping_an_unknown_item_is_a_no_op() -> None:
    timers = deadlines(a=1.0)
    timers.set("b", None)
    assert timers.next() == 1.0


def test_a_deadline_moved_earlier_counts_at_once() -> None:
    timers = deadlines(a=5.0)
    timers.set("a", 1.0)
    assert timers.next() == 1.0
    assert timers.take_due(1.0) == ["a"]
    assert timers.take_due(9.0) == []


def test_a_deadline_moved_later_is_not_due_early() -> None:
    timers = deadlines(a=1.0)
    timers.set("a", 5.0)
    assert timers.take_due(4.0) == []
    assert timers.next() == 5.0
    assert timers.take_due(5.0) == ["a"]


def test_a_deadline_dropped_and_set_again_later_keeps_the_new_time() -> None:
    timers = deadlines(a=1.0)
    timers.set("a", None)
    timers.set("a", 7.0)
    assert timers.take_due(6.0) == []
    assert timers.take_due(7.0) == ["a"]


def test_equal_deadlines_need_no_comparable_items() -> None:
    timers: Deadlines[object] = Deadlines()
    first, second = object(), object()
    timers.set(first, 1.0)
    timers.set(second, 1.0)
    assert timers.take_due(1.0) == [first, second]


def test_thousands_of_moves_of_one_item_leave_one_deadline() -> None:
    """The entries that moves to earlier times leave behind are thrown away, not only skipped."""
    timers: Deadlines[str] = Deadlines()
    for step in range(10_000):
        timers.set("a", 10_000.0 - step)
    timers.set("a", 20_000.0)
    assert timers.take_due(15_000.0) == []
    assert timers.take_due(20_000.0) == ["a"]
    assert timers.next() is None
