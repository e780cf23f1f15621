"""The wg-quick parser and the configuration objects, by wg(8), wg-quick(8) and our own stricter rules."""

from __future__ import annotations

import copy
import logging
import os
import pickle
import time
import traceback
from ipaddress import ip_address, ip_interface, ip_network
from pathlib import Path

import pytest

from httpx_wireguard._config import Config, Endpoint, PeerConfig, SecretKey
from httpx_wireguard._errors import ConfigError

PRIVATE = "cGxlYXNlIG1ha2UgeW91ciBvd24ga2V5LCBub3QgbWU="  # any 32 bytes are a private key
PRESHARED = "YW5kIHRoaXMgb25lIGlzIGEgcHJlc2hhcmVkIGtleSE="
PUBLIC = "LTk0wqdAJpr8shgzzt7a0/6RQQnLIm+tlmuOI3pS0Fc="
OTHER_PUBLIC = "C1k5nDXcsO0WwLY4HgTTUHydofvQTvqgTtLqISGxYFs="

# RFC 7748 6.1 with https://cr.yp.to/ecdh.html "validate": the seven encodings that fit 255 bits.
LOW_ORDER_POINTS = (
    "0000000000000000000000000000000000000000000000000000000000000000",
    "0100000000000000000000000000000000000000000000000000000000000000",
    "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800",
    "5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157",
    "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
)


def text(interface: str = "", peer: str = "", tail: str = "") -> str:
    """A valid configuration with `interface` as line 3 and `peer` as line 6."""
    return f"[Interface]\nPrivateKey = {PRIVATE}\n{interface}\n[Peer]\nPublicKey = {PUBLIC}\n{peer}\n{tail}"


def error_of(configuration: str) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        Config.from_string(configuration, "wg0.conf")
    return caught.value


def only_peer(configuration: str) -> PeerConfig:
    (peer,) = Config.from_string(configuration).peers
    return peer


def test_a_complete_file_gives_every_value() -> None:
    """wg(8) CONFIGURATION FILE FORMAT and wg-quick(8) CONFIGURATION."""
    config = Config.from_string(
        text(
            "Address = 10.0.0.2/24, fd00::2/64\nDNS = 10.0.0.1, fd00::1, corp.example\nMTU = 1380\nListenPort = 51821",
            f"PresharedKey = {PRESHARED}\nAllowedIPs = 0.0.0.0/0, ::/0\nEndpoint = vpn.example.com:51820\n"
            "PersistentKeepalive = 25",
        )
    )
    assert config.private_key == SecretKey(PRIVATE)
    assert config.address == (ip_interface("10.0.0.2/24"), ip_interface("fd00::2/64"))
    assert config.dns == (ip_address("10.0.0.1"), ip_address("fd00::1"))
    assert config.dns_search == ("corp.example",)
    assert (config.mtu, config.listen_port) == (1380, 51821)
    assert config.peers == (
        PeerConfig(PUBLIC, "0.0.0.0/0, ::/0", "vpn.example.com:51820", PRESHARED, persistent_keepalive=25),
    )


def test_the_smallest_file_takes_the_defaults() -> None:
    config = Config.from_string(text())
    assert (config.address, config.dns, config.dns_search) == ((), (), ())
    assert (config.mtu, config.listen_port) == (1420, None)
    assert config.peers == (PeerConfig(PUBLIC),)
    assert config.peers[0].endpoint is None


def test_keys_are_kept_as_given() -> None:
    """X25519 clamps on use (RFC 7748 5); the configuration does not."""
    assert SecretKey(b"\xff" * 32).reveal() == b"\xff" * 32


