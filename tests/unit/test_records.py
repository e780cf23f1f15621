from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from httpx_wireguard._records import record


@record
class Point:
    """A place."""

    x: int
    y: int = 7
    marks: list[int] = field(default_factory=list)
    note: str = field(default="", compare=False)

    def doubled(self) -> int:
        return 2 * self.x


@dataclass(slots=True)
class Model:
    """What `Point` stands in for."""

    x: int
    y: int = 7
    marks: list[int] = field(default_factory=list)
    note: str = field(default="", compare=False)


def test_a_record_is_as_a_dataclass_with_slots() -> None:
    assert repr(Point(1, marks=[2])) == repr(Model(1, marks=[2])).replace("Model", "Point")
    assert (Point(1) == Point(1, 7, [])) == (Model(1) == Model(1, 7, []))
    assert (Point(1) == Point(1, 8)) == (Model(1) == Model(1, 8))
    assert (Point(1) == Point(1, note="seen")) == (Model(1) == Model(1, note="seen"))
    other: object = Model(1)
    assert Point(1) != other
    assert Point.__doc__ == "A place."
    assert Point(4).doubled() == 8


def test_a_record_has_no_other_attributes() -> None:
    with pytest.raises(AttributeError):
        Point(1).z = 2  # type: ignore[attr-defined]  # the point of the test
    assert not hasattr(Point(1), "__dict__")


def test_a_default_that_is_made_is_made_each_time() -> None:
    Point(1).marks.append(1)
    assert Point(1).marks == []


def test_a_record_cannot_be_hashed_for_it_can_change() -> None:
    with pytest.raises(TypeError, match="unhashable"):
        hash(Point(1))


def test_a_record_wants_its_arguments() -> None:
    with pytest.raises(TypeError, match="x"):
        Point()  # type: ignore[call-arg]  # the point of the test
