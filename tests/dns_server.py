"""A DNS server for a `MemoryTunnel`, and a tunnel with one."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable

import dns.message
import dns.name
import dns.rcode
import dns.rrset

from tests.memory_tunnel import Datagram, MemorySocket, MemoryTunnel, VirtualDriver

SERVER = ("10.0.0.53", 53)
Datagrams = Iterable[Datagram]


class DnsServer:
    """A recursive server: its records by name; it notes what it was asked.

    Attributes:
        change: gets the last word on each reply; may change it, or return None for silence.
        delays: seconds that an answer takes, by record type.
    """

    def __init__(self, records: dict[str, Iterable[str]], address: tuple[str, int] = SERVER) -> None:
        self.records = {dns.name.from_text(name): list(addresses) for name, addresses in records.items()}
        self.address = address
        self.questions: list[tuple[str, str]] = []
        self.queries: list[dns.message.Message] = []
        self.change: Callable[[dns.message.Message, dns.message.Message], dns.message.Message | None] = lambda q, r: r
        self.delays: dict[str, float] = {}

    def __call__(self, data: bytes) -> Datagrams:
        reply = self.answer(data)
        delay = self.delays.get(self.questions[-1][1])
        if reply is None:
            return []
        return [(reply, self.address)] if delay is None else [(reply, self.address, delay)]

    def answer(self, data: bytes) -> bytes | None:
        query = dns.message.from_wire(data)
        question = query.question[0]
        self.queries.append(query)
        self.questions.append((question.name.to_text(), question.rdtype.name))
        reply = dns.message.make_response(query)
        if question.name not in self.records:
            reply.set_rcode(dns.rcode.NXDOMAIN)
        for record in self.records.get(question.name, ()):
            kind = "CNAME" if record.endswith(".") else "AAAA" if ":" in record else "A"
            if kind in (question.rdtype.name, "CNAME"):
                reply.answer.append(dns.rrset.from_text(question.name, 60, "IN", kind, record))
        changed = self.change(query, reply)
        return changed.to_wire() if changed else None

    def serve_tcp(self, sock: MemorySocket) -> None:
        answer_over_tcp(self.answer)(sock)


def answer_over_tcp(answer: Callable[[bytes], bytes | None]) -> Callable[[MemorySocket], None]:
    """One query over TCP, RFC 7766 8; called when the connection stands, answers as soon as the query is complete."""

    def serve(sock: MemorySocket) -> None:
        sent = sock.peer
        assert sent is not None
        original = sent.send
        query = bytearray()

        def send(data: bytes | bytearray | memoryview, now: float) -> int:
            accepted = original(data, now)
            query.extend(sock.receive(65_535, now))
            if len(query) == 2 + int.from_bytes(query[:2], "big"):
                reply = answer(bytes(query[2:]))
                if reply:
                    sock.send(struct.pack("!H", len(reply)) + reply, now)
            return accepted

        sent.send = send  # type: ignore[method-assign]  # the server reacts on the spot

    return serve


def tunnel_with(server: DnsServer, **arguments: object) -> MemoryTunnel:
    tunnel = MemoryTunnel(VirtualDriver(), [SERVER[0]], **arguments)
    tunnel.udp[SERVER] = server
    return tunnel


def with_rcode(rcode: dns.rcode.Rcode) -> Callable[[dns.message.Message, dns.message.Message], dns.message.Message]:
    """A `change` that makes every reply a failure."""

    def change(query: dns.message.Message, reply: dns.message.Message) -> dns.message.Message:
        reply.set_rcode(rcode)
        reply.answer.clear()
        return reply

    return change


def virtual(tunnel: MemoryTunnel) -> VirtualDriver:
    assert isinstance(tunnel.driver, VirtualDriver)
    return tunnel.driver
