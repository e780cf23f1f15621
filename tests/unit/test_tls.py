from __future__ import annotations

import contextlib
import ssl

import pytest

from httpx_wireguard._tls import TlsSession
from tests.tls_server import client_context, server_context


class Server:
    """The other side: ssl's own object over two memory buffers."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self.incoming = ssl.MemoryBIO()
        self.outgoing = ssl.MemoryBIO()
        self.tls = context.wrap_bio(self.incoming, self.outgoing, server_side=True)

    def handshake(self) -> None:
        with contextlib.suppress(ssl.SSLWantReadError):
            self.tls.do_handshake()

    def to_client(self, data: bytes) -> bytes:
        self.tls.write(data)
        return self.outgoing.read()


def connect(
    client_side: ssl.SSLContext | None = None, server_side: ssl.SSLContext | None = None
) -> tuple[TlsSession, Server]:
    """A session and a server after their handshake."""
    session = TlsSession(client_side or client_context(), "server.test")
    server = Server(server_side or server_context())
    done = False
    while not done:
        done = session.handshake()
        server.incoming.write(session.data_to_send())
        server.handshake()
        session.receive_data(server.outgoing.read())
    return session, server


def test_handshake_needs_the_network_until_it_is_complete() -> None:
    session = TlsSession(client_context(), "server.test")
    assert session.handshake() is False
    assert session.data_to_send()  # the ClientHello
    assert connect()[0].ssl_object.version() == "TLSv1.3"


def test_written_data_arrives_decrypted_at_the_server() -> None:
    session, server = connect()
    session.write(b"request")
    server.incoming.write(session.data_to_send())
    assert server.tls.read() == b"request"


def test_an_empty_write_sends_nothing() -> None:
    session, _ = connect()
    session.write(b"")
    assert not session.has_data_to_send
    assert session.data_to_send() == b""


def test_read_asks_for_the_network_when_nothing_is_there() -> None:
    session, _ = connect()
    assert session.read(100) is None


def test_read_returns_all_decrypted_records_at_once() -> None:
    session, server = connect()
    session.receive_data(server.to_client(b"x" * 50_000))
    assert session.read(65_536) == b"x" * 50_000


def test_read_returns_no_more_than_asked_for_and_keeps_the_rest() -> None:
    session, server = connect()
    session.receive_data(server.to_client(b"x" * 20_000 + b"y"))
    assert session.read(20_000) == b"x" * 20_000
    assert session.read(20_000) == b"y"


def test_a_record_cut_in_two_is_read_when_its_second_half_arrives() -> None:
    session, server = connect()
    record = server.to_client(b"whole")
    session.receive_data(record[:10])
    assert session.read(100) is None
    session.receive_data(record[10:])
    assert session.read(100) == b"whole"


def test_close_notify_is_the_end_after_the_data_before_it() -> None:
    """RFC 8446 6.1: data before close_notify counts."""
    session, server = connect()
    data = server.to_client(b"last")
    with pytest.raises(ssl.SSLWantReadError):
        server.tls.unwrap()
    session.receive_data(data + server.outgoing.read())
    assert session.read(100) == b"last"
    assert session.read(100) == b""
    assert session.read(100) == b""


def test_an_end_without_close_notify_is_a_plain_end() -> None:
    """HTTP delimits its messages itself; many servers omit the alert."""
    session, server = connect()
    session.receive_data(server.to_client(b"last"))
    session.receive_eof()
    assert session.read(100) == b"last"
    assert session.read(100) == b""


def test_a_corrupt_record_raises_after_the_good_data_was_returned() -> None:
    """RFC 8446 5.2: a record that does not authenticate ends the connection."""
    session, server = connect()
    good, bad = server.to_client(b"good"), bytearray(server.to_client(b"bad"))
    bad[-1] ^= 1
    session.receive_data(good + bad)
    assert session.read(100) == b"good"
    with pytest.raises(ssl.SSLError):
        session.read(100)


def test_poll_does_not_count_session_tickets_as_data() -> None:
    """RFC 8446 4.6.1: tickets come after the handshake, on an otherwise idle connection."""
    session, _ = connect()  # the tickets of the server are in its last flight
    assert session.poll() is False


def test_poll_sees_data_and_read_still_returns_it() -> None:
    session, server = connect()
    session.receive_data(server.to_client(b"ab"))
    assert session.poll() is True
    assert session.read(1) == b"a"
    assert session.poll() is True
    assert session.read(100) == b"b"
    assert session.poll() is False


@pytest.mark.parametrize("end", ["eof", "corrupt"])
def test_poll_sees_an_end_and_a_failure(end: str) -> None:
    session, server = connect()
    if end == "eof":
        session.receive_eof()
    else:
        session.receive_data(server.to_client(b"bad")[:-1] + b"\0")
    assert session.poll() is True


def test_alpn_is_agreed() -> None:
    """RFC 7301: the server chooses one of the client's protocols."""
    client_side, server_side = client_context(), server_context()
    client_side.set_alpn_protocols(["http/1.1", "h2"])
    server_side.set_alpn_protocols(["h2"])
    session, _ = connect(client_side, server_side)
    assert session.ssl_object.selected_alpn_protocol() == "h2"


