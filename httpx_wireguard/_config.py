"""WireGuard configuration: a wg-quick file, the same text from anywhere, or objects built by hand.

One set of rules serves all three: each value is read by one function below, whether it comes as text or as
an object; only the parser at the end knows of lines. No message repeats a private or preshared key.

The format is wg(8) "CONFIGURATION FILE FORMAT" with the additions of wg-quick(8).
"""

from __future__ import annotations

import base64
import hmac
import logging
import os
import re
import stat
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, Self, TypeVar

from httpx_wireguard._errors import ConfigError

__all__ = ["Config", "Endpoint", "PeerConfig", "SecretKey"]

IPAddress = IPv4Address | IPv6Address
IPInterface = IPv4Interface | IPv6Interface
IPNetwork = IPv4Network | IPv6Network

KEY_SIZE = 32  # bytes; WireGuard paper 5.4: Curve25519 keys and the preshared key alike
PORT_MAX = 65_535  # RFC 768: a 16-bit field
KEEPALIVE_MAX = 65_535  # seconds; wg(8) PersistentKeepalive
MTU_DEFAULT = 1420  # bytes; 1500 less the outer IPv6, UDP and WireGuard headers (80)
MTU_MIN_IPV4 = 576  # bytes; RFC 791 3.1: what every host must accept
MTU_MIN_IPV6 = 1280  # bytes; RFC 8200 5: every link of an IPv6 path carries this much
MTU_MAX = 65_535  # bytes; RFC 791 3.1: Total Length is 16 bits

# RFC 7748 6.1: a public key in the small subgroup makes the shared secret all zeros, whoever knows what. These
# are all residues of order 1, 2, 4 and 8 on Curve25519 and its twist; the seven well-known encodings, and
# their aliases with the unused top bit set, reduce to them.
FIELD_PRIME = 2**255 - 19
ORDER_8_POINTS = (
    325606250916557431795983626356110631294008115727848805560023387167927233504,
    39382357235489614581723060781553021112529911719440698176882885853963445705823,
)
LOW_ORDER_POINTS = frozenset({0, 1, FIELD_PRIME - 1, *ORDER_8_POINTS})

# Our own limits.
QUOTE_MAX = 64  # characters of the user's text that a message repeats
SECRET_LIKE_RUN = 24  # a longer run of base64 or hex digits may be a misplaced key: never repeated

_BASE64_KEY = re.compile(r"[A-Za-z0-9+/]{43}=")
_DIGITS = re.compile(r"[0-9]{1,10}")
_DOTTED = re.compile(r"[0-9.]+")
_KEY_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,31}")
_SECRET_LIKE = re.compile(rf"[A-Za-z0-9+/=]{{{SECRET_LIKE_RUN},}}")
_HOST_LABEL = re.compile(r"[\w-]{1,63}")  # RFC 1035 2.3.4 for the length; underscores and IDNs do occur
_HOST_MAX = 253  # characters; RFC 1035 2.3.4, as text

_logger = logging.getLogger("httpx_wireguard.config")
_T = TypeVar("_T")


class SecretKey:
    """A private or preshared key that does not show itself: not in text, not in a pickle, not in `vars()`.

    Args:
        key: 44 characters of base64, or the 32 bytes.

    Raises:
        ConfigError: `key` is neither.
    """

    __slots__ = ("_raw",)

    def __init__(self, key: str | bytes) -> None:
        self._raw: bytes = _convert(_key_bytes, key)

    def reveal(self) -> bytes:
        """The 32 bytes themselves, as given: X25519 clamps a private key when it uses it."""
        return self._raw

    def __repr__(self) -> str:
        return "SecretKey(<redacted>)"

    def __format__(self, format_spec: str) -> str:
        return format(repr(self), format_spec)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, SecretKey):
            return NotImplemented
        return hmac.compare_digest(self._raw, other._raw)

    def __hash__(self) -> int:
        return hash((SecretKey, self._raw))

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: object) -> Self:
        return self

    def __reduce__(self) -> NoReturn:
        raise TypeError("a SecretKey cannot be pickled: pass the configuration's path to the other process")


