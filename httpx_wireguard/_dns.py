"""A stub resolver (RFC 1034 5.3.1) without I/O, clock or threads of its own; dnspython is its codec.

A `Question` is a generator that yields what it waits for, so one thread asks for several families at the same time and
may stop whenever it likes. This module is imported when the first name is looked up: dnspython takes longer to import
than a small program to run.
"""

from __future__ import annotations

import struct
from collections import OrderedDict
from collections.abc import Callable, Collection, Generator, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeAlias

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdataclass
import dns.rdatatype

from httpx_wireguard._errors import NameResolutionError, TunnelClosed, WireGuardError

if TYPE_CHECKING:
    from httpx_wireguard._streams import StreamSocket

DNS_PORT = 53  # RFC 1035 4.2
EDNS_PAYLOAD = 1232  # bytes; fits the IPv6 minimum MTU (1280) with its headers: never fragmented, RFC 6891 6.2.5

# Our own limits.
TRY_TIMEOUT = 1.5  # seconds for one server to answer; three tries fit httpx's default connect timeout of 5
RETRY_PAUSE = 0.1  # seconds from one round through the servers to the next, at least
MAX_REPLY = 16_384  # bytes; dnspython takes half a second for 64 KB of records, and nobody has 500 addresses
CACHE_SIZE = 1000  # answers
MAX_POSITIVE_TTL = 86_400.0  # seconds; RFC 8767 4 allows a cap, a day keeps a mistaken TTL harmless
MAX_NEGATIVE_TTL = 300.0  # seconds; RFC 2308 5 allows a cap, and a name just created should not stay missing

_HEADER = struct.Struct("!6H")  # RFC 1035 4.1.1
_RECORD = struct.Struct("!HHIH")  # RFC 1035 4.1.3, behind the name
RECORD_TYPES = {4: dns.rdatatype.A, 6: dns.rdatatype.AAAA}

Remote: TypeAlias = tuple[str, int]  # IP address and port
# What a question waits for: whether it is there, the sockets on which that may change, and until when.
Waiting: TypeAlias = tuple[Callable[[], bool], Sequence[Hashable], float | None]
Asking: TypeAlias = Generator[Waiting, None, dns.message.QueryMessage]


class UdpSocket(Protocol):
    """A UDP socket of the engine, connected: it takes datagrams from its remote address and port only."""

    @property
    def readable(self) -> bool: ...
    def send(self, data: bytes, now: float) -> object: ...
    def receive(self, now: float) -> tuple[bytes, Remote] | None: ...
    def close(self, now: float) -> None: ...
    def __hash__(self) -> int: ...


class TunnelNetwork(Protocol):
    """What name resolution needs of a tunnel. The driver's lock is held around every method but `wake_later`."""

    def open_udp(self, remote: Remote, now: float) -> UdpSocket:
        """A connected UDP socket on a random local port."""

    def open_tcp(self, remote: Remote, now: float) -> StreamSocket:
        """A TCP socket with its SYN under way."""

    def diagnose(self, address: str, now: float) -> WireGuardError | None:
        """Why nothing can come back from `address`, such as a handshake without an answer; None when unknown."""

    def wake_later(self, key: Hashable) -> None:
        """From any thread and without the lock: let whoever waits on `key` look again. Never raises."""


class _Silence(Exception):
    """A server did not answer in `TRY_TIMEOUT`."""

    def __str__(self) -> str:
        return f"no answer within {TRY_TIMEOUT:g} s"


class _Failure(Exception):
    """A server answered with an error code."""

    def __init__(self, rcode: dns.rcode.Rcode) -> None:
        super().__init__(dns.rcode.to_text(rcode))
        self.rcode = rcode


def query_name(host: str) -> dns.name.Name:
    """The DNS name of `host`: relative, subject to the search list, unless it ends in a dot.

    Raises:
        NameResolutionError: not a name that may be asked for.
    """
    codec = dns.name.IDNA_2008_Practical if dns.name.have_idna_2008 else dns.name.IDNA_2003_Practical
    try:
        name = dns.name.from_text(host, origin=None, idna_codec=codec)
        if not name.is_absolute():
            name.concatenate(dns.name.root)  # else a name of 255 bytes would fail later
    except dns.exception.DNSException as error:
        raise NameResolutionError(host, f"it is not a valid host name ({error})") from error
    return name


