"""urllib3's connections and pools, inside a tunnel.

urllib3 wants a socket: `SocketOverStream` is one over a stream of the tunnel, so the thread that waits for a response
drives the tunnel itself. Only what urllib3 2.x documents, or what its own `contrib` packages do too, is overridden: a
pool manager's `_new_pool`, a pool's `ConnectionCls`, a connection's `_new_conn`, `connect` and `is_connected`.
"""

from __future__ import annotations

import errno
import io
import logging
import os
import queue
import socket
import ssl
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import urllib3.exceptions  # its names one by one below: a version that lacks some is to be refused with our text
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.util import Timeout
from urllib3.util.ssl_ import create_urllib3_context, resolve_cert_reqs, resolve_ssl_version

from httpx_wireguard._errors import TunnelError
from httpx_wireguard._streams import SyncStream
from httpx_wireguard._tls import Buffer
from httpx_wireguard._tunnel import Tunnel

logger = logging.getLogger("httpx_wireguard.http")

_READ_BUFFER = 65_536  # bytes; a response's parser reads lines and pieces out of what one read of the stream gives
_FUTURE_PATCH = 900  # urllib3-future, which installs itself as urllib3, has patch numbers from here on
_CLOSE_TIMEOUT = 1.0  # seconds for the connections of a closing pool to send their ends


def check_urllib3(version: str) -> None:
    """Refuse a package that is called urllib3 and dials in ways that cannot be led through the tunnel.

    Raises:
        ImportError: the text tells what to install.
    """
    numbers = [int(part) if part.isdecimal() else 0 for part in version.split(".")[:3]] + [0, 0, 0]
    if numbers[2] >= _FUTURE_PATCH:
        raise ImportError(
            f"httpx_wireguard.requests needs urllib3, but `import urllib3` gives urllib3-future {version}, which "
            "connects in ways of its own: use an environment without niquests and urllib3-future"
        )
    if numbers[0] != 2:
        raise ImportError(f"httpx_wireguard.requests needs urllib3 2.x, found {version}: `pip install 'urllib3>=2,<3'`")


check_urllib3(urllib3.__version__)  # type: ignore[attr-defined]  # its documented name, missing in __all__


class Closer:
    """Closes streams from a thread of its own.

    urllib3 closes connections in finalizers, and the garbage collector runs those in whichever thread it happens to
    stop, be it one that holds the tunnel's lock. So `close` takes no lock.
    """

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[SyncStream | threading.Event] = queue.SimpleQueue()
        self._start_lock = threading.Lock()
        self._started = False

    def start(self) -> None:
        """Start the thread, unless it runs."""
        with self._start_lock:
            if not self._started:
                threading.Thread(target=self._run, name="httpx-wireguard-close", daemon=True).start()
                self._started = True

    def close(self, stream: SyncStream) -> None:
        """Close the stream soon; may be called from a finalizer."""
        self._queue.put(stream)

    def wait(self) -> None:
        """Until what was handed over before is closed, but not for ever."""
        if self._started:
            done = threading.Event()
            self._queue.put(done)
            done.wait(_CLOSE_TIMEOUT)

    def _run(self) -> None:
        while True:
            item = self._queue.get()
            if isinstance(item, threading.Event):
                item.set()
            else:
                self._close(item)
            del item  # while it waits for the next, it keeps nothing alive

    @staticmethod
    def _close(stream: SyncStream) -> None:
        try:
            stream.close()
        except OSError as error:
            logger.debug("%r: %s", stream, error)
        except Exception:  # the thread has to go on
            logger.exception("%r did not close", stream)


_closer = Closer()


def wait_for_closing() -> None:
    """Wait until the connections closed so far have told the far side, but for no longer than a second."""
    _closer.wait()


def _renew_closer() -> None:
    """In a forked child there is no thread but the one that forked."""
    global _closer
    _closer = Closer()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_closer)


