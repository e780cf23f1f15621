"""Which request gets which connection: httpcore's rules, and what it costs to apply them."""

from __future__ import annotations

from typing import Any

import pytest

from httpx_wireguard._pools import SWEEP_INTERVAL, Assigner


class Connection:
    """One of HTTP/1.1, as a pool sees it."""

    def __init__(self, origin: str, state: str = "idle") -> None:
        self.origin = origin
        self.state = state
        self.expired = False
        self.asked = 0

    def can_handle_request(self, origin: str) -> bool:
        return origin == self.origin

    def is_available(self) -> bool:
        return self.state == "idle"

    def is_idle(self) -> bool:
        return self.state == "idle"

    def is_closed(self) -> bool:
        return self.state == "closed"

    def has_expired(self) -> bool:
        self.asked += 1
        return self.expired


class Http2Connection(Connection):
    _h2_state = None

    def is_available(self) -> bool:
        return self.state != "closed"


class Request:
    def __init__(self, origin: str) -> None:
        self.connection: Connection | None = None
        self.request: Any = self
        self.url: Any = self
        self.origin = origin

    def assign_to_connection(self, connection: Connection) -> None:
        self.connection = connection


class Pool:
    _close_connections = None

    def __init__(self, size: int = 100, keepalive: int = 100, expiry: float | None = 5.0, http2: bool = False) -> None:
        self._connections: list[Connection] = []
        self._requests: list[Request] = []
        self._max_connections, self._max_keepalive_connections = size, keepalive
        self._keepalive_expiry, self._http2 = expiry, http2
        self.assigner = Assigner(self)
        self.now = 0.0

    def create_connection(self, origin: str) -> Connection:
        return (Http2Connection if self._http2 else Connection)(origin, "new")

    def assign(self) -> list[Connection]:
        return self.assigner.assign(self.now)

    def idle(self, count: int = 1, origin: str = "a") -> list[Connection]:
        """Add idle connections that have been looked at a moment ago."""
        self._connections += [self.create_connection(origin) for _ in range(count)]
        for connection in self._connections[-count:]:
            connection.state = "idle"
        self.now += SWEEP_INTERVAL
        assert not self.assign()
        for connection in self._connections:
            connection.asked = 0
        return self._connections[-count:]

    def begin(self, origin: str = "a") -> Request:
        request = Request(origin)
        self._requests.append(request)
        return request

    def end(self, request: Request, state: str = "idle") -> list[Connection]:
        assert request.connection is not None
        request.connection.state = state
        self._requests.remove(request)
        return self.assign()


def test_a_request_takes_the_first_idle_connection_to_its_origin_and_asks_no_other() -> None:
    pool = Pool(size=200)
    pool.idle(50, "b")
    first, *others = pool.idle(50, "a")
    request = pool.begin("a")
    assert pool.assign() == []
    assert request.connection is first
    assert [c.asked for c in pool._connections] == [0] * 50 + [1] + [0] * 49
    assert others


def test_a_connection_of_a_request_that_has_not_begun_is_not_given_to_another() -> None:
    """httpcore 1.0.9 does that, and the second request has to start over."""
    pool = Pool()
    (idle,) = pool.idle()
    one, two = pool.begin(), pool.begin()
    pool.assign()
    assert one.connection is idle
    assert two.connection is not idle
    assert pool._connections == [idle, two.connection]


def test_http2_shares_a_connection_that_is_idle_or_new() -> None:
    pool = Pool(http2=True)
    one = pool.begin()
    pool.assign()
    two = pool.begin()
    pool.assign()
    connection = one.connection
    assert connection is not None
    assert two.connection is connection
    connection.state = "idle"  # neither has begun yet
    three = pool.begin()
    pool.assign()
    assert three.connection is connection


def test_a_pool_for_http2_does_not_share_a_connection_that_turned_out_to_be_http1() -> None:
    pool = Pool(http2=True)
    pool._connections.append(Connection("a"))
    one, two = pool.begin(), pool.begin()
    pool.assign()
    assert one.connection is pool._connections[0]
    assert two.connection is pool._connections[1]


