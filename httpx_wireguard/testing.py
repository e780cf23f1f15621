"""A WireGuard server inside the process, for tests that need a tunnel and have neither root nor a server.

with WireGuardPeer() as peer, httpx.Client(transport=WireGuardTransport(peer.client_config())) as client:
    assert client.get("http://peer.test/").status_code == 200
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from http.server import BaseHTTPRequestHandler
from typing import Any, Self

import dns.exception
import dns.flags
import dns.message
import dns.rcode
import dns.rdataclass
import dns.rdatatype
import dns.rrset

from httpx_wireguard._config import Config, PeerConfig
from httpx_wireguard._streams import SyncStream
from httpx_wireguard._tunnel import Tunnel
from httpx_wireguard._wireguard.crypto import PrivateKey

IPV4 = "10.66.0.1"  # the peer's own addresses inside the tunnel; clients count on from them
IPV6 = "fd66::1"
HOST = "peer.test"  # a name that its DNS server knows; .test is reserved by RFC 6761
_BLOCK = hashlib.shake_256(b"httpx-wireguard").digest(1 << 16)
_DNS_UDP_LIMIT = 512  # bytes of an answer without EDNS; RFC 1035 4.2.1
_TTL = 60  # seconds
_READ_SIZE = 65536

Server = Callable[[SyncStream], None]


class WireGuardPeer:
    """A WireGuard server on a loopback UDP port, with a DNS server and a small HTTP site inside the tunnel.

    The site answers `/` (a page), `/bytes/N` (N bytes, the same every time: `body(N)`), `/headers` (the request's
    headers as JSON) and PUT or POST anywhere (length and SHA-256 of the body, as JSON).

    Args:
        handler: what serves HTTP on port 80 in place of the site: any `http.server` handler class.
        servers: further TCP ports, each with a function that is given every accepted stream, in a thread.
        names: host names that the DNS server knows, each with its addresses; `peer.test` is always there.
        clients: how many client configurations there are.
        preshared_key: 32 bytes, mixed into every client's handshake.
        mtu: of the tunnel, bytes.
    """

    def __init__(
        self,
        *,
        handler: type[BaseHTTPRequestHandler] | None = None,
        servers: Mapping[int, Server] | None = None,
        names: Mapping[str, Sequence[str]] | None = None,
        clients: int = 1,
        preshared_key: bytes | None = None,
        mtu: int = 1420,
    ) -> None:
        self._names = {HOST: (IPV4, IPV6), **(names or {})}
        self._handler = handler or SiteHandler
        self._servers: dict[int, Server] = {80: self._serve_http, 53: self._serve_dns_tcp, **(servers or {})}
        self._preshared_key = preshared_key
        self._mtu = mtu
        self._client_keys = [os.urandom(32) for _ in range(clients)]
        private_key = os.urandom(32)
        self.public_key = PrivateKey(private_key).public
        self.tunnel = Tunnel(
            Config(
                private_key=private_key,
                address=(IPV4, IPV6),
                mtu=mtu,
                peers=[
                    PeerConfig(
                        public_key=PrivateKey(key).public,
                        allowed_ips=_client_addresses(index),
                        preshared_key=preshared_key,
                    )
                    for index, key in enumerate(self._client_keys)
                ],
            ),
            udp_host="127.0.0.1",
        )

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def start(self) -> None:
        """Begin to listen; returns when a client may come."""
        self.tunnel.start()
        for port, serve in self._servers.items():
            _spawn(self._accept, self.tunnel.listen_tcp(port), serve)
        _spawn(self._serve_dns_udp, self.tunnel.open_udp(53))

    def close(self) -> None:
        """End everything; clients see a server that fell silent."""
        self.tunnel.close()

    @property
    def endpoint(self) -> str:
        """Where clients send their datagrams: "127.0.0.1:port"."""
        return f"127.0.0.1:{self.tunnel.listen_port}"

    def client_config(self, index: int = 0, *, persistent_keepalive: int = 0) -> Config:
        """The configuration of client `index`; one running tunnel for each at a time."""
        return Config(
            private_key=self._client_keys[index],
            address=_client_addresses(index),
            dns=(IPV4,),
            mtu=self._mtu,
            peers=[
                PeerConfig(
                    public_key=self.public_key,
                    allowed_ips=("0.0.0.0/0", "::/0"),
                    endpoint=self.endpoint,
                    preshared_key=self._preshared_key,
                    persistent_keepalive=persistent_keepalive,
                )
            ],
        )

    # -- TCP

    def _accept(self, listener: Any, serve: Server) -> None:
        with contextlib.suppress(OSError):  # the tunnel was closed
            while True:
                _spawn(self._serve_stream, listener.accept(), serve)

    def _serve_stream(self, stream: SyncStream, serve: Server) -> None:
        try:
            with contextlib.suppress(OSError):
                serve(stream)
        finally:
            with contextlib.suppress(OSError):
                stream.close()

    def _serve_http(self, stream: SyncStream) -> None:
        _StreamRequest(stream, self._handler)

    # -- DNS

    def _serve_dns_udp(self, sock: Any) -> None:
        with contextlib.suppress(OSError):
            while True:
                data, source = sock.receive()
                reply = self._answer(data, limited=True)
                if reply is not None:
                    sock.send(reply, source)

    def _serve_dns_tcp(self, stream: SyncStream) -> None:
        reader = io.BufferedReader(_StreamReader(stream))
        while length := reader.read(2):
            reply = self._answer(reader.read(int.from_bytes(length, "big")), limited=False)
            if reply is None:
                return
            stream.write(len(reply).to_bytes(2, "big") + reply)

    def _answer(self, data: bytes, *, limited: bool) -> bytes | None:
        try:
            query = dns.message.from_wire(data)
            question = query.question[0]
        except (dns.exception.DNSException, IndexError):
            return None
        reply = dns.message.make_response(query, recursion_available=True)
        name = question.name.to_text(omit_final_dot=True).lower()
        kind = dns.rdatatype.to_text(question.rdtype)
        if name not in self._names:
            reply.set_rcode(dns.rcode.NXDOMAIN)
        elif found := [a for a in self._names[name] if kind == ("AAAA" if ":" in a else "A")]:
            reply.answer.append(dns.rrset.from_text_list(question.name, _TTL, dns.rdataclass.IN, kind, found))
        limit = max(query.payload, _DNS_UDP_LIMIT) if limited else 65535
        try:
            return reply.to_wire(max_size=limit)
        except dns.exception.TooBig:
            reply.answer.clear()
            reply.flags |= dns.flags.TC
            return reply.to_wire()


class SiteHandler(BaseHTTPRequestHandler):
    """The default site of a `WireGuardPeer`."""

    protocol_version = "HTTP/1.1"
    server_version = "httpx-wireguard"

    def do_GET(self) -> None:
        """A page, bytes, or the request's own headers."""
        if self.path == "/":
            page = f"<!doctype html><title>{HOST}</title><p>It came through the tunnel to {self.client_address[0]}.</p>"
            self._send(page.encode(), "text/html; charset=utf-8")
        elif self.path == "/headers":
            self._send(json.dumps(dict(self.headers)).encode(), "application/json")
        elif self.path.startswith("/bytes/") and self.path[7:].isdecimal():
            size = int(self.path[7:])
            self._begin(size, "application/octet-stream")
            for piece in body_pieces(size):
                self.wfile.write(piece)
        else:
            self.send_error(404)

    def do_PUT(self) -> None:
        """Length and digest of what came."""
        digest, length = hashlib.sha256(), 0
        for piece in self._request_body():
            digest.update(piece)
            length += len(piece)
        self._send(json.dumps({"length": length, "sha256": digest.hexdigest()}).encode(), "application/json")

    do_POST = do_PUT

    def _request_body(self) -> Iterator[bytes]:
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            while size := int(self.rfile.readline().split(b";")[0], 16):
                yield self.rfile.read(size)
                self.rfile.readline()
            while self.rfile.readline().strip():  # trailers
                pass
            return
        missing = int(self.headers.get("Content-Length", 0))
        while missing > 0 and (piece := self.rfile.read(min(missing, _READ_SIZE))):
            missing -= len(piece)
            yield piece

    def _send(self, content: bytes, content_type: str) -> None:
        self._begin(len(content), content_type)
        self.wfile.write(content)

    def _begin(self, length: int, content_type: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(length))
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """A test's output is not ours to fill."""


