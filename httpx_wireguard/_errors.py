"""The whole error tree.

Every leaf is also the builtin that an ordinary socket would raise in its place, so `except OSError`,
`except TimeoutError` and the HTTP libraries' own mappings work on it. The text names the cause, the peer or
line, and the next step; the same facts are fields.
"""

from __future__ import annotations

import errno
import socket


class WireGuardError(Exception):
    """Base of every error that this package raises on purpose."""


def renewed(error: WireGuardError) -> WireGuardError:
    """The same error to raise once more. One object that is raised again and again collects all their tracebacks."""
    fresh = type(error).__new__(type(error))
    fresh.args = error.args
    fresh.__dict__.update(error.__dict__)
    fresh.__cause__ = error.__cause__
    if isinstance(error, OSError) and isinstance(fresh, OSError):
        fresh.errno = error.errno
    return fresh


class MalformedPacket(WireGuardError, ValueError):
    """Bytes from the network that do not parse. Never leaves the engine: it becomes a counted drop."""


class ConfigError(WireGuardError, ValueError):
    """A configuration that cannot work.

    Attributes:
        source: file name, or "<string>"; None for a hand-built `Config`.
        line: 1-based line number, or None.
        key: the key as the user wrote it, or None.
    """

    def __init__(
        self, problem: str, *, source: str | None = None, line: int | None = None, key: str | None = None
    ) -> None:
        place = ":".join(str(part) for part in (source, line) if part is not None)
        subject = f"{key}: " if key is not None else ""
        super().__init__(f"{place}: {subject}{problem}" if place else f"{subject}{problem}")
        self.problem = problem
        self.source = source
        self.line = line
        self.key = key


class TunnelError(WireGuardError, OSError):
    """Base of the errors of a running tunnel."""


class TunnelClosed(TunnelError, ConnectionError):
    """The tunnel was closed, here or by another thread, or by a fork into this process."""


class EndpointError(TunnelError, ConnectionError):
    """A peer's endpoint is missing, does not resolve, or the host refuses to send to it."""


class EndpointUnreachable(EndpointError):
    """The network, or the host behind the endpoint, sends the datagrams back (ICMP): nothing listens there."""


class HandshakeFailed(TunnelError, ConnectionError):
    """The peer answers, but its answers do not authenticate: the pre-shared or the static keys differ."""


class HandshakeTimeout(TunnelError, TimeoutError):
    """The peer answered no handshake initiation.

    Attributes:
        endpoint: "host:port" as the datagrams were addressed.
        attempts: initiations sent since the last session.
    """

    def __init__(self, endpoint: str, attempts: int, seconds: float, hint: str = "") -> None:
        tries = "1 initiation" if attempts == 1 else f"{attempts} initiations"
        text = f"no handshake answer from {endpoint} after {tries} in {seconds:.1f} s"
        super().__init__(f"{text}; {hint}" if hint else text)
        self.endpoint = endpoint
        self.attempts = attempts


class NoRoute(TunnelError, ConnectionError):
    """No peer's AllowedIPs cover the destination, the interface has no address of its family, or mounts refuse it."""

    def __init__(self, text: str, destination: str) -> None:
        super().__init__(text)
        self.errno = errno.ENETUNREACH
        self.destination = destination


class ConnectionRefused(TunnelError, ConnectionRefusedError):
    """The far host answered the SYN with a reset."""


class ConnectionReset(TunnelError, ConnectionResetError):
    """The far host, or this side, aborted the connection."""


class ConnectionTimedOut(TunnelError, TimeoutError):
    """The far host stopped answering: retransmissions, probes or SYNs went unanswered."""


class DestinationUnreachable(TunnelError, ConnectionError):
    """An ICMP error from inside the tunnel says that the destination cannot be reached."""


class AddressInUse(TunnelError):
    """The local port is taken, or no ephemeral port is free."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.errno = errno.EADDRINUSE


class MessageTooLong(TunnelError):
    """A datagram that does not fit the tunnel's MTU."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.errno = errno.EMSGSIZE


class OperationTimeout(TunnelError, TimeoutError):
    """The caller's own timeout ran out while a read, write or accept waited."""


class NameResolutionError(TunnelError, socket.gaierror):
    """A host name did not resolve inside the tunnel.

    Attributes:
        host: the name asked for.
        servers: the DNS servers asked, as text.
        rcode: "NXDOMAIN", "SERVFAIL", …; None when none of the servers answered.
    """

    def __init__(self, host: str, reason: str, servers: tuple[str, ...] = (), rcode: str | None = None) -> None:
        super().__init__(f"cannot resolve {host!r}: {reason}")
        self.host = host
        self.servers = servers
        self.rcode = rcode


class NameResolutionTimeout(NameResolutionError, OperationTimeout):
    """No DNS server answered in time."""