class Endpoint(NamedTuple):
    """Where a peer receives encrypted datagrams.

    `host` is a name, an IPv4 address, or an IPv6 address without brackets and possibly with a `%` zone.
    """

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True, init=False, repr=False)
class PeerConfig:
    """One peer: a wg-quick `[Peer]` section.

    Args:
        public_key: 44 characters of base64, or the 32 bytes.
        allowed_ips: networks, as objects or text ("10.0.0.0/8, ::/0"). Host bits are masked off, as wg(8) does.
        endpoint: "host:port", "[IPv6 address]:port", or an `Endpoint`. None: the peer must speak first.
        preshared_key: mixed into the handshake (WireGuard paper 5.4).
        persistent_keepalive: seconds between empty packets that keep a NAT mapping; 0 or "off" for none.

    Raises:
        ConfigError: a value cannot work; the error's `key` is the argument's name.
    """

    public_key: bytes
    allowed_ips: tuple[IPNetwork, ...]
    endpoint: Endpoint | None
    preshared_key: SecretKey | None
    persistent_keepalive: int

    def __init__(
        self,
        public_key: str | bytes,
        allowed_ips: str | Iterable[str | IPNetwork | IPAddress] = (),
        endpoint: str | Endpoint | None = None,
        preshared_key: str | bytes | SecretKey | None = None,
        persistent_keepalive: int | str = 0,
    ) -> None:
        _set(self, "public_key", _convert(_public_key, public_key, key="public_key"))
        _set(self, "allowed_ips", _convert_each(_network, allowed_ips, key="allowed_ips"))
        _set(self, "endpoint", _convert(_endpoint, endpoint, key="endpoint"))
        _set(self, "preshared_key", _convert(_preshared_key, preshared_key, key="preshared_key"))
        _set(self, "persistent_keepalive", _convert(_keepalive, persistent_keepalive, key="persistent_keepalive"))

    def __repr__(self) -> str:
        allowed = ", ".join(map(str, self.allowed_ips[:4])) + (", ..." if len(self.allowed_ips) > 4 else "")
        endpoint = None if self.endpoint is None else str(self.endpoint)
        return (
            f"PeerConfig(public_key={base64.b64encode(self.public_key).decode()!r}, allowed_ips={allowed!r}, "
            f"endpoint={endpoint!r}, preshared_key={self.preshared_key!r}, "
            f"persistent_keepalive={self.persistent_keepalive})"
        )


