from __future__ import annotations

import ipaddress
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterable

import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdatatype
import dns.rrset
import pytest

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
from httpx_wireguard._resolver import MAX_ADDRESSES, literal_address, local_family
from tests.memory_tunnel import MemoryDriver, MemorySocket, MemoryTunnel, VirtualDriver

SERVER = ("10.0.0.53", 53)
Datagrams = Iterable[tuple[bytes, tuple[str, int]]]


class DnsServer:
    """A recursive server: its records by name; it notes what it was asked.

    Attributes:
        change: gets the last word on each reply; may change it, or return None for silence.
    """

    def __init__(self, records: dict[str, Iterable[str]], address: tuple[str, int] = SERVER) -> None:
        self.records = {dns.name.from_text(name): list(addresses) for name, addresses in records.items()}
        self.address = address
        self.questions: list[tuple[str, str]] = []
        self.queries: list[dns.message.Message] = []
        self.change: Callable[[dns.message.Message, dns.message.Message], dns.message.Message | None] = lambda q, r: r

    def __call__(self, data: bytes) -> Datagrams:
        reply = self.answer(data)
        return [(reply, self.address)] if reply else []

    def answer(self, data: bytes) -> bytes | None:
        query = dns.message.from_wire(data)
        question = query.question[0]
        self.queries.append(query)
        self.questions.append((question.name.to_text(), question.rdtype.name))
        reply = dns.message.make_response(query)
        if question.name not in self.records:
            reply.set_rcode(dns.rcode.NXDOMAIN)
        for record in self.records.get(question.name, ()):
            kind = "CNAME" if record.endswith(".") else "AAAA" if ":" in record else "A"
            if kind in (question.rdtype.name, "CNAME"):
                reply.answer.append(dns.rrset.from_text(question.name, 60, "IN", kind, record))
        changed = self.change(query, reply)
        return changed.to_wire() if changed else None

    def serve_tcp(self, sock: MemorySocket) -> None:
        """One query over TCP, RFC 7766 8; runs when the connection stands, answers when the query is there."""
        sent = sock.peer
        assert sent is not None
        original = sent.send

        def send(data: bytes | bytearray | memoryview, now: float) -> int:
            accepted = original(data, now)
            reply = self.answer(sock.receive(65_535, now)[2:])
            if reply:
                sock.send(struct.pack("!H", len(reply)) + reply, now)
            return accepted

        sent.send = send  # type: ignore[method-assign]  # the server reacts on the spot


def tunnel_with(server: DnsServer, **arguments: object) -> MemoryTunnel:
    tunnel = MemoryTunnel(VirtualDriver(), [SERVER[0]], **arguments)
    tunnel.udp[SERVER] = server
    return tunnel


def virtual(tunnel: MemoryTunnel) -> VirtualDriver:
    assert isinstance(tunnel.driver, VirtualDriver)
    return tunnel.driver


def accept(sock: MemorySocket) -> None:
    """A far host that accepts the connection."""


# --- names and literals ---


@pytest.mark.parametrize(
    ("host", "address"),
    [
        ("10.0.0.1", "10.0.0.1"),
        ("FD00::0001", "fd00::1"),
        ("fe80::1%eth0", "fe80::1"),
        ("::ffff:10.0.0.1", "10.0.0.1"),
        ("example.com", None),
        ("10.0.0.1%eth0", None),
        ("127.1", None),
    ],
)
def test_a_literal_is_taken_as_an_address(host: str, address: str | None) -> None:
    assert literal_address(host) == address


def test_a_literal_is_never_asked_for() -> None:
    server = DnsServer({})
    assert tunnel_with(server).resolver.resolve("192.0.2.7") == ("192.0.2.7",)
    assert not server.questions


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST.", "app.localhost"])
def test_localhost_never_leaves_as_a_query(host: str) -> None:
    """RFC 6761 6.3."""
    server = DnsServer({"localhost": ["127.0.0.1"]})
    with pytest.raises(NameResolutionError, match="means this computer"):
        tunnel_with(server).resolver.resolve(host)
    assert not server.questions


@pytest.mark.parametrize("host", ["127.1", "1.2.3.4.5", "0x7f000001", "", ".", "a..b", "a" * 64 + ".test"])
def test_what_is_neither_name_nor_address_is_refused(host: str) -> None:
    server = DnsServer({})
    with pytest.raises(NameResolutionError):
        tunnel_with(server).resolver.resolve(host)
    assert not server.questions