@pytest.mark.parametrize(
    "form",
    [
        pytest.param(
            lambda plain: plain.upper().replace(PRIVATE.upper(), PRIVATE).replace(PUBLIC.upper(), PUBLIC), id="case"
        ),
        pytest.param(lambda plain: plain.replace("\n", "\r\n"), id="CRLF"),
        pytest.param(lambda plain: "\ufeff" + plain, id="byte order mark"),
        pytest.param(lambda plain: plain.replace("\n", "  # note = [Peer]\n"), id="comments"),
        pytest.param(lambda plain: plain.replace(" = ", "="), id="no spaces"),
        pytest.param(lambda plain: plain.replace(" = ", "\t =  ").replace("\n", " \n\t"), id="white space"),
        pytest.param(lambda plain: plain.replace("[", "[ ").replace("]", " ]"), id="spaced section"),
        pytest.param(lambda plain: plain.rstrip("\n"), id="no final newline"),
        pytest.param(
            lambda plain: plain[plain.index("[Peer]") :] + "\n" + plain[: plain.index("[Peer]")], id="peer first"
        ),
    ],
)
def test_layout_does_not_matter(form: object) -> None:
    """wg(8): "based on INI"; keys and sections compare without case, `#` starts a comment anywhere."""
    plain = text("Address = 10.0.0.2/32", "AllowedIPs = 10.0.0.0/8\n")
    assert callable(form)
    assert Config.from_string(form(plain)) == Config.from_string(plain)


def test_repeated_lines_append() -> None:
    """wg(8) AllowedIPs and wg-quick(8) Address, DNS: "may be specified multiple times"."""
    config = Config.from_string(
        text(
            "Address = 10.0.0.2/32\naddress = fd00::2\nDNS = 10.0.0.1\nDNS = a.example\nDNS = 10.0.0.3 b.example",
            "AllowedIPs = 10.0.0.0/8\nALLOWEDIPS = 192.168.0.0/16,fd00::/8",
        )
    )
    assert config.address == (ip_interface("10.0.0.2/32"), ip_interface("fd00::2/128"))
    assert config.dns == (ip_address("10.0.0.1"), ip_address("10.0.0.3"))
    assert config.dns_search == ("a.example", "b.example")
    assert config.peers[0].allowed_ips == tuple(map(ip_network, ("10.0.0.0/8", "192.168.0.0/16", "fd00::/8")))


def test_an_address_without_prefix_length_is_one_host() -> None:
    config = Config.from_string(text("Address = 10.0.0.2, fd00::2", "AllowedIPs = 10.0.0.1, fd00::1"))
    assert config.address == (ip_interface("10.0.0.2/32"), ip_interface("fd00::2/128"))
    assert config.peers[0].allowed_ips == (ip_network("10.0.0.1/32"), ip_network("fd00::1/128"))


def test_host_bits_of_allowed_ips_are_masked_off() -> None:
    """As wg(8) does; an interface's address keeps them."""
    config = Config.from_string(text("Address = 10.1.2.3/8", "AllowedIPs = 10.1.2.3/8, fd00:1::1/16"))
    assert config.peers[0].allowed_ips == (ip_network("10.0.0.0/8"), ip_network("fd00::/16"))
    assert str(config.address[0]) == "10.1.2.3/8"


def test_empty_lists_are_allowed() -> None:
    """wg(8): an empty AllowedIPs is no network."""
    config = Config.from_string(text("Address =\nDNS =", "AllowedIPs ="))
    assert (config.address, config.dns, config.peers[0].allowed_ips) == ((), (), ())


def test_several_peers_keep_their_order() -> None:
    config = Config.from_string(text(tail=f"[peer]\nPublicKey = {OTHER_PUBLIC}\nAllowedIPs = 10.0.0.0/8"))
    assert [peer.public_key for peer in config.peers] == [PeerConfig(key).public_key for key in (PUBLIC, OTHER_PUBLIC)]


