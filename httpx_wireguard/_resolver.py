"""Names to addresses, inside the tunnel.

dnspython keeps the rules of a stub resolver (search list, cache, CNAME chains, retries); `TunnelNameserver` gives it
the tunnel to speak through. No question ever leaves on the host's own network, unless `system=True` asks for it.
"""

from __future__ import annotations

import ipaddress
import itertools
import math
import socket
import struct
import threading
import time
from collections.abc import Collection, Iterable, Sequence
from typing import Any, Protocol

import dns.exception
import dns.message
import dns.name
import dns.nameserver
import dns.query
import dns.rcode
import dns.rdatatype
import dns.resolver

from httpx_wireguard._errors import (
    NameResolutionError,
    NameResolutionTimeout,
    NoRoute,
    OperationTimeout,
    TunnelClosed,
    WireGuardError,
)
from httpx_wireguard._streams import Driver, StreamSocket, SyncStream, address_text

DNS_PORT = 53  # RFC 1035 4.2
EDNS_PAYLOAD = 1232  # bytes; fits the IPv6 minimum MTU (1280) with its headers: never fragmented, RFC 6891 6.2.5

# Our own limits.
TRY_TIMEOUT = 1.5  # seconds for one server to answer; three tries fit httpx's default connect timeout of 5
DEFAULT_LIFETIME = 10.0  # seconds for a name when the caller sets no deadline
CACHE_SIZE = 1000  # answers; some megabytes at most
MAX_POSITIVE_TTL = 86_400.0  # seconds; RFC 8767 4 allows a cap, a day keeps a mistaken TTL harmless
MAX_NEGATIVE_TTL = 300.0  # seconds; RFC 2308 5 allows a cap, and a name just created should not stay missing
MAX_ADDRESSES = 16  # of one family; a hostile answer holds thousands

_RECORD_TYPES = {4: dns.rdatatype.A, 6: dns.rdatatype.AAAA}
_SOCKET_FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}
_NO_SERVER = (
    'the tunnel has no DNS server: add "DNS = <address>" to the [Interface] section or pass dns=["<address>"]; '
    'dns="system" would ask this host\'s own resolver, outside the tunnel'
)


class UdpSocket(Protocol):
    """A UDP socket of the engine, connected: it takes datagrams from its remote address and port only."""

    @property
    def readable(self) -> bool: ...
    @property
    def error(self) -> WireGuardError | None: ...
    def send(self, data: bytes, now: float) -> object: ...
    def receive(self, now: float) -> tuple[bytes, tuple[str, int]] | None: ...
    def close(self, now: float) -> None: ...


class TunnelNetwork(Protocol):
    """What name resolution needs of a tunnel. Every method is called with the driver's lock held."""

    def open_udp(self, remote: tuple[str, int], now: float) -> UdpSocket:
        """A connected UDP socket on a random local port."""

    def open_tcp(self, remote: tuple[str, int], now: float) -> StreamSocket:
        """A TCP socket with its SYN under way."""

    def diagnose(self, address: str) -> WireGuardError | None:
        """Why nothing can come back from `address`, such as a handshake without an answer; None when unknown."""


def local_family(local_address: str | None) -> int | None:
    """The IP version that a local address confines a connection to; "0.0.0.0" and "::" mean nothing else.

    Raises:
        NoRoute: not an IP address.
    """
    try:
        return None if local_address is None else ipaddress.ip_address(local_address).version
    except ValueError as error:
        raise NoRoute(f"local address {local_address!r} is not an IP address", str(local_address)) from error


def literal_address(host: str) -> str | None:
    """`host` as an address in canonical form, or None when it is a name.

    A zone ("fe80::1%eth0") is dropped: the tunnel is one link, and the host's zones mean nothing in it. An IPv4 address
    mapped into IPv6 is the IPv4 address, so that it obeys the routes of that.
    """
    try:
        address = ipaddress.ip_address(host.partition("%")[0] if ":" in host else host)
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return str(mapped or address)


