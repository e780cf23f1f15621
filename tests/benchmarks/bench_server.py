"""The server of the benchmark: wireguard-go and nginx in network namespaces, or all of it in one Python process."""

from __future__ import annotations

import contextlib
import http.server
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from httpx_wireguard.testing import IPV4, SiteHandler, WireGuardPeer
from tests.interop.lab import TOOLS, Lab, opened_lab
from tests.interop.namespaces import eventually, run
from tests.interop.wireguard_server import INNER_IPV4, MTU, OUTER_IPV4, UAPI_DIRECTORY
from tests.wg_quick import wg_quick


@dataclass(frozen=True, slots=True)
class Server:
    """
    Attributes:
        description: for the reader of the figures.
        command: what a client's command line begins with.
        hosts: of the one web server, by variant: "tunnel", "plain", and perhaps "wireguard-go".
        paths: "small" (1024 bytes), "large" (`size` bytes) and "upload" (takes PUT).
        authority: the certificate authority's file for https; None where there is no https.
    """

    description: str
    command: tuple[str, ...]
    hosts: dict[str, str]
    paths: dict[str, str]
    size: int
    authority: str | None = None


@contextlib.contextmanager
def opened_server(conf: Path) -> Iterator[Server]:
    """The namespaces if this user may and the tools are there, else the process. Writes the client's file."""
    conf.touch(mode=0o600)
    able = os.geteuid() == 0 and all(map(shutil.which, TOOLS))
    with (_lab if able else _process)(conf) as server:
        yield server


@contextlib.contextmanager
def _lab(conf: Path) -> Iterator[Server]:
    """Plain connections take the cable that the tunnel's datagrams take; or wireguard-go's interface, as root's do."""
    with opened_lab() as lab:
        _bring_up(lab, conf.parent)
        conf.write_text(lab.server.new_client().text())
        paths = {"small": "/1k", "large": "/100m", "upload": "/uploads/benchmark"}
        enter = ("ip", "netns", "exec", lab.outside.name)
        hosts = {"tunnel": INNER_IPV4, "plain": OUTER_IPV4, "wireguard-go": INNER_IPV4}
        authority = str(lab.site.certificate_authority)
        version = run("wireguard-go", "--version").split()[1]
        description = f"wireguard-go {version} and nginx in network namespaces"
        yield Server(description, enter, hosts, paths, 100 << 20, authority)


def _bring_up(lab: Lab, directory: Path) -> None:
    """A wireguard-go interface for whatever client of the outer namespace has no tunnel of its own."""
    profile, name = lab.server.new_client(), f"hxwg{os.getpid()}"
    lab.outside.start("wireguard-go", "-f", name, log=directory / "client.log")
    eventually(Path(UAPI_DIRECTORY, f"{name}.sock").is_socket, "the client's control socket")
    known = [line for line in profile.text().splitlines() if not line.startswith(("Address", "DNS", "MTU"))]
    lab.outside.run("wg", "setconf", name, "/dev/stdin", text="\n".join(known) + "\n")
    lab.outside.ip("address", "add", f"{profile.ipv4}/24", "dev", name)
    lab.outside.ip("link", "set", name, "mtu", str(MTU), "up")


@contextlib.contextmanager
def _process(conf: Path) -> Iterator[Server]:
    command = (sys.executable, "-m", "tests.benchmarks.bench_server", str(conf))
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None and process.stdout is not None
        size = 20 << 20
        paths = {"small": "/bytes/1024", "large": f"/bytes/{size}", "upload": "/"}
        hosts = {"tunnel": IPV4, "plain": f"127.0.0.1:{int(process.stdout.readline())}"}
        yield Server("WireGuardPeer in a Python process (slow; no root)", (), hosts, paths, size)
        process.stdin.close()  # which ends it


class _PlainHandler(SiteHandler):
    disable_nagle_algorithm = True  # head and body are two segments; the tunnel's TCP does not hold the second back


def _serve(conf: Path) -> None:
    """Serve until standard input ends; prints the port of the plain server."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _PlainHandler)
    server.daemon_threads = True
    with WireGuardPeer() as peer:
        conf.write_text(wg_quick(peer.client_config()))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        print(server.server_address[1], flush=True)
        sys.stdin.read()
        server.shutdown()
        server.server_close()


if __name__ == "__main__":
    _serve(Path(sys.argv[1]))
