from __future__ import annotations

import threading
from collections.abc import Callable

import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import pytest
from hypothesis import given
from hypothesis import strategies as st

from httpx_wireguard._connect import ConnectRace, connect
from httpx_wireguard._errors import (
    ConnectionRefused,
    ConnectionReset,
    ConnectionTimedOut,
    DestinationUnreachable,
    HandshakeTimeout,
    NameResolutionError,
    NameResolutionTimeout,
    NoRoute,
    OperationTimeout,
    TunnelClosed,
)
from httpx_wireguard._waiting import run
from tests.dns_server import SERVER, DnsServer, tunnel_with, virtual, with_rcode
from tests.memory_tunnel import (
    MemoryDriver,
    MemorySocket,
    MemoryTunnel,
    TcpBehaviour,
    VirtualDriver,
    WatchfulDriver,
)


def accept(sock: MemorySocket) -> None:
    """A far host that accepts the connection."""


# --- the race ---


def take_all(race: ConnectRace, now: float) -> list[str]:
    return [address for _ in range(10) if (address := race.take_address(now))]


def test_an_ipv6_answer_is_tried_at_once() -> None:
    """RFC 8305 3."""
    race = ConnectRace([4, 6])
    race.receive_addresses(6, ["fd00::1"], 1.0)
    assert race.take_address(1.0) == "fd00::1"


def test_an_ipv4_answer_waits_fifty_milliseconds_for_ipv6() -> None:
    """RFC 8305 3: Resolution Delay."""
    race = ConnectRace([4, 6])
    race.receive_addresses(4, ["10.0.0.1"], 1.0)
    assert race.take_address(1.0) is None
    assert race.next_time() == 1.05
    assert race.take_address(1.05) == "10.0.0.1"


def test_ipv6_that_arrives_within_the_delay_goes_first() -> None:
    race = ConnectRace([4, 6])
    race.receive_addresses(4, ["10.0.0.1"], 1.0)
    race.receive_addresses(6, ["fd00::1"], 1.02)
    assert take_all(race, 1.02) == ["fd00::1"]


def test_ipv4_does_not_wait_once_ipv6_is_known_to_be_missing() -> None:
    race = ConnectRace([4, 6])
    race.receive_addresses(4, ["10.0.0.1"], 1.0)
    race.on_lookup_failed(6, NameResolutionError("host", "no AAAA"))
    assert race.take_address(1.0) == "10.0.0.1"


def test_ipv4_does_not_wait_when_nobody_asked_for_ipv6() -> None:
    race = ConnectRace([4])
    race.receive_addresses(4, ["10.0.0.1"], 1.0)
    assert race.take_address(1.0) == "10.0.0.1"


def test_attempts_start_a_quarter_second_apart_with_the_families_in_turns() -> None:
    """RFC 8305 4 and 5: Connection Attempt Delay."""
    race = ConnectRace([4, 6])
    race.receive_addresses(6, ["fd00::1", "fd00::2"], 0.0)
    race.receive_addresses(4, ["10.0.0.1", "10.0.0.2"], 0.0)
    started = [(now, address) for now in (0.0, 0.2, 0.25, 0.4, 0.5, 0.75) for address in take_all(race, now)]
    assert started == [(0.0, "fd00::1"), (0.25, "10.0.0.1"), (0.5, "fd00::2"), (0.75, "10.0.0.2")]
    assert race.next_time() is None


def test_a_failure_starts_the_next_attempt_at_once() -> None:
    """RFC 8305 5."""
    race = ConnectRace([4])
    race.receive_addresses(4, ["10.0.0.1", "10.0.0.2"], 0.0)
    race.take_address(0.0)
    race.on_attempt_failed("10.0.0.1", ConnectionRefused("refused"), 0.1)
    assert race.next_time() == 0.1
    assert race.take_address(0.1) == "10.0.0.2"


