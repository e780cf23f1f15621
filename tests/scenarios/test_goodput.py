"""What one connection gets of a path, in virtual time: the line without loss, what theory says with loss."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from httpx_wireguard._netstack.congestion import CONTROLS
from tests.benchmarks.simulated import FAST, NETWORKS, Line, goodput

RECORDED = json.loads((Path(__file__).parent.parent / "vectors/goodput.json").read_text())
SEGMENT = 1368  # bytes of payload in 1420
PAYLOAD = SEGMENT / 1420  # of the line: what is no header

by_control = pytest.mark.parametrize("control", CONTROLS)
both_ways = pytest.mark.parametrize("download", [False, True], ids=["upload", "download"])


def reno(line: Line) -> float:
    """Segments in flight by Mathis et al. (1997), with an acknowledgment for the bytes of every segment."""
    return 1.22 / math.sqrt(line.loss)


def cubic(line: Line) -> float:
    """RFC 9438 5.1; and 4.3: not less than Reno."""
    return max(1.054 * math.pow(line.rtt / line.loss, 0.75), reno(line))


THEORY: dict[str, Callable[[Line], float]] = {"reno": reno, "cubic": cubic}


@pytest.mark.parametrize("control", sorted(THEORY.keys() & set(CONTROLS)))
@pytest.mark.parametrize(
    "line, download",
    [
        (NETWORKS["the same, 0.1 % lost"], False),
        (NETWORKS["the same, 0.1 % lost"], True),
        (NETWORKS["the same, 1 % lost"], False),
        (NETWORKS["the same, 1 % lost"], True),
        (replace(FAST, rtt=0.2, loss=0.0002, warm_up=20.0, seconds=80.0), True),
    ],
    ids=["50 ms, 0.1 %, up", "50 ms, 0.1 %, down", "50 ms, 1 %, up", "50 ms, 1 %, down", "200 ms, 0.02 %, down"],
)
def test_random_loss_costs_what_theory_says(line: Line, download: bool, control: str) -> None:
    expected = THEORY[control](line) * SEGMENT / line.rtt / 125_000
    assert goodput(line, control, download=download) > 0.7 * expected


@by_control
@both_ways
def test_a_line_without_loss_is_filled(control: str, download: bool) -> None:
    """37 MB from the end of slow start on."""
    assert goodput(FAST, control, download=download) > 0.9 * FAST.mbit


@by_control
@both_ways
def test_a_short_queue_is_enough(control: str, download: bool) -> None:
    """A tenth of what is in flight, as in a switch. Needs pacing: bursts overflow such a queue in slow start."""
    assert goodput(NETWORKS["the same, queue of 1/10"], control, download=download) > 0.5 * FAST.mbit


@by_control
@both_ways
def test_reordering_is_no_loss(control: str, download: bool) -> None:
    """What is late by less than a quarter of a round trip. Needs RACK's reordering window (RFC 8985 6.2)."""
    assert goodput(NETWORKS["the same, 1 % reordered"], control, download=download) > 0.8 * FAST.mbit


@by_control
@both_ways
def test_a_long_line_is_filled(control: str, download: bool) -> None:
    """1.5 MB must be in flight. Needs a slow start that ends in time, or a recovery from the loss of half of that."""
    line = NETWORKS["satellite: 20 Mbit/s, 600 ms"]
    assert goodput(line, control, download=download) > 0.7 * line.mbit


@pytest.mark.parametrize("control", ["cubic", "bbr"])
@pytest.mark.parametrize("name", NETWORKS)
def test_goodput_is_as_recorded(name: str, control: str) -> None:
    """Virtual time is exact, so a change here is a change of the code. `nox -s bench -- --simulated --json
    tests/vectors/goodput.json` records the figures again."""
    assert goodput(NETWORKS[name], control) == pytest.approx(RECORDED[name][control], rel=0.15)
