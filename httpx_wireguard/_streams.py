"""Byte streams over a tunnel's TCP sockets, for threads: deadlines, TLS, end of file.

A stream may be read by one thread and written by another at the same time (HTTP/2, WebSockets), and closed by a third,
which wakes both. No lock is held while a thread waits for the network, except the one that keeps a second reader, or a
second writer, out.
"""

from __future__ import annotations

import contextlib
import logging
import math
import socket
import ssl
import sys
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self

from httpx_wireguard._errors import ConnectionReset, OperationTimeout, WireGuardError
from httpx_wireguard._tls import Buffer, SupportsWrapBio, TlsSession

logger = logging.getLogger("httpx_wireguard.streams")

_AT_ONCE = -math.inf  # a deadline that means: do not wait
_RECEIVE_SIZE = 131_072  # bytes of ciphertext taken at once: 64 KB of plaintext, httpcore's read size, never needs two
_ENCRYPT_SIZE = 131_072  # bytes of plaintext encrypted ahead of the socket, so that a large body is not held twice


class Driver(Protocol):
    """What a stream needs of the thread driver; `lock` is held around everything but `now`.

    `catch_up` takes in what has arrived at the tunnel, without waiting, so that readiness is exact.
    """

    lock: threading.Lock

    def now(self) -> float: ...
    def pump(self) -> None: ...
    def catch_up(self) -> None: ...
    def wait(self, ready: Callable[[], bool], sockets: Sequence[Any], deadline: float | None) -> bool: ...


class StreamSocket(Protocol):
    """A TCP socket of the engine. `close` and `abort` have to wake whoever waits on the socket."""

    @property
    def local(self) -> tuple[str, int]: ...
    @property
    def remote(self) -> tuple[str, int]: ...
    @property
    def readable(self) -> bool: ...
    @property
    def at_eof(self) -> bool: ...
    @property
    def writable(self) -> bool: ...
    @property
    def connected(self) -> bool: ...
    @property
    def error(self) -> WireGuardError | None: ...
    def send(self, data: Buffer, now: float) -> int: ...
    def receive(self, max_bytes: int, now: float) -> bytes: ...
    def close(self, now: float) -> None: ...
    def abort(self, now: float) -> None: ...


@dataclass(frozen=True, slots=True)
class ConnectionFacts:
    """How a connection came about; `get_extra_info("wireguard")` of its stream.

    Attributes:
        host: the name or address asked for.
        remote: address and port connected to.
        local: the tunnel's own address and port.
        failures: the addresses tried in vain before, each with its reason.
        resolve_seconds: until the first address was known.
        connect_seconds: until the connection stood, name resolution included.
    """

    host: str
    remote: tuple[str, int]
    local: tuple[str, int]
    failures: tuple[tuple[str, str], ...] = ()
    resolve_seconds: float = 0.0
    connect_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class TcpOptions:
    """The socket options that mean something inside a tunnel; None leaves the stack's own value.

    Attributes:
        keepalive_idle, keepalive_interval: seconds.
    """

    no_delay: bool = True
    keepalive: bool = False
    keepalive_idle: int | None = None
    keepalive_interval: int | None = None
    keepalive_count: int | None = None

    @classmethod
    def from_socket_options(cls, options: Iterable[Sequence[Any]] | None) -> Self:
        """Read `(level, option, value)` triples as `socket.setsockopt` takes them; unknown ones are logged."""
        fields: dict[str, Any] = {}
        for option in options or ():
            field = _OPTION_FIELDS.get(tuple(option[:2]))
            if field is None or len(option) != 3:
                logger.debug("socket option %r has no meaning inside a tunnel; ignored", tuple(option))
                continue
            value = option[2] if isinstance(option[2], int) else int.from_bytes(option[2], sys.byteorder)
            fields[field] = bool(value) if field in ("no_delay", "keepalive") else value
        return cls(**fields)


def _option_fields() -> Iterator[tuple[tuple[Any, ...], str]]:
    yield (socket.SOL_SOCKET, socket.SO_KEEPALIVE), "keepalive"
    for name, field in (
        ("TCP_NODELAY", "no_delay"),
        ("TCP_KEEPIDLE", "keepalive_idle"),
        ("TCP_KEEPALIVE", "keepalive_idle"),  # macOS's name for it
        ("TCP_KEEPINTVL", "keepalive_interval"),
        ("TCP_KEEPCNT", "keepalive_count"),
    ):
        if hasattr(socket, name):
            yield (socket.IPPROTO_TCP, getattr(socket, name)), field


_OPTION_FIELDS = dict(_option_fields())


def address_text(address: str, port: int) -> str:
    """`address:port`, with brackets around an IPv6 address."""
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


