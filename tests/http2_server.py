"""A small HTTP/2 server on a stream of the tunnel, for tests."""

from __future__ import annotations

import hashlib
import json
import ssl
import threading
from collections import defaultdict
from typing import Any

import h2.config
import h2.connection
import h2.events
import h2.settings

from httpx_wireguard.testing import body
from tests.tls_server import TlsServer, server_context

# Bytes; more than any test sends. httpcore 1.0.9 may wait for a window update that another request has read already: so
# hung 24 of 25 such uploads by threads over an ordinary loopback socket, too.
_WINDOW = 2**24


class Http2Server:
    """Speaks TLS with ALPN "h2", and answers as many requests at once as there are.

    It answers `/bytes/N` (the same bytes as a `WireGuardPeer`), PUT or POST anywhere (length and SHA-256 of the body,
    as JSON), and `/meet/N`, which has no answer before N such requests wait on the same connection. From a request for
    `/stall` on it reads nothing more of that connection, until `end` is set.

    Attributes:
        connections: how many it has accepted.
        end: ends the connections that stall.
    """

    def __init__(self) -> None:
        self.connections = 0
        self.end = threading.Event()
        self._context = server_context()
        self._context.set_alpn_protocols(["h2", "http/1.1"])

    def __call__(self, stream: Any) -> None:
        self.connections += 1
        Http2Connection(TlsServer(stream, self._context), self.end).serve()


class Http2Connection:
    """The server's side of one connection; one thread, which sends what flow control allows between two reads."""

    def __init__(self, stream: TlsServer, end: threading.Event) -> None:
        self._stream = stream
        self._end = end
        self._h2 = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))
        self._paths: dict[int, str] = {}
        self._uploads: defaultdict[int, bytearray] = defaultdict(bytearray)
        self._meeting: defaultdict[int, list[int]] = defaultdict(list)
        self._unsent: dict[int, memoryview] = {}

    def serve(self) -> None:
        """Until the client ends the connection."""
        self._h2.initiate_connection()
        self._h2.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: _WINDOW})
        self._h2.increment_flow_control_window(_WINDOW)
        self._flush()
        while data := self._stream.read(65_536):
            for event in self._h2.receive_data(data):
                self._on_event(event)
            while self._send_some():
                pass
            self._flush()

    def _on_event(self, event: h2.events.Event) -> None:
        match event:
            case h2.events.RequestReceived(stream_id=stream, headers=headers):
                self._paths[stream] = path = dict(headers)[b":path"].decode()
                if path == "/stall":
                    self._end.wait()
            case h2.events.DataReceived(stream_id=stream, data=data, flow_controlled_length=length):
                self._uploads[stream] += data
                self._h2.acknowledge_received_data(length, stream)
            case h2.events.StreamEnded(stream_id=stream):
                self._answer(stream, self._paths.pop(stream))
            case h2.events.StreamReset(stream_id=stream):
                self._unsent.pop(stream, None)
                self._paths.pop(stream, None)

    def _answer(self, stream: int, path: str) -> None:
        kind, _, number = path[1:].partition("/")
        if kind == "meet":
            waiting = self._meeting[int(number)]
            waiting.append(stream)
            if len(waiting) == int(number):
                for one in self._meeting.pop(int(number)):
                    self._respond(one, b"met")
        elif kind == "bytes":
            self._respond(stream, body(int(number)))
        else:
            upload = self._uploads.pop(stream, bytearray())
            self._respond(stream, json.dumps(fingerprint(upload)).encode())

    def _respond(self, stream: int, content: bytes) -> None:
        self._h2.send_headers(stream, [(":status", "200"), ("content-length", str(len(content)))])
        self._unsent[stream] = memoryview(content)

    def _send_some(self) -> bool:
        """One frame of each response; False when nothing more may be sent."""
        progress = False
        for stream, content in list(self._unsent.items()):
            size = min(len(content), self._h2.local_flow_control_window(stream), self._h2.max_outbound_frame_size)
            if size or not content:
                self._h2.send_data(stream, bytes(content[:size]), end_stream=size == len(content))
                self._unsent[stream] = content[size:]
                progress = True
                if size == len(content):
                    del self._unsent[stream]
        self._flush()
        return progress

    def _flush(self) -> None:
        if data := self._h2.data_to_send():
            self._stream.write(data)


def fingerprint(content: bytes | bytearray) -> dict[str, Any]:
    """What the server answers to an upload of `content`."""
    return {"length": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def http1_context() -> ssl.SSLContext:
    """A server's context that knows no HTTP/2."""
    context = server_context()
    context.set_alpn_protocols(["http/1.1"])
    return context
