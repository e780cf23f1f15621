"""Answers of a hostile DNS server, over UDP and TCP, and host names: addresses or one of our errors, no socket left."""

from __future__ import annotations

import struct
from collections.abc import Hashable
from ipaddress import ip_address

import dns.entropy
import dns.rdata
import dns.rdataclass
import dns.rdatatype

from httpx_wireguard._dns import CACHE_SIZE, Question, Remote, StubResolver
from httpx_wireguard._errors import ConnectionRefused, NameResolutionError, WireGuardError
from httpx_wireguard._resolver import MAX_ADDRESSES, Resolver, _canonical
from tests.fuzz.harness import Script

SERVERS = ("10.0.0.53", "fd00::53")
SEARCH = ("corp.example", "example.net")
MAX_QUESTIONS = 3
MAX_STEPS = 24  # of one question, which silent servers would have go on for ever
FLAGS = (0x8180, 0x8180, 0x8183, 0x8182, 0x8181, 0x8184, 0x8380, 0x8580, 0x0100, 0xA980)
POINTER = b"\xc0\x0c"  # to the name asked for
NAMES = (POINTER, b"\x01a\xc0\x0c", b"\x01b\xc0\x0c", b"\0", b"\xc0\x20", b"\x03www\x04corp\x07example\0")
TYPES = (1, 28, 5, 6, 41, 39, 46)  # A, AAAA, CNAME, SOA, OPT, DNAME, RRSIG
SOA = b"\0\0" + struct.pack("!5I", 1, 2, 3, 4, 60)


def message(script: Script, query: bytes) -> bytes:
    """An answer to `query`: made up of parts that fit each other, or not."""
    header = query[:2] if script.byte() else script.take(2).ljust(2, b"\0")
    if script.byte() % 8 == 7:
        return header + script.take(script.byte())
    flags = script.choose(FLAGS) if script.byte() % 8 else script.number(2)
    question = question_of(query) if script.byte() % 8 else script.take(script.byte() % 32)
    records = [record(script) for _ in range(script.byte() % 6)]
    answers = len(records) if script.byte() % 8 else script.number(2)
    authority = script.byte() % 3 if records else 0
    counts = (1, max(answers - authority, 0), authority, 0)
    if script.byte() % 8 == 7:  # a hostile answer holds many
        records = [POINTER + struct.pack("!HHIH4B", 1, 1, 60, 4, 10, 0, 0, number) for number in range(40)]
        counts = (1, 40, 0, 0)
    return header + struct.pack("!5H", flags, *counts) + question + b"".join(records)


def question_of(query: bytes) -> bytes:
    return query[12 : query.index(b"\0", 12) + 5]


def record(script: Script) -> bytes:
    name = script.choose(NAMES) if script.byte() % 8 else script.take(script.byte() % 64)
    kind = script.choose(TYPES) if script.byte() % 8 else script.number(2)
    data = {1: script.take(4).ljust(4, b"\1"), 28: script.take(16).ljust(16, b"\2")}.get(kind)
    if data is None or script.byte() % 8 == 7:
        data = script.choose(NAMES) + (SOA if kind == 6 else b"") if script.byte() % 4 else script.take(script.byte())
    length = len(data) if script.byte() % 8 else script.number(2)
    class_, ttl = 255 if script.byte() % 16 == 15 else 1, script.choose((60, 0, 2**31))
    return name + struct.pack("!HHIH", kind, class_, ttl, length) + data


