"""What the adapters to httpx and to httpx2 share. It imports neither, for who uses one need not have the other."""

from __future__ import annotations

import os
import ssl
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn, Protocol, cast

from httpx_wireguard._config import Config
from httpx_wireguard._tunnel import AsyncTunnel, Tunnel

if TYPE_CHECKING:
    from httpx_wireguard._tls import SupportsWrapBio

Conf = str | os.PathLike[str] | Config
DnsServers = Sequence[str] | Literal["system"] | None

MAX_SESSIONS = 100  # TLS sessions that a pool keeps, some KB each; ours

_LOOKED_FOR_BY = {
    **dict.fromkeys(("handle_request", "close", "__enter__", "__exit__"), "Client"),
    **dict.fromkeys(("handle_async_request", "aclose", "__aenter__", "__aexit__"), "AsyncClient"),
}
_MODULES = {"httpx": "httpx_wireguard", "httpx2": "httpx_wireguard.httpx2"}  # where each family's transports are


class StreamLike(Protocol):
    """What a network stream needs of a connection for threads."""

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes: ...
    def write(self, buffer: bytes, timeout: float | None = None) -> None: ...
    def start_tls(
        self, ssl_context: SupportsWrapBio, server_hostname: str | None = None, timeout: float | None = None
    ) -> StreamLike: ...
    def close(self) -> None: ...
    def get_extra_info(self, info: str) -> Any: ...


class AsyncStreamLike(Protocol):
    """What a network stream needs of a connection for event loops."""

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes: ...
    async def write(self, buffer: bytes, timeout: float | None = None) -> None: ...
    async def start_tls(
        self, ssl_context: SupportsWrapBio, server_hostname: str | None = None, timeout: float | None = None
    ) -> AsyncStreamLike: ...
    async def aclose(self) -> None: ...
    def get_extra_info(self, info: str) -> Any: ...


class TunnelLike(Protocol):
    """What a backend for threads needs of a tunnel."""

    def start(self) -> object: ...
    def close(self) -> object: ...
    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> StreamLike: ...


class AsyncTunnelLike(Protocol):
    """What a backend for event loops needs of a tunnel."""

    async def start(self) -> object: ...
    async def aclose(self) -> object: ...
    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> AsyncStreamLike: ...


# -- tunnels


def own_or_borrow(conf: Conf | TunnelLike, dns: DnsServers) -> tuple[TunnelLike, bool]:
    """The tunnel for a backend's first argument, and whether it is the backend's own to start and close."""
    if isinstance(conf, (str, os.PathLike, Config)):
        return Tunnel(conf, dns=dns), True
    if isinstance(cast("object", conf), AsyncTunnel):
        raise TypeError("an AsyncTunnel serves the async classes alone: give this one a Tunnel, a path or a Config")
    _check_borrowed(conf, dns)
    return conf, False


def async_own_or_borrow(conf: Conf | Tunnel | AsyncTunnelLike, dns: DnsServers) -> tuple[AsyncTunnelLike, bool]:
    """`own_or_borrow` for event loops. A running `Tunnel` serves them too, and so is shared with threads."""
    if isinstance(conf, (str, os.PathLike, Config)):
        return AsyncTunnel(conf, dns=dns), True
    _check_borrowed(conf, dns)
    return (AsyncTunnel(conf) if isinstance(conf, Tunnel) else conf), False


def _check_borrowed(tunnel: object, dns: DnsServers) -> None:
    if not hasattr(tunnel, "connect_tcp"):
        raise TypeError(f"expected the path of a wg-quick file, a Config or a tunnel, not {tunnel!r}")
    if dns is not None:
        raise TypeError("dns= belongs to the tunnel: pass it to Tunnel(), or pass a path or a Config here")


# -- errors


def raise_as(error: OSError, timeout_class: type[Exception], error_class: type[Exception]) -> NoReturn:
    """Raise `error`, one of ours or of ssl's, as httpcore's class for it, with the diagnosis as its text."""
    raise (timeout_class if isinstance(error, TimeoutError) else error_class)(str(error)) from error


def restore_cause(error: BaseException) -> None:
    """Undo the pool's `raise error from None`, which takes the tunnel's own error off httpcore's class for it."""
    if error.__cause__ is None and isinstance(error.__context__, OSError):
        error.__cause__ = error.__context__


class WrongClientError(TypeError, AttributeError):
    """A transport was given to a client that it is not for.

    Also an `AttributeError`, so that `hasattr` keeps telling sync and async transports apart.
    """


def check_request(transport: str, request: object, request_class: type) -> None:
    """Refuse a request of the other family, whose client could not read the response.

    Raises:
        WrongClientError: with the import line that is right for the client.
    """
    if not isinstance(request, request_class):
        own, other = (kind.__module__.partition(".")[0] for kind in (request_class, type(request)))
        hint = f": from {_MODULES[other]} import {transport}" if other in _MODULES else ""
        raise WrongClientError(
            f"this {transport} is for the clients of {own}, and the request comes from {other}{hint}"
        )


