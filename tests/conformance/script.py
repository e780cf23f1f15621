"""The files of the conformance tables: text into cases, lines into segments. `README.md` has the syntax."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Self

from httpx_wireguard._netstack.congestion import DEFAULT_CONTROL

DEFAULTS = {  # of the settings; a case may use them as $variables
    "syn": "mss 1012,sackOK,ts,wscale 0",  # the far side's options: with timestamps 1000 bytes are left for the text
    "rtt": "0.1",  # of the handshake, seconds
    "mtu": "1500",
    "ip": "4",
    "isn": "5000",  # the far side's initial sequence number
    "capacity": "131072",  # of our receive buffer, bytes
    "congestion": DEFAULT_CONTROL,
}
KEYS = {"title", "rfc", "after", "waits", "ecn", *DEFAULTS}
FLAGS = {"S": 0x02, "F": 0x01, "R": 0x04, "P": 0x08, "U": 0x20, "E": 0x40, "W": 0x80, ".": 0x10}
ECN = ["not-ect", "ect1", "ect0", "ce"]  # RFC 3168 5: by the two bits of the IP header
OPTIONS = {"mss", "wscale", "sackOK", "sack", "ts", "ecr", "nots", "raw"}

_OPEN = ["open", "> S 0"]
_ESTABLISHED = [*_OPEN, "+$rtt < S. 0 ack 1 win 65535 <$syn>", "> . 1 ack 1"]
_FIN_WAIT_1 = [*_ESTABLISHED, "shutdown", "> F. 1 ack 1"]
_FIN_WAIT_2 = [*_FIN_WAIT_1, "< . 1 ack 2"]
_CLOSE_WAIT = [*_ESTABLISHED, "< F. 1", "> . 1 ack 2"]
_SYN_RECEIVED = ["listen", "< S 0 win 65535 <$syn>", "> S. 0 ack 1"]
ROADS = {  # to the states of RFC 9293 3.3.2, by the shortest way
    "CLOSED": [],
    "LISTEN": ["listen"],
    "SYN-SENT": _OPEN,
    "SYN-RECEIVED": _SYN_RECEIVED,
    "SYN-RECEIVED/active": [*_OPEN, "< S 0 win 65535 <$syn>", "> S. 0 ack 1"],
    "ESTABLISHED": _ESTABLISHED,
    # behind the first segments of a connection, which are acknowledged at once; RCV.NXT is 9
    "ESTABLISHED/later": [*_ESTABLISHED, *["< P. rcv:+1", "> . 1 ack rcv+1"] * 8, "read 8"],
    "ESTABLISHED/passive": [*_SYN_RECEIVED, "+$rtt < . 1 ack 1", "accept"],
    "FIN-WAIT-1": _FIN_WAIT_1,
    "FIN-WAIT-2": _FIN_WAIT_2,
    "CLOSE-WAIT": _CLOSE_WAIT,
    "CLOSING": [*_FIN_WAIT_1, "< F. 1", "> . 2 ack 2"],
    "LAST-ACK": [*_CLOSE_WAIT, "shutdown", "> F. 1 ack 2"],
    "TIME-WAIT": [*_FIN_WAIT_2, "< F. 1", "> . 2 ack 2"],
}

_KEY = re.compile(r"([a-z]+):\s*(.*)")
_VARIABLE = re.compile(r"\$(\w+)")
_SEGMENT = re.compile(
    r"(?P<flags>[SFRPUEW.]+|-) (?P<first>[^:\s]+)(:(?P<end>\+?\d+))?( ack (?P<ack>\S+))?( win (?P<win>\d+))?"
    r"( urg (?P<urg>\d+))?( by (?P<by>\d+))?( fill (?P<fill>\w))?( (?P<ecn>not-ect|ect0|ect1|ce))?"
    r"( <(?P<options>[^>]*)>)?"
)


class ScriptError(ValueError):
    """A script that cannot be understood."""


@dataclass(frozen=True, slots=True)
class Case:
    """One run of a connection."""

    source: str  # name of the file
    name: str
    settings: dict[str, str]
    lines: tuple[tuple[int, str], ...]  # (line of the file, text)

    def __str__(self) -> str:
        return f"{self.source}::{self.name}"


def parse(text: str, source: str) -> list[Case]:
    """The cases of a file, one for each row where a case has a table.

    Raises:
        ScriptError: names the file and the line.
    """
    cases: list[Case] = []
    shared = dict(DEFAULTS)
    block: _Block | None = None
    for number, raw in enumerate(text.splitlines(), 1):
        line = raw.partition("#")[0].strip()
        key = _KEY.fullmatch(line)
        if key and key[1] == "case":
            cases += block.cases() if block else []
            block = _Block(source, number, key[2], dict(shared))
        elif key and key[1] in KEYS and not (block and block.lines):
            (block.settings if block else shared)[key[1]] = key[2]
        elif line and (key or block is None):
            raise ScriptError(f"{source}:{number}: {line!r} has no place here")
        elif block:
            block.add(number, line)
    cases += block.cases() if block else []
    for wanted in ("title", "rfc"):
        if wanted not in shared:
            raise ScriptError(f"{source}: no {wanted}")
    names = [case.name for case in cases]
    if len(set(names)) < len(names):
        raise ScriptError(f"{source}: two cases named {next(name for name in names if names.count(name) > 1)!r}")
    return cases


@dataclass(slots=True)
class _Block:
    """A case as it stands in the file."""

    source: str
    number: int
    name: str
    settings: dict[str, str]
    tables: list[_Table] = field(default_factory=list)
    lines: list[tuple[int, str]] = field(default_factory=list)
    _in_table: bool = False

    def add(self, number: int, line: str) -> None:
        if line.startswith("|"):
            cells = [cell.strip() for cell in line[1:].removesuffix("|").split("|")]
            if not self._in_table:
                self.tables.append(_Table(cells, []))
            elif len(cells) != len(self.tables[-1].head):
                raise ScriptError(f"{self.source}:{number}: {len(cells)} cells in a table of {self.tables[-1].head}")
            else:
                self.tables[-1].rows.append(cells)
        elif line:
            self.lines.append((number, " ".join(line.split())))
        self._in_table = line.startswith("|")

    def cases(self) -> Iterator[Case]:
        """One for each combination of the rows of the tables."""
        if not self.lines:
            raise ScriptError(f"{self.source}:{self.number}: case {self.name!r} does nothing")
        for rows in product(*(table.rows for table in self.tables)):
            settings, names = dict(self.settings), []
            for table, row in zip(self.tables, rows, strict=True):
                settings |= zip(table.head, row, strict=True)
                names += row[: table.width]
            name = f"{self.name} [{', '.join(names)}]" if names else self.name
            yield Case(self.source, name, settings, tuple(self._filled(settings)))

    def _filled(self, values: dict[str, str]) -> Iterator[tuple[int, str]]:
        for number, line in self.lines:
            for part in self._parts(self._replaced(line, values, number), number):
                yield number, self._replaced(part, values, number)

    def _replaced(self, text: str, values: dict[str, str], number: int) -> str:
        while match := _VARIABLE.search(text):
            if match[1] not in values:
                raise ScriptError(f"{self.source}:{number}: no column {match[1]!r}")
            text = text[: match.start()] + values[match[1]] + text[match.end() :]
        return text

    def _parts(self, line: str, number: int) -> list[str]:
        """A line, or more between semicolons; an empty cell leaves its line out; `reach` stands for a whole road."""
        if not line.startswith("reach "):
            return [part.strip() for part in line.split(";") if part.strip()]
        state = line.removeprefix("reach ")
        if state not in ROADS:
            raise ScriptError(f"{self.source}:{number}: no way to {state!r}")
        return [*ROADS[state], f"expect state {state.partition('/')[0]}"]


@dataclass(slots=True)
class _Table:
    head: list[str]
    rows: list[list[str]]

    @property
    def width(self) -> int:
        """How many of the first cells it takes to tell the rows apart."""
        widths = range(1, len(self.head))
        return next((n for n in widths if len({tuple(row[:n]) for row in self.rows}) == len(self.rows)), len(self.head))


@dataclass(frozen=True, slots=True)
class Segment:
    """A segment as written: numbers are still text, None means that nothing was said."""

    flags: str  # in the order of FLAGS
    first: str
    length: int  # of the payload
    ack: str | None = None
    win: str | None = None
    urg: str | None = None
    by: int | None = None
    fill: str | None = None
    ecn: str | None = None
    options: dict[str, str] | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        """Raises ScriptError, without the place."""
        match = _SEGMENT.fullmatch(text)
        if match is None:
            raise ScriptError(f"{text!r} is no segment")
        flags, first, end = match["flags"].strip("-"), match["first"], match["end"] or "+0"
        if len(set(flags)) < len(flags):
            raise ScriptError(f"{text!r} repeats a flag")
        if not end.startswith("+") and not first.isdigit():
            raise ScriptError(f"{text!r}: behind a mark stands a length, as in rcv:+1000")
        return cls(
            "".join(flag for flag in FLAGS if flag in flags),
            first,
            int(end) if end.startswith("+") else int(end) - int(first),
            match["ack"],
            match["win"],
            match["urg"],
            None if match["by"] is None else int(match["by"]),
            match["fill"],
            match["ecn"],
            None if match["options"] is None else _options(match["options"]),
        )

    def pieces(self) -> Iterator[Segment]:
        """What `by` stands for: consecutive segments, of which only the last has FIN and PSH."""
        if self.by is None:
            yield self
            return
        for done in range(0, self.length, self.by):
            length = min(self.by, self.length - done)
            last = done + length == self.length
            flags = self.flags if last else "".join(flag for flag in self.flags if flag not in "FP")
            yield replace(self, flags=flags, first=str(int(self.first) + done), length=length, by=None)


def _options(text: str) -> dict[str, str]:
    options = {}
    for item in filter(None, map(str.strip, text.split(","))):
        name, _, value = item.partition(" ")
        if name not in OPTIONS:
            raise ScriptError(f"no option {name!r}")
        options[name] = value
    return options