class Stream(ABC):
    """A connected byte stream inside the tunnel, for threads.

    All methods raise `TunnelClosed` when the tunnel is gone, and the connection's own error when that is.
    """

    _driver: Driver
    _name: str  # "address:port", for error texts

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """Wait for data and return all there is, up to `max_bytes`.

        Args:
            timeout: seconds to wait for the first byte; None waits as long as the connection lives.

        Returns:
            The data; b"" when the other side has ended the stream.

        Raises:
            OperationTimeout: nothing came in time.
        """
        if max_bytes <= 0:
            return b""
        data = self._receive(max_bytes, self._deadline(timeout))
        if data is None:
            raise OperationTimeout(f"read timed out: {self._name} sent nothing for {timeout:g} s")
        return data

    def write(self, buffer: Buffer, timeout: float | None = None) -> None:
        """Send all of `buffer`; an empty one is a no-op.

        Args:
            timeout: seconds without progress; not a limit for the whole buffer.

        Raises:
            OperationTimeout: the connection took no more data for `timeout` seconds.
        """
        data = memoryview(buffer).cast("B")
        total = len(data)
        while len(data):
            sent = self._send(data, self._deadline(timeout))
            if not sent:
                taken = total - len(data)
                raise OperationTimeout(
                    f"write timed out: {self._name} took {taken} of {total} bytes, then none for {timeout:g} s"
                )
            data = data[sent:]
        if total and not self._flush(self._deadline(timeout)):
            raise OperationTimeout(f"write timed out: {self._name} took no data for {timeout:g} s")

    def start_tls(
        self, ssl_context: SupportsWrapBio, server_hostname: str | None = None, timeout: float | None = None
    ) -> TlsStream:
        """Do a TLS handshake as client. On any failure the connection is closed.

        Args:
            ssl_context: an `ssl.SSLContext`, or anything with its `wrap_bio`.
            timeout: seconds for the whole handshake.

        Returns:
            The encrypted stream; this one must not be used directly any more. It may be encrypted itself.

        Raises:
            ssl.SSLError: the handshake failed.
            ConnectionReset: the other side ended the connection in the middle of it.
            OperationTimeout: it did not end in time.
        """
        try:
            stream = TlsStream(self, self._driver, ssl_context, server_hostname)
            if not stream._handshake(self._deadline(timeout)):
                raise OperationTimeout(f"TLS handshake with {self._name} not finished within {timeout:g} s")
        except BaseException:
            self.close()
            raise
        return stream

    @abstractmethod
    def close(self) -> None:
        """Close the connection; does not wait for the other side. Threads that wait on the stream get an error."""

    @abstractmethod
    def get_extra_info(self, info: str) -> Any:
        """Facts about the stream: "ssl_object", "client_addr", "server_addr", "is_readable", "wireguard".

        "is_readable" is True when an idle stream can no longer be used for a new request: it has data, an end or an
        error to read. None for an unknown name, and for "socket": there is no descriptor.
        """

    @abstractmethod
    def _receive(self, max_bytes: int, deadline: float | None) -> bytes | None:
        """Data, b"" at the end, or None when the deadline passed first."""

    @abstractmethod
    def _send(self, data: memoryview, deadline: float | None) -> int:
        """Hand over some of `data`, at least a byte; 0 when the deadline passed first."""

    @abstractmethod
    def _flush(self, deadline: float | None) -> bool:
        """Pass on what `_send` took; False when the deadline passed first."""

    def _deadline(self, timeout: float | None) -> float | None:
        return None if timeout is None else self._driver.now() + timeout


class SyncStream(Stream):
    """A plain TCP connection inside the tunnel."""

    def __init__(self, driver: Driver, sock: StreamSocket, facts: ConnectionFacts | None = None) -> None:
        self._driver = driver
        self._socket = sock
        self._local = sock.local
        self._remote = sock.remote
        self._facts = facts
        self._closed = False
        self._name = address_text(*sock.remote)

    def __repr__(self) -> str:
        state = "closed" if self._closed else f"{self._local[0]}:{self._local[1]} -> {self._name}"
        return f"<{type(self).__name__} {state}>"

    def close(self) -> None:
        with self._driver.lock:
            if not self._closed:
                self._closed = True
                self._socket.close(self._driver.now())
                self._driver.pump()

    def get_extra_info(self, info: str) -> Any:
        match info:
            case "client_addr":
                return self._local
            case "server_addr":
                return self._remote
            case "is_readable":
                with self._driver.lock:
                    self._driver.catch_up()
                    return self._closed or self._socket.readable
            case "wireguard":
                return self._facts or ConnectionFacts(self._remote[0], self._remote, self._local)
        return None

    def _receive(self, max_bytes: int, deadline: float | None) -> bytes | None:
        sock = self._socket
        with self._driver.lock:
            if deadline == _AT_ONCE:
                self._driver.catch_up()
            if not self._wait(lambda: sock.readable, deadline):
                return None
            data = sock.receive(max_bytes, self._driver.now())
            self._driver.pump()
            if not data and sock.error is not None and not sock.at_eof:
                raise sock.error
        return data

    def _send(self, data: memoryview, deadline: float | None) -> int:
        sock = self._socket
        with self._driver.lock:
            if not self._wait(lambda: sock.writable or sock.error is not None, deadline):
                return 0
            sent = 0 if sock.error is not None else sock.send(data, self._driver.now())
            self._driver.pump()
            if sock.error is not None:
                raise sock.error
        return sent

    def _flush(self, deadline: float | None) -> bool:
        return True

    def _wait(self, ready: Callable[[], bool], deadline: float | None) -> bool:
        """Wait, lock held, until `ready`; an error when another thread closes the stream meanwhile."""
        is_ready = ready()
        if not is_ready and not self._closed and deadline != _AT_ONCE:
            is_ready = self._driver.wait(lambda: self._closed or ready(), (self._socket,), deadline)
        if self._closed:
            raise ConnectionReset(f"the stream to {self._name} was closed on this side")
        return is_ready


