"""Real libraries over sockets of a tunnel."""

from __future__ import annotations

import asyncio
import http.client
import io
import smtplib
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from httpx_wireguard import Tunnel
from httpx_wireguard._streams import SyncStream
from httpx_wireguard._tunnel import AsyncTunnel
from httpx_wireguard.testing import HOST, IPV4, WireGuardPeer, body
from tests.tls_server import TlsServer, client_context

PATIENCE = 20.0  # seconds


def pump_to_local(port: Callable[[], int]) -> Callable[[SyncStream], None]:
    """A server inside the tunnel that is really one on this host's loopback interface."""

    def serve(stream: SyncStream) -> None:
        data = b"anything"
        with socket.create_connection(("127.0.0.1", port())) as local:
            back = threading.Thread(target=copy_back, args=(local, stream))
            back.start()
            try:
                while data := stream.read(65_536):
                    local.sendall(data)
            finally:  # also when the client resets: closing alone would not wake the reader
                local.shutdown(socket.SHUT_WR if not data else socket.SHUT_RDWR)
                back.join()

    return serve


def copy_back(local: socket.socket, stream: SyncStream) -> None:
    while data := local.recv(65_536):
        stream.write(data)
    stream.close()


def tls_echo(stream: SyncStream) -> None:
    server = TlsServer(stream)
    while data := server.read(65_536):
        server.write(data)


def smtp(stream: SyncStream) -> None:
    stream.write(b"220 mail.test ESMTP\r\n")
    reader = b""
    while data := stream.read(65_536):
        reader += data
        while b"\r\n" in reader:
            line, _, reader = reader.partition(b"\r\n")
            stream.write(b"221 bye\r\n" if line == b"QUIT" else b"250 ok\r\n")


def postgres(stream: SyncStream) -> None:
    """As much of the server's side as a client needs that runs commands without results."""
    pending = b""

    def message(kind: bytes, content: bytes) -> bytes:
        return kind + struct.pack("!I", len(content) + 4) + content

    def take(size: int) -> bytes:
        nonlocal pending
        while len(pending) < size:
            data = stream.read(65_536)
            if not data:
                raise ConnectionError("the client is gone")
            pending += data
        taken, pending = pending[:size], pending[size:]
        return taken

    ready = message(b"Z", b"I")
    take(struct.unpack("!I", take(4))[0] - 4)
    parameters = {"server_version": "16.0", "client_encoding": "UTF8", "standard_conforming_strings": "on"}
    stream.write(
        message(b"R", struct.pack("!I", 0))
        + b"".join(message(b"S", f"{key}\0{value}\0".encode()) for key, value in parameters.items())
        + message(b"K", struct.pack("!II", 1, 2))
        + ready
    )
    while True:
        kind = take(1)
        content = take(struct.unpack("!I", take(4))[0] - 4)
        if kind == b"X":
            return
        stream.write(message(b"C", b"NOTIFY\0" if b"NOTIFY" in content else b"SET\0") + ready)


@pytest.fixture(scope="module")
def ssh_port() -> Iterator[list[int]]:
    yield []


@pytest.fixture(scope="module")
def peer(ssh_port: list[int]) -> Iterator[WireGuardPeer]:
    servers = {22: pump_to_local(lambda: ssh_port[0]), 443: tls_echo, 25: smtp, 5432: postgres}
    with WireGuardPeer(servers=servers, names={"server.test": [IPV4]}, clients=2) as running:
        yield running


@pytest.fixture
def tunnel(peer: WireGuardPeer) -> Iterator[Tunnel]:
    with Tunnel(peer.client_config()) as running:
        yield running


def test_http_client_by_its_own_connect(tunnel: Tunnel) -> None:
    """It sets TCP_NODELAY itself, and passes its own "no timeout given"."""
    connection = http.client.HTTPConnection(HOST)
    connection._create_connection = tunnel.create_connection  # type: ignore[attr-defined]
    for _ in range(2):
        connection.request("GET", "/bytes/1000000")
        assert connection.getresponse().read() == body(1_000_000)
    connection.request("PUT", "/", body=io.BytesIO(body(1_000_000)))
    assert b'"length": 1000000' in connection.getresponse().read()
    connection.close()


def test_smtplib(tunnel: Tunnel) -> None:
    class Mail(smtplib.SMTP):
        def _get_socket(self, host: str, port: int, timeout: float) -> socket.socket:
            source: Any = self.source_address
            return tunnel.create_connection((host, port), timeout, source)

    with Mail(HOST, 25) as mail:
        assert mail.noop()[0] == 250