def parse_reply(request: dns.message.QueryMessage, datagram: bytes) -> dns.message.QueryMessage | None:
    """The reply to `request`, or None when the datagram is anything else: garbage, another id or question.

    Raises:
        dns.message.Truncated: it is the reply, cut short; ask again over TCP.
    """
    if datagram[:2] != struct.pack("!H", request.id) or len(datagram) > MAX_REPLY:
        return None  # before the costly parser: a flood of forged replies should be cheap
    try:
        check_classes(datagram)
        reply = dns.message.from_wire(datagram, raise_on_truncation=True, ignore_trailing=True)
    except dns.message.Truncated as error:
        if request.is_response(error.message()):  # type: ignore[no-untyped-call]  # dnspython's
            raise
        return None
    except (dns.exception.DNSException, ValueError):
        return None
    return reply if isinstance(reply, dns.message.QueryMessage) and request.is_response(reply) else None


def check_classes(message: bytes) -> None:
    """Look at every record's class before dnspython does, as far as the message can be read.

    dnspython remembers, for the life of the process, how it reads each pair of class and type that it meets: one A
    record of class ANY would have it take all later A records for unknown ones, and classes made up fill the memory.

    Raises:
        FormError: a class other than IN, which is what we ask for. An OPT record has a size there (RFC 6891 6.1.2).
    """
    try:
        _, _, questions, *counts = _HEADER.unpack_from(message)
        at = _HEADER.size
        for _ in range(questions):
            at = _behind_name(message, at) + 4
        for _ in range(sum(counts)):
            at = _behind_name(message, at)
            kind, rdclass, _, length = _RECORD.unpack_from(message, at)
            if rdclass != dns.rdataclass.IN and kind != dns.rdatatype.OPT:
                raise dns.exception.FormError(f"a record of class {rdclass}")  # type: ignore[no-untyped-call]  # dnspython's
            at += _RECORD.size + length
    except (struct.error, IndexError):
        pass  # cut short: dnspython says so, or that it is the reply and has to be asked for over TCP


def _behind_name(message: bytes, at: int) -> int:
    """RFC 1035 4.1.4: labels up to an empty one, or up to a pointer."""
    while length := message[at]:
        if length >= 0xC0:
            return at + 2
        at += 1 + length
    return at + 1


@dataclass(frozen=True, slots=True)
class Answer:
    """What is known of one family of a name.

    Attributes:
        exists: False for NXDOMAIN, which holds for every family.
    """

    addresses: tuple[str, ...]
    exists: bool = True


class AnswerCache:
    """Answers with their end of life, the least recently used go first when it is full."""

    def __init__(self, size: int = CACHE_SIZE) -> None:
        self._size = size
        self._entries: OrderedDict[tuple[dns.name.Name, int | None], tuple[float, Answer]] = OrderedDict()

    def get(self, name: dns.name.Name, version: int, now: float) -> Answer | None:
        for key in ((name, version), (name, None)):
            entry = self._entries.get(key)
            if entry is not None and now < entry[0]:
                self._entries.move_to_end(key)
                return entry[1]
        return None

    def put(self, name: dns.name.Name, version: int, answer: Answer, ttl: float, now: float) -> None:
        """Remember an answer for `ttl` seconds, within our limits."""
        lifetime = min(ttl, MAX_POSITIVE_TTL if answer.addresses else MAX_NEGATIVE_TTL)
        if lifetime <= 0:
            return
        key = (name, version if answer.exists else None)
        self._entries[key] = (now + lifetime, answer)
        self._entries.move_to_end(key)
        if len(self._entries) > self._size:
            self._entries.popitem(last=False)


