from __future__ import annotations

import ipaddress
import re
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdata
import dns.rdataclass
import dns.rdatatype
import dns.rrset
import pytest
from hypothesis import given
from hypothesis import strategies as st

from httpx_wireguard import _resolver
from httpx_wireguard._dns import Answer, AnswerCache
from httpx_wireguard._errors import (
    ConnectionRefused,
    HandshakeTimeout,
    NameResolutionError,
    NameResolutionTimeout,
    NoRoute,
    TunnelClosed,
)
from httpx_wireguard._resolver import MAX_ADDRESSES, literal_address, local_family
from tests.dns_server import SERVER, Datagrams, DnsServer, answer_over_tcp, tunnel_with, virtual, with_rcode
from tests.memory_tunnel import (
    Datagram,
    MemoryDriver,
    MemorySocket,
    MemoryTunnel,
    TcpBehaviour,
    VirtualDriver,
    WatchfulDriver,
)

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
    tunnel = tunnel_with(server)
    assert tunnel.resolve("192.0.2.7") == ("192.0.2.7",)
    assert not server.questions
    assert tunnel.resolver.start_lookup("192.0.2.7", 0.0).ready()


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST.", "app.localhost"])
def test_localhost_never_leaves_as_a_query(host: str) -> None:
    """RFC 6761 6.3."""
    server = DnsServer({"localhost": ["127.0.0.1"]})
    with pytest.raises(NameResolutionError, match="means this computer"):
        tunnel_with(server).resolve(host)
    assert not server.questions


@pytest.mark.parametrize(
    "host", ["127.1", "1.2.3.4.5", "0x7f000001", "", ".", "a..b", "a" * 64 + ".test", ".".join(["a" * 63] * 4)]
)
def test_what_is_neither_name_nor_address_is_refused(host: str) -> None:
    server = DnsServer({})
    with pytest.raises(NameResolutionError):
        tunnel_with(server).resolve(host)
    assert not server.questions


def test_an_international_name_is_asked_for_in_its_ascii_form() -> None:
    """RFC 5891."""
    server = DnsServer({"xn--bcher-kva.test": ["10.0.0.1"]})
    assert tunnel_with(server).resolve("bücher.test") == ("10.0.0.1",)


def test_without_a_dns_server_the_error_says_what_to_add() -> None:
    tunnel = MemoryTunnel(VirtualDriver())
    with pytest.raises(NameResolutionError, match=r'add "DNS = <address>" to the \[Interface\] section') as caught:
        tunnel.resolve("example.com")
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
    addresses = tunnel_with(server).resolve("host.test")  # those of one family in the server's order
    assert [":" in address for address in addresses] == [True, False, True, False, False]


def test_only_the_families_of_the_interface_are_asked_for() -> None:
    server = DnsServer({"host.test": ["10.0.0.1", "fd00::1"]})
    assert tunnel_with(server, versions=[4]).resolve("host.test") == ("10.0.0.1",)
    assert server.questions == [("host.test.", "A")]


def test_a_family_that_the_interface_lacks_is_named() -> None:
    tunnel = tunnel_with(DnsServer({}), versions=[4])
    with pytest.raises(NameResolutionError, match="no IPv6 address of its own"):
        tunnel.resolve("host.test", version=6)


def test_queries_offer_edns_and_a_new_id_each() -> None:
    """RFC 6891 6.2.5; RFC 5452 9.2."""
    server = DnsServer({f"{n}.test": ["10.0.0.1"] for n in "abcdef"})
    tunnel = tunnel_with(server, versions=[4])
    for name in "abcdef":
        tunnel.resolve(f"{name}.test")
    assert {query.payload for query in server.queries} == {1232}
    assert len({query.id for query in server.queries}) > 1


def test_each_query_has_a_socket_of_its_own_which_is_closed() -> None:
    """RFC 5452 9.2: a fresh port for each."""
    server = DnsServer({"host.test": ["10.0.0.1", "fd00::1"]})
    tunnel = tunnel_with(server)
    tunnel.resolve("host.test")
    assert len(tunnel.udp_sockets) == 2
    assert all(sock.closed for sock in tunnel.udp_sockets)


def _of_class(number: int, wire: bytes) -> bytes:
    """The reply with its A record in another class than IN."""
    changed = wire.replace(b"\xc0\x0c\0\1\0\1", b"\xc0\x0c\0\1" + number.to_bytes(2, "big"))
    assert changed != wire
    return changed