def test_ssl_wrap_socket(tunnel: Tunnel) -> None:
    with (
        tunnel.create_connection(("server.test", 443), PATIENCE) as sock,
        client_context().wrap_socket(sock, server_hostname="server.test") as secure,
    ):
        secure.sendall(body(300_000))
        received = b""
        while len(received) < 300_000:
            received += secure.recv(65_536)
        assert received == body(300_000)
        assert secure.version() == "TLSv1.3"
    with tunnel.create_connection(("server.test", 443), PATIENCE) as sock, pytest.raises(ssl.SSLCertVerificationError):
        client_context(trusted=False).wrap_socket(sock, server_hostname="server.test")


@pytest.mark.parametrize("shared", [True, False])
def test_asyncio_streams_with_tls(tunnel: Tunnel, peer: WireGuardPeer, shared: bool) -> None:
    async def main() -> None:
        async with AsyncTunnel(tunnel if shared else peer.client_config(1)) as own:
            sock = await own.create_connection(("server.test", 443), PATIENCE)
            reader, writer = await asyncio.open_connection(
                sock=sock, ssl=client_context(), server_hostname="server.test"
            )
            writer.write(body(300_000))
            assert await asyncio.wait_for(reader.readexactly(300_000), PATIENCE) == body(300_000)
            writer.close()
            await writer.wait_closed()

    asyncio.run(main())


def test_paramiko(tunnel: Tunnel, ssh_port: list[int]) -> None:
    paramiko = pytest.importorskip("paramiko")
    key = paramiko.RSAKey.generate(2048)

    interface: Any = paramiko.ServerInterface

    class Server(interface):  # type: ignore[misc]  # paramiko has no types
        def check_auth_password(self, username: str, password: str) -> Any:
            right = (username, password) == ("user", "secret")
            return paramiko.AUTH_SUCCESSFUL if right else paramiko.AUTH_FAILED

        def check_channel_request(self, kind: str, chanid: int) -> Any:
            return paramiko.OPEN_SUCCEEDED

    with socket.create_server(("127.0.0.1", 0)) as listener:
        ssh_port.append(listener.getsockname()[1])
        client = paramiko.SSHClient()
        client.set_missing_host_key_policy(paramiko.AutoAddPolicy())
        accepted: list[Any] = []

        def accept() -> None:
            sock, _ = listener.accept()
            accepted.append(sock)
            transport = paramiko.Transport(sock)
            accepted.append(transport)
            transport.add_server_key(key)
            transport.start_server(server=Server())
            channel = transport.accept(PATIENCE)
            while data := channel.recv(65_536):
                channel.sendall(data.upper())
            channel.close()

        thread = threading.Thread(target=accept)
        thread.start()
        client.connect(
            HOST,
            username="user",
            password="secret",
            sock=tunnel.create_connection((HOST, 22), PATIENCE),
            look_for_keys=False,
            allow_agent=False,
        )
        channel = client.get_transport().open_session(timeout=PATIENCE)
        writer = threading.Thread(target=lambda: (channel.sendall(b"hello" * 100_000), channel.shutdown_write()))
        writer.start()
        answer = b""
        while data := channel.recv(65_536):
            answer += data
        writer.join()
        assert answer == b"HELLO" * 100_000
        client.close()
        thread.join(PATIENCE)
        deadline = time.monotonic() + PATIENCE
        while accepted[1].is_active():  # it learns that the connection has ended
            assert time.monotonic() < deadline
            time.sleep(0.001)
        accepted[0].close()


class InTunnel:
    """An event loop whose connections go through a tunnel, for libraries that take no socket but a loop."""

    def __init__(self, tunnel: AsyncTunnel) -> None:
        self._loop = asyncio.get_running_loop()
        self._tunnel = tunnel

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loop, name)

    async def create_connection(
        self, factory: Any, host: str | None = None, port: int | None = None, **arguments: Any
    ) -> Any:
        if host is not None and port is not None:
            arguments["sock"] = await self._tunnel.create_connection((host, port))
        return await self._loop.create_connection(factory, **arguments)


def test_asyncpg(tunnel: Tunnel) -> None:
    asyncpg = pytest.importorskip("asyncpg")

    async def main() -> None:
        connection = await asyncpg.connect(
            host=HOST, user="user", database="db", ssl=False, loop=InTunnel(AsyncTunnel(tunnel)), timeout=PATIENCE
        )
        assert await connection.execute("SET application_name = 'test'") == "SET"
        assert await connection.execute("NOTIFY something") == "NOTIFY"
        await connection.close()

    asyncio.run(main())