def test_a_late_answer_joins_the_race() -> None:
    """RFC 8305 3: addresses that arrive while connections are attempted are added to the list."""
    race = ConnectRace([4, 6])
    race.receive_addresses(4, ["10.0.0.1", "10.0.0.2"], 0.0)
    assert take_all(race, 0.05) == ["10.0.0.1"]
    race.receive_addresses(6, ["fd00::1"], 0.1)
    assert take_all(race, 0.3) == ["fd00::1"]


def test_the_race_is_lost_when_nothing_is_left_to_try_or_to_learn() -> None:
    race = ConnectRace([4, 6])
    race.receive_addresses(4, ["10.0.0.1"], 0.0)
    race.take_address(0.05)
    race.on_attempt_failed("10.0.0.1", ConnectionRefused("refused"), 0.1)
    assert not race.lost  # IPv6 may still come
    race.on_lookup_failed(6, NameResolutionError("host", "no AAAA"))
    assert race.lost


def _lost(*errors: DestinationUnreachable | ConnectionRefused | ConnectionTimedOut) -> Exception:
    race = ConnectRace([4])
    race.receive_addresses(4, [f"10.0.0.{n}" for n in range(len(errors))], 0.0)
    for error in errors:
        address = race.take_address(100.0)
        assert address
        race.on_attempt_failed(address, error, 0.0)
    return race.error("host.test", 443)


def test_the_error_of_a_single_attempt_is_raised_as_it_is() -> None:
    refused = ConnectionRefused("refused")
    assert _lost(refused) is refused


def test_the_error_of_several_attempts_names_each_with_its_reason() -> None:
    error = _lost(ConnectionRefused("refused"), DestinationUnreachable("host unreachable"))
    assert type(error) is DestinationUnreachable
    assert str(error) == "cannot connect to host.test:443: 10.0.0.0: refused; 10.0.0.1: host unreachable"


def test_errors_of_one_kind_stay_that_kind() -> None:
    assert type(_lost(ConnectionRefused("a"), ConnectionRefused("b"))) is ConnectionRefused
    assert type(_lost(ConnectionTimedOut("a"), ConnectionTimedOut("b"))) is ConnectionTimedOut


# --- connecting ---


def test_connect_takes_whichever_address_answers_first() -> None:
    server = DnsServer({"host.test": ["10.0.0.1", "fd00::1"]})
    tunnel = tunnel_with(server)
    tunnel.resolve("host.test")
    tunnel.tcp["10.0.0.1", 80] = accept
    tunnel.delays["10.0.0.1", 80] = 0.03
    stream = tunnel.connect_tcp("host.test", 80, timeout=5)
    assert stream.get_extra_info("server_addr") == ("10.0.0.1", 80)
    assert tunnel.opened == [(0.0, "fd00::1"), (0.25, "10.0.0.1")]
    assert virtual(tunnel).time == pytest.approx(0.28)


def test_the_losers_of_the_race_are_aborted() -> None:
    server = DnsServer({"host.test": ["10.0.0.1", "fd00::1"]})
    tunnel = tunnel_with(server)
    tunnel.resolve("host.test")
    tunnel.tcp["10.0.0.1", 80] = accept
    tunnel.connect_tcp("host.test", 80)
    assert [(sock.remote[0], sock.aborted) for sock in tunnel.sockets] == [("fd00::1", True), ("10.0.0.1", False)]


def test_connect_tells_how_the_connection_came_about() -> None:
    server = DnsServer({"host.test": ["10.0.0.1", "fd00::1"]})
    tunnel = tunnel_with(server)
    tunnel.resolve("host.test")
    tunnel.tcp["fd00::1", 80] = ConnectionRefused("refused")
    tunnel.tcp["10.0.0.1", 80] = accept
    tunnel.delays["10.0.0.1", 80] = 0.03
    facts = tunnel.connect_tcp("host.test", 80).get_extra_info("wireguard")
    assert (facts.host, facts.remote, facts.failures) == ("host.test", ("10.0.0.1", 80), (("fd00::1", "refused"),))
    assert facts.connect_seconds == pytest.approx(0.03)