def test_an_untrusted_certificate_fails_and_leaves_an_alert_to_send() -> None:
    """RFC 8446 6.2: the server is told why."""
    with pytest.raises(ssl.SSLCertVerificationError):
        connect(client_context(trusted=False))
    session = TlsSession(client_context(trusted=False), "server.test")
    server = Server(server_context())
    session.handshake()
    server.incoming.write(session.data_to_send())
    server.handshake()
    session.receive_data(server.outgoing.read())
    with pytest.raises(ssl.SSLCertVerificationError):
        session.handshake()
    assert session.has_data_to_send


def test_a_certificate_for_another_name_fails() -> None:
    """RFC 9525: the reference identity is the name asked for."""
    session = TlsSession(client_context(), "other.test")
    server = Server(server_context())
    session.handshake()
    server.incoming.write(session.data_to_send())
    server.handshake()
    session.receive_data(server.outgoing.read())
    with pytest.raises(ssl.SSLCertVerificationError, match=r"other\.test"):
        session.handshake()


def test_an_end_during_the_handshake_is_an_error() -> None:
    session = TlsSession(client_context(), "server.test")
    session.handshake()
    session.receive_eof()
    with pytest.raises(ssl.SSLEOFError):
        session.handshake()


def test_shutdown_sends_close_notify_without_waiting_for_the_other() -> None:
    session, server = connect()
    session.shutdown()
    server.incoming.write(session.data_to_send())
    assert server.tls.read() == b""


def test_shutdown_before_the_handshake_just_ends() -> None:
    TlsSession(client_context(), "server.test").shutdown()


def test_a_context_may_keep_each_session_that_is_shut_down_once() -> None:
    kept: list[ssl.SSLObject] = []

    class Keeping(ssl.SSLContext):
        keep_session = staticmethod(kept.append)

    context = Keeping(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    client, _ = connect(context)
    client.shutdown()
    client.shutdown()
    assert kept == [client.ssl_object]


def test_a_session_inside_a_session_carries_large_data_both_ways() -> None:
    """What an HTTPS proxy inside the tunnel needs."""
    outer, proxy = connect()
    inner, server = TlsSession(client_context(), "server.test"), Server(server_context())
    done = False
    while not done:
        done = inner.handshake()
        outer.write(inner.data_to_send())
        proxy.incoming.write(outer.data_to_send())
        while True:
            try:
                server.incoming.write(proxy.tls.read(65_536))
            except ssl.SSLWantReadError:
                break
        server.handshake()
        if reply := server.outgoing.read():
            outer.receive_data(proxy.to_client(reply))
            inner.receive_data(outer.read(65_536) or b"")
    outer.receive_data(proxy.to_client(server.to_client(b"z" * 40_000)))
    inner.receive_data(outer.read(65_536) or b"")
    assert inner.read(65_536) == b"z" * 40_000


class _RenegotiatingObject:
    """An SSLObject in the middle of a renegotiation: it takes no data until it has read something."""

    def __init__(self, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO) -> None:
        self._incoming, self._outgoing = incoming, outgoing
        self._busy = True

    def write(self, data: memoryview) -> int:
        if self._busy:
            raise ssl.SSLWantReadError
        return self._outgoing.write(data)

    def read(self, size: int) -> bytes:
        if self._incoming.read():
            self._busy = False
        raise ssl.SSLWantReadError


class _RenegotiatingContext:
    def wrap_bio(
        self,
        incoming: ssl.MemoryBIO,
        outgoing: ssl.MemoryBIO,
        server_side: bool = False,
        server_hostname: str | bytes | None = None,
    ) -> ssl.SSLObject:
        return _RenegotiatingObject(incoming, outgoing)  # type: ignore[return-value]  # stands in for one


def test_data_written_during_a_renegotiation_leaves_when_it_ends() -> None:
    """RFC 5246 7.4.1.1: TLS 1.2 may interrupt data by a handshake; ssl then refuses writes until it has read."""
    session = TlsSession(_RenegotiatingContext())
    session.write(b"one")
    session.write(b"two")
    assert session.data_to_send() == b""
    session.receive_data(b"Finished")
    assert session.read(100) is None
    assert session.data_to_send() == b"onetwo"


@pytest.mark.parametrize("hostname", [None, ""])
def test_a_context_that_checks_names_wants_one(hostname: str | None) -> None:
    """`wrap_bio` of Python 3.11 would accept any certificate then."""
    with pytest.raises(ValueError, match="check_hostname requires server_hostname"):
        TlsSession(ssl.create_default_context(), hostname)


def test_a_drained_session_has_nothing_to_read_until_the_network_brings_more() -> None:
    session, server = connect()

    def drained() -> bool:
        return session.is_drained

    assert session.read(1) is None  # the session tickets
    assert drained()
    record = server.to_client(b"hello")
    session.receive_data(record[:-1])
    assert not drained()
    assert session.read(65536) is None
    assert drained()  # OpenSSL holds what it has of the record
    session.receive_data(record[-1:])
    assert session.read(2) == b"he"
    assert not drained()
    assert session.read(65536) == b"llo"
    assert drained()
    session.receive_eof()
    assert not drained()
    assert session.read(65536) == b""
    assert not drained()
