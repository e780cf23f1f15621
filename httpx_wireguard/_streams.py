"""Byte streams over a tunnel's TCP sockets: deadlines, TLS, end of file.

A stream may be read by one task and written by another at the same time (HTTP/2, WebSockets), and closed by a third,
which wakes both. Only the mutexes that keep a second reader, or a second writer, out are held while one waits for the
network. `SyncStream` is the same for threads.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import ssl
import sys
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, Self

from httpx_wireguard._engine import CONTROLS
from httpx_wireguard._errors import (
    ConfigError,
    ConnectionReset,
    OperationTimeout,
    TunnelClosed,
    WireGuardError,
    renewed,
)
from httpx_wireguard._waiting import AT_ONCE, Driver, Mutex, run

if TYPE_CHECKING:
    from httpx_wireguard._tls import Buffer, SupportsWrapBio

logger = logging.getLogger("httpx_wireguard.streams")

_RECEIVE_SIZE = 131_072  # bytes of ciphertext taken at once: 64 KB of plaintext, httpcore's read size, never needs two
_ENCRYPT_SIZE = 131_072  # bytes of plaintext encrypted ahead of the socket, so that a large body is not held twice


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
    def in_flight(self) -> bool: ...
    @property
    def error(self) -> WireGuardError | None: ...
    def send(self, data: Buffer, now: float) -> int: ...
    def receive(self, max_bytes: int, now: float) -> bytes: ...
    def close(self, now: float) -> None: ...
    def abort(self, now: float) -> None: ...
    def __hash__(self) -> int: ...


class ConnectionFacts(NamedTuple):
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


class TcpOptions(NamedTuple):
    """The socket options that mean something inside a tunnel; None leaves the stack's own value.

    Attributes:
        keepalive_idle, keepalive_interval: seconds.
        user_timeout: milliseconds that data may stay unacknowledged; 0, as None, leaves it to retransmissions.
    """

    no_delay: bool = True
    keepalive: bool = False
    keepalive_idle: int | None = None
    keepalive_interval: int | None = None
    keepalive_count: int | None = None
    congestion_control: str | None = None
    user_timeout: int | None = None

    @classmethod
    def from_socket_options(cls, options: Iterable[Sequence[Any]] | None) -> Self:
        """Read `(level, option, value)` triples as `socket.setsockopt` takes them; unknown ones are logged.

        Raises:
            ConfigError: TCP_CONGESTION names a congestion control that there is not.
        """
        fields: dict[str, Any] = {}
        for option in options or ():
            field = _OPTION_FIELDS.get(tuple(option[:2]))
            if field is None or len(option) != 3:
                logger.debug("socket option %r has no meaning inside a tunnel; ignored", tuple(option))
                continue
            if field == "congestion_control":
                fields[field] = check_congestion_control(bytes(option[2]).rstrip(b"\0").decode("ascii", "replace"))
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
        ("TCP_CONGESTION", "congestion_control"),
        ("TCP_USER_TIMEOUT", "user_timeout"),
    ):
        if hasattr(socket, name):
            yield (socket.IPPROTO_TCP, getattr(socket, name)), field


_OPTION_FIELDS = dict(_option_fields())


def check_congestion_control(name: str) -> str:
    """Raises:
    ConfigError: there is none of that name.
    """
    if name not in CONTROLS:
        raise ConfigError(f"there is no congestion control {name!r}; choose one of {', '.join(sorted(CONTROLS))}")
    return name


def address_text(address: str, port: int) -> str:
    """`address:port`, with brackets around an IPv6 address."""
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


class AsyncStream(ABC):
    """A connected byte stream inside the tunnel.

    All methods raise `TunnelClosed` when the tunnel is gone, and the connection's own error when that is. A cancelled
    `read` loses nothing; after a cancelled `write` nobody knows how much has gone out.
    """

    _driver: Driver
    _name: str  # "address:port", for error texts
    _holds_back = True  # `_send` may leave something to `_flush`

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self}>"

    @abstractmethod
    def __str__(self) -> str:
        """Both ends, or "closed"."""

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """Wait for data and return what there is, up to `max_bytes`; perhaps a little less of a long stream.

        Args:
            timeout: seconds to wait for the first byte; None waits as long as the connection lives.

        Returns:
            The data; b"" when the other side has ended the stream.

        Raises:
            OperationTimeout: nothing came in time.
        """
        if max_bytes <= 0:
            return b""
        data = await self._receive(max_bytes, self._deadline(timeout))
        if data is None:
            raise OperationTimeout(f"read timed out: {self._name} sent nothing for {timeout:g} s")
        return data

    async def write(self, buffer: Buffer, timeout: float | None = None) -> None:
        """Send all of `buffer`; an empty one is a no-op.

        Args:
            timeout: seconds without progress; not a limit for the whole buffer.

        Raises:
            OperationTimeout: the connection took no more data for `timeout` seconds.
        """
        data = memoryview(buffer).cast("B")
        total = len(data)
        while len(data):
            sent = await self._send(data, self._deadline(timeout))
            if not sent:
                taken = total - len(data)
                raise OperationTimeout(
                    f"write timed out: {self._name} took {taken} of {total} bytes, then none for {timeout:g} s"
                )
            data = data[sent:]
        if total and self._holds_back and not await self._flush(self._deadline(timeout)):
            raise OperationTimeout(f"write timed out: {self._name} took no data for {timeout:g} s")

    async def start_tls(
        self, ssl_context: SupportsWrapBio, server_hostname: str | None = None, timeout: float | None = None
    ) -> AsyncTlsStream:
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
            stream = AsyncTlsStream(self, self._driver, ssl_context, server_hostname)
            if not await stream._handshake(self._deadline(timeout)):
                raise OperationTimeout(f"TLS handshake with {self._name} not finished within {timeout:g} s")
        except BaseException:
            self.close()
            raise
        return stream

    async def aclose(self) -> None:
        """Close the connection; waits for nothing. Tasks that wait on the stream get an error."""
        self.close()

    @abstractmethod
    def close(self) -> None:
        """`aclose` without `await`, from any thread."""

    @abstractmethod
    def get_extra_info(self, info: str) -> Any:
        """Facts about it: "client_addr", "server_addr", "is_readable", "wireguard" and, with TLS, "ssl_object".

        "is_readable" is True when an idle stream can no longer be used for a new request: it has data, an end or an
        error to read. None for an unknown name, and for "socket": there is no descriptor.
        """

    # With the deadline `AT_ONCE` none of these suspends.

    @abstractmethod
    async def _receive(self, max_bytes: int, deadline: float | None) -> bytes | None:
        """Data, b"" at the end, or None when the deadline passed first."""

    @abstractmethod
    async def _send(self, data: memoryview, deadline: float | None) -> int:
        """Hand over some of `data`, at least a byte; 0 when the deadline passed first."""

    @abstractmethod
    async def _flush(self, deadline: float | None) -> bool:
        """Pass on what `_send` took; False when the deadline passed first."""

    def _deadline(self, timeout: float | None) -> float | None:
        return None if timeout is None else self._driver.now() + timeout


class AsyncTcpStream(AsyncStream):
    """A plain TCP connection inside the tunnel."""

    _holds_back = False

    def __init__(self, driver: Driver, sock: StreamSocket, facts: ConnectionFacts | None = None) -> None:
        self._driver = driver
        self._socket = sock
        self._local = sock.local
        self._remote = sock.remote
        self._keys = (sock,)
        self._facts = facts
        self._closed = False
        self._name = address_text(*sock.remote)

    def __str__(self) -> str:
        return "closed" if self._closed else f"{self._local[0]}:{self._local[1]} -> {self._name}"

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
                    try:
                        self._driver.catch_up()
                    except TunnelClosed:
                        return True
                    return self._closed or self._socket.readable
            case "wireguard":
                return self._facts or ConnectionFacts(self._remote[0], self._remote, self._local)
        return None

    async def _receive(self, max_bytes: int, deadline: float | None) -> bytes | None:
        sock = self._socket
        with self._driver.lock:
            if deadline == AT_ONCE:
                self._driver.catch_up()
            if not await self._wait(self._may_read, deadline):
                return None
            data = sock.receive(max_bytes, self._driver.now())
            self._driver.pump()
            if not data and sock.error is not None and not sock.at_eof:
                raise renewed(sock.error)
        return data

    async def _send(self, data: memoryview, deadline: float | None) -> int:
        sock = self._socket
        with self._driver.lock:
            if not await self._wait(self._may_write, deadline):
                return 0
            if sock.in_flight:
                self._driver.take_part()
            sent = 0 if sock.error is not None else sock.send(data, self._driver.now())
            self._driver.pump()
            if sock.error is not None:
                raise renewed(sock.error)
        return sent

    async def _flush(self, deadline: float | None) -> bool:
        return True

    def _may_read(self) -> bool:
        return self._closed or self._socket.readable

    def _may_write(self) -> bool:
        return self._closed or self._socket.writable

    async def _wait(self, ready: Callable[[], bool], deadline: float | None) -> bool:
        """Wait, lock held, until `ready`; an error when somebody else closes the stream meanwhile."""
        is_ready = ready()
        if deadline != AT_ONCE and (not is_ready or self._driver.takes_turns) and not self._closed:
            is_ready = await self._driver.wait(ready, self._keys, deadline)
        if self._closed:
            raise ConnectionReset(f"the stream to {self._name} was closed on this side")
        return is_ready


class AsyncTlsStream(AsyncStream):
    """TLS over another stream, which may be TLS itself (HTTPS proxies).

    In the order in which they may nest: `_receiving` and `_sending` are held by the one task that moves ciphertext in,
    or out, and may wait for the network; `_session_lock` guards the session and is never held waiting.
    """

    def __init__(
        self, lower: AsyncStream, driver: Driver, ssl_context: SupportsWrapBio, server_hostname: str | None
    ) -> None:
        self._lower = lower
        self._driver = driver
        self._name = lower._name
        from httpx_wireguard._tls import TlsSession  # here: plain HTTP needs none

        self._session = TlsSession(ssl_context, server_hostname)
        self._session_lock = threading.Lock()
        self._receiving = Mutex(driver)
        self._sending = Mutex(driver)
        self._unsent = memoryview(b"")  # ciphertext taken from the session; guarded by `_sending`
        self._closed = False

    def __str__(self) -> str:
        return f"{self._session.ssl_object.version()} over {self._lower}"

    def close(self) -> None:
        self._closed = True  # at first: the other side's answer to our farewell is no end of file to a reader of ours
        if self._sending.acquire_at_once():  # else a writer is stuck in the middle of a record
            try:
                with self._session_lock:
                    self._session.shutdown()
                with contextlib.suppress(OSError):
                    run(self._send_ciphertext(AT_ONCE))
            finally:
                self._sending.release()
        self._lower.close()

    def get_extra_info(self, info: str) -> Any:
        match info:
            case "ssl_object":
                return self._session.ssl_object
            case "is_readable":
                return run(self._is_readable())
        return self._lower.get_extra_info(info)

    async def _handshake(self, deadline: float | None) -> bool:
        done = False
        while not done:
            try:
                done = self._session.handshake()
            except (ssl.SSLEOFError, ssl.SSLZeroReturnError) as error:
                raise ConnectionReset(f"{self._name} ended the connection during the TLS handshake") from error
            except ssl.SSLError:
                with contextlib.suppress(OSError):
                    await self._flush(AT_ONCE)  # the alert tells the server why
                raise
            if not await self._flush(deadline) or not (done or await self._receive_ciphertext(deadline)):
                return False
        return True

    async def _receive(self, max_bytes: int, deadline: float | None) -> bytes | None:
        if not await self._receiving.acquire(deadline):
            return None
        try:
            while True:
                with self._session_lock:
                    data = None if self._session.is_drained else self._session.read(max_bytes)
                    reply_due = self._session.has_data_to_send
                if reply_due:  # to a key update; at the latest it leaves with the next write, as RFC 8446 4.6.3 wants
                    with contextlib.suppress(OSError):
                        await self._flush(AT_ONCE)
                if data is not None or not await self._receive_ciphertext(deadline):
                    return data
        finally:
            self._receiving.release()

    async def _receive_ciphertext(self, deadline: float | None) -> bool:
        data = await self._lower._receive(_RECEIVE_SIZE, deadline)
        if self._closed:
            raise ConnectionReset(f"the stream to {self._name} was closed on this side")
        if data is None:
            return False
        with self._session_lock:
            if data:
                self._session.receive_data(data)
            else:
                self._session.receive_eof()
        return True

    async def _send(self, data: memoryview, deadline: float | None) -> int:
        if not await self._flush(deadline):
            return 0
        chunk = data[:_ENCRYPT_SIZE]
        with self._session_lock:
            self._session.write(chunk)
        await self._flush(deadline)  # what remains is the next call's first task
        return len(chunk)

    async def _flush(self, deadline: float | None) -> bool:
        with self._session_lock:  # or what somebody else is about to send would be seen nowhere
            pending = len(self._unsent) > 0 or self._session.has_data_to_send
        if not pending and not self._lower._holds_back:
            return True
        if not await self._sending.acquire(deadline):
            return False
        try:
            return await self._send_ciphertext(deadline) and await self._lower._flush(deadline)
        finally:
            self._sending.release()

    async def _send_ciphertext(self, deadline: float | None) -> bool:
        """Pass ciphertext on in the order of its records; `_sending` held."""
        while True:
            if not self._unsent:
                with self._session_lock:
                    self._unsent = memoryview(self._session.data_to_send())
                if not self._unsent:
                    return True
            sent = await self._lower._send(self._unsent, deadline)
            if not sent:
                return False
            self._unsent = self._unsent[sent:]

    async def _is_readable(self) -> bool:
        """Exact: what the network has delivered is decrypted first, for a session ticket is nothing to read."""
        with self._session_lock:
            drained = self._session.is_drained
        if drained and not self._lower.get_extra_info("is_readable"):
            return False
        if not await self._receiving.acquire(AT_ONCE):
            return False  # somebody is reading: not idle
        try:
            while True:
                with self._session_lock:
                    if self._session.poll():
                        return True
                if not await self._receive_ciphertext(AT_ONCE):
                    return False
        except OSError:
            return True
        finally:
            self._receiving.release()


class SyncStream:
    """A connected byte stream inside the tunnel, for threads: as `AsyncStream`, but its methods block."""

    def __init__(self, stream: AsyncStream) -> None:
        self._stream = stream

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._stream}>"

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """As `AsyncStream.read`."""
        return run(self._stream.read(max_bytes, timeout))

    def write(self, buffer: Buffer, timeout: float | None = None) -> None:
        """As `AsyncStream.write`."""
        run(self._stream.write(buffer, timeout))

    def start_tls(
        self, ssl_context: SupportsWrapBio, server_hostname: str | None = None, timeout: float | None = None
    ) -> SyncStream:
        """As `AsyncStream.start_tls`."""
        return SyncStream(run(self._stream.start_tls(ssl_context, server_hostname, timeout)))

    def close(self) -> None:
        """Close the connection; does not wait for the other side. Threads that wait on the stream get an error."""
        self._stream.close()

    def get_extra_info(self, info: str) -> Any:
        """As `AsyncStream.get_extra_info`."""
        return self._stream.get_extra_info(info)