class Socket:
    """UDP and TCP in one: every send draws what the script says."""

    def __init__(self, network: Network, remote: Remote, stream: bool) -> None:
        self.remote, self.local = remote, ("10.0.0.2", 40000)
        self.open = True
        self.error: WireGuardError | None = None
        self.connected = stream
        self._network = network
        self._inbox: list[tuple[bytes, Remote]] = []
        self._stream = stream
        self._sent = b""
        self.at_eof = False
        if stream and network.script.byte() % 8 == 7:
            self.error, self.connected = ConnectionRefused("refused"), False

    writable = True

    @property
    def readable(self) -> bool:
        return bool(self._inbox) or self.at_eof or self.error is not None

    def send(self, data: bytes, now: float) -> int:
        assert self.open
        script = self._network.script
        taken = min(len(data), script.byte() or len(data)) if self._stream else len(data)
        self._sent += data[:taken]
        if not self._stream:
            for _ in range(script.byte() % 4):
                source = self.remote if script.byte() % 8 else ("10.9.9.9", 53)
                self._inbox.append((message(script, data), source))
        elif len(self._sent) > 12 + 2 and taken == len(data):
            answer = message(script, self._sent[2:])
            length = len(answer) if script.byte() % 8 else script.number(2)
            self._inbox.append((struct.pack("!H", length & 0xFFFF) + answer, self.remote))
            self.at_eof = script.flag()
        return taken

    def receive(self, *arguments: float) -> tuple[bytes, Remote] | bytes | None:
        """`receive(now)` of a datagram socket, `receive(max_bytes, now)` of a stream."""
        assert self.open
        if not self._stream:
            return self._inbox.pop(0) if self._inbox else None
        if not self._inbox:
            return b""
        limit = min(int(arguments[0]), self._network.script.byte() or 1000)
        data, source = self._inbox.pop()
        if data[limit:]:
            self._inbox.append((data[limit:], source))
        return data[:limit]

    def close(self, now: float) -> None:
        self.open = False

    abort = close


class Network:
    """`TunnelNetwork`, without a tunnel."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.sockets: list[Socket] = []

    def open_udp(self, remote: Remote, now: float) -> Socket:
        self.sockets.append(Socket(self, remote, stream=False))
        return self.sockets[-1]

    def open_tcp(self, remote: Remote, now: float) -> Socket:
        self.sockets.append(Socket(self, remote, stream=True))
        return self.sockets[-1]

    def diagnose(self, address: str, now: float) -> WireGuardError | None:
        return None

    def wake_later(self, key: Hashable) -> None: ...


def run(data: bytes) -> None:
    script = Script(data)
    mode = script.byte()
    if mode % 8 == 7:
        try_host_name(script.rest().decode("utf-8", "surrogateescape"))
        return
    dns.entropy.pool = dns.entropy.EntropyPool(b"the same ids in every run")
    network = Network(script)
    stub = StubResolver(network, SERVERS[: 1 + mode % 2], SEARCH, (4, 6), _canonical)  # type: ignore[arg-type]  # a socket of both kinds
    now = 0.0
    for _ in range(MAX_QUESTIONS if script else 0):
        host, version = script.choose(("www", "a.example", "host.example.")), script.choose((4, 6))
        question = Question(stub, host, stub.names_to_try(host), version)
        now = ask(question, script, now)
        assert not any(socket.open for socket in network.sockets)
        assert len(stub.cache._entries) <= CACHE_SIZE
        known = dns.rdata._rdata_classes
        assert all(rdclass in (1, 255) or kind == 41 for rdclass, kind in known), "the parser's memory grows"
        assert known.get((dns.rdataclass.ANY, dns.rdatatype.A)) is None, "A records are not read as such any more"


def ask(question: Question, script: Script, now: float) -> float:
    """Until there is an answer, or the script is over: then give up. Returns the time."""
    steps = question.run()
    for _ in range(MAX_STEPS):
        question.now = now
        try:
            ready, _, deadline = next(steps)
        except StopIteration as stop:
            check_addresses(stop.value)
            return now
        except WireGuardError:
            return now
        if not ready():
            if not script:
                break
            assert deadline is not None
            assert deadline > now, "would wait for what is due"
            now = deadline
    steps.close()
    return now


def check_addresses(addresses: tuple[str, ...]) -> None:
    assert 0 < len(addresses) <= MAX_ADDRESSES
    assert all(str(ip_address(address)) == address for address in addresses)
    assert len(set(addresses)) == len(addresses)


def try_host_name(host: str) -> None:
    """A host is looked up without a question asked, has names to ask for, or is refused."""
    network = Network(Script(b""))
    resolver = Resolver(network, SERVERS, SEARCH)  # type: ignore[arg-type]  # as above
    try:
        lookup = resolver.start_lookup(host, 0.0)
    except NameResolutionError as error:
        assert error.host == host
        return
    for _, result in lookup.step(0.0):
        assert isinstance(result, tuple)
        check_addresses(result)
    lookup.close(0.0)
    assert not any(socket.open for socket in network.sockets)