@dataclass(frozen=True, slots=True, init=False)
class Config:
    """One WireGuard interface and its peers: a wg-quick file.

    Args:
        private_key: 44 characters of base64, or the 32 bytes.
        address: the interface's own addresses inside the tunnel, as objects or text; without a prefix
            length, /32 or /128.
        peers: each with a public key of its own.
        dns: resolvers inside the tunnel; entries that are not addresses are search domains, as in wg-quick.
        dns_search: further search domains.
        mtu: the largest inner packet, bytes. 576..65535, and at least 1280 with an IPv6 address.
        listen_port: the local UDP port; None or 0: any free one.

    Raises:
        ConfigError: a value cannot work, or two contradict each other; the error's `key` names the argument.
    """

    private_key: SecretKey
    address: tuple[IPInterface, ...]
    peers: tuple[PeerConfig, ...]
    dns: tuple[IPAddress, ...]
    dns_search: tuple[str, ...]
    mtu: int
    listen_port: int | None

    def __init__(
        self,
        private_key: str | bytes | SecretKey,
        address: str | Iterable[str | IPAddress] = (),
        peers: Iterable[PeerConfig] = (),
        dns: str | Iterable[str | IPAddress] = (),
        dns_search: str | Iterable[str] = (),
        mtu: int | str = MTU_DEFAULT,
        listen_port: int | str | None = None,
    ) -> None:
        resolvers = _convert_each(_dns_entry, dns, key="dns")
        domains = _convert_each(_search_domain, dns_search, key="dns_search")
        _set(self, "private_key", _convert(_private_key, private_key, key="private_key"))
        _set(self, "address", _convert_each(_interface, address, key="address"))
        _set(self, "peers", tuple(peers))
        _set(self, "dns", tuple(entry for entry in resolvers if not isinstance(entry, str)))
        _set(self, "dns_search", tuple(entry for entry in (*resolvers, *domains) if isinstance(entry, str) and entry))
        _set(self, "mtu", _convert(_mtu, mtu, key="mtu"))
        _set(self, "listen_port", _convert(_listen_port, listen_port, key="listen_port"))
        conflict = _find_conflict(self.private_key, self.address, self.mtu, self.peers)
        if conflict is not None:
            raise ConfigError(conflict.problem, key=conflict.attribute)

    @classmethod
    def from_file(cls, path: str | os.PathLike[str]) -> Self:
        """Read a wg-quick file. Its commands (`PostUp` and the like) are never executed.

        Logs a warning when the file is open to others than its owner, as wg-quick(8) does.

        Raises:
            ConfigError: with file, line, key and what is allowed.
            OSError: the file cannot be read.
        """
        source = os.fspath(path)
        with Path(path).open("rb") as file:
            status = os.fstat(file.fileno())
            data = file.read()
        if os.name == "posix" and stat.S_ISREG(status.st_mode) and status.st_mode & 0o077:
            _logger.warning(
                "%s holds a private key and is accessible by group or others (mode %04o): chmod 600 it",
                source,
                stat.S_IMODE(status.st_mode),
            )
        return cls.from_string(_decode(data, source), source)

    @classmethod
    def from_string(cls, text: str, source: str = "<string>") -> Self:
        """Read the text of a wg-quick file; `source` stands for the file's name in messages.

        Raises:
            ConfigError: with source, line, key and what is allowed.
        """
        parser = _Parser(source)
        for number, line in enumerate(text.removeprefix("\ufeff").split("\n"), start=1):
            parser.read_line(number, line)
        return cls(**parser.take_arguments())


