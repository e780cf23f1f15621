"""TCP held to tables of segments: the RFCs' own examples, and each state against each event."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conformance.runner import Mismatch, Runner
from tests.conformance.script import Case, parse

HERE = Path(__file__).parent


def cases() -> list[object]:
    """A file in `recovery` is named with its directory."""
    found: list[object] = []
    for path in sorted(HERE.rglob("*.tcp")):
        for case in parse(path.read_text(encoding="utf-8"), str(path.relative_to(HERE))):
            waits = case.settings.get("waits")
            marks = [pytest.mark.xfail(reason=waits, strict=True)] if waits else []
            found.append(pytest.param(case, id=str(case), marks=marks))
    return found


@pytest.mark.parametrize("case", cases())
def test_the_stack_does_as_the_table_says(case: Case) -> None:
    failure = None
    try:
        Runner(case).run()
    except Mismatch as error:
        failure = str(error)
    if failure is not None:
        pytest.fail(failure, pytrace=False)  # the script's lines tell more than the runner's