def query_name(host: str) -> dns.name.Name:
    """The DNS name of `host`: relative, subject to the search list, unless it ends in a dot.

    Raises:
        NameResolutionError: not a name that may be asked for.
    """
    labels = host.lower().rstrip(".").split(".")
    if labels[-1] == "localhost":
        raise NameResolutionError(
            host, "it means this computer (RFC 6761 6.3), which is not inside the tunnel; name a host of the tunnel"
        )
    if labels[-1].isdecimal() or labels[-1].startswith("0x"):
        raise NameResolutionError(host, "it is neither an IPv4 address in dotted decimal nor a host name")
    codec = dns.name.IDNA_2008_Practical if dns.name.have_idna_2008 else dns.name.IDNA_2003_Practical
    try:
        name = dns.name.from_text(host, origin=None, idna_codec=codec)
        if not name.labels or name == dns.name.root:
            raise dns.name.EmptyLabel
    except dns.exception.DNSException as error:
        raise NameResolutionError(host, f"it is not a valid host name ({error})") from error
    return name


def parse_reply(request: dns.message.QueryMessage, datagram: bytes) -> dns.message.Message | None:
    """The reply to `request`, or None when the datagram is anything else: garbage, another id or question.

    Raises:
        dns.message.Truncated: it is the reply, cut short; ask again over TCP.
    """
    try:
        reply = dns.message.from_wire(datagram, raise_on_truncation=True, ignore_trailing=True)
    except dns.message.Truncated as error:
        if request.is_response(error.message()):  # type: ignore[no-untyped-call]  # dnspython's
            raise
        return None
    except (dns.exception.DNSException, ValueError):
        return None
    return reply if request.is_response(reply) else None


class TunnelNameserver(dns.nameserver.Nameserver):
    """A DNS server reached through the tunnel: UDP with a fresh port each time, TCP when an answer was truncated."""

    def __init__(self, driver: Driver, network: TunnelNetwork, address: str, port: int = DNS_PORT) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # dnspython's
        self._driver = driver
        self._network = network
        self._remote = (str(ipaddress.ip_address(address)), port)

    def __str__(self) -> str:
        address, port = self._remote
        return address if port == DNS_PORT else address_text(address, port)

    def kind(self) -> str:
        return "Do53"

    def is_always_max_size(self) -> bool:
        return False

    def answer_nameserver(self) -> str:
        return self._remote[0]

    def answer_port(self) -> int:
        return self._remote[1]

    def query(
        self,
        request: dns.message.QueryMessage,
        timeout: float,
        source: str | None,
        source_port: int,
        max_size: bool,
        one_rr_per_rrset: bool = False,
        ignore_trailing: bool = False,
    ) -> dns.message.Message:
        """Ask one question; `source`, `source_port` and the parser's options have no meaning here.

        Raises:
            dns.message.Truncated: the answer does not fit a datagram.
            dns.exception.Timeout: no answer in `timeout` seconds.
            OSError: the server cannot be reached.
        """
        exchange = self._exchange_tcp if max_size else self._exchange_udp
        deadline = self._driver.now() + timeout
        reply = exchange(request, deadline)
        if request.edns >= 0 and reply.rcode() in (dns.rcode.FORMERR, dns.rcode.NOTIMP):
            question = request.question[0]  # RFC 6891 7: a server older than EDNS
            reply = exchange(dns.message.make_query(question.name, question.rdtype, question.rdclass), deadline)
        return reply

    def _exchange_udp(self, request: dns.message.QueryMessage, deadline: float) -> dns.message.Message:
        driver = self._driver
        with driver.lock:
            sock = self._network.open_udp(self._remote, driver.now())
        try:
            with driver.lock:
                sock.send(request.to_wire(), driver.now())
                driver.pump()
            reply = None
            while reply is None:
                reply = parse_reply(request, self._receive_datagram(sock, deadline))
            return reply
        finally:
            with driver.lock:
                sock.close(driver.now())
                driver.pump()

    def _receive_datagram(self, sock: UdpSocket, deadline: float) -> bytes:
        driver = self._driver
        with driver.lock:
            while driver.now() < deadline:  # checked each time: a flood of wrong replies must not hold us
                driver.wait(lambda: sock.readable or sock.error is not None, (sock,), deadline)
                received = sock.receive(driver.now())
                if received is not None and received[1][:2] == self._remote:
                    return received[0]
                if received is None and sock.error is not None:
                    raise sock.error
            raise dns.exception.Timeout

    def _exchange_tcp(self, request: dns.message.QueryMessage, deadline: float) -> dns.message.Message:
        """One question on a connection of its own, RFC 7766 8: a two-byte length goes before each message."""
        wire = request.to_wire()
        try:
            stream = self._connect(deadline)
            try:
                stream.write(struct.pack("!H", len(wire)) + wire, deadline - self._driver.now())
                (length,) = struct.unpack("!H", self._read_exactly(stream, 2, deadline))
                reply = dns.message.from_wire(self._read_exactly(stream, length, deadline))
            finally:
                stream.close()
        except OperationTimeout as error:
            raise dns.exception.Timeout from error
        if not request.is_response(reply):
            raise dns.query.BadResponse
        return reply

    def _connect(self, deadline: float) -> SyncStream:
        driver = self._driver
        with driver.lock:
            sock = self._network.open_tcp(self._remote, driver.now())
            try:
                driver.pump()
                done = driver.wait(lambda: sock.connected or sock.error is not None, (sock,), deadline)
                if sock.error is not None:
                    raise sock.error
                if not done:
                    raise dns.exception.Timeout
            except BaseException:
                sock.abort(driver.now())
                driver.pump()
                raise
        return SyncStream(driver, sock)

    def _read_exactly(self, stream: SyncStream, size: int, deadline: float) -> bytes:
        data = b""
        while len(data) < size:
            chunk = stream.read(size - len(data), deadline - self._driver.now())
            if not chunk:
                raise EOFError("the server closed the connection before its answer was complete")
            data += chunk
        return data