def test_an_international_name_is_asked_for_in_its_ascii_form() -> None:
    """RFC 5891."""
    server = DnsServer({"xn--bcher-kva.test": ["10.0.0.1"]})
    assert tunnel_with(server).resolver.resolve("bücher.test") == ("10.0.0.1",)


def test_without_a_dns_server_the_error_says_what_to_add() -> None:
    tunnel = MemoryTunnel(VirtualDriver())
    with pytest.raises(NameResolutionError, match=r'add "DNS = <address>" to the \[Interface\] section') as caught:
        tunnel.resolver.resolve("example.com")
    assert 'dns="system"' in str(caught.value)


@pytest.mark.parametrize(("address", "family"), [(None, None), ("0.0.0.0", 4), ("::", 6), ("10.0.0.2", 4)])
def test_a_local_address_confines_to_its_family(address: str | None, family: int | None) -> None:
    assert local_family(address) == family


def test_a_local_address_that_is_none_is_an_error_of_ours() -> None:
    with pytest.raises(NoRoute, match="not an IP address"):
        local_family("eth0")


# --- asking ---


def test_addresses_of_both_families_take_turns_ipv6_first() -> None:
    """RFC 8305 4."""
    server = DnsServer({"host.test": ["10.0.0.1", "10.0.0.2", "10.0.0.3", "fd00::1", "fd00::2"]})
    addresses = tunnel_with(server).resolver.resolve("host.test")  # those of one family in the server's order
    assert [":" in address for address in addresses] == [True, False, True, False, False]


def test_only_the_families_of_the_interface_are_asked_for() -> None:
    server = DnsServer({"host.test": ["10.0.0.1", "fd00::1"]})
    assert tunnel_with(server, versions=[4]).resolver.resolve("host.test") == ("10.0.0.1",)
    assert server.questions == [("host.test.", "A")]


def test_a_family_that_the_interface_lacks_is_named() -> None:
    tunnel = tunnel_with(DnsServer({}), versions=[4])
    with pytest.raises(NameResolutionError, match="no IPv6 address of its own"):
        tunnel.resolver.resolve("host.test", version=6)


def test_queries_offer_edns_and_a_new_id_each() -> None:
    """RFC 6891 6.2.5; RFC 5452 9.2."""
    server = DnsServer({f"{n}.test": ["10.0.0.1"] for n in "abcdef"})
    tunnel = tunnel_with(server, versions=[4])
    for name in "abcdef":
        tunnel.resolver.resolve(f"{name}.test")
    assert {query.payload for query in server.queries} == {1232}
    assert len({query.id for query in server.queries}) > 1


def test_each_query_has_a_socket_of_its_own_which_is_closed() -> None:
    """RFC 5452 9.2: a fresh port for each."""
    server = DnsServer({"host.test": ["10.0.0.1", "fd00::1"]})
    tunnel = tunnel_with(server)
    tunnel.resolver.resolve("host.test")
    assert len(tunnel.udp_sockets) == 2
    assert all(sock.closed for sock in tunnel.udp_sockets)


def _wrong_id(wire: bytes) -> bytes:
    return bytes([wire[0] ^ 1]) + wire[1:]


@pytest.mark.parametrize(
    "forged",
    [
        pytest.param(lambda wire: (_wrong_id(wire), SERVER), id="wrong id"),
        pytest.param(lambda wire: (wire.replace(b"\x04host", b"\x04evil"), SERVER), id="wrong question"),
        pytest.param(lambda wire: (wire[:2] + b"\x01\x00" + wire[4:], SERVER), id="a query"),
        pytest.param(lambda wire: (b"garbage", SERVER), id="garbage"),
        pytest.param(lambda wire: (b"", SERVER), id="empty"),
        pytest.param(lambda wire: (wire, ("10.0.0.66", 53)), id="wrong source"),
        pytest.param(lambda wire: (wire, ("10.0.0.53", 54)), id="wrong source port"),
    ],
)
def test_a_reply_that_does_not_match_is_ignored(forged: Callable[[bytes], tuple[bytes, tuple[str, int]]]) -> None:
    """RFC 5452 9.1: id, question, address and port have to match; what does not is not an answer but noise."""
    server = DnsServer({"host.test": ["10.0.0.1"]})
    liar = DnsServer({"host.test": ["6.6.6.6"]})

    def both(data: bytes) -> Datagrams:
        lie = liar.answer(data)
        assert lie
        return [forged(lie), *server(data)]

    tunnel = tunnel_with(server, versions=[4])
    tunnel.udp[SERVER] = both
    assert tunnel.resolver.resolve("host.test") == ("10.0.0.1",)


