"""docs/supported-rfcs.md names tests: they exist, and every claim has one."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/supported-rfcs.md"
STATES = {"done", "deviates", "not done", "waits"}


class Row(NamedTuple):
    line: int
    clause: str
    state: str
    what: str
    held_by: str

    def __str__(self) -> str:
        return f"{self.line}: {self.clause}"

    @property
    def tests(self) -> list[str]:
        """Names in backticks that stand for a test, wherever in the row."""
        return re.findall(r"`([^`]+?\.(?:tcp|py::\w+))`", self.what + self.held_by)


def rows() -> list[Row]:
    found = []
    for number, line in enumerate(PAGE.read_text(encoding="utf-8").splitlines(), 1):
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")] if line.startswith("|") else []
        if len(cells) == 4 and cells[1] != "State" and not set(line) <= set("|- "):
            found.append(Row(number, *cells))
    return found


def exists(name: str) -> bool:
    """`test_file.py::test_name`, or a script of tests/conformance by its path there."""
    path, _, function = name.partition("::")
    if not function:
        return (ROOT / "tests/conformance" / path).is_file()
    files = list((ROOT / "tests").rglob(path))
    assert len(files) < 2, f"{path} may be any of {files}"
    return any(re.search(rf"^(async )?def {function}\(", file.read_text("utf-8"), re.MULTILINE) for file in files)


@pytest.mark.parametrize("row", rows(), ids=str)
def test_a_clause_is_held_by_tests_that_exist(row: Row) -> None:
    assert row.state in STATES
    assert [name for name in row.tests if not exists(name)] == []
    if row.state in ("done", "deviates"):
        assert row.tests, "a claim without a test"
        assert row.held_by, "its tests stand in the last column"
    if row.state in ("deviates", "not done"):
        assert row.what, "a reason is missing"


def test_what_waits_is_not_there_yet() -> None:
    """A test that is named without quotes is expected: once it exists, the row is to be changed."""
    waiting = [name for row in rows() for name in re.findall(r"(?<![`\w/])test_\w+\.py(?:::\w+)?(?!`)", row.what)]
    there = [name for name in waiting if list((ROOT / "tests").rglob(name.partition("::")[0])) and "::" not in name]
    assert there + [name for name in waiting if "::" in name and exists(name)] == []


@pytest.mark.parametrize(
    "name", ["nothing.tcp", "test_supported_rfcs.py::test_of_the_moon", "test_of_the_moon.py::test_a_clause"]
)
def test_a_test_that_does_not_exist_is_noticed(name: str) -> None:
    assert not exists(name)


def test_every_table_of_the_page_is_read() -> None:
    """A row with a `|` too many would be passed over in silence."""
    lines = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("|")]
    heads = sum("| State |" in line and line.count("|") == 5 for line in lines)
    legend = len(STATES) + 2
    assert len(rows()) == len(lines) - 2 * heads - legend
