"""Runs one case of a conformance table: a stack, the far side played by the script, and virtual time."""

from __future__ import annotations

import re
from collections import deque
from inspect import signature
from itertools import groupby

from httpx_wireguard._errors import WireGuardError
from httpx_wireguard._interface import _apply
from httpx_wireguard._netstack.listener import TcpListener
from httpx_wireguard._netstack.stack import Stack
from httpx_wireguard._netstack.tcp import TcpConnection
from httpx_wireguard._streams import TcpOptions
from tests.conformance.far_side import ADDRESSES, PORT, FarSide, Sent, text
from tests.conformance.script import Case, ScriptError, Segment
from tests.simnet import SeededEntropy

TOLERANCE = 0.0015  # seconds: timers are sums of floating-point numbers, and the timestamp clock ticks in milliseconds
START = 1000.0  # the stack's clock at 0.000 of a script


class Mismatch(AssertionError):
    """The stack did something else than the script says."""


class WatchedStack(Stack):
    """Shows a connection before anybody accepted it."""

    seen: TcpConnection | None = None

    def touch(self, connection: TcpConnection) -> None:
        self.seen = connection
        super().touch(connection)


class Runner:
    """A stack and the only connection that it has at a time."""

    def __init__(self, case: Case) -> None:
        self._case = case
        self._line = (0, "")
        self._history: list[str] = []
        self._now = 0.0
        settings = case.settings
        self._far = FarSide(int(settings["ip"]), int(settings["isn"]))
        us, self._them = ADDRESSES[self._far.version]
        self._stack = WatchedStack(
            (us,), int(settings["mtu"]), SeededEntropy(1), int(settings["capacity"]), settings["congestion"]
        )
        self._listener: TcpListener | None = None
        self._sent: deque[Sent] = deque()
        self._written = self._read = 1  # sequence numbers of the next byte

    def run(self) -> None:
        """
        Raises:
            Mismatch: with the line, what it wants, what came, and all that went before.
            ScriptError: with the line.
        """
        for place in self._case.lines:
            self._line = place
            self._step(place[1])
        self._line = (self._case.lines[-1][0], "the end")
        self._expect_nothing()

    # -- lines

    def _step(self, line: str) -> None:
        time, within, what = self._split(line)
        if time:
            self._advance((self._now if time.startswith("+") else 0.0) + float(time.strip("+")))
        try:
            if what.startswith("> "):
                self._expect(what[2:], within)
                return
            self._expect_nothing()
            self._history.append(f"{self._now:8.3f} {what}")
            if what.startswith("< "):
                pieces = Segment.parse(what[2:]).pieces()
                packets = [self._far.segment(piece, self._now) for piece in pieces]
                self._stack.receive_packets(packets, START + self._now)
            else:
                self._do(what)
        except ValueError as error:
            raise ScriptError(f"{self._place}: {error}") from None
        self._collect()

    def _split(self, line: str) -> tuple[str, float | None, str]:
        match = re.fullmatch(r"(?:(\+?\d+\.?\d*) )?(?:within ([\d.]+) )?([<>a-z].*)", line)
        if match is None:
            raise ScriptError(f"{self._place}: {line!r} is no line of a script")
        return match[1] or "", float(match[2]) if match[2] else None, match[3]

    def _do(self, what: str) -> None:
        what, _, error = what.partition(" raises ")
        verb, *words = what.split()
        action = getattr(self, f"_do_{verb}", None)
        if action is None:
            raise ScriptError(f"nobody knows how to {what!r}")
        try:
            signature(action).bind(*words)
        except TypeError:
            raise ScriptError(f"{verb!r} does not go with {words}") from None
        raised = "none"
        try:
            action(*words)
        except WireGuardError as caught:
            raised = type(caught).__name__
        self._compare("raises", error or "none", raised)

    # -- the clock

    def _advance(self, until: float, *, to_output: bool = False) -> None:
        """Run the timers that are due by then, each at its time."""
        while not (to_output and self._sent):
            timer = self._stack.next_timeout()
            if timer is None or timer - START > until + TOLERANCE:
                self._now = max(self._now, until)
                return
            self._now = max(self._now, timer - START)
            self._stack.handle_timeout(START + self._now)
            self._collect()

    def _collect(self) -> None:
        while runs := self._stack.packets_to_send(START + self._now):
            for _, packets in runs:
                self._sent += [self._far.read(packet, self._now) for packet in packets]
            if len(self._sent) > 20_000:
                self._fail("an end", "it never stops sending")

    # -- what must be sent

    def _expect(self, written: str, within: float | None) -> None:
        if written == "...":
            while self._sent:
                self._passed(self._sent.popleft())
        elif written == "nothing":
            self._expect_nothing()
        else:
            for piece in Segment.parse(written).pieces():
                deadline = self._now + (within or 0.0)
                self._advance(deadline, to_output=True)
                if not self._sent:
                    self._fail(f"{self._now:8.3f} > {written}", "nothing")
                sent = self._sent.popleft()
                wrong = self._far.differences(piece, sent, ecn="ecn" in self._case.settings)
                if within is None and abs(sent.at - self._now) > TOLERANCE:
                    wrong.append("time")
                if wrong:
                    self._fail(f"{self._now:8.3f} > {written}", f"{sent.at:8.3f} > {sent}", wrong)
                self._passed(sent)

    def _passed(self, sent: Sent) -> None:
        self._far.note(sent)
        self._history.append(f"{sent.at:8.3f} > {sent}")

    def _expect_nothing(self) -> None:
        if self._sent:
            self._fail("nothing", "\n           ".join(f"{sent.at:8.3f} > {sent}" for sent in self._sent))

    # -- failing

    @property
    def _place(self) -> str:
        number, line = self._line
        return f"{self._case.source}:{number}: {line}  (case {self._case.name})"

    def _fail(self, expected: str, got: str, wrong: list[str] | None = None) -> None:
        differs = f"\ndiffers in: {', '.join(wrong)}" if wrong else ""
        before = "\n".join(self._history[-30:]) or "   nothing"
        raise Mismatch(f"{self._place}\nexpected:  {expected}\ngot:       {got}{differs}\nbefore:\n{before}")

    def _compare(self, what: str, expected: str, got: str) -> None:
        if expected != got:
            self._fail(f"{what} {expected}", f"{what} {got}")

    # -- what a script can do; the words of its line are the arguments

    @property
    def _connection(self) -> TcpConnection:
        if self._stack.seen is None:
            raise ScriptError("there is no connection yet")
        return self._stack.seen

    def _do_open(self) -> None:
        self._stack.open_tcp((self._them, PORT), START + self._now)

    def _do_listen(self) -> None:
        self._listener = self._stack.listen_tcp(PORT)

    def _do_accept(self) -> None:
        accepted = self._listener.accept(START + self._now) if self._listener else None
        self._compare("accept", "a connection", "a connection" if accepted else "none")

    def _do_write(self, length: str) -> None:
        taken = self._connection.send(text(self._written, int(length)), START + self._now)
        self._compare("bytes taken", length, str(taken))
        self._written += taken

    def _do_read(self, length: str, *runs: str) -> None:
        """`as x500 y20` behind the largest length: letters and their numbers, where segments had a `fill`."""
        data = self._connection.receive(int(length), START + self._now)
        if runs:
            got = [f"{letter}{len(list(group))}" for letter, group in groupby(data.decode("latin-1"))]
            self._compare("read", " ".join(runs), " ".join(["as", *got]))
            return
        self._compare("bytes read", length, str(len(data)))
        right = data == text(self._far.syn_at + self._read, len(data))
        self._compare("text", "of the stream", "of the stream" if right else "another")
        self._read += len(data)

    def _do_eof(self) -> None:
        self._compare("end of the stream", "True", str(self._connection.at_eof))

    def _do_shutdown(self) -> None:
        self._connection.shutdown_write(START + self._now)

    def _do_close(self) -> None:
        self._connection.close(START + self._now)

    def _do_abort(self) -> None:
        self._connection.abort(START + self._now)

    def _do_nagle(self) -> None:
        _apply(TcpOptions(no_delay=False), self._connection, START + self._now)

    def _do_keepalive(self, idle: str = "", interval: str = "", count: str = "") -> None:
        """Without numbers the package's own."""
        options = TcpOptions(keepalive=True)
        if idle:
            options = TcpOptions(True, True, int(idle), int(interval), int(count))
        _apply(options, self._connection, START + self._now)

    def _do_isn(self, number: str) -> None:
        """The far side was restarted: its next SYN has this initial sequence number."""
        self._far.initial_sequence = int(number)

    def _do_icmp(self, kind: str, about: str, mtu: str = "0") -> None:
        packet = self._far.icmp_error(kind, self._far.number(about), int(mtu))
        self._stack.receive_packets([packet], START + self._now)

    def _do_timeout(self) -> None:
        timer = self._stack.next_timeout()
        if timer is None:
            self._fail("a timer", "none runs")
        else:
            self._advance(timer - START)

    def _do_error(self, name: str) -> None:
        error = self._connection.error
        self._compare("error", name, "none" if error is None else type(error).__name__)

    def _do_expect(self, what: str, value: str) -> None:
        self._compare(what, value, self._looked_up(what))

    def _looked_up(self, what: str) -> str:
        if what == "state" and self._stack.seen is None:
            return "LISTEN" if self._listener is not None else "CLOSED"
        timer, connection = self._stack.next_timeout(), self._connection
        sender = connection.sender
        match what:
            case "state":
                return connection.state.value
            case "cwnd" | "ssthresh":
                return str(getattr(sender.congestion, {"cwnd": "window", "ssthresh": "threshold"}[what]))
            case "rto":
                return f"{sender.rtt.timeout:.3f}"
            case "mss":
                return str(sender.mss)
            case "readable" | "writable":
                return "yes" if getattr(connection, what) else "no"
            case "timer":
                return "none" if timer is None else "running"
        raise ScriptError(f"nothing is known of {what!r}")
