"""Which request of a connection pool gets which connection: httpcore's rules for its pools and for httpcore2's."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

SWEEP_INTERVAL = 0.1  # seconds between looks at the connections that no request needs; ours

_POOLS_NAMES = (
    "_close_connections",
    "_connections",
    "_http2",
    "_keepalive_expiry",
    "_max_connections",
    "_max_keepalive_connections",
    "_requests",
)


class Assigner:
    """A pool's `_assign_requests_to_connections`, in time that hardly grows with the number of connections.

    httpcore 1.0.9 asks every connection at both ends of every request, and every idle one about every other: fifty of
    them take longer than the request. Here only a connection that has just become free, or is about to be used, is
    looked at, and all of them now and then.

    A connection that belongs to a request is left alone. httpcore 1.0.9 takes it for idle until the request has begun,
    gives it to another one too, or closes it as surplus. One that belongs to no request and is not idle was left behind
    by a request that ended between two of httpcore's steps, by cancellation above all: its slot is free.
    """

    def __init__(self, pool: Any) -> None:
        self._pool = pool
        self._requested: set[Any] = set()  # connections of the requests, when we looked last
        self._swept_at = -math.inf
        expiry = pool._keepalive_expiry
        self._interval = SWEEP_INTERVAL if expiry is None or expiry > SWEEP_INTERVAL else 0.0

    @staticmethod
    def fits(pool: Any) -> bool:
        """Whether the pool has the private names that are needed; later versions may not."""
        return all(hasattr(pool, name) for name in _POOLS_NAMES)

    def assign(self, now: float) -> list[Any]:
        """Give connections to the requests that wait for one; the pool's lock is held.

        Returns:
            Connections to close, which the pool has no more.
        """
        pool = self._pool
        requested = {request.connection for request in pool._requests}
        queued = None in requested
        closing = self._take_broken()
        if now - self._swept_at >= self._interval or (queued and len(pool._connections) >= pool._max_connections):
            self._swept_at = now
            closing += self._take_ended(pool._connections, requested, expired=True)
        else:
            closing += self._take_ended(self._requested - requested, requested, expired=False)
        if len(pool._connections) > pool._max_keepalive_connections:
            closing += self._take_surplus(requested)
        if queued:
            for request in pool._requests:
                if request.connection is None and not self._serve(request, requested, closing) and not pool._http2:
                    break  # nothing is free, for whatever host
        self._requested = requested
        return closing

    def _take_broken(self) -> list[Any]:
        """HTTP/2 shares a connection, and httpcore does not notice that a cancelled write has ended it for all."""
        if not self._pool._http2:
            return []
        return self._take([c for c in self._pool._connections if getattr(_network_stream(c), "cut_short", False)])

    def _take_ended(self, candidates: Iterable[Any], requested: set[Any], *, expired: bool) -> list[Any]:
        """Drop those that are closed; take those left behind, and those `expired` or without a server."""
        closed, ended = [], []
        for connection in candidates:
            if connection is None:
                continue
            if connection.is_closed():
                closed.append(connection)
            elif connection not in requested and (not connection.is_idle() or (expired and connection.has_expired())):
                ended.append(connection)
        self._take(closed)
        return self._take(ended)

    def _take_surplus(self, requested: set[Any]) -> list[Any]:
        idle = [connection for connection in self._pool._connections if connection not in requested]
        return self._take(idle[: max(len(idle) - self._pool._max_keepalive_connections, 0)])

    def _take(self, connections: list[Any]) -> list[Any]:
        """Those of them that the pool had; it has them no more."""
        if not connections:
            return connections
        pool = self._pool
        taken = [connection for connection in connections if connection in pool._connections]
        pool._connections = [connection for connection in pool._connections if connection not in taken]
        return taken

    def _serve(self, request: Any, requested: set[Any], closing: list[Any]) -> bool:
        """By a connection that is there, else a new one, for which an idle one has to go if there are too many."""
        pool = self._pool
        origin = request.request.url.origin
        connection = self._find(origin, requested, closing)
        if connection is None:
            if len(pool._connections) >= pool._max_connections:
                idle = [c for c in pool._connections if c not in requested]
                if not idle:
                    return False
                closing += self._take(idle[:1])
            connection = pool.create_connection(origin)
            pool._connections.append(connection)
        request.assign_to_connection(connection)
        requested.add(connection)
        return True

    def _find(self, origin: Any, requested: set[Any], closing: list[Any]) -> Any:
        shared = self._pool._http2
        for connection in self._pool._connections:
            free = connection not in requested
            if not (free or shared) or not connection.can_handle_request(origin) or not connection.is_available():
                continue
            if not free:
                if not connection.is_idle() or _multiplexes(connection):
                    return connection
            elif not connection.has_expired():
                return connection
            else:
                closing += self._take([connection])
        return None


def _multiplexes(connection: Any) -> bool:
    """Whether it speaks HTTP/2."""
    return hasattr(_protocol(connection), "_h2_state")


def _network_stream(connection: Any) -> Any:
    return getattr(_protocol(connection), "_network_stream", None)


def _protocol(connection: Any) -> Any:
    """What speaks HTTP at the end of a pool's connection, which wraps it once or, with a proxy, twice; or None."""
    while hasattr(connection, "_connection"):
        connection = connection._connection
    return connection