def test_an_address_without_a_route_fails_at_once_for_the_next() -> None:
    tunnel = tunnel_with(DnsServer({"host.test": ["10.0.0.1", "fd00::1"]}))
    tunnel.resolve("host.test")
    tunnel.tcp["fd00::1", 80] = NoRoute("no peer's AllowedIPs cover fd00::1", "fd00::1")
    tunnel.tcp["10.0.0.1", 80] = accept
    tunnel.connect_tcp("host.test", 80)
    assert virtual(tunnel).time == 0.0


def test_an_address_that_cannot_even_be_tried_fails_at_once_for_the_next() -> None:
    tunnel = tunnel_with(DnsServer({"host.test": ["10.0.0.1", "10.0.0.2"]}), versions=[4])
    tunnel.tcp["10.0.0.2", 80] = accept

    def open_tcp(remote: tuple[str, int], now: float) -> MemorySocket:
        if remote[0] == "10.0.0.1":
            raise NoRoute("no peer's AllowedIPs cover 10.0.0.1", "10.0.0.1")
        return tunnel.open_tcp(remote, now)

    stream = run(connect(tunnel.driver, tunnel.resolver, "host.test", 80, None, open_tcp))
    assert stream.get_extra_info("server_addr") == ("10.0.0.2", 80)
    assert stream.get_extra_info("wireguard").failures == (("10.0.0.1", "no peer's AllowedIPs cover 10.0.0.1"),)
    assert virtual(tunnel).time == 0.0


def test_a_connect_that_times_out_names_the_silent_addresses_and_aborts_them() -> None:
    tunnel = MemoryTunnel(VirtualDriver())
    with pytest.raises(
        OperationTimeout, match=r"connect to 10\.0\.0\.1:80 timed out after 5\.0 s \(10\.0\.0\.1: no answer\)"
    ):
        tunnel.connect_tcp("10.0.0.1", 80, timeout=5)
    assert tunnel.sockets[0].aborted


def test_a_connect_that_times_out_for_the_tunnels_sake_raises_the_tunnels_reason() -> None:
    tunnel = MemoryTunnel(VirtualDriver())
    tunnel.problems["10.0.0.1"] = HandshakeTimeout("198.51.100.1:51820", 1, 5.0)
    with pytest.raises(HandshakeTimeout):
        tunnel.connect_tcp("10.0.0.1", 80, timeout=5)


def test_a_connect_whose_name_is_not_answered_in_time_is_a_name_resolution_error() -> None:
    server = DnsServer({})
    server.change = lambda query, reply: None
    with pytest.raises(NameResolutionTimeout, match=r"no answer from 10\.0\.0\.53"):
        tunnel_with(server).connect_tcp("host.test", 80, timeout=0.05)


def test_a_refused_connection_is_not_a_timeout() -> None:
    tunnel = MemoryTunnel(VirtualDriver())
    tunnel.tcp["10.0.0.1", 80] = ConnectionRefused("10.0.0.1:80 refused the connection")
    with pytest.raises(ConnectionRefused):
        tunnel.connect_tcp("10.0.0.1", 80, timeout=5)


def test_a_family_filter_excludes_a_literal_of_the_other_family() -> None:
    with pytest.raises(NameResolutionError, match="it is an IPv6 address, and the local address asks for IPv4"):
        MemoryTunnel(VirtualDriver()).connect_tcp("fd00::1", 80, local_address="0.0.0.0")


def test_a_family_filter_asks_for_one_family_only() -> None:
    server = DnsServer({"host.test": ["10.0.0.1", "fd00::1"]})
    tunnel = tunnel_with(server)
    tunnel.tcp["10.0.0.1", 80] = accept
    tunnel.connect_tcp("host.test", 80, local_address="0.0.0.0")
    assert server.questions == [("host.test.", "A")]


