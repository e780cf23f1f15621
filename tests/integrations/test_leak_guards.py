"""With proxy variables set, and servers that would answer outside: a client's process sends UDP to its endpoint only.

The client runs in a process of its own with an audit hook, the peer and the server outside in this one. The last tests
show that both witnesses notice a request outside, and that the traps of `docs/leaks.md` are there.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from httpx_wireguard.testing import HOST, IPV4, SiteHandler, WireGuardPeer
from tests.wg_quick import wg_quick

FAMILIES = ["httpx", "httpx2"]

# Notes every way in which Python asks the network for something, except for what a tunnel does.
WATCH = """
import asyncio, encodings.idna, json, os, socket, ssl, sys
import {family}, httpcore, trio
import {package}.clients, {package}.mounts, {package}.transport
from {package}.clients import AsyncClient, Client
from {package}.mounts import async_mounts_for, mounts_for
from {package}.transport import AsyncWireGuardTransport, WireGuardTransport

conf, endpoint, outside, site = sys.argv[1], ("127.0.0.1", int(sys.argv[2])), sys.argv[3], sys.argv[4]
leaks, datagrams = [], 0
watched = {{"socket." + name for name in ("sendto", "sendmsg", "connect", "bind", "getaddrinfo", "gethostbyname",
           "gethostbyaddr", "getnameinfo")}} | {{"subprocess.Popen", "os.system", "os.posix_spawn", "os.fork"}}

def hook(event, arguments):
    global datagrams
    if event not in watched or event == "socket.getaddrinfo" and arguments[0] == endpoint[0]:
        return
    sock, address = (*arguments, None, None)[:2]
    if getattr(sock, "type", None) == socket.SOCK_DGRAM and event in ("socket.sendto", "socket.sendmsg", "socket.bind"):
        if event == "socket.bind" and address[0] in ("", "0.0.0.0", "::"):
            return
        if event != "socket.bind" and tuple(address[:2]) == endpoint:
            datagrams += 1
            return
    leaks.append(f"{{event}} {{arguments}}")
    if event == "socket.getaddrinfo" and not arguments[0].startswith(("127.", "localhost")):
        raise socket.gaierror("a test asks no resolver outside")

def get(client, url):
    with client:
        return text_of(client.get(url))

async def aget(client, url):
    async with client:
        return text_of(await client.get(url))

def text_of(response):
    return response.text

def outcome(call, *arguments):
    try:
        return call(*arguments)
    except {family}.HTTPError as error:
        return f"{{type(error).__name__}}: {{error}}"

sys.addaudithook(hook)
"""
REPORT = """
print(json.dumps({"outcome": result, "leaks": leaks, "datagrams": datagrams}))
"""


class Site(SiteHandler):
    """The site in the tunnel; `/out?URL` leads to that URL."""

    def do_GET(self) -> None:
        """As `SiteHandler`, and redirects."""
        if not self.path.startswith("/out?"):
            super().do_GET()
            return
        self.send_response(302)
        self.send_header("Location", self.path.partition("?")[2])
        self.send_header("Content-Length", "0")
        self.end_headers()


@dataclass
class Outside:
    """An HTTP server, and HTTP proxy, outside the tunnel."""

    requests: list[str] = field(default_factory=list)

    def __enter__(self) -> Outside:
        requests = self.requests

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                requests.append(self.path)
                self.send_response(200)
                self.send_header("Content-Length", "7")
                self.end_headers()
                self.wfile.write(b"outside")

            do_CONNECT = do_GET

            def log_message(self, format: str, *args: object) -> None:
                """A test's output is not ours to fill."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"


@dataclass
class Report:
    """What the client's process did: what came of its request, what it did beside the tunnel, datagrams to the peer."""

    outcome: str
    leaks: list[str]
    datagrams: int