@pytest.mark.parametrize(
    ("written", "endpoint", "shown"),
    [
        ("192.0.2.1:51820", Endpoint("192.0.2.1", 51820), "192.0.2.1:51820"),
        ("[2001:DB8::1]:51820", Endpoint("2001:db8::1", 51820), "[2001:db8::1]:51820"),
        ("[fe80::1%eth0]:1", Endpoint("fe80::1%eth0", 1), "[fe80::1%eth0]:1"),
        ("vpn.example.com:65535", Endpoint("vpn.example.com", 65535), "vpn.example.com:65535"),
        ("vpn.example.com.:51820", Endpoint("vpn.example.com.", 51820), "vpn.example.com.:51820"),
        ("my_server:51820", Endpoint("my_server", 51820), "my_server:51820"),
        ("bücher.example:51820", Endpoint("bücher.example", 51820), "bücher.example:51820"),
        ("2001:db8::1:51820", Endpoint("2001:db8::1", 51820), "[2001:db8::1]:51820"),
    ],
)
def test_an_endpoint_is_a_host_and_a_port(written: str, endpoint: Endpoint, shown: str) -> None:
    """wg(8) Endpoint: "an endpoint IP or hostname, followed by a colon, and then a port number"."""
    parsed = only_peer(text(peer=f"Endpoint = {written}")).endpoint
    assert parsed == endpoint
    assert str(parsed) == shown


@pytest.mark.parametrize(
    ("written", "complaint"),
    [
        ("vpn.example.com", "has no port"),
        ("vpn.example.com:", "has no port"),
        (":51820", "has no port"),
        ("", "has no port"),
        ("vpn.example.com:0", "port 0 is not a whole number 1..65535"),
        ("vpn.example.com:65536", "is not a whole number 1..65535"),
        ("vpn.example.com:+80", "is not a whole number 1..65535"),
        ("vpn.example.com:\u0661", "is not a whole number 1..65535"),
        ("10.0.0.256:51820", "is not an IPv4 or IPv6 address"),
        ("10.1:51820", "is not an IPv4 or IPv6 address"),
        ("0.0.0.0:51820", "is not the address of one host"),
        ("[ff02::1]:51820", "is not the address of one host"),
        ("[2001:db8::1]", "is not '[IPv6 address]:port'"),
        ("[2001:db8::1]51820", "is not '[IPv6 address]:port'"),
        ("[2001:db8::1:51820", "is not '[IPv6 address]:port'"),
        ("[vpn.example.com]:51820", "is not '[IPv6 address]:port'"),
        ("2001:db8::1:80", "write '[address]:port'"),
        ("2001:db8::1", "write '[address]:port'"),
        ("https://vpn.example.com:51820", "is not an IPv4 or IPv6 address"),
        ("vpn..example.com:51820", "neither an address nor a host name"),
        (f"{'a.' * 127}example:51820", "neither an address nor a host name"),
    ],
)
def test_a_bad_endpoint_says_what_is_wrong(written: str, complaint: str) -> None:
    error = error_of(text(peer=f"Endpoint = {written}"))
    assert complaint in str(error)
    assert (error.line, error.key) == (6, "Endpoint")


@pytest.mark.parametrize(
    ("written", "seconds"), [("off", 0), ("OFF", 0), ("0", 0), ("1", 1), ("25", 25), ("65535", 65535)]
)
def test_persistent_keepalive_is_seconds_or_off(written: str, seconds: int) -> None:
    """wg(8) PersistentKeepalive."""
    assert only_peer(text(peer=f"PersistentKeepalive = {written}")).persistent_keepalive == seconds


@pytest.mark.parametrize("written", ["65536", "-1", "on", "2.5", "", "1e3", "9" * 5000])
def test_any_other_persistent_keepalive_is_an_error(written: str) -> None:
    error = error_of(text(peer=f"PersistentKeepalive = {written}"))
    assert "whole number 0..65535 (seconds), nor 'off'" in str(error)


@pytest.mark.parametrize("mtu", [576, 1279, 1280, 65535])
def test_an_ipv4_mtu_is_576_to_65535(mtu: int) -> None:
    """RFC 791 3.1."""
    assert Config.from_string(text(f"Address = 10.0.0.2/32\nMTU = {mtu}")).mtu == mtu


