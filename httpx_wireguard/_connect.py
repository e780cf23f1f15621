"""A host's addresses to a connection (Happy Eyeballs, RFC 8305).

`ConnectRace` decides which address to try when, and knows neither sockets nor a clock; `connect` drives it for threads.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Collection, Sequence

from httpx_wireguard._errors import (
    ConnectionRefused,
    ConnectionTimedOut,
    DestinationUnreachable,
    NameResolutionError,
    OperationTimeout,
    TunnelClosed,
    WireGuardError,
)
from httpx_wireguard._resolver import Lookup, Resolver, most_telling
from httpx_wireguard._streams import ConnectionFacts, Driver, StreamSocket, SyncStream, address_text

RESOLUTION_DELAY = 0.05  # seconds that IPv4 waits for an IPv6 answer; RFC 8305 8
CONNECTION_ATTEMPT_DELAY = 0.25  # seconds between two attempts; RFC 8305 8
LATE_ANSWER_POLL = 0.05  # seconds; a thread that waits for sockets looks this often for an answer of the other family


class ConnectRace:
    """Happy Eyeballs, RFC 8305, without clock or sockets: which address to try next, and when.

    Feed it with `receive_addresses`, `on_lookup_failed` and `on_attempt_failed`; after each, and at `next_time`, start
    every address that `take_address` hands out. The race ends with the first connection, or when it is `lost`.

    Attributes:
        racing: the addresses with an attempt under way, in the order of their start.
        failures: the attempts that failed, each with its error.
        lookup_errors: why a family has no addresses.
    """

    def __init__(self, versions: Collection[int]) -> None:
        self._awaited = set(versions)  # families whose addresses are not known yet
        self._queues: dict[int, deque[str]] = {6: deque(), 4: deque()}
        self._last_version = 4  # so IPv6 goes first
        self._hold_until = -math.inf  # end of the resolution delay
        self._next_start = -math.inf
        self.racing: list[str] = []
        self.failures: list[tuple[str, WireGuardError]] = []
        self.lookup_errors: list[WireGuardError] = []

    def receive_addresses(self, version: int, addresses: Sequence[str], now: float) -> None:
        """RFC 8305 3: an IPv4 answer that comes first waits a little for IPv6; later answers join the queue."""
        self._awaited.discard(version)
        self._queues[version].extend(addresses)
        if version == 4 and addresses and not self.racing and not self.failures:
            self._hold_until = now + RESOLUTION_DELAY

    def on_lookup_failed(self, version: int, error: WireGuardError) -> None:
        """Note that a family has no addresses."""
        self._awaited.discard(version)
        self.lookup_errors.append(error)

    def on_attempt_failed(self, address: str, error: WireGuardError, now: float) -> None:
        """RFC 8305 5: after a failure the next attempt does not wait."""
        self.racing.remove(address)
        self.failures.append((address, error))
        self._next_start = now

    def take_address(self, now: float) -> str | None:
        """The address to start now, if one is due; RFC 8305 4: the families take turns."""
        due = self.next_time()
        if due is None or now < due:
            return None
        version = 10 - self._last_version  # the other of 4 and 6
        if not self._queues[version]:
            version = self._last_version
        address = self._queues[version].popleft()
        self._last_version = version
        self._next_start = now + CONNECTION_ATTEMPT_DELAY
        self.racing.append(address)
        return address

    def next_time(self) -> float | None:
        """When to call `take_address` next, in the past for at once; None when no address is left for now."""
        if not any(self._queues.values()):
            return None
        return max(self._next_start, self._hold_until) if 6 in self._awaited else self._next_start

    @property
    def lost(self) -> bool:
        """Whether no attempt is under way and none can follow."""
        return not self._awaited and not self.racing and not any(self._queues.values())

    def error(self, host: str, port: int) -> WireGuardError:
        """Why the race was lost: the one attempt's own error, or one that lists them all."""
        if not self.failures:
            return most_telling(self.lookup_errors) or NameResolutionError(host, "it has no address")
        errors = [error for _, error in self.failures]
        if len(errors) == 1:
            return errors[0]
        reasons = "; ".join(f"{address}: {error}" for address, error in self.failures)
        text = f"cannot connect to {address_text(host, port)}: {reasons}"
        lost: WireGuardError = DestinationUnreachable(text)
        if all(isinstance(error, TimeoutError) for error in errors):
            lost = ConnectionTimedOut(text)
        elif all(isinstance(error, ConnectionRefusedError) for error in errors):
            lost = ConnectionRefused(text)
        lost.__cause__ = errors[0]
        return lost