class SocketOverStream:
    """A connected stream of the tunnel as the socket that http.client and urllib3 expect.

    As with a socket, `close` takes effect when the files that `makefile` gave are closed too, and a timeout, in
    seconds, is one for each operation. There is no descriptor: `fileno` raises.
    """

    def __init__(self, stream: SyncStream, timeout: float | None) -> None:
        self._stream = stream
        self._timeout = timeout
        self._closer = _closer
        self._closer.start()  # not when it is needed first: a finalizer must not start threads
        self._files = 0
        self._closed = False
        self._released = False  # the stream is closed, or another socket's
        self._shut_down = False

    def __del__(self) -> None:
        self._release()  # as a socket is: urllib3 leaves it to the garbage collector when a response is dropped unread

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._stream!r}>"

    @property
    def stream(self) -> SyncStream:
        """The stream below."""
        return self._stream

    @property
    def is_idle(self) -> bool:
        """Whether the connection stands and has nothing to read: a new request may use it. Exact."""
        return not self._closed and not self._stream.get_extra_info("is_readable")

    def settimeout(self, value: float | None) -> None:
        self._timeout = value

    def gettimeout(self) -> float | None:
        return self._timeout

    def getsockname(self) -> tuple[str, int]:
        address: tuple[str, int] = self._stream.get_extra_info("client_addr")
        return address

    def getpeername(self) -> tuple[str, int]:
        address: tuple[str, int] = self._stream.get_extra_info("server_addr")
        return address

    def fileno(self) -> NoReturn:
        raise io.UnsupportedOperation("a connection through the tunnel has no file descriptor")

    def makefile(self, mode: str = "rb", buffering: int | None = None) -> io.BufferedReader:
        if mode not in ("r", "rb"):
            raise ValueError(f"mode {mode!r}: a connection through the tunnel makes files for reading bytes only")
        self._files += 1
        raw = socket.SocketIO(self, "r")  # type: ignore[arg-type]  # needs recv_into and _decref_socketios, no socket
        return io.BufferedReader(raw, _READ_BUFFER)

    def recv(self, bufsize: int, flags: int = 0) -> bytes:
        try:
            return self._stream.read(bufsize, self._timeout)
        except ConnectionResetError:
            if self._shut_down:
                return b""
            raise

    def recv_into(self, buffer: bytearray | memoryview, nbytes: int = 0, flags: int = 0) -> int:
        data = self.recv(nbytes or len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def sendall(self, data: Buffer, flags: int = 0) -> None:
        try:
            self._stream.write(data, self._timeout)
        except ConnectionResetError as error:
            error.errno = error.errno or errno.ECONNRESET  # urllib3 reads the response all the same: it may have come
            raise

    def shutdown(self, how: int) -> None:
        """End the connection; a thread that waits for data gets its end, as `HTTPResponse.shutdown` wants it."""
        self._shut_down = True
        self._release()

    def close(self) -> None:
        self._closed = True
        self._close_if_unused()

    def _decref_socketios(self) -> None:
        """A file of `makefile` was closed."""
        self._files -= 1
        if self._closed:
            self._close_if_unused()

    def _close_if_unused(self) -> None:
        if self._files <= 0:
            self._release()

    def _release(self) -> None:
        if not self._released:
            self._released = True
            self._closer.close(self._stream)

    def start_tls(self, context: ssl.SSLContext, server_hostname: str | None) -> TlsSocketOverStream:
        """Do a TLS handshake as client; this socket must not be used any more."""
        if not hasattr(context, "wrap_bio"):
            raise ssl.SSLError(
                f"{type(context).__module__}.{type(context).__name__} cannot do TLS without a file descriptor; inside "
                "the tunnel use the standard library's ssl: urllib3.contrib.pyopenssl.extract_from_urllib3()"
            )
        self._released = True  # on failure the stream closes itself
        return TlsSocketOverStream(self._stream.start_tls(context, server_hostname, self._timeout), self._timeout)


class TlsSocketOverStream(SocketOverStream):
    """The same with TLS, as an `ssl.SSLSocket`."""

    @property
    def _ssl_object(self) -> ssl.SSLObject:
        ssl_object: ssl.SSLObject = self._stream.get_extra_info("ssl_object")
        return ssl_object

    def getpeercert(self, binary_form: bool = False) -> Any:
        return self._ssl_object.getpeercert(binary_form)

    def version(self) -> str | None:
        return self._ssl_object.version()

    def cipher(self) -> tuple[str, str, int] | None:
        return self._ssl_object.cipher()

    def selected_alpn_protocol(self) -> str | None:
        return self._ssl_object.selected_alpn_protocol()


class _TunnelContext:
    """An SSL context whose `wrap_socket` takes a `SocketOverStream`; everything else is the context's own."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self.__dict__["_context"] = context

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._context, name, value)

    def wrap_socket(self, sock: SocketOverStream, *, server_hostname: str | None = None) -> TlsSocketOverStream:
        return sock.start_tls(self._context, server_hostname)


class WireGuardHTTPConnection(HTTPConnection):
    """urllib3's connection, dialled through a tunnel."""

    def __init__(self, *args: Any, tunnel: Tunnel, **kwargs: Any) -> None:
        self._tunnel_sock: SocketOverStream | None = None
        self._wireguard = tunnel
        super().__init__(*args, **kwargs)

    @property
    def sock(self) -> Any:
        """The connection's socket. Any other than the tunnel's is refused before a byte is written to it."""
        return self._tunnel_sock

    @sock.setter
    def sock(self, value: Any) -> None:
        if value is not None and not isinstance(value, SocketOverStream):
            value.close()
            raise TunnelError(
                f"refused a connection to {self.host} that was not made through the tunnel: something replaced "
                f"urllib3's way to connect, and gave a {type(value).__name__}"
            )
        self._tunnel_sock = value

    @property
    def is_connected(self) -> bool:
        return self._tunnel_sock is not None and self._tunnel_sock.is_idle

    def _new_conn(self) -> SocketOverStream:  # type: ignore[override]  # what is used of a socket, it has
        """Connect through the tunnel.

        Raises:
            NameResolutionError, ConnectTimeoutError, NewConnectionError: urllib3's, with the tunnel's own text and
                error.
        """
        timeout = Timeout.resolve_default_timeout(self.timeout)
        proxied = "to the proxy, which has to be inside the tunnel" if self.proxy else "through the tunnel"
        try:
            stream = self._wireguard.connect_tcp(
                self._dns_host.strip("[]"),
                self.port,
                timeout,
                self.source_address[0] if self.source_address else None,
                self.socket_options,
            )
        except TimeoutError as error:
            raise urllib3.exceptions.ConnectTimeoutError(
                self, f"Connection to {self.host} timed out. (connect timeout={timeout}) {proxied}: {error}"
            ) from error
        except socket.gaierror as error:
            raise urllib3.exceptions.NameResolutionError(self.host, self, error) from error
        except OSError as error:
            raise urllib3.exceptions.NewConnectionError(
                self, f"Failed to establish a new connection {proxied}: {error}"
            ) from error
        sys.audit("http.client.connect", self, self.host, self.port)
        return SocketOverStream(stream, timeout)


class WireGuardHTTPSConnection(WireGuardHTTPConnection, HTTPSConnection):
    """urllib3's connection with TLS, dialled through a tunnel."""

    def connect(self) -> None:
        with self._context_for_tunnel():
            super().connect()

    @contextmanager
    def _context_for_tunnel(self) -> Iterator[None]:
        given = self.ssl_context
        self.ssl_context = _TunnelContext(given or self._new_context())  # type: ignore[assignment]  # has what is used
        try:
            yield
        finally:
            self.ssl_context = given

    def _new_context(self) -> ssl.SSLContext:
        """The context that urllib3 makes for a connection that was given none.

        A new one each time: urllib3 loads the connection's own certificates into it.
        """
        context = create_urllib3_context(
            ssl_version=resolve_ssl_version(self.ssl_version),
            ssl_minimum_version=self.ssl_minimum_version,
            ssl_maximum_version=self.ssl_maximum_version,
            cert_reqs=resolve_cert_reqs(self.cert_reqs),
        )
        if not (self.ca_certs or self.ca_cert_dir or self.ca_cert_data) and hasattr(context, "load_default_certs"):
            context.load_default_certs()
        return context


class WireGuardHTTPConnectionPool(HTTPConnectionPool):
    """urllib3's pool for one host, inside a tunnel."""

    ConnectionCls = WireGuardHTTPConnection


class WireGuardHTTPSConnectionPool(HTTPSConnectionPool):
    """The same with TLS."""

    ConnectionCls = WireGuardHTTPSConnection
