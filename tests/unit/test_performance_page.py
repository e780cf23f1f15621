"""docs/performance.md shows what docs/performance.json holds."""

from __future__ import annotations

import json

import pytest

from tests.benchmarks.bench import PARTS, spread, tables
from tests.benchmarks.report import FIGURES, PAGE, PLOT, markdown, plot, rendered, replaced

KEPT = json.loads(FIGURES.read_text())


def test_every_part_was_measured() -> None:
    assert sorted(KEPT) == sorted(PARTS)


def test_the_page_and_its_plot_are_those_of_the_figures() -> None:
    page = PAGE.read_text()
    assert rendered(page, KEPT, tables) == page
    assert plot(KEPT["clients"]["figures"]["runs"]) == PLOT.read_text()


@pytest.mark.parametrize("part", PARTS)
def test_each_part_has_tables_with_as_many_cells_in_every_row(part: str) -> None:
    found = tables({part: KEPT[part]["figures"]})
    assert found
    for table in found:
        assert len({line.count("|") for line in markdown(table.rows)}) == 1


def test_only_the_text_between_the_marks_of_a_part_is_replaced() -> None:
    page = "a\n<!-- figures: layers -->\nold\n<!-- end -->\nb\n<!-- figures: scale -->\n<!-- end -->\n"
    new = "a\n<!-- figures: layers -->\nnew\n<!-- end -->\nb\n<!-- figures: scale -->\n<!-- end -->\n"
    assert replaced(page, "layers", "new") == new


def test_a_cell_is_the_median_and_the_range() -> None:
    assert spread([3.0, 1.0, 200.4]) == "3 [1-200]"