@pytest.mark.parametrize("sweeping", [False, True])
def test_a_connection_that_expired_is_closed_and_not_used(sweeping: bool) -> None:
    pool = Pool()
    old, good = pool.idle(2)
    old.expired = True
    request = pool.begin()
    pool.now += SWEEP_INTERVAL * sweeping
    assert pool.assign() == [old]
    assert request.connection is good
    assert pool._connections == [good]


def test_connections_that_nobody_needs_are_looked_at_now_and_then() -> None:
    pool = Pool()
    first, other = pool.idle(2)
    other.expired = True
    request = pool.begin()
    assert pool.assign() == []
    assert pool.end(request) == []
    pool.now += SWEEP_INTERVAL
    request = pool.begin()
    assert pool.assign() == [other]
    assert request.connection is first


def test_a_short_keep_alive_ends_with_the_response() -> None:
    pool = Pool(expiry=0.0)
    request = pool.begin()
    pool.assign()
    connection = request.connection
    assert connection is not None
    connection.expired = True
    assert pool.end(request) == [connection]


def test_a_connection_that_its_request_closed_leaves_the_pool_at_once() -> None:
    pool = Pool()
    request = pool.begin()
    pool.assign()
    assert pool.end(request, "closed") == []
    assert pool._connections == []


@pytest.mark.parametrize("state", ["new", "active"])
def test_a_connection_that_a_request_left_behind_is_closed_and_its_slot_given_away(state: str) -> None:
    pool = Pool(size=1)
    one, two = pool.begin(), pool.begin()
    pool.assign()
    left = one.connection
    assert pool.end(one, state) == [left]
    assert pool._connections == [two.connection]
    assert left not in pool._connections


def test_surplus_connections_are_closed_the_oldest_first_and_never_one_of_a_request() -> None:
    pool = Pool(keepalive=1)
    requests = [pool.begin() for _ in range(3)]
    pool.assign()
    one, two, three = (request.connection for request in requests)
    assert one and two and three
    two.state = "idle"  # not begun, or over and not read
    assert pool.end(requests[0]) == []
    assert pool.end(requests[2]) == [one]
    assert pool._connections == [two, three]


def test_a_full_pool_gives_up_an_idle_connection_for_another_origin() -> None:
    pool = Pool(size=2)
    first, second = pool.idle(2, "b")
    request = pool.begin("a")
    assert pool.assign() == [first]
    assert pool._connections == [second, request.connection]


def test_a_full_pool_lets_requests_wait_their_turn() -> None:
    pool = Pool(size=1)
    one, two, three = pool.begin(), pool.begin(), pool.begin()
    pool.assign()
    assert (two.connection, three.connection) == (None, None)
    pool.end(one)
    assert two.connection is one.connection
    assert three.connection is None


def test_a_full_pool_counts_no_closed_connection() -> None:
    pool = Pool(size=1)
    (idle,) = pool.idle()
    idle.state = "closed"
    request = pool.begin("b")
    assert pool.assign() == []
    assert pool._connections == [request.connection]


def test_a_connection_on_which_a_write_was_cut_short_serves_nobody_any_more() -> None:
    class Stream:
        cut_short = False

    pool = Pool(http2=True)
    one = pool.begin()
    pool.assign()
    broken: Any = one.connection
    broken._network_stream = Stream()
    broken._network_stream.cut_short = True
    two = pool.begin()
    assert pool.assign() == [broken]
    assert two.connection is not broken


def test_a_connection_that_the_pool_has_no_more_is_not_closed_twice() -> None:
    """As when the pool was closed under a response."""
    pool = Pool()
    request = pool.begin()
    pool.assign()
    pool._connections = []
    assert pool.end(request, "active") == []


def test_a_pool_without_the_names_is_left_alone() -> None:
    pool = Pool()
    assert Assigner.fits(pool)
    del pool._max_keepalive_connections
    assert not Assigner.fits(pool)