def test_a_truncated_answer_is_asked_for_again_over_tcp() -> None:
    """RFC 7766 5."""
    server = DnsServer({"host.test": ["10.0.0.1"]})
    full = DnsServer({"host.test": ["10.0.0.1", "10.0.0.2"]})

    def truncate(query: dns.message.Message, reply: dns.message.Message) -> dns.message.Message:
        reply.flags |= dns.flags.TC
        return reply

    server.change = truncate
    tunnel = tunnel_with(server, versions=[4])
    tunnel.tcp[SERVER] = full.serve_tcp
    assert tunnel.resolver.resolve("host.test") == ("10.0.0.1", "10.0.0.2")
    assert tunnel.sockets[0].closed


def test_a_server_older_than_edns_is_asked_again_without_it() -> None:
    """RFC 6891 7."""
    server = DnsServer({"host.test": ["10.0.0.1"]})

    def refuse_edns(query: dns.message.Message, reply: dns.message.Message) -> dns.message.Message:
        if query.edns >= 0:
            reply.set_rcode(dns.rcode.FORMERR)
            reply.answer.clear()
        return reply

    server.change = refuse_edns
    assert tunnel_with(server, versions=[4]).resolver.resolve("host.test") == ("10.0.0.1",)


def test_an_alias_is_followed() -> None:
    server = DnsServer({"www.test": ["host.test."], "host.test": ["10.0.0.1"]})

    def with_target(query: dns.message.Message, reply: dns.message.Message) -> dns.message.Message:
        reply.answer.append(dns.rrset.from_text("host.test.", 60, "IN", "A", "10.0.0.1"))
        return reply

    server.change = with_target
    assert tunnel_with(server, versions=[4]).resolver.resolve("www.test") == ("10.0.0.1",)


def test_a_chain_of_aliases_without_end_is_an_error() -> None:
    server = DnsServer({"a.test": ["b.test."]})

    def loop(query: dns.message.Message, reply: dns.message.Message) -> dns.message.Message:
        reply.answer.append(dns.rrset.from_text("b.test.", 60, "IN", "CNAME", "a.test."))
        return reply

    server.change = loop
    with pytest.raises(NameResolutionError, match="chain is too long"):
        tunnel_with(server, versions=[4]).resolver.resolve("a.test")


def test_a_hostile_answer_is_cut_to_a_few_addresses() -> None:
    server = DnsServer({"host.test": [str(ipaddress.IPv4Address(n)) for n in range(1000, 1060)]})
    assert len(tunnel_with(server, versions=[4]).resolver.resolve("host.test")) == MAX_ADDRESSES


def test_an_answer_is_remembered_for_its_ttl() -> None:
    server = DnsServer({"host.test": ["10.0.0.1", "fd00::1"]})
    tunnel = tunnel_with(server)
    first = tunnel.resolver.resolve("host.test")
    assert tunnel.resolver.resolve("host.test") == first
    assert len(server.questions) == 2


def test_a_cached_name_needs_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    server = DnsServer({"host.test": ["10.0.0.1"]})  # and no AAAA, which is remembered too
    tunnel = tunnel_with(server)
    tunnel.resolver.resolve("host.test")
    monkeypatch.setattr(threading, "Thread", None)
    assert tunnel.resolver.resolve("host.test") == ("10.0.0.1",)


def test_a_missing_name_is_remembered() -> None:
    """RFC 2308 5."""
    server = DnsServer({})
    tunnel = tunnel_with(server, versions=[4])
    for _ in range(2):
        with pytest.raises(NameResolutionError, match=r"no such name \(NXDOMAIN\)"):
            tunnel.resolver.resolve("missing.test")
    assert len(server.questions) == 1


def test_a_missing_name_is_asked_for_again_after_five_minutes_at_the_latest(monkeypatch: pytest.MonkeyPatch) -> None:
    """RFC 2308 5: the zone's own limit, here a day, may be cut short."""
    server = DnsServer({})

    def with_soa(query: dns.message.Message, reply: dns.message.Message) -> dns.message.Message:
        soa = "ns.test. admin.test. 1 3600 600 86400 86400"
        reply.authority.append(dns.rrset.from_text("test.", 86_400, "IN", "SOA", soa))
        return reply

    server.change = with_soa
    tunnel = tunnel_with(server, versions=[4])
    began = time.time()
    for later in (0.0, 200.0, 301.0):
        monkeypatch.setattr(time, "time", lambda later=later: began + later)
        with pytest.raises(NameResolutionError):
            tunnel.resolver.resolve("missing.test")
    assert len(server.questions) == 2