@pytest.mark.parametrize("written", ["575", "65536", "auto", "", "-1"])
def test_any_other_mtu_is_an_error(written: str) -> None:
    error = error_of(text(f"MTU = {written}"))
    assert "is not a whole number 576..65535" in str(error)
    assert (error.line, error.key) == (3, "MTU")


def test_an_ipv6_address_needs_an_mtu_of_1280() -> None:
    """RFC 8200 5: every link carries 1280 bytes."""
    assert Config.from_string(text("Address = fd00::2\nMTU = 1280")).mtu == 1280
    error = error_of(text("MTU = 1279\nAddress = fd00::2"))
    assert str(error) == "wg0.conf:3: MTU: 1279 is below 1280, which an IPv6 address requires (RFC 8200 5)"


def test_listen_port_zero_is_any_free_port() -> None:
    """wg(8): "if not specified, or set to 0, the port will be chosen randomly"."""
    assert Config.from_string(text("ListenPort = 0")).listen_port is None
    assert "is not a whole number 0..65535" in str(error_of(text("ListenPort = 65536")))


@pytest.mark.parametrize("written", ["10.0.0.256", "1.2.3", "fd00::g", "::", "0.0.0.0", "224.0.0.1", "fe80::1%eth0"])
def test_what_looks_like_a_dns_address_must_be_one(written: str) -> None:
    """wg-quick(8) takes digits and dots, or a colon, for an address: a mistyped one is no search domain."""
    error = error_of(text(f"DNS = 10.0.0.1, {written}"))
    assert repr(written) in str(error)
    assert (error.line, error.key) == (3, "DNS")


@pytest.mark.parametrize("written", ["~04.0.0.1", "~10.0.0.1", ".10.0.0.1."])
def test_an_address_in_disguise_is_neither_resolver_nor_search_domain(written: str) -> None:
    """RFC 3696 2: a top-level domain is not all digits. Read twice, the second would have become a DNS server."""
    error = error_of(text(f"DNS = {written}"))
    assert (error.line, error.key) == (3, "DNS")
    with pytest.raises(ConfigError, match="search domain"):
        Config(PRIVATE, dns_search=written)


def test_search_domains_lose_their_dots_and_tildes() -> None:
    config = Config.from_string(text("DNS = 10.0.0.1, ~., Corp.Example., ~lab.example"))
    assert config.dns_search == ("corp.example", "lab.example")


@pytest.mark.parametrize("written", ["corp/example", "a..b", "x" * 64, "user@corp.example"])
def test_a_search_domain_is_a_host_name(written: str) -> None:
    assert "search domain" in str(error_of(text(f"DNS = {written}")))