def test_an_uncached_name_of_both_families_connects_over_real_threads() -> None:
    server = DnsServer({"host.test": ["10.0.0.1", "fd00::1"]})
    tunnel = MemoryTunnel(MemoryDriver(), [SERVER[0]])
    tunnel.udp[SERVER] = server
    tunnel.tcp["fd00::1", 80] = ConnectionReset("reset")
    tunnel.tcp["10.0.0.1", 80] = accept
    stream = tunnel.connect_tcp("host.test", 80, timeout=10)
    assert stream.get_extra_info("server_addr") == ("10.0.0.1", 80)


def test_a_tunnel_that_is_closed_before_the_race_is_not_blamed_on_the_addresses() -> None:
    tunnel = tunnel_with(DnsServer({"host.test": ["10.0.0.1", "10.0.0.2"]}), versions=[4])

    def open_tcp(remote: tuple[str, int], now: float) -> MemorySocket:
        raise TunnelClosed("the tunnel is closed")

    with pytest.raises(TunnelClosed, match=r"^the tunnel is closed$"):
        run(connect(tunnel.driver, tunnel.resolver, "host.test", 80, None, open_tcp))


def test_a_tunnel_closed_during_the_race_ends_it() -> None:
    tunnel = MemoryTunnel(MemoryDriver())
    assert isinstance(tunnel.driver, MemoryDriver)
    driver = tunnel.driver

    def close_when_waiting() -> None:
        driver.until_waiting()
        driver.close()

    closing = threading.Thread(target=close_when_waiting)
    closing.start()
    with pytest.raises(TunnelClosed):
        tunnel.connect_tcp("10.0.0.1", 80, timeout=10)
    closing.join()
    assert tunnel.sockets[0].aborted


# --- connecting in time ---


def test_attempts_start_a_quarter_second_apart_while_nobody_answers() -> None:
    """RFC 8305 5."""
    tunnel = tunnel_with(DnsServer({"host.test": ["10.0.0.1", "fd00::1", "fd00::2"]}))
    with pytest.raises(OperationTimeout, match=r"timed out after 2\.0 s"):
        tunnel.connect_tcp("host.test", 80, timeout=2)
    assert tunnel.opened == [(0.0, "fd00::1"), (0.25, "10.0.0.1"), (0.5, "fd00::2")]
    assert virtual(tunnel).time == 2.0


@pytest.mark.parametrize(
    ("late", "opened"),
    [
        (0.04, [(0.04, "fd00::1"), (0.29, "10.0.0.1")]),
        (0.1, [(0.06, "10.0.0.1"), (0.31, "fd00::1")]),
        (0.7, [(0.06, "10.0.0.1"), (0.7, "fd00::1")]),
    ],
)
def test_ipv4_waits_fifty_milliseconds_for_ipv6_which_joins_the_race_when_it_comes(
    late: float, opened: list[tuple[float, str]]
) -> None:
    """RFC 8305 3."""
    server = DnsServer({"host.test": ["10.0.0.1", "fd00::1"]})
    server.delays.update(A=0.01, AAAA=late)
    tunnel = tunnel_with(server)
    with pytest.raises(OperationTimeout):
        tunnel.connect_tcp("host.test", 80, timeout=1)
    assert [(round(moment, 6), address) for moment, address in tunnel.opened] == opened


def test_a_connection_does_not_wait_for_the_other_familys_answer() -> None:
    server = DnsServer({"host.test": ["10.0.0.1", "fd00::1"]})
    server.change = lambda query, reply: None if query.question[0].rdtype == dns.rdatatype.AAAA else reply
    tunnel = tunnel_with(server)
    tunnel.tcp["10.0.0.1", 80] = accept
    facts = tunnel.connect_tcp("host.test", 80).get_extra_info("wireguard")
    assert (facts.resolve_seconds, facts.connect_seconds) == (0.0, pytest.approx(0.05))
    assert [sock.remote for sock in tunnel.open_sockets] == [("10.0.0.1", 80)]