def _decode(data: bytes, source: str) -> str:
    """UTF-8 with or without a byte order mark. The decoder's own error would carry the file's content: dropped."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
    raise ConfigError("not UTF-8 text; save the file as UTF-8", source=source, line=line)


# What contradicts what, across values.


class _Conflict(NamedTuple):
    attribute: str
    peer: int | None  # index into the peers; None: of the interface itself
    problem: str


def _find_conflict(
    private_key: SecretKey, address: Sequence[IPInterface], mtu: int, peers: Sequence[PeerConfig]
) -> _Conflict | None:
    if mtu < MTU_MIN_IPV6 and any(interface.version == 6 for interface in address):
        return _Conflict("mtu", None, f"{mtu} is below {MTU_MIN_IPV6}, which an IPv6 address requires (RFC 8200 5)")
    own = _own_public_key(private_key) if peers else b""
    seen: dict[bytes, int] = {}
    for index, peer in enumerate(peers):
        if peer.public_key == own:
            problem = "belongs to this side's own private key; it must be the other side's public key"
            return _Conflict("public_key", index, problem)
        first = seen.setdefault(peer.public_key, index)
        if first != index:
            problem = f"peer {index + 1} has the same public key as peer {first + 1}; give a key to one peer only"
            return _Conflict("public_key", index, problem)
    return None


def _own_public_key(private_key: SecretKey) -> bytes:
    # Here, not above: reading a configuration's shape must not need the protocol's modules, which import this one.
    from httpx_wireguard._wireguard.crypto import PrivateKey

    return PrivateKey(private_key.reveal()).public


# One reader per kind of value. Each takes text or the finished object, and raises _Problem: what is wrong and
# what is allowed, without the place.


class _Problem(ValueError):
    """What is wrong with one value, and what is allowed."""


def _set(target: object, name: str, value: object) -> None:
    object.__setattr__(target, name, value)  # the dataclasses are frozen for everyone else


def _convert(
    read: Callable[[Any], _T],
    value: object,
    *,
    key: str | None = None,
    source: str | None = None,
    line: int | None = None,
) -> _T:
    try:
        return read(value)
    except _Problem as problem:
        raise ConfigError(str(problem), key=key, source=source, line=line) from None


def _convert_each(
    read: Callable[[Any], _T],
    values: object,
    *,
    key: str | None = None,
    source: str | None = None,
    line: int | None = None,
) -> tuple[_T, ...]:
    """Read each item, in order; equal ones count once."""
    items = _convert(_items, values, key=key, source=source, line=line)
    return tuple(dict.fromkeys(_convert(read, item, key=key, source=source, line=line) for item in items))


def _items(values: object) -> Iterable[object]:
    if isinstance(values, str):
        return values.replace(",", " ").split()  # wg-quick(8): commas, or white space
    if isinstance(values, IPAddress | IPNetwork):  # networks are iterable: over their hosts
        return (values,)
    if isinstance(values, Iterable):
        return values
    raise _Problem(f"takes text or a sequence, not {type(values).__name__}")


def _shown(value: object) -> str:
    """The user's value for a message: short, printable, and without what may be a misplaced key."""
    text = _SECRET_LIKE.sub("<redacted>", value) if isinstance(value, str) else f"<{type(value).__name__}>"
    return repr(text if len(text) <= QUOTE_MAX else text[:QUOTE_MAX] + "...")


def _key_bytes(value: str | bytes) -> bytes:
    if isinstance(value, bytes | bytearray | memoryview):
        if len(value) == KEY_SIZE:
            return bytes(value)
        raise _Problem(f"a key is {KEY_SIZE} bytes, not {len(value)}")
    if not isinstance(value, str):
        raise _Problem(f"a key is 44 characters of base64, or {KEY_SIZE} bytes")
    if len(value) != 44:
        raise _Problem(f"a key is 44 characters of base64 ({KEY_SIZE} bytes), not {len(value)} characters")
    if not _BASE64_KEY.fullmatch(value):
        raise _Problem("not base64: a key is 43 characters out of A-Z a-z 0-9 + / and then one '='")
    raw = base64.b64decode(value)
    if base64.b64encode(raw).decode() != value:
        raise _Problem("not the base64 of 32 bytes: the last character before '=' is wrong (RFC 4648 3.5)")
    return raw


def _private_key(value: str | bytes | SecretKey) -> SecretKey:
    key = value if isinstance(value, SecretKey) else SecretKey(_key_bytes(value))
    if not any(key.reveal()):
        raise _Problem("all zeros is no key; make one with `wg genkey`")
    return key


def _preshared_key(value: str | bytes | SecretKey | None) -> SecretKey | None:
    if value is None or isinstance(value, SecretKey):
        return value
    return SecretKey(_key_bytes(value))


def _public_key(value: str | bytes) -> bytes:
    raw = _key_bytes(value)
    masked = int.from_bytes(raw, "little") % 2**255  # RFC 7748 5: the top bit is ignored
    if masked % FIELD_PRIME in LOW_ORDER_POINTS:
        raise _Problem("a point of low order, which no private key has: traffic would be readable by anyone")
    return raw


def _integer(value: object, low: int, high: int) -> int:
    if isinstance(value, str) and _DIGITS.fullmatch(value):
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool) and low <= value <= high:
        return value
    shown = value if isinstance(value, int) else _shown(value)
    raise _Problem(f"{shown} is not a whole number {low}..{high}")


def _mtu(value: object) -> int:
    return _integer(value, MTU_MIN_IPV4, MTU_MAX)


