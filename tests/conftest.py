"""What all tests share."""

from __future__ import annotations

import pytest
from hypothesis import settings

# no limit on an example's time: it says more of the machine's other work than of the code
settings.register_profile("httpx-wireguard", parent=settings.default, deadline=None)
settings.load_profile("httpx-wireguard")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--connections", type=int, default=200, help="how many to let share one bottleneck")
    parser.addoption("--networks", default="1000", help="how many random networks to simulate, or seeds as FIRST:LAST")
