"""Names to addresses, inside the tunnel.

A `Lookup` neither blocks nor suspends: whoever wants its addresses waits for its sockets and steps it, and may give it
up at any moment. No question ever leaves on the host's own network, unless `system=True` asks for it.
"""

from __future__ import annotations

import importlib
import ipaddress
import itertools
import socket
import threading
from collections.abc import Collection, Generator, Hashable, Iterable, Sequence
from typing import TYPE_CHECKING, Protocol, TypeAlias

from httpx_wireguard._errors import (
    NameResolutionError,
    NameResolutionTimeout,
    NoRoute,
    WireGuardError,
)

if TYPE_CHECKING:  # imports dnspython
    from httpx_wireguard._dns import StubResolver, TunnelNetwork, Waiting

# Our own limits.
DEFAULT_LIFETIME = 10.0  # seconds for a name when the caller sets no deadline
MAX_ADDRESSES = 16  # of one family; a hostile answer holds thousands

_SOCKET_FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}
_NO_SERVER = (
    'the tunnel has no DNS server: add "DNS = <address>" to the [Interface] section or pass dns=["<address>"]; '
    'dns="system" would ask this host\'s own resolver, outside the tunnel'
)

Result: TypeAlias = tuple[str, ...] | WireGuardError  # addresses, or why there are none


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


def check_name(host: str) -> None:
    """Refuse what is plainly no name of the tunnel's.

    Raises:
        NameResolutionError: empty, this computer, or half an address.
    """
    labels = host.lower().rstrip(".").split(".")
    if labels == [""]:
        raise NameResolutionError(host, "it is not a valid host name (empty)")
    if labels[-1] == "localhost":
        raise NameResolutionError(
            host, "it means this computer (RFC 6761 6.3), which is not inside the tunnel; name a host of the tunnel"
        )
    if labels[-1].isdecimal() or labels[-1].startswith("0x"):
        raise NameResolutionError(host, "it is neither an IPv4 address in dotted decimal nor a host name")


class Question(Protocol):
    """The addresses of one family, as a generator that yields what it waits for, and may be resumed before.

    Attributes:
        now: set before each step and before closing.
    """

    now: float

    def run(self) -> Generator[Waiting, None, tuple[str, ...]]: ...


class _Task:
    """A question being answered; `step` tells when it is done."""

    def __init__(self, question: Question) -> None:
        self._question = question
        self._steps = question.run()
        self._waiting: Waiting | None = None

    @property
    def keys(self) -> Sequence[Hashable]:
        return self._waiting[1] if self._waiting else ()

    def ready(self) -> bool:
        return self._waiting is None or self._waiting[0]()

    def next_time(self) -> float | None:
        return self._waiting[2] if self._waiting else None

    def step(self, now: float) -> tuple[str, ...] | None:
        """Go on as far as possible; returns the addresses when they are there, and raises why there are none."""
        self._question.now = now
        try:
            self._waiting = next(self._steps)
        except StopIteration as stop:
            addresses: tuple[str, ...] = stop.value
            return addresses
        return None

    def close(self, now: float) -> None:
        self._question.now = now
        self._steps.close()


class Lookup:
    """The addresses of one host as they become known, family by family. Every method wants the driver's lock held.

    Attributes:
        versions: the IP versions asked for.
        deadline: when to stop asking; None for never.
    """

    def __init__(self, resolver: Resolver, host: str, deadline: float | None, versions: Collection[int]) -> None:
        self.versions = tuple(versions)
        self.deadline = deadline
        self._resolver = resolver
        self._host = host
        self._tasks: dict[int, _Task] = {}
        self._results: list[tuple[int, Result]] = []

    def ask(self, version: int, question: Question) -> None:
        """Have a family's addresses looked for, beginning with the next step."""
        self._tasks[version] = _Task(question)

    def deliver(self, version: int, result: Result) -> None:
        """Note a family's addresses, or why there are none."""
        self._results.append((version, result))

    @property
    def pending(self) -> bool:
        """Whether `step` has to be called again."""
        return bool(self._tasks or self._results)

    @property
    def keys(self) -> tuple[Hashable, ...]:
        """What to wait on until `ready()` or `next_time`."""
        return (self, *itertools.chain.from_iterable(task.keys for task in self._tasks.values()))

    def ready(self) -> bool:
        """Whether `step` has something to do even before `next_time`."""
        return bool(self._results) or any(task.ready() for task in self._tasks.values())

    def next_time(self) -> float | None:
        """When to call `step` at the latest; None when there is nothing but sockets to wait for."""
        if not self._tasks:
            return None
        times = [self.deadline, *(task.next_time() for task in self._tasks.values())]
        return min((time for time in times if time is not None), default=None)

    def step(self, now: float) -> list[tuple[int, Result]]:
        """Go on; returns what became known, at the deadline of every family that is left."""
        for version, task in list(self._tasks.items()):
            result = self._advance(task, now)
            if result is not None:
                del self._tasks[version]
                self.deliver(version, result)
        results, self._results = self._results, []
        return results

    def _advance(self, task: _Task, now: float) -> Result | None:
        try:
            result: Result | None = task.step(now)
        except WireGuardError as error:
            return error
        except Exception as error:  # whatever an answer did to the parser, it must not end more than this lookup
            explained = NameResolutionError(self._host, f"{type(error).__name__}: {error}", self._resolver.servers)
            explained.__cause__ = error
            return explained
        if result is None and self.deadline is not None and now >= self.deadline:
            task.close(now)
            return self._resolver.timeout_error(self._host, now)
        return result

    def close(self, now: float) -> None:
        """Stop asking and give every socket back. Idempotent."""
        while self._tasks:
            self._tasks.popitem()[1].close(now)