def _listen_port(value: object) -> int | None:
    """wg(8): 0 is "chosen randomly", as if not given."""
    return None if value is None else _integer(value, 0, PORT_MAX) or None


def _keepalive(value: object) -> int:
    if isinstance(value, str) and value.lower() == "off":
        return 0
    try:
        return _integer(value, 0, KEEPALIVE_MAX)
    except _Problem as problem:
        raise _Problem(f"{problem} (seconds), nor 'off'") from None


def _cidr(value: object, example: str) -> str:
    """Text with at most a prefix length behind the slash; `ipaddress` alone would take a netmask as well."""
    if isinstance(value, str):
        address, slash, length = value.partition("/")
        if "%" not in address and (not slash or _DIGITS.fullmatch(length)):
            return value
    raise _Problem(f"{_shown(value)} is not an IPv4 or IPv6 {example}")


def _network(value: object) -> IPNetwork:
    if isinstance(value, IPv4Network | IPv6Network):
        return value
    if isinstance(value, IPv4Interface | IPv6Interface):
        return value.network
    text = str(value) if isinstance(value, IPv4Address | IPv6Address) else value
    example = "network such as 10.0.0.0/8 or fd00::/8"
    cidr = _cidr(text, example)
    try:
        return IPv6Network(cidr, strict=False) if ":" in cidr else IPv4Network(cidr, strict=False)
    except ValueError:
        raise _Problem(f"{_shown(cidr)} is not an IPv4 or IPv6 {example}") from None


def _interface(value: object) -> IPInterface:
    text = str(value) if isinstance(value, IPv4Address | IPv6Address) else value
    example = "address such as 10.0.0.2/32 or fd00::2/128"
    cidr = _cidr(text, example)
    try:
        interface = IPv6Interface(cidr) if ":" in cidr else IPv4Interface(cidr)
    except ValueError:
        raise _Problem(f"{_shown(cidr)} is not an IPv4 or IPv6 {example}") from None
    if interface.ip.is_unspecified or interface.ip.is_multicast:
        raise _Problem(f"{_shown(cidr)} cannot be an interface's own address; it takes a unicast one")
    return interface


def _ip(text: str) -> IPAddress:
    """A unicast address; an IPv6 one may have a zone (RFC 4007 11)."""
    try:
        ip = IPv6Address(text) if ":" in text else IPv4Address(text)
    except ValueError:
        raise _Problem(f"{_shown(text)} is not an IPv4 or IPv6 address") from None
    if ip.is_unspecified or ip.is_multicast:
        raise _Problem(f"{_shown(text)} is not the address of one host")
    return ip


def _dns_entry(value: object) -> IPAddress | str:
    """wg-quick(8): what looks like an address is one, everything else is a search domain."""
    if isinstance(value, IPv4Address | IPv6Address):
        return value
    if isinstance(value, str) and (":" in value or _DOTTED.fullmatch(value)):
        if "%" in value:
            raise _Problem(f"{_shown(value)} has a zone, which means nothing inside the tunnel")
        return _ip(value)
    return _search_domain(value)


def _search_domain(value: object) -> str:
    """A domain without its final dot; "" for the root. systemd's "~" in front (use for routing only) is dropped."""
    if not isinstance(value, str):
        raise _Problem(f"{_shown(value)} is not a search domain")
    domain = value.removeprefix("~").strip(".").lower()
    if domain and (_DOTTED.fullmatch(domain) or not _is_host_name(domain)):  # RFC 3696 2: no TLD is digits
        raise _Problem(f"{_shown(value)} is neither an IPv4 or IPv6 address nor a search domain")
    return domain


def _is_host_name(text: str) -> bool:
    return len(text) <= _HOST_MAX and all(_HOST_LABEL.fullmatch(label) for label in text.split("."))


