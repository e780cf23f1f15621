"""Two independent witnesses of what leaves the client: Python's audit events, and the kernel's packet counters."""

from __future__ import annotations

import contextlib
import json
import socket
import sys
from collections.abc import Iterator
from typing import Any

from tests.interop.namespaces import Namespace
from tests.interop.wireguard_server import OUTER_IPV4, OUTER_IPV6

# Every way in which Python asks the host's network for something: sends, connections, and host name lookups.
_SENDS = frozenset({"socket.sendto", "socket.sendmsg"})
_LOOKUPS = frozenset({"socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr", "socket.getnameinfo"})
_WATCHED = _SENDS | _LOOKUPS | {"socket.connect", "socket.bind"}
_ENDPOINTS = frozenset({OUTER_IPV4, OUTER_IPV6})
_PORTS = range(51820, 51830)  # of the server, and those where none answers
_ANYWHERE = frozenset({"", "0.0.0.0", "::"})  # local addresses that leave the choice to the system

# `tunnel`: UDP to the endpoint. Two kinds of packets are the kernel's own and carry nothing of the client's: `link`,
# IPv6's neighbour discovery and multicast listener reports; `refusals`, its ICMP error to the server for a datagram
# that came when the socket was closed already. All the rest is `other`, loopback included.
_COUNTERS = f"""
table inet leaks {{
  counter tunnel {{}}
  counter link {{}}
  counter refusals {{}}
  counter other {{}}
  chain output {{
    type filter hook output priority 0;
    meta l4proto udp ip daddr {OUTER_IPV4} udp dport {_PORTS[0]}-{_PORTS[-1]} counter name tunnel accept
    meta l4proto udp ip6 daddr {OUTER_IPV6} udp dport {_PORTS[0]}-{_PORTS[-1]} counter name tunnel accept
    icmpv6 type {{ nd-neighbor-solicit, nd-neighbor-advert, nd-router-solicit }} counter name link accept
    icmpv6 type {{ mld-listener-report, mld2-listener-report }} counter name link accept
    icmp type destination-unreachable ip daddr {OUTER_IPV4} counter name refusals accept
    icmpv6 type destination-unreachable ip6 daddr {OUTER_IPV6} counter name refusals accept
    counter name other
  }}
}}
"""


class LeakWatch:
    """Watches one namespace, and this process while it is `recording`. Make only one: an audit hook stays for ever.

    Attributes:
        endpoint_datagrams: sends to the endpoint seen since the recording began.
    """

    def __init__(self, namespace: Namespace) -> None:
        self._namespace = namespace
        self._recording = False
        self._leaks: list[str] = []
        self.endpoint_datagrams = 0
        namespace.run("nft", "--file", "/dev/stdin", text=_COUNTERS)
        sys.addaudithook(self._hook)

    @contextlib.contextmanager
    def recording(self) -> Iterator[None]:
        """Everything that this process does meanwhile counts."""
        self._leaks.clear()
        self.endpoint_datagrams = 0
        self.take_packets()
        self._recording = True
        try:
            yield
        finally:
            self._recording = False

    def take_leaks(self) -> list[str]:
        """Return and forget what Python did with the network beyond sending UDP to the endpoint."""
        leaks, self._leaks = self._leaks, []
        return leaks

    def take_packets(self) -> dict[str, int]:
        """Return and reset the kernel's counters."""
        answer = json.loads(self._namespace.run("nft", "--json", "reset", "counters"))
        counters = (entry["counter"] for entry in answer["nftables"] if "counter" in entry)
        return {counter["name"]: counter["packets"] for counter in counters}

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self._recording and event in _WATCHED and not self._is_allowed(event, arguments):
            self._leaks.append(f"{event} {arguments}")

    def _is_allowed(self, event: str, arguments: tuple[Any, ...]) -> bool:
        if event in _LOOKUPS:
            return event == "socket.getaddrinfo" and arguments[0] in _ENDPOINTS
        sock, address = arguments[:2]
        if sock.type != socket.SOCK_DGRAM or event == "socket.connect":
            return False
        if event == "socket.bind":
            return address[0] in _ANYWHERE
        self.endpoint_datagrams += 1
        return address[0] in _ENDPOINTS and address[1] in _PORTS