def test_a_short_name_is_searched_for_first() -> None:
    server = DnsServer({"db.corp.test": ["10.0.0.1"], "db": ["10.6.6.6"]})
    assert tunnel_with(server, versions=[4], search=["corp.test"]).resolver.resolve("db") == ("10.0.0.1",)
    assert server.questions == [("db.corp.test.", "A")]


def test_a_name_with_a_dot_is_taken_as_it_is_first() -> None:
    """The ndots rule of resolv.conf(5), with its default of 1."""
    server = DnsServer({"db.eu.corp.test": ["10.0.0.1"]})
    assert tunnel_with(server, versions=[4], search=["corp.test"]).resolver.resolve("db.eu") == ("10.0.0.1",)
    assert [name for name, _ in server.questions] == ["db.eu.", "db.eu.corp.test."]


def test_a_name_that_ends_in_a_dot_is_not_searched_for() -> None:
    server = DnsServer({"db.corp.test": ["10.0.0.1"]})
    with pytest.raises(NameResolutionError):
        tunnel_with(server, versions=[4], search=["corp.test"]).resolver.resolve("db.")
    assert [name for name, _ in server.questions] == ["db."]


def test_without_search_domains_the_hosts_own_domain_is_not_searched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "laptop.home.test")
    server = DnsServer({"db.home.test": ["10.6.6.6"]})
    with pytest.raises(NameResolutionError):
        tunnel_with(server, versions=[4]).resolver.resolve("db")
    assert server.questions == [("db.", "A")]


# --- failing ---


def test_a_missing_name_tells_who_was_asked_for_what() -> None:
    with pytest.raises(NameResolutionError, match=r"asked 10\.0\.0\.53 for missing\.test") as caught:
        tunnel_with(DnsServer({})).resolver.resolve("missing.test")
    assert caught.value.rcode == "NXDOMAIN"
    assert caught.value.servers == ("10.0.0.53",)


def test_a_name_without_addresses_is_told_from_a_missing_one() -> None:
    with pytest.raises(NameResolutionError, match="neither an A nor an AAAA record") as caught:
        tunnel_with(DnsServer({"host.test": []})).resolver.resolve("host.test")
    assert caught.value.rcode == "NOERROR"


def test_a_name_with_addresses_of_the_wrong_family_only_says_so() -> None:
    with pytest.raises(NameResolutionError, match="no A record, and the tunnel has only IPv4 addresses"):
        tunnel_with(DnsServer({"host.test": ["fd00::1"]}), versions=[4]).resolver.resolve("host.test")


def test_a_server_that_fails_is_passed_over_for_the_next() -> None:
    broken, good = DnsServer({}), DnsServer({"host.test": ["10.0.0.1"]}, ("10.0.0.54", 53))

    def fail(query: dns.message.Message, reply: dns.message.Message) -> dns.message.Message:
        reply.set_rcode(dns.rcode.SERVFAIL)
        return reply

    broken.change = fail
    tunnel = MemoryTunnel(VirtualDriver(), ["10.0.0.53", "10.0.0.54"], versions=[4])
    tunnel.udp.update({("10.0.0.53", 53): broken, ("10.0.0.54", 53): good})
    assert tunnel.resolver.resolve("host.test") == ("10.0.0.1",)


def test_when_all_servers_fail_each_is_named_with_its_reason() -> None:
    server = DnsServer({})

    def refuse(query: dns.message.Message, reply: dns.message.Message) -> dns.message.Message:
        reply.set_rcode(dns.rcode.REFUSED)
        return reply

    server.change = refuse
    tunnel = MemoryTunnel(VirtualDriver(), ["10.0.0.53", "10.9.9.9"], versions=[4])
    tunnel.udp[SERVER] = server
    tunnel.udp_errors["10.9.9.9", 53] = NoRoute("no peer's AllowedIPs cover 10.9.9.9", "10.9.9.9")
    with pytest.raises(
        NameResolutionError, match=r"10\.0\.0\.53: REFUSED; 10\.9\.9\.9: no peer's AllowedIPs"
    ) as caught:
        tunnel.resolver.resolve("host.test")
    assert caught.value.rcode == "REFUSED"


def test_silence_ends_with_the_deadline_and_the_tunnels_diagnosis() -> None:
    server = DnsServer({})
    server.change = lambda query, reply: None
    tunnel = tunnel_with(server, versions=[4])
    tunnel.problems["10.0.0.53"] = HandshakeTimeout("198.51.100.1:51820", 2, 5.0)
    with pytest.raises(
        NameResolutionTimeout, match=r"no answer from 10\.0\.0\.53 in time: no handshake answer"
    ) as caught:
        tunnel.resolver.resolve("host.test", deadline=0.05)
    assert isinstance(caught.value, TimeoutError)
    assert isinstance(caught.value.__cause__, HandshakeTimeout)


