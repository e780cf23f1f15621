"""Cryptokey routing (WireGuard paper 2)."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from httpx_wireguard._wireguard.allowed_ips import AllowedIps
from httpx_wireguard._wireguard.constants import MAX_ROUTE_CACHE


def v4(text: str) -> bytes:
    return IPv4Address(text).packed


def v6(text: str) -> bytes:
    return IPv6Address(text).packed


def test_longest_prefix_wins() -> None:
    table: AllowedIps[str] = AllowedIps()
    table.add([IPv4Network("0.0.0.0/0")], "default")
    table.add([IPv4Network("10.0.0.0/8")], "eight")
    table.add([IPv4Network("10.1.0.0/16"), IPv4Network("10.1.2.3/32")], "ours")
    assert table.lookup(v4("192.0.2.1")) == "default"
    assert table.lookup(v4("10.2.0.1")) == "eight"
    assert table.lookup(v4("10.1.9.9")) == "ours"
    assert table.lookup(v4("10.1.2.3")) == "ours"


def test_families_do_not_mix() -> None:
    """An IPv4-mapped address is an IPv6 address here."""
    table: AllowedIps[str] = AllowedIps()
    table.add([IPv4Network("0.0.0.0/0")], "four")
    assert table.lookup(v6("::ffff:10.0.0.1")) is None
    table.add([IPv6Network("::/0")], "six")
    assert table.lookup(v6("::ffff:10.0.0.1")) == "six"
    assert table.lookup(v4("10.0.0.1")) == "four"


def test_address_outside_every_network_belongs_to_nobody() -> None:
    table: AllowedIps[str] = AllowedIps()
    assert table.lookup(v4("10.0.0.1")) is None
    table.add([IPv4Network("10.0.0.0/31")], "pair")
    assert table.lookup(v4("10.0.0.2")) is None
    assert table.lookup(v4("10.0.0.1")) == "pair"


def test_network_belongs_to_the_last_that_claims_it() -> None:
    """As with `wg set`: it moves."""
    table: AllowedIps[str] = AllowedIps()
    table.add([IPv4Network("10.0.0.0/8")], "first")
    assert table.lookup(v4("10.0.0.1")) == "first"
    table.add([IPv4Network("10.0.0.0/8")], "second")
    assert table.lookup(v4("10.0.0.1")) == "second"


def test_bytes_that_are_no_address_belong_to_nobody() -> None:
    table: AllowedIps[str] = AllowedIps()
    table.add([IPv4Network("0.0.0.0/0")], "four")
    assert table.lookup(b"") is None
    assert table.lookup(b"12345") is None


def test_remembered_answers_are_bounded() -> None:
    """A peer may send from any address in a /0."""
    table: AllowedIps[str] = AllowedIps()
    table.add([IPv4Network("0.0.0.0/0")], "four")
    for number in range(MAX_ROUTE_CACHE + 10):
        assert table.lookup(number.to_bytes(4, "big")) == "four"
    assert len(table._cache) <= MAX_ROUTE_CACHE


def test_table_of_the_kernels_self_test_size_is_built_and_asked() -> None:
    """The Linux self-test has 130,560 networks; a lookup must not depend on their number."""
    table: AllowedIps[int] = AllowedIps()
    networks = [IPv4Network((0x0A000000 + number, 32)) for number in range(130_560)]
    for owner in range(40):
        table.add(networks[owner::40], owner)
    assert table.lookup((0x0A000000 + 77).to_bytes(4, "big")) == 77 % 40
    assert len(table._tables[4]) == 1
