"""docs/limits.md says what the code does."""

from __future__ import annotations

import re
from fractions import Fraction
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

import pytest

from httpx_wireguard._netstack import limits

ROOT = Path(__file__).parents[2]
UNITS = {"KiB": 1 << 10, "MiB": 1 << 20}


class Row(NamedTuple):
    what: str
    limit: str
    constant: str
    why: str
    test: str

    def __str__(self) -> str:
        return self.constant


PAGE = (ROOT / "docs" / "limits.md").read_text(encoding="utf-8")
ROWS = [Row(*match) for match in re.findall(r"^\| (.+) \| (.+) \| `(.+)` \| (.+) \| (.+) \|$", PAGE, re.MULTILINE)]


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_the_page_states_the_number_in_the_code(row: Row) -> None:
    number, _, unit = row.limit.partition(" ")
    path, _, name = row.constant.rpartition(".")
    value = getattr(import_module(path if path.startswith("tests.") else f"httpx_wireguard.{path}"), name)
    assert Fraction(number.replace(",", "")) * UNITS.get(unit, 1) == Fraction(str(value))


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_each_limit_has_a_test(row: Row) -> None:
    (name, *_) = re.findall(r"`(test_\w+)`", row.test)
    assert any(f"def {name}(" in path.read_text(encoding="utf-8") for path in ROOT.glob("tests/**/test_*.py"))


def test_every_shared_limit_is_on_the_page() -> None:
    names = {name for name in vars(limits) if name.isupper() and not name.endswith("_PERIOD")}
    stated = {row.constant.rpartition(".")[2] for row in ROWS if row.constant.startswith("_netstack.limits.")}
    assert stated == names
    assert len(ROWS) > 40