def test_a_lost_query_is_sent_again() -> None:
    server = DnsServer({"host.test": ["10.0.0.1"]})
    server.change = lambda query, reply: reply if len(server.queries) > 1 else None
    assert tunnel_with(server, versions=[4]).resolver.resolve("host.test", deadline=5.0) == ("10.0.0.1",)


def test_a_closed_tunnel_is_not_blamed_on_the_servers() -> None:
    tunnel = tunnel_with(DnsServer({}), versions=[4])
    tunnel.udp[SERVER] = lambda data: ()
    tunnel.udp_errors[SERVER] = TunnelClosed("the tunnel was closed")
    with pytest.raises(TunnelClosed):
        tunnel.resolver.resolve("host.test")


def test_one_family_without_an_answer_does_not_spoil_the_other() -> None:
    server = DnsServer({"host.test": ["10.0.0.1"]})
    server.change = lambda query, reply: None if query.question[0].rdtype == dns.rdatatype.AAAA else reply
    assert tunnel_with(server).resolver.resolve("host.test", deadline=0.05) == ("10.0.0.1",)


def test_the_hosts_own_resolver_is_asked_only_on_request(monkeypatch: pytest.MonkeyPatch) -> None:
    def getaddrinfo(host: str, port: None, family: int, kind: int) -> list[tuple[object, ...]]:
        if family == socket.AF_INET6:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [(family, kind, 6, "", ("192.0.2.1", 0))]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    assert MemoryTunnel(VirtualDriver(), system=True).resolver.resolve("host.test") == ("192.0.2.1",)


def test_the_hosts_own_resolver_is_never_asked_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    def leak(*arguments: object) -> None:
        raise AssertionError("a name left outside the tunnel")

    monkeypatch.setattr(socket, "getaddrinfo", leak)
    monkeypatch.setattr(socket, "socket", leak)
    server = DnsServer({"host.test": ["10.0.0.1"]})
    assert tunnel_with(server).resolver.resolve("host.test") == ("10.0.0.1",)
    with pytest.raises(NameResolutionError):
        tunnel_with(server).resolver.resolve("missing.test")


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
    tunnel.resolver.resolve("host.test")
    tunnel.tcp["10.0.0.1", 80] = accept
    tunnel.delays["10.0.0.1", 80] = 0.03
    stream = tunnel.connect_tcp("host.test", 80, timeout=5)
    assert stream.get_extra_info("server_addr") == ("10.0.0.1", 80)
    assert tunnel.opened == [(0.0, "fd00::1"), (0.25, "10.0.0.1")]
    assert virtual(tunnel).time == pytest.approx(0.28)


def test_the_losers_of_the_race_are_aborted() -> None:
    server = DnsServer({"host.test": ["10.0.0.1", "fd00::1"]})
    tunnel = tunnel_with(server)
    tunnel.resolver.resolve("host.test")
    tunnel.tcp["10.0.0.1", 80] = accept
    tunnel.connect_tcp("host.test", 80)
    assert [(sock.remote[0], sock.aborted) for sock in tunnel.sockets] == [("fd00::1", True), ("10.0.0.1", False)]


def test_connect_tells_how_the_connection_came_about() -> None:
    server = DnsServer({"host.test": ["10.0.0.1", "fd00::1"]})
    tunnel = tunnel_with(server)
    tunnel.resolver.resolve("host.test")
    tunnel.tcp["fd00::1", 80] = ConnectionRefused("refused")
    tunnel.tcp["10.0.0.1", 80] = accept
    tunnel.delays["10.0.0.1", 80] = 0.03
    facts = tunnel.connect_tcp("host.test", 80).get_extra_info("wireguard")
    assert (facts.host, facts.remote, facts.failures) == ("host.test", ("10.0.0.1", 80), (("fd00::1", "refused"),))
    assert facts.connect_seconds == pytest.approx(0.03)


def test_an_address_without_a_route_fails_at_once_for_the_next() -> None:
    tunnel = tunnel_with(DnsServer({"host.test": ["10.0.0.1", "fd00::1"]}))
    tunnel.resolver.resolve("host.test")
    tunnel.tcp["fd00::1", 80] = NoRoute("no peer's AllowedIPs cover fd00::1", "fd00::1")
    tunnel.tcp["10.0.0.1", 80] = accept
    tunnel.connect_tcp("host.test", 80)
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
        connect(tunnel.driver, tunnel.resolver, "host.test", 80, None, open_tcp)


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
