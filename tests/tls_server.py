"""A certificate, TLS contexts and a TLS server for tests."""

from __future__ import annotations

import datetime
import ssl
import threading
from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from httpx_wireguard._streams import SyncStream

T = TypeVar("T")


_making = threading.Lock()


def certificate() -> tuple[bytes, bytes]:
    """A self-signed certificate for server.test, and its key, as PEM: the same for both ends, which ask at once."""
    with _making:
        return _certificate()


@cache
def _certificate() -> tuple[bytes, bytes]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "server.test")])
    now = datetime.datetime.now(datetime.UTC)
    signed = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("server.test")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    return (
        signed.public_bytes(serialization.Encoding.PEM),
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()),
    )


def client_context(*, trusted: bool = True) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if trusted:
        context.load_verify_locations(cadata=certificate()[0].decode())
    return context


def server_context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with TemporaryDirectory() as directory:
        path = Path(directory) / "server.pem"
        path.write_bytes(b"".join(certificate()))
        context.load_cert_chain(path)
    return context


class TlsServer:
    """The server's side of TLS on a stream; it may carry another `TlsServer`. It waits 10 seconds for anything."""

    def __init__(self, stream: SyncStream | TlsServer, context: ssl.SSLContext | None = None) -> None:
        self._stream = stream
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls = (context or server_context()).wrap_bio(self._incoming, self._outgoing, server_side=True)
        self._run(self._tls.do_handshake)

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        try:
            return self._run(lambda: self._tls.read(max_bytes))
        except ssl.SSLEOFError:
            return b""

    def write(self, data: bytes, timeout: float | None = None) -> None:
        self._run(lambda: self._tls.write(data))

    def close(self) -> None:
        self._stream.close()

    def _run(self, step: Callable[[], T]) -> T:
        while True:
            try:
                result = step()
            except ssl.SSLWantReadError:
                self._send()
                if data := self._stream.read(65_536, 10):
                    self._incoming.write(data)
                else:
                    self._incoming.write_eof()
                continue
            self._send()
            return result

    def _send(self) -> None:
        if data := self._outgoing.read():
            self._stream.write(data, 10)