@dataclass
class Lab:
    """A peer with a site, a server outside that is the environment's proxy too, and a process for the client."""

    peer: WireGuardPeer
    outside: Outside
    conf: Path

    def run(self, body: str, family: str = "httpx", **variables: str) -> Report:
        """Run `body`, which binds `result`, in a process of its own."""
        package = "httpx_wireguard._http" if family == "httpx" else "httpx_wireguard._httpx2"
        program = WATCH.format(family=family, package=package) + textwrap.dedent(body) + REPORT
        names = ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
        environment = {**os.environ, **dict.fromkeys(names, self.outside.url), "no_proxy": "", "NO_PROXY": ""}
        arguments = [str(self.conf), str(self.peer.tunnel.listen_port), self.outside.url, f"http://{HOST}/"]
        ended = subprocess.run(
            [sys.executable, "-c", program, *arguments],
            env=environment | variables,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert ended.returncode == 0, ended.stderr
        return Report(**json.loads(ended.stdout))


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    conf = tmp_path / "wg0.conf"
    # The second name is one that the tunnel's DNS server knows, and that the host's resolver must not be asked for.
    with WireGuardPeer(handler=Site, names={"other.test": [IPV4]}) as peer, Outside() as outside:
        conf.write_text(wg_quick(peer.client_config()), encoding="utf-8")
        conf.chmod(0o600)
        yield Lab(peer, outside, conf)


CLIENTS = {
    "transport": "result = get({family}.Client(transport=WireGuardTransport(conf)), site)",
    "Client": "result = get(Client(conf), site)",
    "mounts": "result = get({family}.Client(mounts=mounts_for(conf, ['peer.test'])), site)",
    "strict mounts": "result = get({family}.Client(mounts=mounts_for(conf, ['*.test'], strict=True)), site)",
    "AsyncClient on asyncio": "result = asyncio.run(aget(AsyncClient(conf), site))",
    "AsyncClient on trio": "result = trio.run(aget, AsyncClient(conf), site)",
    "async mounts": """
        client = {family}.AsyncClient(mounts=async_mounts_for(conf, ['peer.test']))
        result = asyncio.run(aget(client, site))
    """,
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize("exceptions", ["", "peer.test,.test,127.0.0.1"], ids=["proxies", "exceptions"])
def test_only_udp_to_the_endpoint_leaves(lab: Lab, client: str, family: str, exceptions: str) -> None:
    report = lab.run(CLIENTS[client].format(family=family), family, NO_PROXY=exceptions, no_proxy=exceptions)
    assert "It came through the tunnel" in report.outcome
    assert report.datagrams > 0
    assert (report.leaks, lab.outside.requests) == ([], [])


REDIRECTED = {
    "transport": "{family}.Client(transport=WireGuardTransport(conf), follow_redirects=True)",
    "Client": "Client(conf, follow_redirects=True)",
    "strict mounts": "{family}.Client(mounts=mounts_for(conf, ['peer.test'], strict=True), follow_redirects=True)",
}
DESTINATIONS = ["http://127.0.0.1:{port}/", "https://127.0.0.1:{port}/", "http://localhost:{port}/"]


@pytest.mark.parametrize("destination", DESTINATIONS)
@pytest.mark.parametrize("client", REDIRECTED)
def test_a_redirect_out_does_not_lead_out(lab: Lab, client: str, destination: str) -> None:
    url = destination.format(port=lab.outside.url.rpartition(":")[2])
    body = f"result = outcome(get, {REDIRECTED[client].format(family='httpx')}, site + 'out?{url}')"
    report = lab.run(body, NO_PROXY="127.0.0.1,localhost", no_proxy="127.0.0.1,localhost")
    assert report.outcome.startswith("ConnectError: ")
    assert (report.leaks, lab.outside.requests) == ([], [])


def test_a_redirect_out_of_strict_mounts_is_told(lab: Lab) -> None:
    body = """
        client = httpx.AsyncClient(mounts=async_mounts_for(conf, ['peer.test'], strict=True), follow_redirects=True)
        async def main():
            try:
                return await aget(client, site + "out?http://other.test/")
            except httpx.ConnectError as error:
                return str(error)
        result = asyncio.run(main())
    """
    report = lab.run(body)
    assert report.outcome.startswith("'other.test' is not among the hosts")
    assert (report.leaks, lab.outside.requests) == ([], [])


# -- the traps, and that the witnesses see them

TRAPS = {
    "a proxy for a client that has a transport": (
        "get(httpx.Client(transport=WireGuardTransport(conf), proxy=outside), site)",
        "",
    ),
    "all:// against HTTP_PROXY": ("get(httpx.Client(mounts={'all://': WireGuardTransport(conf)}), site)", ""),
    "a redirect out of mounts": (
        "get(httpx.Client(mounts=mounts_for(conf, ['peer.test']), follow_redirects=True), site + 'out?' + outside)",
        "127.0.0.1",
    ),
}


@pytest.mark.parametrize("trap", TRAPS)
def test_both_witnesses_notice_what_goes_outside(lab: Lab, trap: str) -> None:
    body, exceptions = TRAPS[trap]
    report = lab.run(f"result = outcome(lambda: {body})", NO_PROXY=exceptions, no_proxy=exceptions)
    assert report.outcome == "outside"
    assert any(leak.startswith("socket.connect") for leak in report.leaks)
    assert lab.outside.requests


MISSED = {
    "NO_PROXY": ("all://peer.test", "http://peer.test/", "peer.test"),
    "the dot at the end": ("all://peer.test", "http://peer.test./", ""),
    "the default port": ("all://peer.test:80", "http://peer.test/", ""),
}


@pytest.mark.parametrize("cause", MISSED)
def test_mounts_by_hand_miss_what_mounts_for_has(lab: Lab, cause: str) -> None:
    pattern, url, exceptions = MISSED[cause]
    variables = {"NO_PROXY": exceptions, "no_proxy": exceptions, "HTTP_PROXY": "", "http_proxy": "", "all_proxy": ""}
    variables["ALL_PROXY"] = ""
    by_hand = f"{{{pattern!r}: WireGuardTransport(conf)}}"
    report = lab.run(f"result = outcome(get, httpx.Client(mounts={by_hand}), {url!r})", **variables)
    assert report.leaks
    assert all("getaddrinfo" in leak and "peer.test" in leak for leak in report.leaks)
    report = lab.run(f"result = get(httpx.Client(mounts=mounts_for(conf, ['peer.test'])), {url!r})", **variables)
    assert "It came through the tunnel" in report.outcome
    assert (report.leaks, lab.outside.requests) == ([], [])


def test_names_are_asked_for_outside_only_on_request(lab: Lab) -> None:
    report = lab.run("result = outcome(get, Client(conf, dns='system'), site)")
    assert report.outcome.startswith("ConnectError: cannot resolve")
    assert report.leaks
    assert all("getaddrinfo" in leak and "peer.test" in leak for leak in report.leaks)


def test_an_address_that_no_peer_has_is_refused(lab: Lab) -> None:
    text = lab.conf.read_text(encoding="utf-8").replace("AllowedIPs = 0.0.0.0/0, ::/0", f"AllowedIPs = {IPV4}/32")
    lab.conf.write_text(text, encoding="utf-8")
    report = lab.run("result = outcome(get, Client(conf, base_url=site), outside + '/')")
    assert "AllowedIPs" in report.outcome
    assert (report.leaks, lab.outside.requests) == ([], [])
