"""What clients find inside the tunnel: nginx with files of known digests, and dnsmasq that knows their host."""

from __future__ import annotations

import hashlib
import os
import socket
from pathlib import Path

from tests.interop.namespaces import Namespace, eventually, run
from tests.interop.wireguard_server import INNER_IPV4, INNER_IPV6

HOST = "web.wg.test"
IPV4_ONLY_HOST = "v4.wg.test"
MANY_HOST = "many.wg.test"
MANY_ADDRESSES = [f"10.99.1.{number}" for number in range(1, 201)]  # as an answer over 3 KB: never in one datagram
MANY_NETWORK = "10.99.1.0/24"
SIZES = {"1k": 1 << 10, "1m": 1 << 20, "100m": 100 << 20, "1g": 1 << 30}
_BLOCK = 1 << 20  # bytes

_NGINX = """
user root; worker_processes 1; daemon off; pid {directory}/nginx.pid;
events {{ worker_connections 1024; }}
http {{
  access_log off; sendfile on; tcp_nopush on; default_type application/octet-stream;
  client_max_body_size 0; client_body_temp_path {directory}/body;
  server {{
    listen 80 backlog=1024; listen [::]:80 backlog=1024;
    listen 443 ssl http2; listen [::]:443 ssl http2;
    server_name {host};
    ssl_certificate {directory}/web.crt; ssl_certificate_key {directory}/web.key;
    location / {{ root {directory}/files; }}
    location /uploads/ {{ root {directory}; dav_methods PUT; }}
    location = /address {{ return 200 $remote_addr; }}
  }}
}}
"""


class WebSite:
    """The servers' files, and the digests of what they serve.

    Attributes:
        sha256: hexadecimal, by file name.
        uploads: where what was PUT under /uploads/ lies.
        certificate_authority: the file to trust.
    """

    def __init__(self, namespace: Namespace, directory: Path) -> None:
        self._namespace = namespace
        self._directory = directory
        self.sha256: dict[str, str] = {}
        self.files = directory / "files"
        self.uploads = directory / "uploads"
        self.certificate_authority = directory / "ca.crt"

    def start(self) -> None:
        """Returns when both servers answer."""
        self.files.mkdir()
        self.uploads.mkdir()
        for name, size in SIZES.items():
            self.sha256[name] = _write_random_file(self.files / name, size)
        self._make_certificates()
        self._start_nginx()
        self._start_dnsmasq()
        with self._namespace.entered():
            for port in (53, 80, 443):
                eventually(lambda port=port: _accepts(port), f"a server on port {port}")  # type: ignore[misc]  # mypy cannot infer lambda defaults

    def _make_certificates(self) -> None:
        """A certificate authority, and a certificate of its for the host; both hold under VERIFY_X509_STRICT."""
        authority = ("-CA", str(self.certificate_authority), "-CAkey", str(self._directory / "ca.key"))
        self._openssl("ca", "/CN=authority", "basicConstraints=critical,CA:TRUE", "keyUsage=critical,keyCertSign")
        self._openssl("web", f"/CN={HOST}", f"subjectAltName=DNS:{HOST}", "basicConstraints=CA:FALSE", issuer=authority)

    def _openssl(self, name: str, subject: str, *extensions: str, issuer: tuple[str, ...] = ()) -> None:
        request = ("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
        files = ("-keyout", str(self._directory / f"{name}.key"), "-out", str(self._directory / f"{name}.crt"))
        added = (word for extension in extensions for word in ("-addext", extension))
        run(*request, *issuer, "-days", "2", "-subj", subject, *files, *added)

    def _start_nginx(self) -> None:
        configuration = self._directory / "nginx.conf"
        configuration.write_text(_NGINX.format(directory=self._directory, host=HOST))
        log = self._directory / "nginx.log"
        self._namespace.start("nginx", "-c", str(configuration), "-e", str(log), log=log)

    def _start_dnsmasq(self) -> None:
        hosts = self._directory / "hosts"
        lines = [f"{INNER_IPV4} {HOST} {IPV4_ONLY_HOST}", f"{INNER_IPV6} {HOST}"]
        lines += [f"{address} {MANY_HOST}" for address in MANY_ADDRESSES]
        hosts.write_text("\n".join(lines) + "\n")
        self._namespace.ip("route", "add", "local", MANY_NETWORK, "dev", "lo")
        self._namespace.start(
            "dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--user=root", "--pid-file=",
            "--log-facility=-", "--no-resolv", "--no-hosts", f"--addn-hosts={hosts}", "--local=/wg.test/",
            log=self._directory / "dnsmasq.log",
        )  # fmt: skip


def _write_random_file(path: Path, size: int) -> str:
    digest = hashlib.sha256()
    with path.open("wb") as file:
        for start in range(0, size, _BLOCK):
            block = os.urandom(min(_BLOCK, size - start))
            digest.update(block)
            file.write(block)
    return digest.hexdigest()


def _accepts(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True