def body_pieces(size: int) -> Iterator[bytes]:
    """The content of `/bytes/<size>`, piece by piece."""
    for start in range(0, size, len(_BLOCK)):
        yield _BLOCK[: size - start]


def body(size: int) -> bytes:
    """The content of `/bytes/<size>`."""
    return b"".join(body_pieces(size))


class _StreamReader(io.RawIOBase):
    """A stream as the raw file under an `io.BufferedReader`."""

    def __init__(self, stream: SyncStream) -> None:
        self._stream = stream

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._stream.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


class _StreamRequest:
    """One connection, handed to an `http.server` handler, which wants `makefile` and little else of a socket."""

    def __init__(self, stream: SyncStream, handler: type[BaseHTTPRequestHandler]) -> None:
        self._stream = stream
        handler(self, stream.get_extra_info("server_addr"), None)  # type: ignore[arg-type]  # not a socket, and no server

    def makefile(self, mode: str, buffering: int = -1) -> io.BufferedReader:
        return io.BufferedReader(_StreamReader(self._stream), _READ_SIZE)

    def sendall(self, data: bytes) -> None:
        self._stream.write(data)


def _client_addresses(index: int) -> tuple[str, str]:
    return f"10.66.{(index + 2) // 256}.{(index + 2) % 256}", f"fd66::{index + 2:x}"


def _spawn(target: Callable[..., None], *arguments: Any) -> None:
    threading.Thread(target=target, args=arguments, name="httpx-wireguard-peer", daemon=True).start()
