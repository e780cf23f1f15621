"""Senders in ESTABLISHED, and what they send, for the tests of loss recovery."""

from __future__ import annotations

from collections.abc import Callable
from math import inf

from httpx_wireguard._netstack.congestion.control import CongestionControl
from httpx_wireguard._netstack.congestion.reno import Reno
from httpx_wireguard._netstack.sender import Run, Sender

MSS = 1000
ISS = 99  # so that data begins at 100


class Unpaced(Reno):
    """What may leave leaves at once."""

    def __init__(self, mss: int) -> None:
        super().__init__(mss)
        self.pacing_rate = inf


def sender_with(
    data: int = 0,
    *,
    window: int = 1 << 20,
    sack: bool = True,
    rtt: float = 0.1,
    now: float = 0.0,
    mss: int = MSS,
    make_control: Callable[[int], CongestionControl] = Unpaced,
) -> Sender:
    """A sender in ESTABLISHED whose SYN took `rtt`; `data` bytes are written."""
    sender = Sender(ISS, mss, make_control)
    sender.next = ISS + 1
    sender.start_timer(now - rtt)
    sender.start(mss, sack=sack)
    sender.on_established(500, ISS + 1, window, now)
    if data:
        sender.queue.append(bytes(data))
    return sender


def sent(runs: list[Run]) -> list[tuple[int, int]]:
    """(sequence number, payload length) of each segment."""
    segments = []
    for run in runs:
        sequence = run.sequence
        for payload in run.payloads:
            segments.append((sequence, len(payload)))
            sequence += len(payload)
    return segments


def send(sender: Sender, now: float) -> list[tuple[int, int]]:
    return sent(sender.runs_to_send(now))


def full(*numbers: int) -> list[tuple[int, int]]:
    return [(100 + MSS * number, MSS) for number in numbers]


def ack(
    sender: Sender,
    segments: int,
    now: float,
    *blocks: tuple[int, int],
    twice: tuple[int, int] | None = None,
    echo: float | None = None,
) -> None:
    """Acknowledge the first `segments` segments; blocks, and what came `twice`, are numbers of segments too.

    Args:
        echo: when the segment left whose timestamp comes back, in seconds.
    """
    acknowledgment = 100 + segments * MSS
    duplicate = acknowledgment == sender.unacknowledged
    ranges = [(100 + left * MSS, 100 + right * MSS) for left, right in blocks]
    reported = None if twice is None else (100 + twice[0] * MSS, 100 + twice[1] * MSS)
    sender.on_ack(acknowledgment, ranges, reported, duplicate, None if echo is None else int(echo * 1000), now)