class TlsStream(Stream):
    """TLS over another stream, which may be TLS itself (HTTPS proxies).

    Locks, in the order in which they may nest: `_receiving` and `_sending` are held by the one thread that moves
    ciphertext in, or out, and may wait for the network; `_session_lock` guards the session and is never held waiting.
    """

    def __init__(
        self, lower: Stream, driver: Driver, ssl_context: SupportsWrapBio, server_hostname: str | None
    ) -> None:
        self._lower = lower
        self._driver = driver
        self._name = lower._name
        self._session = TlsSession(ssl_context, server_hostname)
        self._session_lock = threading.Lock()
        self._receiving = threading.Lock()
        self._sending = threading.Lock()
        self._unsent = memoryview(b"")  # ciphertext taken from the session; guarded by `_sending`

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._session.ssl_object.version()} over {self._lower!r}>"

    def close(self) -> None:
        if self._sending.acquire(blocking=False):  # else a writer is stuck in the middle of a record
            try:
                with self._session_lock:
                    self._session.shutdown()
                with contextlib.suppress(OSError):
                    self._send_ciphertext(_AT_ONCE)
            finally:
                self._sending.release()
        self._lower.close()

    def get_extra_info(self, info: str) -> Any:
        match info:
            case "ssl_object":
                return self._session.ssl_object
            case "is_readable":
                return self._is_readable()
        return self._lower.get_extra_info(info)

    def _handshake(self, deadline: float | None) -> bool:
        done = False
        while not done:
            try:
                done = self._session.handshake()
            except ssl.SSLEOFError as error:
                raise ConnectionReset(f"{self._name} ended the connection during the TLS handshake") from error
            except ssl.SSLError:
                with contextlib.suppress(OSError):
                    self._flush(_AT_ONCE)  # the alert tells the server why
                raise
            if not self._flush(deadline) or not (done or self._receive_ciphertext(deadline)):
                return False
        return True

    def _receive(self, max_bytes: int, deadline: float | None) -> bytes | None:
        with self._held(self._receiving, deadline) as held:
            while held:
                with self._session_lock:
                    data = self._session.read(max_bytes)
                    reply_due = self._session.has_data_to_send
                if reply_due:  # to a key update; at the latest it leaves with the next write, as RFC 8446 4.6.3 wants
                    with contextlib.suppress(OSError):
                        self._flush(_AT_ONCE)
                if data is not None:
                    return data
                held = self._receive_ciphertext(deadline)
        return None

    def _receive_ciphertext(self, deadline: float | None) -> bool:
        data = self._lower._receive(_RECEIVE_SIZE, deadline)
        if data is None:
            return False
        with self._session_lock:
            if data:
                self._session.receive_data(data)
            else:
                self._session.receive_eof()
        return True

    def _send(self, data: memoryview, deadline: float | None) -> int:
        if not self._flush(deadline):
            return 0
        chunk = data[:_ENCRYPT_SIZE]
        with self._session_lock:
            self._session.write(chunk)
        self._flush(deadline)  # what remains is the next call's first task
        return len(chunk)

    def _flush(self, deadline: float | None) -> bool:
        with self._held(self._sending, deadline) as held:
            return held and self._send_ciphertext(deadline) and self._lower._flush(deadline)

    def _send_ciphertext(self, deadline: float | None) -> bool:
        """Pass ciphertext on in the order of its records; `_sending` held."""
        while True:
            if not self._unsent:
                with self._session_lock:
                    self._unsent = memoryview(self._session.data_to_send())
                if not self._unsent:
                    return True
            sent = self._lower._send(self._unsent, deadline)
            if not sent:
                return False
            self._unsent = self._unsent[sent:]

    def _is_readable(self) -> bool:
        """Exact: what the network has delivered is decrypted first, for a session ticket is nothing to read."""
        with self._held(self._receiving, _AT_ONCE) as held:
            if not held:
                return False  # another thread is reading: not idle
            try:
                while True:
                    with self._session_lock:
                        if self._session.poll():
                            return True
                    if not self._receive_ciphertext(_AT_ONCE):
                        return False
            except OSError:
                return True

    @contextlib.contextmanager
    def _held(self, lock: threading.Lock, deadline: float | None) -> Iterator[bool]:
        """Hold `lock` if it can be had before the deadline; yields whether it is."""
        timeout = -1.0 if deadline is None else min(max(deadline - self._driver.now(), 0.0), threading.TIMEOUT_MAX)
        held = lock.acquire(timeout=timeout) if timeout else lock.acquire(blocking=False)
        try:
            yield held
        finally:
            if held:
                lock.release()