def test_host_commands_are_named_once_and_never_executed(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    """They change the host's interfaces, routes and firewall; this package has none of these."""
    trace = tmp_path / "executed"
    Config.from_string(
        text(
            f"postup = touch {trace}; echo secret\nPreUp = touch {trace}\nPostDown = touch {trace}\n"
            f"PreDown = touch {trace}\nPostUp = again\nTable = off\nSaveConfig = true\nFwMark = 0x1"
        ),
        "wg0.conf",
    )
    assert not trace.exists()
    assert [record.getMessage() for record in caplog.records] == [
        "wg0.conf: ignored, and never executed: PostUp (line 3), PreUp (line 4), PostDown (line 5), "
        "PreDown (line 6), PostUp (line 7), Table (line 8), SaveConfig (line 9), FwMark (line 10)"
    ]
    assert caplog.records[0].levelno == logging.WARNING
    assert caplog.records[0].name == "httpx_wireguard.config"


def test_an_ordinary_file_logs_nothing(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    Config.from_string(text("Address = 10.0.0.2", "AllowedIPs = 0.0.0.0/0"))
    assert not caplog.records


def test_an_unknown_key_names_its_nearest_neighbour() -> None:
    assert str(error_of(text(peer="AllowedIPss = 10.0.0.0/8"))) == (
        "wg0.conf:6: AllowedIPss: unknown key; did you mean AllowedIPs? "
        "[Peer] takes PublicKey, AllowedIPs, Endpoint, PresharedKey, PersistentKeepalive"
    )
    assert "did you mean PostUp?" in str(error_of(text("PostUpp = x")))
    assert "did you mean" not in str(error_of(text("Jc = 4")))


@pytest.mark.parametrize(
    ("interface", "peer", "problem"),
    [
        ("Endpoint = 192.0.2.1:51820", "", "wg0.conf:3: Endpoint: belongs in the [Peer] section, not in [Interface]"),
        ("", "Address = 10.0.0.2", "wg0.conf:6: Address: belongs in the [Interface] section, not in [Peer]"),
        ("", "PostUp = true", "wg0.conf:6: PostUp: belongs in the [Interface] section, not in [Peer]"),
    ],
)
def test_a_key_in_the_wrong_section_names_the_right_one(interface: str, peer: str, problem: str) -> None:
    assert str(error_of(text(interface, peer))) == problem


@pytest.mark.parametrize(
    ("configuration", "line", "problem"),
    [
        ("", None, "no [Interface] section"),
        ("# nothing\n\n", None, "no [Interface] section"),
        (f"[Peer]\nPublicKey = {PUBLIC}", None, "no [Interface] section"),
        ("PrivateKey = x", 1, "a key before any section"),
        ("[Interface]\nAddress = 10.0.0.2", 1, "PrivateKey: missing in this [Interface] section"),
        (text(tail="[Peer]\nAllowedIPs = 10.0.0.0/8"), 7, "PublicKey: missing in this [Peer] section"),
        (text(tail="[Interface]"), 7, "a second [Interface] section, after the one in line 1"),
        (text(tail="[Peers]"), 7, "'[Peers]' is no section; there are [Interface] and [Peer]"),
        (text(tail="[Peer"), 7, "'[Peer' is no section"),
        (text("Address 10.0.0.2"), 3, "neither a section nor 'Key = value'"),
        (text("; a comment of another INI dialect"), 3, "neither a section nor 'Key = value'"),
    ],
)
def test_a_file_of_the_wrong_shape_is_an_error(configuration: str, line: int | None, problem: str) -> None:
    error = error_of(configuration)
    assert problem in str(error)
    assert (error.source, error.line) == ("wg0.conf", line)


@pytest.mark.parametrize(
    ("interface", "peer", "key", "line", "first"),
    [
        (f"PrivateKey = {PRIVATE}", "", "PrivateKey", 3, 2),
        ("MTU = 1400\nmtu = 1400", "", "mtu", 4, 3),
        ("", f"PublicKey = {PUBLIC}", "PublicKey", 6, 5),
        ("", "Endpoint = a:1\nEndpoint = b:1", "Endpoint", 7, 6),
    ],
)
def test_a_single_value_may_be_given_once(interface: str, peer: str, key: str, line: int, first: int) -> None:
    error = error_of(text(interface, peer))
    assert str(error) == f"wg0.conf:{line}: {key}: already given in line {first}; it takes one value"


@pytest.mark.parametrize(
    "name", ["10.0.0.0/33", "fd00::/129", "10.0.0.0/255.0.0.0", "10.0.0.0/", "10.0.0", "host", "fe80::1%a/64"]
)
def test_a_bad_network_is_quoted_with_an_example(name: str) -> None:
    """wg(8) takes a prefix length only, no netmask."""
    error = error_of(text(peer=f"AllowedIPs = 10.0.0.0/8\nAllowedIPs = 10.0.0.1, {name}"))
    assert str(error) == (
        f"wg0.conf:7: AllowedIPs: {name!r} is not an IPv4 or IPv6 network such as 10.0.0.0/8 or fd00::/8"
    )


@pytest.mark.parametrize(
    "name", ["10.0.0.2/33", "fd00::2/129", "10.0.0.2/255.0.0.0", "::", "0.0.0.0/0", "224.0.0.1", "ff02::1"]
)
def test_a_bad_interface_address_is_an_error(name: str) -> None:
    error = error_of(text(f"Address = {name}"))
    assert repr(name) in str(error)
    assert (error.line, error.key) == (3, "Address")


@pytest.mark.parametrize(
    ("key", "complaint"),
    [
        (PUBLIC[:-2], "44 characters of base64 (32 bytes), not 42 characters"),
        (PUBLIC + "=", "44 characters of base64 (32 bytes), not 45 characters"),
        ("", "not 0 characters"),
        (PUBLIC[:-1] + "A", "not base64"),
        ("-" + PUBLIC[1:], "not base64"),
        ("é" + PUBLIC[1:], "not base64"),
        (PUBLIC[:-2] + "d=", "not the base64 of 32 bytes"),
    ],
)
@pytest.mark.parametrize("name", ["PrivateKey", "PublicKey", "PresharedKey"])
def test_a_bad_key_is_described_but_never_shown(name: str, key: str, complaint: str) -> None:
    """RFC 4648 3.3 and 3.5: no foreign characters, no stray bits."""
    configuration = {
        "PrivateKey": f"[Interface]\nPrivateKey = {key}",
        "PublicKey": f"[Interface]\nPrivateKey = {PRIVATE}\n[Peer]\nPublicKey = {key}",
        "PresharedKey": text(peer=f"PresharedKey = {key}"),
    }[name]
    error = error_of(configuration)
    assert complaint in str(error)
    assert error.key == name
    assert not key or key not in "".join(traceback.format_exception(error))


@pytest.mark.parametrize("top_bit", [0, 0x80])
@pytest.mark.parametrize("point", LOW_ORDER_POINTS)
def test_a_public_key_of_low_order_is_refused(point: str, top_bit: int) -> None:
    """RFC 7748 6.1: the shared secret would be zero. RFC 7748 5: the top bit of the encoding is ignored."""
    key = bytearray.fromhex(point)
    key[31] |= top_bit
    with pytest.raises(ConfigError, match="low order"):
        PeerConfig(bytes(key))


def test_an_all_zero_private_key_is_refused() -> None:
    error = error_of(text().replace(PRIVATE, "A" * 43 + "="))
    assert (error.line, error.key) == (2, "PrivateKey")
    assert "all zeros" in str(error)


def test_this_sides_own_public_key_is_no_peer() -> None:
    from httpx_wireguard._wireguard.crypto import PrivateKey

    own = PrivateKey(SecretKey(PRIVATE).reveal()).public
    with pytest.raises(ConfigError, match="own private key") as caught:
        Config(PRIVATE, peers=[PeerConfig(PUBLIC), PeerConfig(own)])
    assert caught.value.key == "public_key"


def test_two_peers_may_not_share_a_public_key() -> None:
    error = error_of(text(tail=f"[Peer]\nAllowedIPs = 10.0.0.0/8\nPublicKey = {PUBLIC}"))
    assert str(error) == (
        "wg0.conf:9: PublicKey: peer 2 has the same public key as peer 1; give a key to one peer only"
    )


@pytest.mark.parametrize(
    "configuration",
    [
        f"[Interface]\n{PRIVATE}",
        f"[Interface]\n{PRIVATE[:20]}\n{PRIVATE[20:]}",
        f"[{PRIVATE}]",
        f"[Interface]\nPrivate Key {PRIVATE}",
        f"{PRIVATE}\n[Interface]",
        text(f"PrivateKey = {PRESHARED}").replace(PRESHARED, PRIVATE),
        text(f"Address = {PRIVATE}"),
        text(f"DNS = {PRIVATE}"),
        text(f"MTU = {PRIVATE}"),
        text(f"Foo = {PRIVATE}"),
        text(peer=f"Endpoint = {PRIVATE}:51820"),
        text(peer=f"AllowedIPs = 10.0.0.0/8, {PRIVATE}"),
        text(peer=f"PersistentKeepalive = {PRIVATE}"),
    ],
)
def test_a_private_key_in_the_wrong_place_is_not_repeated(configuration: str) -> None:
    shown = "".join(traceback.format_exception(error_of(configuration)))
    assert PRIVATE not in shown
    assert PRIVATE[20:].rstrip("=") not in shown


def test_a_long_value_is_quoted_in_part() -> None:
    problem = error_of(text("DNS = " + "a." * 5000)).problem
    assert "a.a.a..." in problem
    assert len(problem) < 200


def test_a_file_error_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "wg0.conf"
    path.write_text(text("MTU = 1"))
    path.chmod(0o600)
    with pytest.raises(ConfigError) as caught:
        Config.from_file(path)
    assert str(caught.value).startswith(f"{path}:3: MTU: ")
    assert caught.value.source == str(path)


def test_a_file_reads_like_its_text(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "wg0.conf"
    path.write_bytes(b"\xef\xbb\xbf" + text("# Büro\r\nAddress = 10.0.0.2").encode())
    path.chmod(0o600)
    assert Config.from_file(str(path)) == Config.from_string(text("Address = 10.0.0.2"))
    assert not caplog.records


def test_a_file_that_is_not_utf_8_is_an_error_without_its_content(tmp_path: Path) -> None:
    path = tmp_path / "wg0.conf"
    path.write_bytes(text("# B\xfcro").encode("latin-1"))
    path.chmod(0o600)
    with pytest.raises(ConfigError, match="UTF-8") as caught:
        Config.from_file(path)
    assert caught.value.line == 3
    assert caught.value.__context__ is None


def test_a_missing_file_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Config.from_file(tmp_path / "none.conf")


@pytest.mark.skipif(os.name != "posix", reason="file modes are a POSIX notion")
@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644])
def test_a_file_open_to_others_is_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture, mode: int) -> None:
    """wg-quick(8): "is world accessible"; here also for the group."""
    path = tmp_path / "wg0.conf"
    path.write_text(text())
    path.chmod(mode)
    Config.from_file(path)
    (record,) = caplog.records
    assert record.getMessage() == (
        f"{path} holds a private key and is accessible by group or others (mode {mode:04o}): chmod 600 it"
    )