class StubResolver:
    """What all questions of one tunnel share. Only ever used with the driver's lock held.

    Args:
        servers: addresses, asked in this order.
        search: domains to try for relative names.
        versions: IP versions of which the interface has an address.
        canonical: makes records comparable, drops repeats and what is too much.
    """

    def __init__(
        self,
        network: TunnelNetwork,
        servers: Sequence[str],
        search: Sequence[str],
        versions: Collection[int],
        canonical: Callable[[Iterable[str]], tuple[str, ...]],
    ) -> None:
        self.network = network
        self.servers = tuple(servers)
        self.search = [dns.name.from_text(domain) for domain in search]
        self.versions = frozenset(versions)
        self.canonical = canonical
        self.cache = AnswerCache()

    def names_to_try(self, host: str) -> list[dns.name.Name]:
        """The search list of resolv.conf(5) with its default of ndots = 1."""
        name = query_name(host)
        if name.is_absolute():
            return [name]
        names = []
        for domain in self.search:
            try:
                names.append(name.concatenate(domain))
            except dns.name.NameTooLong:
                continue  # no such name can exist
        names.insert(0 if len(name) > 1 else len(names), name.concatenate(dns.name.root))
        return names


class Question:
    """The addresses of one family of a host: asks name after name, server after server.

    Attributes:
        now: the time, to be set before each step and before closing.
    """

    def __init__(self, stub: StubResolver, host: str, names: Sequence[dns.name.Name], version: int) -> None:
        self.now = 0.0
        self._stub = stub
        self._host = host
        self._names = names
        self._version = version

    def run(self) -> Generator[Waiting, None, tuple[str, ...]]:
        """Ask until there is an answer, without an end of its own when the servers stay silent.

        Closing the generator gives back every socket.

        Raises:
            NameResolutionError: the host has no such address, or no server can tell.
            TunnelClosed: the tunnel ended.
        """
        for name in self._names:
            answer = self._stub.cache.get(name, self._version, self.now)
            if answer is None:
                answer = yield from self._ask_servers(name)
            if answer.addresses:
                return answer.addresses
            if answer.exists:
                raise self._error(self._no_record(), "NOERROR")
        tried = ", ".join(name.to_text(omit_final_dot=True) for name in self._names)
        servers = ", ".join(self._stub.servers)
        raise self._error(f"no such name (NXDOMAIN); asked {servers} for {tried}", "NXDOMAIN")

    def _error(self, reason: str, rcode: str | None) -> NameResolutionError:
        return NameResolutionError(self._host, reason, self._stub.servers, rcode)

    def _no_record(self) -> str:
        reason = f"it has no {RECORD_TYPES[self._version].name} record"
        if len(self._stub.versions) == 1:
            reason += f", and the tunnel has only IPv{self._version} addresses"
        return reason

    def _ask_servers(self, name: dns.name.Name) -> Generator[Waiting, None, Answer]:
        """Ask the servers in turn, the silent ones again and again. One that fails is not asked again, except that
        SERVFAIL, which may pass, is believed the second time only."""
        servers = list(self._stub.servers)
        trusted = list(servers)
        failures: dict[str, Exception] = {}
        while servers:
            next_round = self.now + RETRY_PAUSE
            for server in tuple(servers):
                try:
                    return self._accept(name, (yield from self._exchange((server, DNS_PORT), name)))
                except TunnelClosed:
                    raise
                except _Silence as error:
                    failures[f"{server}: {error}"] = error
                except (_Failure, WireGuardError, dns.exception.DNSException, EOFError, ValueError) as error:
                    failures[f"{server}: {error}"] = error
                    if server in trusted and isinstance(error, _Failure) and error.rcode == dns.rcode.SERVFAIL:
                        trusted.remove(server)
                    else:
                        servers.remove(server)
            while servers and self.now < next_round:
                yield _never, (), next_round
        rcodes = [str(error) for error in failures.values() if isinstance(error, _Failure)]
        reason = "no DNS server helped: " + "; ".join(failures)
        raise self._error(reason, rcodes[-1] if rcodes else None) from next(reversed(failures.values()))

    def _accept(self, name: dns.name.Name, reply: dns.message.QueryMessage) -> Answer:
        """RFC 1034 4.3.2, RFC 2308 5: the end of the chain of aliases, remembered for the shortest TTL on the way.

        Raises:
            _Failure: the server could not or would not answer.
            dns.exception.DNSException: the reply makes no sense.
        """
        if reply.rcode() not in (dns.rcode.NOERROR, dns.rcode.NXDOMAIN):
            raise _Failure(reply.rcode())
        chain = reply.resolve_chaining()
        addresses = self._stub.canonical(record.address for record in chain.answer or ())
        answer = Answer(addresses, exists=reply.rcode() == dns.rcode.NOERROR)
        self._stub.cache.put(name, self._version, answer, chain.minimum_ttl, self.now)
        return answer

    def _exchange(self, server: Remote, name: dns.name.Name) -> Asking:
        """RFC 7766 5: over UDP, and over TCP when the answer does not fit a datagram."""
        try:
            return (yield from self._exchange_with_edns(self._exchange_udp, server, name))
        except dns.message.Truncated:
            return (yield from self._exchange_with_edns(self._exchange_tcp, server, name))

    def _exchange_with_edns(
        self,
        exchange: Callable[[Remote, dns.message.QueryMessage, float], Asking],
        server: Remote,
        name: dns.name.Name,
    ) -> Asking:
        """RFC 6891 7: a server older than EDNS is asked again without it."""
        deadline = self.now + TRY_TIMEOUT
        kind = RECORD_TYPES[self._version]
        request = dns.message.make_query(name, kind, use_edns=0, payload=EDNS_PAYLOAD)
        reply = yield from exchange(server, request, deadline)
        if reply.rcode() in (dns.rcode.FORMERR, dns.rcode.NOTIMP):
            reply = yield from exchange(server, dns.message.make_query(name, kind), deadline)
        return reply

    def _exchange_udp(self, server: Remote, request: dns.message.QueryMessage, deadline: float) -> Asking:
        """One question from a port of its own (RFC 5452 9.2); what is not its answer is noise."""
        sock = self._stub.network.open_udp(server, self.now)
        try:
            sock.send(request.to_wire(), self.now)
            while True:
                while (received := sock.receive(self.now)) is not None:
                    data, source = received
                    reply = parse_reply(request, data) if source[:2] == server else None
                    if reply is not None:
                        return reply
                yield from self._until(lambda: sock.readable, sock, deadline)
        finally:
            sock.close(self.now)

    def _exchange_tcp(self, server: Remote, request: dns.message.QueryMessage, deadline: float) -> Asking:
        """One question on a connection of its own, RFC 7766 8: a two-byte length goes before each message."""
        sock = self._stub.network.open_tcp(server, self.now)
        try:
            yield from self._until(lambda: sock.connected or sock.error is not None, sock, deadline)
            if sock.error is not None:
                raise sock.error
            wire = request.to_wire()
            yield from self._send(sock, struct.pack("!H", len(wire)) + wire, deadline)
            (length,) = struct.unpack("!H", (yield from self._receive_exactly(sock, 2, deadline)))
            if length > MAX_REPLY:
                raise ValueError(f"its answer has {length} bytes")
            data = yield from self._receive_exactly(sock, length, deadline)
            check_classes(data)
            reply = dns.message.from_wire(data)
            if not isinstance(reply, dns.message.QueryMessage) or not request.is_response(reply):
                raise ValueError("its answer is for another question")
        except BaseException:
            sock.abort(self.now)
            raise
        sock.close(self.now)
        return reply

    def _send(self, sock: StreamSocket, data: bytes, deadline: float) -> Generator[Waiting, None, None]:
        while data:
            data = data[sock.send(data, self.now) :]
            if data:
                yield from self._until(lambda: sock.writable, sock, deadline)

    def _receive_exactly(self, sock: StreamSocket, size: int, deadline: float) -> Generator[Waiting, None, bytes]:
        data = b""
        while len(data) < size:
            yield from self._until(lambda: sock.readable, sock, deadline)
            chunk = sock.receive(size - len(data), self.now)
            if not chunk:
                raise sock.error or EOFError("the server closed the connection before its answer was complete")
            data += chunk
        return data

    def _until(self, ready: Callable[[], bool], sock: Hashable, deadline: float) -> Generator[Waiting, None, None]:
        """Wait for a socket.

        Raises:
            _Silence: the deadline passed.
        """
        while not ready():
            if self.now >= deadline:
                raise _Silence
            yield ready, (sock,), deadline


def _never() -> bool:
    return False
