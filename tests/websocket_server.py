"""A WebSocket server on a stream of the tunnel, for tests."""

from __future__ import annotations

from typing import Any

import wsproto
from wsproto.connection import ConnectionState, ConnectionType
from wsproto.events import AcceptConnection, CloseConnection, Event, Message, Ping, Request

from tests.tls_server import TlsServer


def echo(stream: Any) -> None:
    """Send every message back, until the client closes; "close me" makes the server close first."""
    connection = wsproto.WSConnection(ConnectionType.SERVER)
    while data := stream.read(65_536):
        connection.receive_data(data)
        for event in connection.events():
            answer = _answer(event)
            if answer is not None and connection.state is not ConnectionState.CLOSED:
                stream.write(connection.send(answer))
            if isinstance(event, CloseConnection):
                return


def echo_over_tls(stream: Any) -> None:
    echo(TlsServer(stream))


def vanish(stream: Any) -> None:
    """Accept, and end the connection without a word."""
    connection = wsproto.WSConnection(ConnectionType.SERVER)
    connection.receive_data(stream.read(65_536))
    stream.write(connection.send(AcceptConnection()))


def _answer(event: Event) -> Event | None:
    match event:
        case Request():
            return AcceptConnection()
        case Ping() | CloseConnection():
            return event.response()
        case Message(data="close me"):
            return CloseConnection(code=1001, reason="going away")
        case Message():
            return type(event)(data=event.data, message_finished=event.message_finished)
    return None