class _AnswerCache(dns.resolver.LRUCache):
    """dnspython's bounded cache with a cap on how long an answer, or its absence, is believed."""

    def put(self, key: Any, value: dns.resolver.Answer) -> None:
        longest = MAX_NEGATIVE_TTL if value.rrset is None else MAX_POSITIVE_TTL
        value.expiration = min(value.expiration, time.time() + longest)
        super().put(key, value)


class Lookup:
    """The addresses of one host as they become known, family by family. Safe to use from several threads.

    Attributes:
        versions: the IP versions asked for.
    """

    def __init__(self, versions: Collection[int]) -> None:
        self.versions = tuple(versions)
        self._missing = len(self.versions)
        self._results: list[tuple[int, tuple[str, ...] | WireGuardError]] = []
        self._arrived = threading.Condition()

    def deliver(self, version: int, result: tuple[str, ...] | WireGuardError) -> None:
        """Note the addresses of one family, or why there are none."""
        with self._arrived:
            self._results.append((version, result))
            self._missing -= 1
            self._arrived.notify_all()

    def take_results(self, timeout: float | None = 0.0) -> list[tuple[int, tuple[str, ...] | WireGuardError]]:
        """Take what has arrived; waits for the first up to `timeout` seconds if something is still missing."""
        with self._arrived:
            if not self._results and self._missing and timeout != 0:
                self._arrived.wait(None if timeout is None else min(timeout, threading.TIMEOUT_MAX))
            results, self._results = self._results, []
            return results

    @property
    def pending(self) -> bool:
        """Whether an answer is still missing, or one waits to be taken."""
        return self._missing > 0 or bool(self._results)


