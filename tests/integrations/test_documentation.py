"""The examples of the documentation run.

Every Python block of README.md and docs/*.md is run as a program of its own, in a directory with a `wg0.conf` that
leads to a server in this process, whose DNS knows the hosts that the examples name. After an HTML comment that begins
`<!-- not run:` and gives the reason, a block is only compiled.
"""

from __future__ import annotations

import base64
import datetime
import os
import re
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from httpx_wireguard._streams import SyncStream
from httpx_wireguard.testing import IPV4, WireGuardPeer
from tests.tls_server import TlsServer
from tests.wg_quick import wg_quick

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
HOSTS = ["intranet.example", "intranet.corp.example", "api.corp.example", "metrics.corp.example"]
NOT_RUN = "<!-- not run: "


class Example(NamedTuple):
    page: Path
    line: int  # of the block's first line of code, from 1
    code: str
    runs: bool

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def python_blocks(page: Path) -> Iterator[Example]:
    text = page.read_text(encoding="utf-8")
    for block in re.finditer(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        before = text[: block.start()].rstrip().rpartition("\n")[2]
        yield Example(page, text.count("\n", 0, block.start(1)) + 1, block[1], not before.startswith(NOT_RUN))


EXAMPLES = [example for page in PAGES for example in python_blocks(page)]


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A self-signed certificate for the hosts, and its key, in one PEM file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, HOSTS[0])])
    now = datetime.datetime.now(datetime.UTC)
    signed = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(host) for host in HOSTS]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path_factory.mktemp("certificate") / "server.pem"
    private = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    pem = serialization.Encoding.PEM
    path.write_bytes(signed.public_bytes(pem) + key.private_bytes(pem, *private))
    return path


@pytest.fixture
def peer(certificate: Path) -> Iterator[WireGuardPeer]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)

    def serve_https(stream: SyncStream) -> None:
        assert isinstance(stream, SyncStream)
        tls = TlsServer(stream, context)
        tls.read(65_536)
        tls.write(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello")

    def serve_ssh(stream: SyncStream) -> None:
        stream.write(b"SSH-2.0-example\r\n")

    with WireGuardPeer(servers={443: serve_https, 22: serve_ssh}, names={host: [IPV4] for host in HOSTS}) as running:
        yield running


@pytest.mark.parametrize("example", EXAMPLES, ids=str)
def test_example_runs(example: Example, peer: WireGuardPeer, certificate: Path, tmp_path: Path) -> None:
    shifted = "\n" * (example.line - 1) + example.code  # so that a traceback shows the page's own line numbers
    compile(shifted, str(example), "exec")
    if not example.runs:
        return
    config = peer.client_config()
    conf = tmp_path / "wg0.conf"
    conf.write_text(wg_quick(config), encoding="utf-8")
    conf.chmod(0o600)
    program = tmp_path / "example.py"
    program.write_text(shifted, encoding="utf-8")
    environment = os.environ | {
        "SSL_CERT_FILE": str(certificate),
        "WIREGUARD_CONFIG": conf.read_text(encoding="utf-8"),
        "WIREGUARD_PRIVATE_KEY": base64.b64encode(config.private_key.reveal()).decode(),
        "WIREGUARD_PEER": base64.b64encode(peer.public_key).decode(),
    }
    ended = subprocess.run(
        [sys.executable, program], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60
    )
    assert ended.returncode == 0, f"{example}\n{ended.stdout}{ended.stderr}"
    assert "Error" not in ended.stdout + ended.stderr


def test_every_page_with_code_is_seen() -> None:
    """The pattern above finds as many Python blocks as the pages open."""
    opened = sum(page.read_text(encoding="utf-8").count("```python") for page in PAGES)
    assert opened == len(EXAMPLES) > 0


def test_the_command_s_page_describes_every_sub_command() -> None:
    listed = subprocess.run(
        [sys.executable, "-m", "httpx_wireguard", "--help"], capture_output=True, text=True, check=True, timeout=60
    ).stdout
    names = re.findall(r"^  ([a-z]+)  ", listed.partition("Commands:\n")[2], re.MULTILINE)
    page = (ROOT / "docs" / "command.md").read_text(encoding="utf-8")
    headings = " ".join(re.findall(r"^## (.*)$", page, re.MULTILINE))
    assert sorted(names) == sorted(re.findall(r"`([a-z]+)`", headings))