def check_http2(http2: bool, family: str) -> None:
    """Refuse, as the family's own transports do, to speak HTTP/2 without the package for it."""
    if not http2:
        return
    from importlib.util import find_spec  # here: HTTP/1.1 needs no more of importlib than is loaded already

    if find_spec("h2") is None:
        raise ImportError(
            "Using http2=True, but the 'h2' package is not installed. "
            f"Make sure to install {family} using `pip install {family}[http2]`."
        )


def missing_attribute(transport: object, name: str, family: str) -> AttributeError:
    """The error for an attribute that a transport lacks; it tells when the other kind of client looked for it."""
    kind, client = type(transport).__name__, _LOOKED_FOR_BY.get(name)
    if client is None:
        return AttributeError(f"{kind!r} object has no attribute {name!r}", name=name, obj=transport)
    needed = "AsyncWireGuardTransport" if client == "AsyncClient" else "WireGuardTransport"
    return WrongClientError(
        f"{family}.{client} needs another class than {kind}: from {_MODULES[family]} import {needed}"
    )


# -- TLS


class PoolContext:
    """The SSL context of one pool: made when it is needed, and its connections resume each other's sessions.

    Only for a context that nobody else can change meanwhile: who is resumed is not verified again (RFC 8446 2.2,
    RFC 5077). A session is used once (RFC 8446 C.4), by the next connection to the same name; a server that has
    forgotten it does a full handshake.
    """

    def __init__(self, make: Callable[[], ssl.SSLContext]) -> None:
        self._make = make
        self._making = threading.Lock()
        self._context: ssl.SSLContext | None = None
        self._resumes = False
        self._sessions: dict[str | bytes | None, ssl.SSLSession] = {}

    def _made(self) -> ssl.SSLContext:
        with self._making:
            if self._context is None:
                self._context = self._make()
                if type(self._context).__module__ == "ssl":  # others verify in their own ways; perhaps not who resumes
                    self._resumes = True
                    # else a session ends with a connection that the server closes without close_notify
                    self._context.options |= ssl.OP_IGNORE_UNEXPECTED_EOF
            return self._context

    def __getattr__(self, name: str) -> Any:
        return getattr(self._made(), name)

    def wrap_bio(
        self,
        incoming: ssl.MemoryBIO,
        outgoing: ssl.MemoryBIO,
        server_side: bool = False,
        server_hostname: str | bytes | None = None,
    ) -> ssl.SSLObject:
        session = self._sessions.pop(server_hostname, None)
        return self._made().wrap_bio(incoming, outgoing, server_side, server_hostname, session)

    def keep_session(self, ssl_object: ssl.SSLObject) -> None:
        """Keep the session of a connection that is about to be closed."""
        session = ssl_object.session
        if self._resumes and session is not None:
            self._sessions[ssl_object.server_hostname] = session
            for oldest in list(self._sessions)[:-MAX_SESSIONS]:
                self._sessions.pop(oldest, None)


def ssl_context(
    create_ssl_context: Callable[..., ssl.SSLContext], verify: ssl.SSLContext | str | bool, cert: Any, trust_env: bool
) -> ssl.SSLContext:
    """What a pool takes for its SSL context; the arguments are those of `httpx.create_ssl_context`, and that itself.

    To load the certificate authorities takes as long as a tunnel's whole start, and plain HTTP needs none: those of the
    default, and of the environment if they are there, are loaded when they are needed.
    """
    named = trust_env and (os.environ.get("SSL_CERT_FILE") or os.environ.get("SSL_CERT_DIR"))
    if verify is True and cert is None and (not named or Path(named).exists()):
        return cast(ssl.SSLContext, PoolContext(partial(create_ssl_context, trust_env=trust_env)))
    context = create_ssl_context(verify=verify, cert=cert, trust_env=trust_env)
    return cast(ssl.SSLContext, PoolContext(lambda: context)) if isinstance(verify, (bool, str)) else context


# -- responses


class _Body:
    """A response's body, whose errors keep their cause, and which is let go of when it is closed.

    httpx ties each response into a cycle: all that httpcore knows of a request would wait for the garbage collector.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def _opened(self) -> Any:
        if self._stream is None:
            raise RuntimeError("the response is closed: nothing can be read from it any more")
        return self._stream


class ResponseStream(_Body):
    """The body of a response to a thread."""

    def __iter__(self) -> Iterator[bytes]:
        try:
            yield from self._opened()
        except Exception as error:
            restore_cause(error)
            raise

    def close(self) -> None:
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.close()


class AsyncResponseStream(_Body):
    """The body of a response to a task; `aclose` is what closes the stream inside."""

    def __init__(self, stream: Any, aclose: Callable[[Any], Awaitable[None]]) -> None:
        super().__init__(stream)
        self._aclose = aclose

    def __aiter__(self) -> AsyncIterator[bytes]:
        return _Chunks(self._opened().__aiter__())

    async def aclose(self) -> None:
        stream, self._stream = self._stream, None
        if stream is not None:
            await self._aclose(stream)


class _Chunks:
    """No generator: one that is left in the middle is closed late, by the loop, which trio warns of."""

    def __init__(self, chunks: AsyncIterator[bytes]) -> None:
        self._chunks = chunks

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        try:
            return await self._chunks.__anext__()
        except StopAsyncIteration:
            raise
        except Exception as error:
            restore_cause(error)
            raise