class Resolver:
    """Host names to addresses, for one tunnel and for threads.

    Args:
        servers: the DNS servers inside the tunnel, as addresses.
        search: domains to try for relative names.
        versions: IP versions of which the interface has an address; no other is asked for.
        system: ask the host's own resolver instead, outside the tunnel.
    """

    def __init__(
        self,
        driver: Driver,
        network: TunnelNetwork,
        servers: Sequence[str] = (),
        search: Sequence[str] = (),
        versions: Collection[int] = (4, 6),
        *,
        system: bool = False,
    ) -> None:
        self._driver = driver
        self._network = network
        self._versions = frozenset(versions)
        self._system = system
        self.servers = () if system else tuple(servers)
        cache = _AnswerCache(CACHE_SIZE)
        self._dns = _stub_resolver(cache, search)
        self._dns.nameservers = [TunnelNameserver(driver, network, server) for server in self.servers]
        self._cache_only = _stub_resolver(cache, search)  # no servers: it knows what the cache knows

    def resolve(self, host: str, deadline: float | None = None, version: int | None = None) -> tuple[str, ...]:
        """All addresses of `host`, IPv6 and IPv4 in turns.

        Raises:
            NameResolutionError: there are none.
        """
        lookup = self.start_lookup(host, deadline, version)
        answers: dict[int, tuple[str, ...]] = {}
        errors: list[WireGuardError] = []
        while lookup.pending and (remaining := self._remaining(deadline)) > 0:
            for answered, result in lookup.take_results(remaining):
                if isinstance(result, WireGuardError):
                    errors.append(result)
                else:
                    answers[answered] = result
        if not any(answers.values()):
            raise most_telling(errors) or self.timeout_error(host)
        pairs = itertools.zip_longest(answers.get(6, ()), answers.get(4, ()))
        return tuple(address for address in itertools.chain.from_iterable(pairs) if address)

    def start_lookup(self, host: str, deadline: float | None = None, version: int | None = None) -> Lookup:
        """Begin to look a host up: at once for a literal or a cached name, else in a thread for each family.

        With a single family to ask for, the caller's own thread asks, before this returns.

        Raises:
            NameResolutionError: it is plain without asking that there will be no answer.
        """
        if address := literal_address(host):
            return self._literal_lookup(host, address, version)
        name = query_name(host)
        versions = sorted(v for v in self._versions if version in (None, v))
        if not versions:
            family = f"IPv{version}" if version else "IP"
            raise NameResolutionError(host, f"the tunnel has no {family} address of its own, so none can be reached")
        if not self.servers and not self._system:
            raise NameResolutionError(host, _NO_SERVER)
        lookup = Lookup(versions)
        lifetime = min(self._remaining(deadline), DEFAULT_LIFETIME if deadline is None else threading.TIMEOUT_MAX)
        missing = [v for v in versions if not self._deliver_cached(lookup, host, name, v)]
        if len(missing) == 1 and not self._system:
            self._ask(lookup, host, name, missing[0], lifetime)
        else:
            for v in missing:
                arguments = (lookup, host, name, v, lifetime)
                threading.Thread(target=self._ask, args=arguments, name=f"dns {host} IPv{v}", daemon=True).start()
        return lookup

    def timeout_error(self, host: str) -> NameResolutionError:
        """What to raise when the deadline passed without an answer."""
        servers = self.servers or ("this host's resolver",)
        problem = next(filter(None, map(self.diagnose, self.servers)), None)
        detail = f": {problem}" if problem else ""
        error = NameResolutionTimeout(host, f"no answer from {' or '.join(servers)} in time{detail}", self.servers)
        error.__cause__ = problem
        return error

    def diagnose(self, address: str) -> WireGuardError | None:
        """Why nothing can come back from `address`, if the tunnel knows."""
        with self._driver.lock:
            return self._network.diagnose(address)

    def _literal_lookup(self, host: str, address: str, version: int | None) -> Lookup:
        own = 6 if ":" in address else 4
        if version not in (None, own):
            raise NameResolutionError(host, f"it is an IPv{own} address, and the local address asks for IPv{version}")
        lookup = Lookup((own,))
        lookup.deliver(own, (address,))
        return lookup

    def _deliver_cached(self, lookup: Lookup, host: str, name: dns.name.Name, version: int) -> bool:
        try:
            answer = self._cache_only.resolve(name, _RECORD_TYPES[version], search=True)
        except (dns.resolver.NoAnswer, dns.resolver.NXDOMAIN) as error:
            lookup.deliver(version, self._explain(host, version, error))
        except dns.exception.DNSException:
            return False
        else:
            lookup.deliver(version, _addresses(rdata.address for rdata in answer))
        return True

    def _ask(self, lookup: Lookup, host: str, name: dns.name.Name, version: int, lifetime: float) -> None:
        """Ask for one family and deliver whatever comes of it; the body of a lookup's thread."""
        try:
            if self._system:
                found = socket.getaddrinfo(host, None, _SOCKET_FAMILIES[version], socket.SOCK_STREAM)
                addresses = _addresses(str(entry[4][0]) for entry in found)
            else:
                answer = self._dns.resolve(name, _RECORD_TYPES[version], lifetime=lifetime, search=True)
                addresses = _addresses(rdata.address for rdata in answer)
            lookup.deliver(version, addresses)
        except WireGuardError as error:
            lookup.deliver(version, error)
        except Exception as error:  # whatever it is, the thread that waits has to learn of it
            lookup.deliver(version, self._explain(host, version, error))

    def _explain(self, host: str, version: int, error: Exception) -> WireGuardError:
        """dnspython's or the host resolver's error in our words."""
        rcode: str | None = None
        match error:
            case dns.resolver.NXDOMAIN():
                tried = ", ".join(name.to_text(omit_final_dot=True) for name in error.qnames())  # type: ignore[no-untyped-call]
                reason, rcode = f"no such name (NXDOMAIN); asked {', '.join(self.servers)} for {tried}", "NXDOMAIN"
            case dns.resolver.NoAnswer():
                reason, rcode = f"it has no {_RECORD_TYPES[version].name} record", "NOERROR"
                if len(self._versions) == 1:
                    reason += f", and the tunnel has only IPv{version} addresses"
            case dns.resolver.NoNameservers():
                failures = error.kwargs["errors"]
                for *_, cause, _response in failures:
                    if isinstance(cause, TunnelClosed):
                        return cause
                    rcode = cause if isinstance(cause, str) else rcode
                reason = "no DNS server helped: " + "; ".join(f"{failure[0]}: {failure[3]}" for failure in failures)
            case dns.exception.Timeout():
                return self.timeout_error(host)
            case socket.gaierror():
                reason = f"this host's resolver says: {error.strerror}"
            case _:
                reason = f"{type(error).__name__}: {error}"
        explained = NameResolutionError(host, reason, self.servers, rcode)
        explained.__cause__ = error
        return explained

    def _remaining(self, deadline: float | None) -> float:
        return math.inf if deadline is None else deadline - self._driver.now()