def _strange(query: bytes) -> bytes:
    return _of_class(30_002, DnsServer({"host.test": ["10.0.0.1"]}).answer(query) or b"")


def _wrong_id(wire: bytes) -> bytes:
    return bytes([wire[0] ^ 1]) + wire[1:]


@pytest.mark.parametrize(
    "forged",
    [
        pytest.param(lambda wire: (_wrong_id(wire), SERVER), id="wrong id"),
        pytest.param(lambda wire: (wire.replace(b"\x04host", b"\x04evil"), SERVER), id="wrong question"),
        pytest.param(
            lambda wire: (wire[:2] + b"\x83\x80" + wire[4:].replace(b"\x04host", b"\x04evil"), SERVER),
            id="wrong question, cut short",
        ),
        pytest.param(lambda wire: (wire[:2] + b"\x01\x00" + wire[4:], SERVER), id="a query"),
        pytest.param(lambda wire: (wire + bytes(20_000), SERVER), id="huge"),
        pytest.param(lambda wire: (b"garbage", SERVER), id="garbage"),
        pytest.param(lambda wire: (wire[:2] + b"garbage", SERVER), id="garbage with the right id"),
        pytest.param(lambda wire: (wire[:-3], SERVER), id="cut short without saying so"),
        pytest.param(lambda wire: (b"", SERVER), id="empty"),
        pytest.param(lambda wire: (_of_class(30_000, wire), SERVER), id="a record of another class"),
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
    assert tunnel.resolve("host.test") == ("10.0.0.1",)


def test_a_record_of_another_class_leaves_nothing_behind_in_the_parser() -> None:
    """dnspython keeps what it learns of a class and type for good, and what it learns of class ANY holds for IN too."""
    server = DnsServer({"host.test": ["10.0.0.1"]})
    tunnel = tunnel_with(server, versions=[4])
    tunnel.udp[SERVER] = lambda data: [(_of_class(30_001, server.answer(data) or b""), SERVER)]
    with pytest.raises(NameResolutionError, match="no answer"):
        tunnel.resolve("host.test")
    unknown = dns.rdataclass.from_text("CLASS30001")
    assert dns.rdata.get_rdata_class(unknown, dns.rdatatype.A, use_generic=False) is None  # type: ignore[no-untyped-call]  # dnspython's


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
    assert tunnel.resolve("host.test") == ("10.0.0.1", "10.0.0.2")
    assert tunnel.sockets[0].closed


def test_a_question_and_an_answer_over_tcp_may_travel_in_pieces() -> None:
    server = DnsServer({"host.test": ["10.0.0.1"]})
    full = DnsServer({"host.test": ["10.0.0.1", "10.0.0.2"]})

    def truncate(query: dns.message.Message, reply: dns.message.Message) -> dns.message.Message:
        reply.flags |= dns.flags.TC
        return reply

    server.change = truncate
    tunnel = tunnel_with(server, versions=[4])
    tunnel.server_capacity = 7

    def serve(sock: MemorySocket) -> None:
        def answer_in_pieces(query: bytes) -> None:
            reply = full.answer(query)
            assert reply
            for n, byte in enumerate(struct.pack("!H", len(reply)) + reply):
                tunnel.later(0.01 * n, partial(sock.send, bytes([byte]), 0.0))

        answer_over_tcp(answer_in_pieces)(sock)

    tunnel.tcp[SERVER] = serve
    assert tunnel.resolve("host.test") == ("10.0.0.1", "10.0.0.2")
    assert not tunnel.open_sockets


@pytest.mark.parametrize("rcode", [dns.rcode.FORMERR, dns.rcode.NOTIMP])
def test_a_server_older_than_edns_is_asked_again_without_it(rcode: dns.rcode.Rcode) -> None:
    """RFC 6891 7."""
    server = DnsServer({"host.test": ["10.0.0.1"]})
    refuse = with_rcode(rcode)
    server.change = lambda query, reply: refuse(query, reply) if query.edns >= 0 else reply
    assert tunnel_with(server, versions=[4]).resolve("host.test") == ("10.0.0.1",)


def test_an_alias_is_followed() -> None:
    server = DnsServer({"www.test": ["host.test."], "host.test": ["10.0.0.1"]})

    def with_target(query: dns.message.Message, reply: dns.message.Message) -> dns.message.Message:
        reply.answer.append(dns.rrset.from_text("host.test.", 60, "IN", "A", "10.0.0.1"))
        return reply

    server.change = with_target
    assert tunnel_with(server, versions=[4]).resolve("www.test") == ("10.0.0.1",)


def test_a_chain_of_aliases_without_end_is_an_error() -> None:
    server = DnsServer({"a.test": ["b.test."]})

    def loop(query: dns.message.Message, reply: dns.message.Message) -> dns.message.Message:
        reply.answer.append(dns.rrset.from_text("b.test.", 60, "IN", "CNAME", "a.test."))
        return reply

    server.change = loop
    with pytest.raises(NameResolutionError, match="chain is too long"):
        tunnel_with(server, versions=[4]).resolve("a.test")


def test_a_hostile_answer_is_cut_to_a_few_addresses() -> None:
    server = DnsServer({"host.test": [str(ipaddress.IPv4Address(n)) for n in range(1000, 1060)]})
    assert len(tunnel_with(server, versions=[4]).resolve("host.test")) == MAX_ADDRESSES


def test_an_answer_is_remembered_for_its_ttl() -> None:
    server = DnsServer({"host.test": ["10.0.0.1", "fd00::1"]})
    tunnel = tunnel_with(server)
    first = tunnel.resolve("host.test")
    assert tunnel.resolve("host.test") == first
    assert len(server.questions) == 2


@pytest.mark.parametrize(("ttl", "lives"), [(60, 60.0), (7 * 86_400, 86_400.0)])
def test_an_answer_is_asked_for_again_after_its_ttl_or_a_day(ttl: int, lives: float) -> None:
    server = DnsServer({"host.test": ["10.0.0.1"]})

    def with_ttl(query: dns.message.Message, reply: dns.message.Message) -> dns.message.Message:
        reply.answer[0].ttl = ttl
        return reply

    server.change = with_ttl
    tunnel = tunnel_with(server, versions=[4])
    for moment, asked in ((0.0, 1), (lives - 0.1, 1), (lives, 2)):
        virtual(tunnel).time = moment
        tunnel.resolve("host.test")
        assert len(server.questions) == asked


def test_an_answer_with_a_ttl_of_zero_takes_no_others_place() -> None:
    cache = AnswerCache(size=1)
    a, b = dns.name.from_text("a.test"), dns.name.from_text("b.test")
    cache.put(a, 4, Answer(("10.0.0.1",)), 60, 0.0)
    cache.put(b, 4, Answer(("10.0.0.1",)), 0, 0.0)
    assert cache.get(a, 4, 1.0) is not None


def test_an_answer_with_a_ttl_of_zero_is_used_once() -> None:
    """RFC 1035 3.2.1."""
    server = DnsServer({"host.test": ["10.0.0.1"]})

    def with_ttl(query: dns.message.Message, reply: dns.message.Message) -> dns.message.Message:
        reply.answer[0].ttl = 0
        return reply

    server.change = with_ttl
    tunnel = tunnel_with(server, versions=[4])
    for _ in range(2):
        assert tunnel.resolve("host.test") == ("10.0.0.1",)
    assert len(server.questions) == 2


@pytest.mark.parametrize("use", ["get", "put"])
def test_the_least_recently_used_answer_is_forgotten_first(use: str) -> None:
    cache = AnswerCache(size=2)
    answer = Answer(("10.0.0.1",))
    names = [dns.name.from_text(f"{n}.test") for n in "abc"]
    for name in names[:2]:
        cache.put(name, 4, answer, 60, 0.0)
    if use == "get":
        cache.get(names[0], 4, 1.0)
    else:
        cache.put(names[0], 4, answer, 60, 1.0)
    cache.put(names[2], 4, answer, 60, 1.0)
    assert [cache.get(name, 4, 1.0) is not None for name in names] == [True, False, True]


def test_a_cached_name_costs_neither_a_query_nor_a_wait() -> None:
    server = DnsServer({"host.test": ["10.0.0.1"]})  # and no AAAA, which is remembered too
    tunnel = tunnel_with(server)
    tunnel.resolve("host.test")
    with tunnel.driver.lock:
        lookup = tunnel.resolver.start_lookup("host.test", 0.0)
        assert lookup.ready()
        known = dict(lookup.step(0.0))
    assert known[4] == ("10.0.0.1",)
    assert isinstance(known[6], NameResolutionError)
    assert not lookup.pending
    assert len(server.questions) == 2


def test_a_missing_name_is_missing_for_both_families() -> None:
    """RFC 8020."""
    server = DnsServer({})
    tunnel = tunnel_with(server)
    for version in (4, 6):
        with pytest.raises(NameResolutionError, match="NXDOMAIN"):
            tunnel.resolve("missing.test", version=version)
    assert server.questions == [("missing.test.", "A")]


def test_a_missing_name_is_remembered() -> None:
    """RFC 2308 5."""
    server = DnsServer({})
    tunnel = tunnel_with(server, versions=[4])
    for _ in range(2):
        with pytest.raises(NameResolutionError, match=r"no such name \(NXDOMAIN\)"):
            tunnel.resolve("missing.test")
    assert len(server.questions) == 1


def test_a_missing_name_is_asked_for_again_after_five_minutes_at_the_latest() -> None:
    """RFC 2308 5: the zone's own limit, here a day, may be cut short."""
    server = DnsServer({})

    def with_soa(query: dns.message.Message, reply: dns.message.Message) -> dns.message.Message:
        soa = "ns.test. admin.test. 1 3600 600 86400 86400"
        reply.authority.append(dns.rrset.from_text("test.", 86_400, "IN", "SOA", soa))
        return reply

    server.change = with_soa
    tunnel = tunnel_with(server, versions=[4])
    for moment, asked in ((0.0, 1), (299.9, 1), (300.0, 2)):
        virtual(tunnel).time = moment
        with pytest.raises(NameResolutionError):
            tunnel.resolve("missing.test")
        assert len(server.questions) == asked


def test_a_short_name_is_searched_for_first() -> None:
    server = DnsServer({"db.corp.test": ["10.0.0.1"], "db": ["10.6.6.6"]})
    assert tunnel_with(server, versions=[4], search=["corp.test"]).resolve("db") == ("10.0.0.1",)
    assert server.questions == [("db.corp.test.", "A")]


def test_a_name_with_a_dot_is_taken_as_it_is_first() -> None:
    """The ndots rule of resolv.conf(5), with its default of 1."""
    server = DnsServer({"db.eu.corp.test": ["10.0.0.1"]})
    assert tunnel_with(server, versions=[4], search=["corp.test"]).resolve("db.eu") == ("10.0.0.1",)
    assert [name for name, _ in server.questions] == ["db.eu.", "db.eu.corp.test."]


def test_a_search_domain_that_would_make_the_name_too_long_is_left_out() -> None:
    """RFC 1035 2.3.4: 255 bytes."""
    host = ".".join(["a" * 60] * 3)
    server = DnsServer({host: ["10.0.0.1"]})
    tunnel = tunnel_with(server, versions=[4], search=[".".join(["b" * 60] * 3), "corp.test"])
    server.change = with_rcode(dns.rcode.NXDOMAIN)
    with pytest.raises(NameResolutionError, match="NXDOMAIN"):
        tunnel.resolve(host)
    assert [name for name, _ in server.questions] == [f"{host}.", f"{host}.corp.test."]


def test_a_name_that_ends_in_a_dot_is_not_searched_for() -> None:
    server = DnsServer({"db.corp.test": ["10.0.0.1"]})
    with pytest.raises(NameResolutionError):
        tunnel_with(server, versions=[4], search=["corp.test"]).resolve("db.")
    assert [name for name, _ in server.questions] == ["db."]


def test_without_search_domains_the_hosts_own_domain_is_not_searched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "laptop.home.test")
    server = DnsServer({"db.home.test": ["10.6.6.6"]})
    with pytest.raises(NameResolutionError):
        tunnel_with(server, versions=[4]).resolve("db")
    assert server.questions == [("db.", "A")]


# --- failing ---


def test_a_missing_name_tells_who_was_asked_for_what() -> None:
    with pytest.raises(NameResolutionError, match=r"asked 10\.0\.0\.53 for missing\.test") as caught:
        tunnel_with(DnsServer({})).resolve("missing.test")
    assert caught.value.rcode == "NXDOMAIN"
    assert caught.value.servers == ("10.0.0.53",)


def test_a_name_without_addresses_is_told_from_a_missing_one() -> None:
    with pytest.raises(NameResolutionError, match="neither an A nor an AAAA record") as caught:
        tunnel_with(DnsServer({"host.test": []})).resolve("host.test")
    assert caught.value.rcode == "NOERROR"


def test_a_name_with_addresses_of_the_wrong_family_only_says_so() -> None:
    with pytest.raises(NameResolutionError, match="no A record, and the tunnel has only IPv4 addresses"):
        tunnel_with(DnsServer({"host.test": ["fd00::1"]}), versions=[4]).resolve("host.test")


def test_a_name_without_addresses_of_the_family_asked_for_says_no_more_than_that() -> None:
    with pytest.raises(NameResolutionError, match=r"it has no A record$"):
        tunnel_with(DnsServer({"host.test": ["fd00::1"]})).resolve("host.test", version=4)


def test_a_server_that_fails_is_passed_over_for_the_next() -> None:
    broken, good = DnsServer({}), DnsServer({"host.test": ["10.0.0.1"]}, ("10.0.0.54", 53))
    broken.change = with_rcode(dns.rcode.SERVFAIL)
    tunnel = MemoryTunnel(VirtualDriver(), ["10.0.0.53", "10.0.0.54"], versions=[4])
    tunnel.udp.update({("10.0.0.53", 53): broken, ("10.0.0.54", 53): good})
    assert tunnel.resolve("host.test") == ("10.0.0.1",)


def test_when_all_servers_fail_each_is_named_with_its_reason() -> None:
    server = DnsServer({})
    server.change = with_rcode(dns.rcode.REFUSED)
    tunnel = MemoryTunnel(VirtualDriver(), ["10.0.0.53", "10.9.9.9"], versions=[4])
    tunnel.udp[SERVER] = server
    tunnel.udp_errors["10.9.9.9", 53] = NoRoute("no peer's AllowedIPs cover 10.9.9.9", "10.9.9.9")
    with pytest.raises(
        NameResolutionError, match=r"10\.0\.0\.53: REFUSED; 10\.9\.9\.9: no peer's AllowedIPs"
    ) as caught:
        tunnel.resolve("host.test")
    assert caught.value.rcode == "REFUSED"


def test_silence_ends_with_the_deadline_and_the_tunnels_diagnosis() -> None:
    server = DnsServer({})
    server.change = lambda query, reply: None
    tunnel = tunnel_with(server, versions=[4])
    tunnel.problems["10.0.0.53"] = HandshakeTimeout("198.51.100.1:51820", 2, 5.0)
    with pytest.raises(
        NameResolutionTimeout, match=r"no answer from 10\.0\.0\.53 in time: no handshake answer"
    ) as caught:
        tunnel.resolve("host.test", deadline=0.05)
    assert isinstance(caught.value, TimeoutError)
    assert isinstance(caught.value.__cause__, HandshakeTimeout)


def test_a_lost_query_is_sent_again_after_a_second_and_a_half() -> None:
    server = DnsServer({"host.test": ["10.0.0.1"]})
    server.change = lambda query, reply: reply if len(server.queries) == 4 else None
    tunnel = tunnel_with(server, versions=[4])
    assert tunnel.resolve("host.test", deadline=5.0) == ("10.0.0.1",)
    assert virtual(tunnel).time == 4.5


def test_silent_servers_are_asked_in_turn_up_to_the_deadline() -> None:
    tunnel = MemoryTunnel(VirtualDriver(), ["10.0.0.53", "10.0.0.54"], versions=[4])
    with pytest.raises(NameResolutionTimeout, match=r"no answer from 10\.0\.0\.53 or 10\.0\.0\.54 in time"):
        tunnel.resolve("host.test", deadline=5.0)
    assert virtual(tunnel).time == 5.0
    assert [sock.remote[0] for sock in tunnel.udp_sockets] == ["10.0.0.53", "10.0.0.54"] * 2


def test_without_a_deadline_a_lookup_ends_after_ten_seconds() -> None:
    tunnel = MemoryTunnel(VirtualDriver(), ["10.0.0.53"])
    with pytest.raises(NameResolutionTimeout):
        tunnel.resolve("host.test")
    assert virtual(tunnel).time == 10.0


def test_an_answer_that_comes_after_the_next_try_began_is_noise() -> None:
    """Its socket is closed, and its port with it."""
    server = DnsServer({"host.test": ["10.0.0.1"]})
    server.delays["A"] = 1.6
    with pytest.raises(NameResolutionTimeout):
        tunnel_with(server, versions=[4]).resolve("host.test", deadline=5.0)


def test_both_families_are_asked_for_at_the_same_time() -> None:
    server = DnsServer({"host.test": ["10.0.0.1", "fd00::1"]})
    server.delays.update(A=0.3, AAAA=0.2)
    tunnel = tunnel_with(server)
    assert tunnel.resolve("host.test") == ("fd00::1", "10.0.0.1")
    assert virtual(tunnel).time == 0.3


def test_a_server_that_failed_once_is_asked_again_after_a_pause() -> None:
    server = DnsServer({"host.test": ["10.0.0.1"]})
    fail = with_rcode(dns.rcode.SERVFAIL)
    server.change = lambda query, reply: fail(query, reply) if len(server.queries) == 1 else reply
    tunnel = tunnel_with(server, versions=[4])
    assert tunnel.resolve("host.test") == ("10.0.0.1",)
    assert virtual(tunnel).time == pytest.approx(0.1)


def test_a_server_that_fails_twice_is_believed() -> None:
    server = DnsServer({})
    server.change = with_rcode(dns.rcode.SERVFAIL)
    with pytest.raises(NameResolutionError, match=r"helped: 10\.0\.0\.53: SERVFAIL$") as caught:
        tunnel_with(server, versions=[4]).resolve("host.test")
    assert caught.value.rcode == "SERVFAIL"
    assert len(server.queries) == 2


def test_a_port_on_which_nothing_listens_is_an_answer() -> None:
    tunnel = MemoryTunnel(VirtualDriver(), ["10.0.0.53"], versions=[4])
    tunnel.udp_errors[SERVER] = ConnectionRefused("UDP to 10.0.0.53 port 53: port unreachable")
    with pytest.raises(
        NameResolutionError, match=r"10\.0\.0\.53: UDP to 10\.0\.0\.53 port 53: port unreachable"
    ) as caught:
        tunnel.resolve("host.test")
    assert isinstance(caught.value.__cause__, ConnectionRefused)
    assert virtual(tunnel).time == 0.0


def _say(*wires: bytes, then_close: bool = False) -> Callable[[MemorySocket], None]:
    """A TCP server that speaks without listening."""

    def serve(sock: MemorySocket) -> None:
        for wire in wires:
            sock.send(wire, 0.0)
        if then_close:
            sock.close(0.0)

    return serve


@pytest.mark.parametrize(
    ("behaviour", "reason"),
    [
        pytest.param(None, "silence", id="silent"),
        pytest.param(_say(), "silence", id="accepts and is silent"),
        pytest.param(_say(b"\0"), "silence", id="stops within the length"),
        pytest.param(_say(b"\0\x20", b"1234", then_close=True), "closed the connection before", id="closes early"),
        pytest.param(_say(b"\0\x0c", bytes(12)), "for another question", id="another answer"),
        pytest.param(_say(b"\0\x0c", b"\xff" * 12), "malformed|another question", id="garbage"),
        pytest.param(_say(b"\xff\xff"), "its answer has 65535 bytes", id="huge"),
        pytest.param(
            answer_over_tcp(
                lambda query: _of_class(30_002, DnsServer({"host.test": ["10.0.0.1"]}).answer(query) or b"")
            ),
            "a record of class 30002",
            id="another class",
        ),
        pytest.param(ConnectionRefused("refused"), "refused", id="refused"),
    ],
)
def test_a_server_that_is_no_use_over_tcp_is_passed_over(behaviour: TcpBehaviour, reason: str) -> None:
    truncating, other = DnsServer({}), DnsServer({}, ("10.0.0.54", 53))

    def truncate(query: dns.message.Message, reply: dns.message.Message) -> dns.message.Message:
        reply.flags |= dns.flags.TC
        return reply

    truncating.change = truncate
    other.change = with_rcode(dns.rcode.REFUSED)
    tunnel = MemoryTunnel(VirtualDriver(), ["10.0.0.53", "10.0.0.54"], versions=[4])
    tunnel.udp.update({SERVER: truncating, ("10.0.0.54", 53): other})
    tunnel.tcp[SERVER] = behaviour
    expected = "no answer from" if reason == "silence" else rf"10\.0\.0\.53: .*({reason}).*; 10\.0\.0\.54: REFUSED"
    with pytest.raises(NameResolutionError, match=expected):
        tunnel.resolve("host.test")
    assert not tunnel.open_sockets
    assert len(other.queries) == 1


def test_a_closed_tunnel_is_not_blamed_on_the_servers() -> None:
    tunnel = tunnel_with(DnsServer({}), versions=[4])
    tunnel.udp[SERVER] = lambda data: ()
    tunnel.udp_errors[SERVER] = TunnelClosed("the tunnel was closed")
    with pytest.raises(TunnelClosed):
        tunnel.resolve("host.test")


def test_one_family_without_an_answer_does_not_spoil_the_other() -> None:
    server = DnsServer({"host.test": ["10.0.0.1"]})
    server.change = lambda query, reply: None if query.question[0].rdtype == dns.rdatatype.AAAA else reply
    assert tunnel_with(server).resolve("host.test", deadline=0.05) == ("10.0.0.1",)


# --- the host's own resolver ---


def test_the_hosts_own_resolver_is_asked_only_on_request(monkeypatch: pytest.MonkeyPatch) -> None:
    def getaddrinfo(host: str, port: None, family: int, kind: int) -> list[tuple[object, ...]]:
        if family == socket.AF_INET6:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [(family, kind, 6, "", ("192.0.2.1", 0))] * 2

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    tunnel = MemoryTunnel(MemoryDriver(), ["10.0.0.53"], system=True)
    assert tunnel.resolve("host.test") == ("192.0.2.1",)
    assert not tunnel.udp_sockets
    with pytest.raises(NameResolutionError, match="this host's resolver says: Name or service not known"):
        tunnel.resolve("host.test", version=6)


def test_whatever_the_hosts_own_resolver_raises_reaches_the_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    def getaddrinfo(*arguments: object) -> None:
        raise UnicodeError("label too long")

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    with pytest.raises(NameResolutionError, match="UnicodeError: label too long"):
        MemoryTunnel(MemoryDriver(), system=True).resolve("host.test")


def test_the_hosts_own_resolver_may_take_longer_than_the_caller_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """`getaddrinfo` cannot be interrupted: its thread is left to end, and its late answer wakes nobody."""
    asked, go_on = threading.Event(), threading.Event()
    woken: list[object] = []

    def getaddrinfo(*arguments: object) -> list[tuple[object, ...]]:
        assert threading.current_thread().daemon, "it would hold up the end of the program"
        asked.set()
        assert go_on.wait(10)
        return []

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    tunnel = MemoryTunnel(VirtualDriver(), system=True, versions=[4])
    done = threading.Event()

    def wake_later(key: object) -> None:
        woken.append(key)
        done.set()

    monkeypatch.setattr(tunnel, "wake_later", wake_later)
    with pytest.raises(NameResolutionTimeout, match="no answer from this host's resolver in time"):
        tunnel.resolve("host.test", deadline=2.0)
    assert virtual(tunnel).time == 2.0
    assert asked.wait(10)
    go_on.set()
    assert done.wait(10)
    assert len(woken) == 1


def test_the_hosts_own_resolver_is_never_asked_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    def leak(*arguments: object) -> None:
        raise AssertionError("a name left outside the tunnel")

    monkeypatch.setattr(socket, "getaddrinfo", leak)
    monkeypatch.setattr(socket, "socket", leak)
    server = DnsServer({"host.test": ["10.0.0.1"]})
    assert tunnel_with(server).resolve("host.test") == ("10.0.0.1",)
    with pytest.raises(NameResolutionError):
        tunnel_with(server).resolve("missing.test")


# --- what is imported when ---

_IMPORTS = """
import sys, types

package = types.ModuleType("httpx_wireguard")  # the package itself imports httpx
package.__path__ = [sys.argv[1]]
sys.modules["httpx_wireguard"] = package

from httpx_wireguard import _connect
from httpx_wireguard._resolver import Resolver

def imported(*names):
    return sorted({*names} & {*sys.modules})

resolver = Resolver(None, ["10.0.0.53"])
resolver.prepare("10.0.0.1")
assert resolver.start_lookup("10.0.0.1", 0.0).step(0.0) == [(4, ("10.0.0.1",))]
assert not imported("dns", "httpx", "httpx2", "asyncio", "trio"), imported("dns", "httpx", "httpx2", "asyncio", "trio")
resolver.prepare("host.test")
assert imported("dns.message")
before = {*sys.modules}
resolver.start_lookup("host.test", 0.0)
assert {*sys.modules} == before, {*sys.modules} - before
others = imported("dns.resolver", "dns.query", "httpx", "httpx2", "asyncio", "trio")
assert not others, others
"""


def test_dnspython_is_imported_for_the_first_name_and_brings_no_http_client_along() -> None:
    """It costs some sixty milliseconds, and its resolver imports httpx or httpx2 where they are installed."""
    directory = Path(_resolver.__file__).parent
    done = subprocess.run([sys.executable, "-c", _IMPORTS, str(directory)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


# --- what a stranger may send ---

_records = st.one_of(
    st.tuples(st.just("A"), st.ip_addresses(v=4).map(str)),
    st.tuples(st.just("AAAA"), st.ip_addresses(v=6).map(str)),
    st.tuples(st.just("CNAME"), st.sampled_from(["host.test.", "a.test.", "b.test.", "host.corp.test."])),
    st.tuples(st.just("SOA"), st.just("ns.test. admin.test. 1 3600 600 86400 30")),
    st.tuples(st.just("TXT"), st.just('"text"')),
)
_owners = st.sampled_from(["host.test.", "a.test.", "b.test.", "host.corp.test.", "test.", "."])
_sets = st.lists(st.tuples(_owners, st.sampled_from([0, 1, 60, 2**31 - 1]), _records), max_size=6)


@st.composite
def _replies(draw: st.DrawFn) -> Callable[[bytes], bytes]:
    """Something that a server may answer to a query: right, wrong, mangled or nonsense."""
    if draw(st.integers(0, 9)) == 0:
        garbage = draw(st.binary(max_size=600))
        return lambda query: query[: draw(st.sampled_from([0, 2, 12]))] + garbage
    sections = [draw(_sets) for _ in range(3)]
    rcode = draw(st.sampled_from([0, 0, 0, 0, 1, 2, 3, 3, 4, 5, 6, 9, 16, 23]))
    flags = draw(st.sampled_from([0, 0, 0, dns.flags.TC, dns.flags.AA]))
    copies = draw(st.sampled_from([1, 1, 1, 1, 1, 100]))
    damage = draw(st.lists(st.tuples(st.integers(0, 600), st.integers(0, 255)), max_size=3))
    cut = draw(st.one_of(st.none(), st.integers(0, 200)))

    def reply(query: bytes) -> bytes:
        message = dns.message.make_response(dns.message.from_wire(query))
        message.flags |= flags
        message.set_rcode(dns.rcode.Rcode.make(rcode))
        for section, records in zip((message.answer, message.authority, message.additional), sections, strict=True):
            section += [dns.rrset.from_text(owner, ttl, "IN", *record) for owner, ttl, record in records]
        message.answer += message.answer * (copies - 1)
        wire = bytearray(message.to_wire(max_size=65_535))
        for position, value in damage:
            wire[position % len(wire)] = value
        return bytes(wire[:cut])

    return reply


@given(
    replies=st.lists(_replies(), min_size=1, max_size=4), tcp_replies=st.lists(_replies(), max_size=2), data=st.data()
)
def test_whatever_the_servers_say_a_lookup_ends_in_time_with_addresses_or_an_error_of_ours(
    replies: list[Callable[[bytes], bytes]], tcp_replies: list[Callable[[bytes], bytes]], data: st.DataObject
) -> None:
    deadline = data.draw(st.one_of(st.none(), st.floats(0.0, 8.0)), "deadline")
    delays = st.sampled_from([None, 0.01, 1.0, 1.5, 3.0])
    driver = WatchfulDriver()
    tunnel = MemoryTunnel(driver, ["10.0.0.53", "fd00::53"], search=["corp.test"])
    driver.tunnel = tunnel

    def serve_udp(address: str) -> Callable[[bytes], list[Datagram]]:
        def serve(query: bytes) -> list[Datagram]:
            answers: list[Datagram] = []
            for reply in data.draw(st.lists(st.sampled_from(replies), max_size=2)):
                delay = data.draw(delays)
                wire = reply(query)
                answers.append((wire, (address, 53)) if delay is None else (wire, (address, 53), delay))
            return answers

        return serve

    for address in ("10.0.0.53", "fd00::53"):
        tunnel.udp[address, 53] = serve_udp(address)
        if tcp_replies:
            tunnel.tcp[address, 53] = answer_over_tcp(data.draw(st.sampled_from(tcp_replies)))
    try:
        addresses = tunnel.resolve("host", deadline)
    except NameResolutionError as error:
        assert not re.search(r"resolve 'host': \w+Error", str(error)), "an exception that nobody thought of"
        assert not isinstance(error, NameResolutionTimeout) or driver.time == (10.0 if deadline is None else deadline)
    else:
        assert 0 < len(addresses) <= 2 * MAX_ADDRESSES
        assert all(literal_address(address) == address for address in addresses)
    assert driver.time <= (10.0 if deadline is None else deadline)
    assert driver.settled
    assert not tunnel.open_sockets