class SystemQuestion:
    """The addresses of one family by the host's own resolver, which knows no other way than to block a thread."""

    def __init__(self, lookup: Lookup, network: TunnelNetwork, host: str, version: int) -> None:
        self.now = 0.0
        self._lookup = lookup
        self._network = network
        self._host = host
        self._version = version
        self._found: tuple[str, ...] | Exception | None = None

    def run(self) -> Generator[Waiting, None, tuple[str, ...]]:
        name = f"dns {self._host} IPv{self._version}"
        threading.Thread(target=self._ask, name=name, daemon=True).start()
        while self._found is None:
            yield lambda: self._found is not None, (), None
        if isinstance(self._found, socket.gaierror):
            reason = f"this host's resolver says: {self._found.strerror}"
            raise NameResolutionError(self._host, reason) from self._found
        if isinstance(self._found, Exception):
            raise self._found
        return self._found

    def _ask(self) -> None:
        try:
            found = socket.getaddrinfo(self._host, None, _SOCKET_FAMILIES[self._version], socket.SOCK_STREAM)
            self._found = _canonical(str(entry[4][0]) for entry in found)
        except Exception as error:  # whatever it is, the one who waits has to learn of it
            self._found = error
        self._network.wake_later(self._lookup)


class Resolver:
    """Host names to addresses, for one tunnel. The driver's lock is held around every method but `prepare`.

    Args:
        servers: the DNS servers inside the tunnel, as addresses.
        search: domains to try for relative names.
        versions: IP versions of which the interface has an address; no other is asked for.
        system: ask the host's own resolver instead, outside the tunnel.
    """

    def __init__(
        self,
        network: TunnelNetwork,
        servers: Sequence[str] = (),
        search: Sequence[str] = (),
        versions: Collection[int] = (4, 6),
        *,
        system: bool = False,
    ) -> None:
        self._network = network
        self._search = tuple(search)
        self._versions = frozenset(versions)
        self._system = system
        self._stub: StubResolver | None = None
        self.servers = () if system else tuple(str(ipaddress.ip_address(server)) for server in servers)

    def prepare(self, host: str) -> None:
        """Import what looking `host` up takes; called without the lock, for that may take a tenth of a second."""
        if self.servers and self._stub is None and literal_address(host) is None:
            importlib.import_module("httpx_wireguard._dns")

    def start_lookup(self, host: str, now: float, deadline: float | None = None, version: int | None = None) -> Lookup:
        """Look a host up; nothing is asked before the first step, which also tells what is known already.

        Args:
            version: 4 or 6 asks for that family only.

        Raises:
            NameResolutionError: it is plain without asking that there will be no answer.
        """
        if address := literal_address(host):
            return self._literal_lookup(host, address, version)
        check_name(host)
        versions = sorted(v for v in self._versions if version in (None, v))
        if not versions:
            family = f"IPv{version}" if version else "IP"
            raise NameResolutionError(host, f"the tunnel has no {family} address of its own, so none can be reached")
        if self._system:
            lookup = Lookup(self, host, deadline, versions)
            for v in versions:
                lookup.ask(v, SystemQuestion(lookup, self._network, host, v))
            return lookup
        if not self.servers:
            raise NameResolutionError(host, _NO_SERVER)
        return self._tunnel_lookup(host, now + DEFAULT_LIFETIME if deadline is None else deadline, versions)

    def timeout_error(self, host: str, now: float) -> NameResolutionError:
        """What to raise when the deadline passed without an answer."""
        servers = self.servers or ("this host's resolver",)
        problem = next(filter(None, (self.diagnose(server, now) for server in self.servers)), None)
        detail = f": {problem}" if problem else ""
        error = NameResolutionTimeout(host, f"no answer from {' or '.join(servers)} in time{detail}", self.servers)
        error.__cause__ = problem
        return error

    def diagnose(self, address: str, now: float) -> WireGuardError | None:
        """Why nothing can come back from `address`, if the tunnel knows."""
        return self._network.diagnose(address, now)

    def _literal_lookup(self, host: str, address: str, version: int | None) -> Lookup:
        own = 6 if ":" in address else 4
        if version not in (None, own):
            raise NameResolutionError(host, f"it is an IPv{own} address, and the local address asks for IPv{version}")
        lookup = Lookup(self, host, None, (own,))
        lookup.deliver(own, (address,))
        return lookup

    def _tunnel_lookup(self, host: str, deadline: float, versions: Sequence[int]) -> Lookup:
        from httpx_wireguard import _dns  # here, for dnspython takes longer to import than all the rest

        if self._stub is None:
            self._stub = _dns.StubResolver(self._network, self.servers, self._search, self._versions, _canonical)
        names = self._stub.names_to_try(host)
        lookup = Lookup(self, host, deadline, versions)
        for version in versions:
            lookup.ask(version, _dns.Question(self._stub, host, names, version))
        return lookup


def _canonical(found: Iterable[str]) -> tuple[str, ...]:
    """Without zones and repeats, and no more than `MAX_ADDRESSES`."""
    addresses = filter(None, map(literal_address, found))
    return tuple(itertools.islice(dict.fromkeys(addresses), MAX_ADDRESSES))


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
