"""Two namespaces on one cable: wireguard-go and its site in one, nothing but a route to the endpoint in the other."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.interop.leak_watch import LeakWatch
from tests.interop.namespaces import Namespace
from tests.interop.web_site import WebSite
from tests.interop.wireguard_server import OUTER_IPV4, OUTER_IPV6, WireGuardServer

TOOLS = ("ip", "mount", "nft", "setpriv", "wg", "wireguard-go", "nginx", "dnsmasq", "openssl")
CLOSED_PORT = 51821  # nothing listens there: the kernel answers with ICMP
SILENT_PORT = 51822  # a firewall swallows what comes

_FIREWALL = f"""
table inet firewall {{
  chain input {{
    type filter hook input priority 0;
    udp dport {SILENT_PORT} drop;
  }}
}}
"""


@dataclass(frozen=True, slots=True)
class Lab:
    """
    Attributes:
        outside: the namespace of the clients.
        inside: the namespace of the servers.
        leaks: watches `outside`.
    """

    outside: Namespace
    inside: Namespace
    server: WireGuardServer
    site: WebSite
    leaks: LeakWatch


@contextlib.contextmanager
def opened_lab() -> Iterator[Lab]:
    """Build it; whatever happens, nothing of it is left behind."""
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(TemporaryDirectory(prefix="httpx-wireguard-")))
        inside = stack.enter_context(Namespace(f"hxwg-srv-{os.getpid()}"))
        outside = stack.enter_context(Namespace(f"hxwg-cli-{os.getpid()}"))
        _connect(inside, outside)
        inside.run("nft", "--file", "/dev/stdin", text=_FIREWALL)
        # unprivileged sockets for echo requests: ping.py
        inside.run("sh", "-c", "echo 0 0 > /proc/sys/net/ipv4/ping_group_range")
        server = WireGuardServer(inside, directory)
        server.start()
        site = WebSite(inside, directory)
        site.start()
        yield Lab(outside, inside, server, site, LeakWatch(outside))


def _connect(inside: Namespace, outside: Namespace) -> None:
    """The cable. Outside, every address but the endpoint's is unreachable: what takes the wrong way fails at once."""
    inside.ip("link", "add", "cable", "type", "veth", "peer", "name", "cable", "netns", outside.name)
    ends = (inside, OUTER_IPV4, OUTER_IPV6), (outside, "192.0.2.2", "2001:db8:2::2")
    for namespace, ipv4, ipv6 in ends:
        namespace.ip("address", "add", f"{ipv4}/24", "dev", "cable")
        namespace.ip("address", "add", f"{ipv6}/64", "dev", "cable", "nodad")
        namespace.ip("link", "set", "cable", "up")
    outside.ip("-4", "route", "add", "unreachable", "default")
    outside.ip("-6", "route", "add", "unreachable", "default")