def connect(
    driver: Driver,
    resolver: Resolver,
    host: str,
    port: int,
    deadline: float | None,
    open_tcp: Callable[[tuple[str, int], float], StreamSocket],
    version: int | None = None,
) -> SyncStream:
    """Connect to a host inside the tunnel, by whichever of its addresses answers first.

    Args:
        host: a name, or an address.
        deadline: for everything, name resolution included; None leaves it to the stack's own limits.
        open_tcp: opens a socket with its SYN under way, given `(address, port)` and now; called with the lock held.
            What it raises is that address's failure.
        version: 4 or 6 confines the connection to that family.

    Raises:
        NameResolutionError: no address is known.
        OperationTimeout: the deadline passed; or the tunnel's own reason why it had to, such as `HandshakeTimeout`.
        WireGuardError: no address could be connected to; the text tells why for each.
    """
    return _Connector(driver, resolver, host, port, deadline, open_tcp).run(version)


class _Connector:
    """One call of `connect`."""

    def __init__(
        self,
        driver: Driver,
        resolver: Resolver,
        host: str,
        port: int,
        deadline: float | None,
        open_tcp: Callable[[tuple[str, int], float], StreamSocket],
    ) -> None:
        self._driver = driver
        self._resolver = resolver
        self._host = host
        self._port = port
        self._deadline = deadline
        self._open_tcp = open_tcp
        self._attempts: dict[str, StreamSocket] = {}
        self._started = driver.now()
        self._resolved: float | None = None

    def run(self, version: int | None) -> SyncStream:
        lookup = self._resolver.start_lookup(self._host, self._deadline, version)
        race = ConnectRace(lookup.versions)
        winner: StreamSocket | None = None
        try:
            while winner is None:
                self._receive_results(race, lookup)
                with self._driver.lock:
                    self._start_attempts(race)
                    self._wait_for_attempts(race, lookup)
                    winner = self._take_winner(race)
                    self._driver.pump()
                if winner is None and race.lost:
                    raise race.error(self._host, self._port)
                if winner is None and self._deadline is not None and self._driver.now() >= self._deadline:
                    raise self._timeout_error(race)
            return SyncStream(self._driver, winner, self._facts(race, winner))
        finally:
            self._abort_attempts()

    def _receive_results(self, race: ConnectRace, lookup: Lookup) -> None:
        """Take the resolver's answers; with no attempt under way there is nothing but these to wait for."""
        timeout: float | None = 0.0
        if not self._attempts:
            times = [t for t in (race.next_time(), self._deadline) if t is not None]
            timeout = max(min(times) - self._driver.now(), 0.0) if times else None
        for version, result in lookup.take_results(timeout):
            now = self._driver.now()
            if isinstance(result, WireGuardError):
                race.on_lookup_failed(version, result)
                continue
            self._resolved = self._resolved or now
            race.receive_addresses(version, result, now)

    def _start_attempts(self, race: ConnectRace) -> None:
        while address := race.take_address(self._driver.now()):
            now = self._driver.now()
            try:
                self._attempts[address] = self._open_tcp((address, self._port), now)
            except TunnelClosed:
                raise
            except WireGuardError as error:
                race.on_attempt_failed(address, error, now)
        self._driver.pump()

    def _wait_for_attempts(self, race: ConnectRace, lookup: Lookup) -> None:
        """Wait until an attempt ends or something else is due; an answer of the resolver is looked for now and then."""
        sockets = tuple(self._attempts.values())
        poll = self._driver.now() + LATE_ANSWER_POLL if lookup.pending else None
        times = [t for t in (race.next_time(), self._deadline, poll) if t is not None]
        if sockets:
            deadline = min(times) if times else None
            self._driver.wait(lambda: any(s.connected or s.error is not None for s in sockets), sockets, deadline)

    def _take_winner(self, race: ConnectRace) -> StreamSocket | None:
        for address, sock in list(self._attempts.items()):
            if sock.error is not None:
                del self._attempts[address]
                race.on_attempt_failed(address, sock.error, self._driver.now())
            elif sock.connected:
                return self._attempts.pop(address)
        return None

    def _abort_attempts(self) -> None:
        if self._attempts:
            with self._driver.lock:
                for sock in self._attempts.values():
                    sock.abort(self._driver.now())
                self._driver.pump()

    def _facts(self, race: ConnectRace, winner: StreamSocket) -> ConnectionFacts:
        return ConnectionFacts(
            host=self._host,
            remote=winner.remote,
            local=winner.local,
            failures=tuple((address, str(error)) for address, error in race.failures),
            resolve_seconds=(self._resolved or self._started) - self._started,
            connect_seconds=self._driver.now() - self._started,
        )

    def _timeout_error(self, race: ConnectRace) -> WireGuardError:
        if not race.racing and not race.failures:
            return most_telling(race.lookup_errors) or self._resolver.timeout_error(self._host)
        for address in race.racing:
            if problem := self._resolver.diagnose(address):
                return problem
        seconds = self._driver.now() - self._started
        reasons = [f"{address}: no answer" for address in race.racing]
        reasons += [f"{address}: {error}" for address, error in race.failures]
        destination = address_text(self._host, self._port)
        return OperationTimeout(f"connect to {destination} timed out after {seconds:.1f} s ({'; '.join(reasons)})")