def _endpoint(value: object) -> Endpoint | None:
    if value is None:
        return None
    if isinstance(value, str):
        host, port = _split_endpoint(value)
    elif isinstance(value, tuple) and len(value) == 2 and isinstance(value[0], str):
        host, port = value[0], str(value[1])
    else:
        raise _Problem(f"{_shown(value)} is not 'host:port'")
    if ":" in host or _DOTTED.fullmatch(host):
        host = str(_ip(host))
    elif not _is_host_name(host.removesuffix(".")):
        raise _Problem(f"{_shown(host)} is neither an address nor a host name")
    try:
        return Endpoint(host, _integer(port, 1, PORT_MAX))
    except _Problem as problem:
        raise _Problem(f"port {problem}") from None


def _split_endpoint(text: str) -> tuple[str, str]:
    """At the last colon, as wg(8) does, or behind the bracket."""
    if text.startswith("["):
        host, _, port = text[1:].partition("]:")
        if ":" in host and port:
            return host, port
        raise _Problem(f"{_shown(text)} is not '[IPv6 address]:port'")
    host, colon, port = text.rpartition(":")
    if not (host and colon and port):
        raise _Problem(f"{_shown(text)} has no port: it takes 'host:port', such as vpn.example.com:51820")
    if ":" in host and _is_ipv6(text):
        raise _Problem(f"{_shown(text)} may or may not end in a port: write '[address]:port'")
    return host, port


def _is_ipv6(text: str) -> bool:
    try:
        IPv6Address(text)
    except ValueError:
        return False
    return True


# The file format.


class _Field(NamedTuple):
    name: str  # as wg(8) and wg-quick(8) spell it
    attribute: str
    read: Callable[[Any], Any]
    repeats: bool = False  # further lines, and items behind commas, append


def _table(*fields: _Field) -> dict[str, _Field]:
    return {field.name.lower(): field for field in fields}


_FIELDS = {
    "Interface": _table(
        _Field("PrivateKey", "private_key", _private_key),
        _Field("Address", "address", _interface, repeats=True),
        _Field("DNS", "dns", _dns_entry, repeats=True),
        _Field("MTU", "mtu", _mtu),
        _Field("ListenPort", "listen_port", _listen_port),
    ),
    "Peer": _table(
        _Field("PublicKey", "public_key", _public_key),
        _Field("AllowedIPs", "allowed_ips", _network, repeats=True),
        _Field("Endpoint", "endpoint", _endpoint),
        _Field("PresharedKey", "preshared_key", _preshared_key),
        _Field("PersistentKeepalive", "persistent_keepalive", _keepalive),
    ),
}
_REQUIRED = {"Interface": _FIELDS["Interface"]["privatekey"], "Peer": _FIELDS["Peer"]["publickey"]}

# [Interface] keys that order things of the host: this package has no interface, routes or shell to apply them to.
_IGNORED = {
    name.lower(): name
    for name in (
        *("PreUp", "PostUp", "PreDown", "PostDown", "Table", "SaveConfig", "FwMark"),
        *("IncludedApplications", "ExcludedApplications"),  # the Android application's
    )
}


class _Section:
    """One section: its values by attribute, and the line where each was first given."""

    __slots__ = ("kind", "line", "lines", "values")

    def __init__(self, kind: str, line: int) -> None:
        self.kind = kind
        self.line = line
        self.values: dict[str, Any] = {}
        self.lines: dict[str, int] = {}


