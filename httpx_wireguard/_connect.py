"""A host's addresses to a connection (Happy Eyeballs, RFC 8305).

`ConnectRace` decides which address to try when, and knows neither sockets nor a clock; `connect` drives it, and the
lookup that feeds it, with one wait for everything.
"""

from __future__ import annotations

import itertools
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
from httpx_wireguard._resolver import Resolver, most_telling
from httpx_wireguard._streams import AsyncTcpStream, ConnectionFacts, StreamSocket, address_text
from httpx_wireguard._waiting import Driver

RESOLUTION_DELAY = 0.05  # seconds that IPv4 waits for an IPv6 answer; RFC 8305 8
CONNECTION_ATTEMPT_DELAY = 0.25  # seconds between two attempts; RFC 8305 8


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


async def connect(
    driver: Driver,
    resolver: Resolver,
    host: str,
    port: int,
    deadline: float | None,
    open_tcp: Callable[[tuple[str, int], float], StreamSocket],
    version: int | None = None,
) -> AsyncTcpStream:
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
    resolver.prepare(host)
    with driver.lock:
        return await _Connector(driver, resolver, host, port, deadline, open_tcp, version).run()


async def resolve(
    driver: Driver, resolver: Resolver, host: str, deadline: float | None, version: int | None = None
) -> tuple[str, ...]:
    """All addresses of a host, IPv6 and IPv4 in turns.

    Raises:
        NameResolutionError: there are none.
    """
    resolver.prepare(host)
    answers: dict[int, tuple[str, ...]] = {}
    errors: list[WireGuardError] = []
    with driver.lock:
        lookup = resolver.start_lookup(host, driver.now(), deadline, version)
        try:
            while lookup.pending:
                for answered, result in lookup.step(driver.now()):
                    if isinstance(result, WireGuardError):
                        errors.append(result)
                    else:
                        answers[answered] = result
                driver.pump()
                if lookup.pending:
                    await driver.wait(lookup.ready, lookup.keys, lookup.next_time())
        finally:
            lookup.close(driver.now())
            driver.pump()
    if not any(answers.values()):
        raise most_telling(errors) or NameResolutionError(host, "it has no address")
    pairs = itertools.zip_longest(answers.get(6, ()), answers.get(4, ()))
    return tuple(address for address in itertools.chain.from_iterable(pairs) if address)


class _Connector:
    """One call of `connect`; the driver's lock is held throughout, but for the waits."""

    def __init__(
        self,
        driver: Driver,
        resolver: Resolver,
        host: str,
        port: int,
        deadline: float | None,
        open_tcp: Callable[[tuple[str, int], float], StreamSocket],
        version: int | None,
    ) -> None:
        self._driver = driver
        self._resolver = resolver
        self._host = host
        self._port = port
        self._deadline = deadline
        self._open_tcp = open_tcp
        self._started = driver.now()
        self._resolved: float | None = None
        self._attempts: dict[str, StreamSocket] = {}
        self._lookup = resolver.start_lookup(host, self._started, deadline, version)
        self._race = ConnectRace(self._lookup.versions)

    async def run(self) -> AsyncTcpStream:
        try:
            while True:
                now = self._driver.now()
                self._receive_answers(now)
                self._start_attempts(now)
                self._driver.pump()
                winner = self._take_winner(now)
                if winner is not None:
                    return AsyncTcpStream(self._driver, winner, self._facts(winner, now))
                self._raise_if_over(now)
                await self._wait(now)
        finally:
            self._give_back()

    def _receive_answers(self, now: float) -> None:
        for version, result in self._lookup.step(now):
            if isinstance(result, WireGuardError):
                self._race.on_lookup_failed(version, result)
            else:
                self._resolved = now if self._resolved is None else self._resolved
                self._race.receive_addresses(version, result, now)

    def _start_attempts(self, now: float) -> None:
        while address := self._race.take_address(now):
            try:
                self._attempts[address] = self._open_tcp((address, self._port), now)
            except TunnelClosed:
                raise
            except WireGuardError as error:
                self._race.on_attempt_failed(address, error, now)

    def _take_winner(self, now: float) -> StreamSocket | None:
        for address, sock in list(self._attempts.items()):
            if sock.error is not None:
                del self._attempts[address]
                self._race.on_attempt_failed(address, sock.error, now)
            elif sock.connected:
                return self._attempts.pop(address)
        return None

    def _raise_if_over(self, now: float) -> None:
        if self._race.lost:
            raise self._race.error(self._host, self._port)
        if self._deadline is not None and now >= self._deadline:
            raise self._timeout_error(now)

    async def _wait(self, now: float) -> None:
        """Until an attempt ends, an answer comes, or something is due."""
        lookup, sockets = self._lookup, tuple(self._attempts.values())
        times = [t for t in (self._race.next_time(), lookup.next_time(), self._deadline) if t is not None]
        deadline = min(times, default=None)
        if deadline is None or now < deadline:
            await self._driver.wait(
                lambda: lookup.ready() or any(s.connected or s.error is not None for s in sockets),
                (*lookup.keys, *sockets),
                deadline,
            )

    def _give_back(self) -> None:
        """However it ended, nothing stays open but the winner."""
        now = self._driver.now()
        self._lookup.close(now)
        for sock in self._attempts.values():
            sock.abort(now)
        self._driver.pump()

    def _facts(self, winner: StreamSocket, now: float) -> ConnectionFacts:
        return ConnectionFacts(
            host=self._host,
            remote=winner.remote,
            local=winner.local,
            failures=tuple((address, str(error)) for address, error in self._race.failures),
            resolve_seconds=(self._started if self._resolved is None else self._resolved) - self._started,
            connect_seconds=now - self._started,
        )

    def _timeout_error(self, now: float) -> WireGuardError:
        race = self._race
        for address in race.racing:
            if problem := self._resolver.diagnose(address, now):
                return problem
        reasons = [f"{address}: no answer" for address in race.racing]
        reasons += [f"{address}: {error}" for address, error in race.failures]
        destination = address_text(self._host, self._port)
        seconds = now - self._started
        return OperationTimeout(f"connect to {destination} timed out after {seconds:.1f} s ({'; '.join(reasons)})")