def test_a_hand_built_configuration_equals_a_parsed_one() -> None:
    built = Config(
        SecretKey(PRIVATE).reveal(),
        address=["10.0.0.2/32", ip_address("fd00::2")],
        peers=[
            PeerConfig(
                SecretKey(PUBLIC).reveal(),
                [ip_network("10.0.0.0/8"), ip_address("fd00::1"), ip_interface("192.168.1.1/24")],
                Endpoint("192.0.2.1", 51820),
                SecretKey(PRESHARED),
                "off",
            )
        ],
        dns=[ip_address("10.0.0.1"), "corp.example"],
        dns_search="lab.example",
    )
    assert built == Config.from_string(
        text(
            "Address = 10.0.0.2/32, fd00::2/128\nDNS = 10.0.0.1, corp.example, lab.example",
            "AllowedIPs = 10.0.0.0/8, fd00::1/128, 192.168.1.0/24\nEndpoint = 192.0.2.1:51820\n"
            f"PresharedKey = {PRESHARED}",
        )
    )


def test_one_network_object_is_not_taken_for_its_hosts() -> None:
    """`IPv4Network` is iterable, over 16 million hosts here."""
    assert PeerConfig(PUBLIC, ip_network("10.0.0.0/8")).allowed_ips == (ip_network("10.0.0.0/8"),)


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"mtu": 575}, "mtu: 575 is not a whole number 576..65535"),
        ({"mtu": True}, "mtu: True is not a whole number 576..65535"),
        ({"mtu": 1400.0}, "mtu: '<float>' is not a whole number 576..65535"),
        ({"address": "fd00::2", "mtu": 1000}, "mtu: 1000 is below 1280, which an IPv6 address requires (RFC 8200 5)"),
        ({"listen_port": -1}, "listen_port: -1 is not a whole number 0..65535"),
        ({"private_key": b"short"}, "private_key: a key is 32 bytes, not 5"),
        ({"private_key": None}, "private_key: a key is 44 characters of base64, or 32 bytes"),
        ({"address": 5}, "address: takes text or a sequence, not int"),
        (
            {"address": b"10.0.0.2"},
            "address: '<int>' is not an IPv4 or IPv6 address such as 10.0.0.2/32 or fd00::2/128",
        ),
        ({"dns_search": [None]}, "dns_search: '<NoneType>' is not a search domain"),
        (
            {"peers": [PeerConfig(PUBLIC), PeerConfig(PUBLIC)]},
            "public_key: peer 2 has the same public key as peer 1; give a key to one peer only",
        ),
    ],
)
def test_a_hand_built_configuration_is_held_to_the_same_rules(arguments: dict[str, object], problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Config(**{"private_key": PRIVATE, **arguments})  # type: ignore[arg-type]  # wrong types are the point
    assert str(caught.value) == problem
    assert (caught.value.source, caught.value.line) == (None, None)


@pytest.mark.parametrize("endpoint", [Endpoint("vpn.example.com", 0), Endpoint("a b", 1), 51820, ("::", 1)])
def test_a_hand_built_endpoint_is_checked(endpoint: object) -> None:
    with pytest.raises(ConfigError, match="endpoint: "):
        PeerConfig(PUBLIC, endpoint=endpoint)  # type: ignore[arg-type]  # wrong types are the point


def test_configurations_do_not_change() -> None:
    config = Config.from_string(text())
    with pytest.raises(AttributeError):
        config.mtu = 1300  # type: ignore[misc]  # frozen: the point of the test
    with pytest.raises(AttributeError):
        config.peers[0].endpoint = None  # type: ignore[misc]  # frozen: the point of the test


def test_a_secret_key_does_not_show_itself() -> None:
    raw = SecretKey(PRIVATE).reveal()
    config = Config(PRIVATE, peers=[PeerConfig(PUBLIC, preshared_key=PRESHARED)])
    key = config.private_key
    shown = f"{key} {key!r} {key!s:>40} {config} {config!r} {config.peers[0]}"
    for secret in (PRIVATE, PRESHARED, raw.hex(), raw.decode(), repr(raw)):
        assert secret not in shown
    assert PUBLIC in shown


def test_a_secret_key_has_no_attribute_dictionary_and_no_pickle() -> None:
    key = SecretKey(PRIVATE)
    with pytest.raises(TypeError):
        vars(key)
    with pytest.raises(TypeError, match="cannot be pickled") as caught:
        pickle.dumps(Config(PRIVATE))
    assert PRIVATE not in str(caught.value)


def test_a_secret_key_compares_by_value_and_copies_as_itself() -> None:
    key = SecretKey(PRIVATE)
    assert key == SecretKey(key.reveal())
    assert hash(key) == hash(SecretKey(key.reveal()))
    assert key != SecretKey(PRESHARED)
    assert key != key.reveal()
    assert copy.copy(key) is key
    assert copy.deepcopy(Config(PRIVATE)) == Config(PRIVATE)


def test_a_bad_secret_key_is_a_config_error() -> None:
    with pytest.raises(ConfigError, match="a key is 44 characters"):
        SecretKey("nonsense")


def test_the_list_of_the_linux_self_test_parses_in_seconds() -> None:
    """netns.sh configures 255 * 256 allowed IPs of each family on one peer: in quadratic time that takes minutes."""
    lines = [f"AllowedIPs = {','.join(f'10.{a}.{b}.0/24' for b in range(256))}" for a in range(255)]
    configuration = text(peer="\n".join(lines))
    started = time.process_time()
    peer = only_peer(configuration)
    assert time.process_time() - started < 20
    assert len(peer.allowed_ips) == 255 * 256