class _Parser:
    """Collects the sections of one file, a line at a time."""

    def __init__(self, source: str) -> None:
        self._source = source
        self._sections: list[_Section] = []
        self._ignored: list[str] = []

    def read_line(self, number: int, text: str) -> None:
        line = text.partition("#")[0].strip()
        if line.startswith("["):
            self._open_section(number, line)
        elif line:
            self._read_pair(number, line)

    def take_arguments(self) -> dict[str, Any]:
        """What `Config` takes, checked as a whole while the lines are still known."""
        interface = next((section for section in self._sections if section.kind == "Interface"), None)
        if interface is None:
            self._fail("no [Interface] section; it is required, with a PrivateKey in it", None)
        for section in self._sections:
            needed = _REQUIRED[section.kind]
            if needed.attribute not in section.values:
                self._fail(f"missing in this [{section.kind}] section; it is required", section.line, needed.name)
        peers = [section for section in self._sections if section.kind == "Peer"]
        arguments = {**interface.values, "peers": tuple(PeerConfig(**section.values) for section in peers)}
        conflict = _find_conflict(
            arguments["private_key"],
            arguments.get("address", ()),
            arguments.get("mtu", MTU_DEFAULT),
            arguments["peers"],
        )
        if conflict is not None:
            section = interface if conflict.peer is None else peers[conflict.peer]
            name = next(f.name for f in _FIELDS[section.kind].values() if f.attribute == conflict.attribute)
            self._fail(conflict.problem, section.lines[conflict.attribute], name)
        if self._ignored:
            _logger.warning("%s: ignored, and never executed: %s", self._source, ", ".join(self._ignored))
        return arguments

    def _fail(self, problem: str, line: int | None, key: str | None = None) -> NoReturn:
        raise ConfigError(problem, source=self._source, line=line, key=key)

    def _open_section(self, number: int, line: str) -> None:
        name = line[1:-1].strip().lower() if line.endswith("]") else ""
        kind = next((kind for kind in _FIELDS if kind.lower() == name), None)
        if kind is None:
            self._fail(f"{_shown(line)} is no section; there are [Interface] and [Peer]", number)
        first = next((section.line for section in self._sections if section.kind == kind), None)
        if kind == "Interface" and first is not None:
            self._fail(f"a second [Interface] section, after the one in line {first}; only one is allowed", number)
        self._sections.append(_Section(kind, number))

    def _read_pair(self, number: int, line: str) -> None:
        name, equals, value = (part.strip() for part in line.partition("="))
        if not equals:
            self._fail("neither a section nor 'Key = value'", number)
        if not self._sections:
            self._fail("a key before any section; [Interface] comes first", number)
        section = self._sections[-1]
        if section.kind == "Interface" and name.lower() in _IGNORED:
            self._ignored.append(f"{_IGNORED[name.lower()]} (line {number})")
            return
        field = _FIELDS[section.kind].get(name.lower())
        if field is None:
            self._unknown_key(number, section.kind, name, value)
        if field.repeats:
            items = _convert_each(field.read, value, key=name, source=self._source, line=number)
            section.values.setdefault(field.attribute, []).extend(items)
        elif field.attribute in section.values:
            self._fail(f"already given in line {section.lines[field.attribute]}; it takes one value", number, name)
        else:
            section.values[field.attribute] = _convert(field.read, value, key=name, source=self._source, line=number)
        section.lines.setdefault(field.attribute, number)

    def _unknown_key(self, number: int, kind: str, name: str, value: str) -> NoReturn:
        # The rest of a key broken over two lines would look like a name with nothing but "=" behind it.
        if not (_KEY_NAME.fullmatch(name) and value.strip("=")):
            self._fail(f"not a known key; [{kind}] takes {_names(kind)}", number)
        other = next((k for k, fields in _FIELDS.items() if k != kind and name.lower() in fields), None)
        if kind == "Peer" and name.lower() in _IGNORED:
            other = "Interface"
        if other is not None:
            self._fail(f"belongs in the [{other}] section, not in [{kind}]", number, name)
        known = {
            **{key: field.name for key, field in _FIELDS[kind].items()},
            **(_IGNORED if kind == "Interface" else {}),
        }
        import difflib  # here: a name that is right needs no guess

        near = difflib.get_close_matches(name.lower(), known, n=1)
        hint = f"did you mean {known[near[0]]}? " if near else ""
        self._fail(f"unknown key; {hint}[{kind}] takes {_names(kind)}", number, name)


def _names(kind: str) -> str:
    return ", ".join(field.name for field in _FIELDS[kind].values())