def test_the_time_to_resolve_ends_with_the_first_answer() -> None:
    server = DnsServer({"host.test": ["10.0.0.1", "fd00::1"]})
    server.delays.update(A=0.01, AAAA=0.02)
    tunnel = tunnel_with(server)
    tunnel.tcp["fd00::1", 80] = accept
    facts = tunnel.connect_tcp("host.test", 80).get_extra_info("wireguard")
    assert (facts.resolve_seconds, facts.connect_seconds) == (0.01, 0.02)


@pytest.mark.parametrize("operation", ["connect_tcp", "resolve"])
def test_the_tunnel_is_not_held_up_by_an_import(operation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tunnel = tunnel_with(DnsServer({"host.test": ["10.0.0.1", "fd00::1"]}))
    tunnel.tcp["fd00::1", 80] = accept
    prepared: list[tuple[str, bool]] = []

    def prepare(host: str) -> None:
        prepared.append((host, tunnel.driver.lock.locked()))

    monkeypatch.setattr(tunnel.resolver, "prepare", prepare)
    if operation == "resolve":
        tunnel.resolve("host.test")
    else:
        tunnel.connect_tcp("host.test", 80)
    assert prepared == [("host.test", False)]


def test_a_deadline_that_has_passed_leaves_nothing_behind() -> None:
    tunnel = tunnel_with(DnsServer({"host.test": ["10.0.0.1"]}))
    for host in ("host.test", "10.0.0.1"):
        with pytest.raises(TimeoutError):
            tunnel.connect_tcp(host, 80, timeout=0)
    assert virtual(tunnel).time == 0.0
    assert not tunnel.open_sockets


# --- giving up at any moment ---


class Interruption(BaseException):
    """What a cancelled task, or Ctrl-C, raises out of a wait."""


def eventful(driver: WatchfulDriver) -> MemoryTunnel:
    """A name whose lookup takes every turn (silence, TCP, a pause, a search list), and addresses that fail or wait."""
    records = ["10.0.0.1", "10.0.0.2", "fd00::1", "fd00::2"]
    truncating, failing = DnsServer({"host.corp.test": records}), DnsServer({}, ("10.0.0.54", 53))

    def change(query: dns.message.Message, reply: dns.message.Message) -> dns.message.Message | None:
        if query.question[0].rdtype == dns.rdatatype.A and len(truncating.queries) < 4:
            return None
        reply.flags |= dns.flags.TC
        return reply

    truncating.change = change
    truncating.delays.update(A=0.2, AAAA=0.1)
    failing.change = with_rcode(dns.rcode.SERVFAIL)
    failing.delays.update(A=0.1, AAAA=0.1)
    tunnel = MemoryTunnel(driver, ["10.0.0.54", SERVER[0]], search=["corp.test"])
    driver.tunnel = tunnel
    tunnel.udp.update({SERVER: truncating, ("10.0.0.54", 53): failing})
    tunnel.tcp[SERVER] = DnsServer({"host.corp.test": records}).serve_tcp
    tunnel.delays[SERVER] = 0.3
    tunnel.tcp["10.0.0.1", 80] = ConnectionRefused("refused")
    tunnel.delays["10.0.0.1", 80] = 0.1
    tunnel.tcp["10.0.0.2", 80] = accept
    tunnel.delays["10.0.0.2", 80] = 4.0
    return tunnel


def test_an_eventful_connect_succeeds_when_it_is_left_alone() -> None:
    driver = WatchfulDriver()
    tunnel = eventful(driver)
    stream = tunnel.connect_tcp("host", 80, timeout=20)
    assert stream.get_extra_info("server_addr") == ("10.0.0.2", 80)
    assert driver.waits > 10
    assert {type(sock).__name__ for sock in tunnel.sockets + tunnel.udp_sockets} == {"MemorySocket", "MemoryUdpSocket"}
    assert [sock.remote for sock in tunnel.open_sockets] == [("10.0.0.2", 80)]


@pytest.mark.parametrize("operation", ["connect_tcp", "resolve"])
@pytest.mark.parametrize("sign", [1, -1], ids=["after the wait", "before the wait"])
def test_an_interruption_of_any_wait_leaves_no_socket_open(operation: str, sign: int) -> None:
    def run_it(driver: WatchfulDriver) -> MemoryTunnel:
        tunnel = eventful(driver)
        if operation == "resolve":
            tunnel.resolve("host", deadline=20.0)
        else:
            tunnel.connect_tcp("host", 80, timeout=20)
        return tunnel

    undisturbed = WatchfulDriver()
    run_it(undisturbed)
    for k in range(1, undisturbed.waits + 1):
        driver = WatchfulDriver(sign * k, Interruption())
        with pytest.raises(Interruption):
            run_it(driver)
        assert driver.waits == k
        assert driver.tunnel is not None
        assert not driver.tunnel.open_sockets
        assert driver.settled
        assert not driver.lock.locked()
        driver.catch_up()
        while driver._events:  # what was under way arrives at closed doors
            driver.time = driver._events[0][0]
            driver.catch_up()
        assert not driver.tunnel.open_sockets


_moments = st.sampled_from([None, 0.0, 0.01, 0.049, 0.05, 0.25, 0.3, 1.0, 1.5, 1.6, 5.0])
_endings: dict[str, Callable[[], TcpBehaviour]] = {
    "accept": lambda: accept,
    "refuse": lambda: ConnectionRefused("refused"),
    "no route": lambda: NoRoute("no peer's AllowedIPs cover it", "x"),
    "silence": lambda: None,
}


@given(st.data())
def test_however_the_race_goes_one_connection_is_left_or_an_error_and_never_late(data: st.DataObject) -> None:
    records = data.draw(st.lists(st.sampled_from(["10.0.0.1", "10.0.0.2", "fd00::1", "fd00::2"]), unique=True))
    deadline = data.draw(st.one_of(st.none(), st.floats(0.0, 6.0)), "deadline")
    server = DnsServer({"host.test": records} if data.draw(st.booleans()) else {})
    for kind in ("A", "AAAA"):
        moment = data.draw(_moments, kind)
        server.delays[kind] = 100.0 if moment is None else moment
    driver = WatchfulDriver()
    tunnel = driver.tunnel = MemoryTunnel(driver, [SERVER[0]])
    tunnel.udp[SERVER] = server
    for address in records:
        tunnel.tcp[address, 80] = _endings[data.draw(st.sampled_from(sorted(_endings)), address)]()
        moment = data.draw(_moments, address)
        if moment is not None:
            tunnel.delays[address, 80] = moment
        if tunnel.tcp[address, 80] is None:  # the stack gives up in the end
            tunnel.tcp[address, 80], tunnel.delays[address, 80] = ConnectionTimedOut("no answer"), 75.0
    try:
        stream = tunnel.connect_tcp("host.test", 80, deadline)
    except (
        OperationTimeout,
        NameResolutionError,
        ConnectionRefused,
        NoRoute,
        ConnectionTimedOut,
        DestinationUnreachable,
    ):
        assert not tunnel.open_sockets
    else:
        assert [sock.remote for sock in tunnel.open_sockets] == [stream.get_extra_info("server_addr")]
    assert driver.settled
    assert driver.time <= (85.0 if deadline is None else deadline)
    starts = [moment for moment, _ in tunnel.opened]
    assert starts == sorted(starts)
    assert len({address for _, address in tunnel.opened}) == len(tunnel.opened) <= len(records)