def _stub_resolver(cache: dns.resolver.LRUCache, search: Sequence[str]) -> dns.resolver.Resolver:
    resolver = dns.resolver.Resolver(configure=False)
    resolver.domain = dns.name.root  # else dnspython would search the domain of the host's own name
    resolver.search = [dns.name.from_text(domain) for domain in search]
    resolver.ndots = 1
    resolver.timeout = TRY_TIMEOUT
    resolver.use_edns(0, payload=EDNS_PAYLOAD)
    resolver.cache = cache
    return resolver


def _addresses(found: Iterable[str]) -> tuple[str, ...]:
    """Canonical, without repeats, and no more than `MAX_ADDRESSES`."""
    canonical = filter(None, map(literal_address, found))
    return tuple(itertools.islice(dict.fromkeys(canonical), MAX_ADDRESSES))


def most_telling(errors: Iterable[WireGuardError]) -> WireGuardError | None:
    """Of the errors of both families, the one to show: a server in trouble says more than a missing record."""

    def rank(error: WireGuardError) -> int:
        rcode = getattr(error, "rcode", None)
        return {"NOERROR": 0, "NXDOMAIN": 1}.get(rcode, 2) if rcode else 3

    ranked = sorted(errors, key=rank, reverse=True)
    if len(ranked) == 2 and rank(ranked[0]) == 0 and isinstance(ranked[0], NameResolutionError):
        return NameResolutionError(
            ranked[0].host, "it has neither an A nor an AAAA record", ranked[0].servers, "NOERROR"
        )
    return ranked[0] if ranked else None
