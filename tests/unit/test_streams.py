from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from httpx_wireguard._errors import ConfigError, ConnectionReset, OperationTimeout, TunnelClosed
from httpx_wireguard._streams import AsyncTcpStream, ConnectionFacts, SyncStream, TcpOptions
from tests.memory_tunnel import MemoryDriver, MemorySocket, VirtualDriver, socket_pair
from tests.tls_server import TlsServer, client_context, server_context


@pytest.fixture
def workers() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as executor:
        yield executor


def plain(driver: MemoryDriver | VirtualDriver, capacity: int = 65_536) -> tuple[SyncStream, MemorySocket]:
    """A stream and the server's end of it."""
    client, server = socket_pair(capacity)
    return SyncStream(AsyncTcpStream(driver, client)), server


def encrypted(
    workers: ThreadPoolExecutor, driver: MemoryDriver, capacity: int = 65_536
) -> tuple[SyncStream, TlsServer, MemorySocket]:
    """A TLS stream, its server, and the server's socket."""
    stream, server = plain(driver, capacity)
    serving = workers.submit(TlsServer, SyncStream(AsyncTcpStream(driver, server)))
    tls = stream.start_tls(client_context(), "server.test", timeout=10)
    return tls, serving.result(10), server


def put(server: MemorySocket, data: bytes) -> None:
    assert server.send(data, 0.0) == len(data)


def read_exactly(read: Callable[[int], bytes], size: int) -> bytes:
    data = b""
    while len(data) < size:
        chunk = read(65_536)
        assert chunk
        data += chunk
    return data


def test_read_returns_all_that_is_there() -> None:
    stream, server = plain(VirtualDriver())
    put(server, b"x" * 50_000)
    assert stream.read(65_536) == b"x" * 50_000


def test_read_returns_no_more_than_asked_for() -> None:
    stream, server = plain(VirtualDriver())
    put(server, b"abc")
    assert [stream.read(2), stream.read(2), stream.read(0)] == [b"ab", b"c", b""]


def test_read_returns_nothing_at_the_end() -> None:
    stream, server = plain(VirtualDriver())
    put(server, b"last")
    server.close(0.0)
    assert [stream.read(10), stream.read(10)] == [b"last", b""]


def test_a_read_that_finds_nothing_says_what_it_waited_for() -> None:
    driver = VirtualDriver()
    stream, _ = plain(driver)
    with pytest.raises(OperationTimeout, match=r"read timed out: 10\.0\.0\.1:443 sent nothing for 2\.5 s"):
        stream.read(10, timeout=2.5)
    assert driver.time == 2.5


def test_an_ipv6_address_is_named_with_brackets() -> None:
    client = MemorySocket(("fd00::2", 40_000), ("fd00::1", 80))
    with pytest.raises(OperationTimeout, match=r"\[fd00::1\]:80"):
        SyncStream(AsyncTcpStream(VirtualDriver(), client)).read(10, timeout=1)


def test_the_sockets_own_error_is_raised_after_the_data_before_it() -> None:
    stream, server = plain(VirtualDriver())
    put(server, b"data")
    server.abort(0.0)
    assert stream.read(10) == b"data"
    with pytest.raises(ConnectionReset):
        stream.read(10)
    with pytest.raises(ConnectionReset):
        stream.write(b"more")


def test_after_a_failed_tunnel_a_read_without_timeout_fails_at_once() -> None:
    """httpcore ignores a failed write and reads then."""
    driver = MemoryDriver()
    stream, _ = plain(driver)
    driver.close()
    with pytest.raises(TunnelClosed):
        stream.read(10)


def test_a_tunnel_that_closes_wakes_a_blocked_read(workers: ThreadPoolExecutor) -> None:
    driver = MemoryDriver()
    stream, _ = plain(driver)
    reading = workers.submit(stream.read, 10, 10)
    driver.until_waiting()
    driver.close()
    with pytest.raises(TunnelClosed):
        reading.result(5)


def test_close_by_another_thread_wakes_a_blocked_read(workers: ThreadPoolExecutor) -> None:
    driver = MemoryDriver()
    stream, server = plain(driver)
    reading = workers.submit(stream.read, 10, 10)
    driver.until_waiting()
    stream.close()
    with pytest.raises(ConnectionReset, match="closed on this side"):
        reading.result(5)
    assert server.at_eof


def test_close_by_another_thread_wakes_a_blocked_write(workers: ThreadPoolExecutor) -> None:
    driver = MemoryDriver()
    stream, _ = plain(driver, capacity=10)
    writing = workers.submit(stream.write, b"x" * 100, 10)
    driver.until_waiting()
    stream.close()
    with pytest.raises(ConnectionReset, match="closed on this side"):
        writing.result(5)


def test_close_twice_closes_once() -> None:
    stream, _ = plain(VirtualDriver())
    stream.close()
    stream.close()
    assert stream.get_extra_info("is_readable") is True


def test_write_sends_all_of_a_buffer_larger_than_the_window(workers: ThreadPoolExecutor) -> None:
    driver = MemoryDriver()
    stream, server = plain(driver, capacity=1000)
    data = bytes(range(256)) * 40
    writing = workers.submit(stream.write, data, 10)
    assert read_exactly(SyncStream(AsyncTcpStream(driver, server)).read, len(data)) == data
    writing.result(10)


def test_an_empty_write_is_a_no_op_even_with_a_full_window() -> None:
    stream, _ = plain(VirtualDriver(), capacity=0)
    stream.write(b"", timeout=1)


def test_a_write_without_progress_times_out_and_tells_how_far_it_came() -> None:
    stream, _ = plain(VirtualDriver(), capacity=10)
    with pytest.raises(OperationTimeout, match=r"took 10 of 25 bytes, then none for 1 s"):
        stream.write(b"x" * 25, timeout=1)


def test_the_timeout_of_a_write_starts_again_with_each_progress() -> None:
    """As with `socket.send`, on which httpcore's write timeout is defined."""
    driver = VirtualDriver()
    stream, server = plain(driver, capacity=10)
    for moment in (0.9, 1.8, 2.7):
        driver.at(moment, lambda: server.receive(10, 0.0))
    stream.write(b"x" * 40, timeout=1)
    assert driver.time == 2.7


def test_an_idle_stream_is_not_readable() -> None:
    assert plain(VirtualDriver())[0].get_extra_info("is_readable") is False


@pytest.mark.parametrize("event", ["data", "end", "reset"])
def test_an_idle_stream_becomes_readable_with(event: str) -> None:
    stream, server = plain(VirtualDriver())
    {"data": lambda: put(server, b"x"), "end": lambda: server.close(0.0), "reset": lambda: server.abort(0.0)}[event]()
    assert stream.get_extra_info("is_readable") is True


def test_what_waits_in_the_tunnels_own_socket_counts_for_an_idle_stream() -> None:
    """httpcore asks before each reuse; a FIN that nobody has processed yet must not be overlooked."""
    driver = VirtualDriver()
    stream, server = plain(driver)
    driver.at(0.0, lambda: server.close(0.0))
    assert stream.get_extra_info("is_readable") is True


def test_a_reset_after_the_end_does_not_hide_the_end() -> None:
    stream, server = plain(VirtualDriver())
    server.close(0.0)
    server.abort(0.0)
    assert stream.read(10) == b""


def test_extra_info_names_both_ends() -> None:
    stream, _ = plain(VirtualDriver())
    assert stream.get_extra_info("client_addr") == ("10.0.0.2", 40_000)
    assert stream.get_extra_info("server_addr") == ("10.0.0.1", 443)
    assert stream.get_extra_info("wireguard") == ConnectionFacts("10.0.0.1", ("10.0.0.1", 443), ("10.0.0.2", 40_000))


@pytest.mark.parametrize("name", ["socket", "ssl_object", "anything"])
def test_a_plain_stream_has_no(name: str) -> None:
    assert plain(VirtualDriver())[0].get_extra_info(name) is None


def test_tls_carries_data_both_ways(workers: ThreadPoolExecutor) -> None:
    stream, server, _ = encrypted(workers, MemoryDriver())
    stream.write(b"request", timeout=10)
    assert server.read(100) == b"request"
    server.write(b"response")
    assert stream.read(100, timeout=10) == b"response"


def test_tls_read_returns_several_records_at_once(workers: ThreadPoolExecutor) -> None:
    stream, server, _ = encrypted(workers, MemoryDriver())
    server.write(b"x" * 50_000)
    assert stream.read(65_536, timeout=10) == b"x" * 50_000


def test_tls_writes_more_than_the_window_holds(workers: ThreadPoolExecutor) -> None:
    stream, server, _ = encrypted(workers, MemoryDriver(), capacity=5000)
    data = bytes(range(256)) * 2000
    writing = workers.submit(stream.write, data, 10)
    assert read_exactly(server.read, len(data)) == data
    writing.result(10)


def test_tls_reads_and_writes_at_once(workers: ThreadPoolExecutor) -> None:
    """HTTP/2: one thread may wait for a response while another sends a body, with both windows full."""
    stream, server, _ = encrypted(workers, MemoryDriver(), capacity=5000)
    up, down = b"u" * 300_000, b"d" * 300_000
    sending = workers.submit(stream.write, up, 10)

    def echo() -> bytes:
        received = read_exactly(server.read, len(up))
        server.write(down)
        return received

    serving = workers.submit(echo)
    assert read_exactly(lambda size: stream.read(size, 10), len(down)) == down
    assert serving.result(10) == up
    sending.result(10)


def test_a_blocked_tls_read_does_not_keep_a_write_from_sending(workers: ThreadPoolExecutor) -> None:
    driver = MemoryDriver()
    stream, server, _ = encrypted(workers, driver)
    reading = workers.submit(stream.read, 100, 10)
    driver.until_waiting()
    stream.write(b"ping", timeout=10)
    assert server.read(100) == b"ping"
    server.write(b"pong")
    assert reading.result(10) == b"pong"


def test_close_by_another_thread_wakes_a_blocked_tls_read(workers: ThreadPoolExecutor) -> None:
    driver = MemoryDriver()
    stream, _, _ = encrypted(workers, driver)
    reading = workers.submit(stream.read, 100, 10)
    driver.until_waiting()
    stream.close()
    with pytest.raises(ConnectionReset):
        reading.result(5)


def test_tls_close_tells_the_server_and_does_not_wait(workers: ThreadPoolExecutor) -> None:
    """RFC 8446 6.1: close_notify, so that the server can tell an end from a truncation."""
    stream, server, sock = encrypted(workers, MemoryDriver())
    stream.close()
    assert server._tls.pending() == 0
    assert server._run(lambda: server._tls.read(10)) == b""  # raises SSLEOFError without the alert
    assert sock.at_eof


def test_tls_read_times_out(workers: ThreadPoolExecutor) -> None:
    stream, _, _ = encrypted(workers, MemoryDriver())
    with pytest.raises(OperationTimeout, match=r"read timed out: 10\.0\.0\.1:443 sent nothing for 0\.01 s"):
        stream.read(10, timeout=0.01)


def test_a_tls_write_that_timed_out_leaves_the_records_in_order(workers: ThreadPoolExecutor) -> None:
    stream, server, _ = encrypted(workers, MemoryDriver(), capacity=3000)
    with pytest.raises(OperationTimeout, match="write timed out"):
        stream.write(b"a" * 5000, timeout=0.01)
    reading = workers.submit(read_exactly, server.read, 5001)
    stream.write(b"b", timeout=10)
    assert reading.result(10) == b"a" * 5000 + b"b"


def test_an_idle_tls_stream_is_not_readable_for_a_session_ticket(workers: ThreadPoolExecutor) -> None:
    """RFC 8446 4.6.1; taking it for data would close the connection that the ticket came on."""
    stream, _, _ = encrypted(workers, MemoryDriver())
    lower: Any = stream._stream._lower  # type: ignore[attr-defined]  # a TLS stream's
    assert lower.get_extra_info("is_readable") is True  # the server's tickets
    assert stream.get_extra_info("is_readable") is False
    assert lower.get_extra_info("is_readable") is False


@pytest.mark.parametrize("event", ["data", "end", "reset", "closed"])
def test_an_idle_tls_stream_becomes_readable_with(event: str, workers: ThreadPoolExecutor) -> None:
    stream, server, sock = encrypted(workers, MemoryDriver())
    assert stream.get_extra_info("is_readable") is False
    {
        "data": lambda: server.write(b"x"),
        "end": lambda: sock.close(0.0),
        "reset": lambda: sock.abort(0.0),
        "closed": stream.close,
    }[event]()
    assert stream.get_extra_info("is_readable") is True


def test_a_tls_stream_that_another_thread_reads_is_not_idle(workers: ThreadPoolExecutor) -> None:
    """The data is that thread's, even while it waits."""
    driver = MemoryDriver()
    stream, server, _ = encrypted(workers, driver)
    reading = workers.submit(stream.read, 100, 10)
    driver.until_waiting()
    assert stream.get_extra_info("is_readable") is False
    server.write(b"x")
    assert reading.result(10) == b"x"


def test_decrypted_data_that_was_not_read_makes_a_tls_stream_readable(workers: ThreadPoolExecutor) -> None:
    stream, server, _ = encrypted(workers, MemoryDriver())
    server.write(b"ab")
    assert stream.read(1, timeout=10) == b"a"
    assert stream.get_extra_info("is_readable") is True
    assert stream.read(10, timeout=10) == b"b"


def test_a_tls_stream_has_the_ssl_object_and_the_addresses(workers: ThreadPoolExecutor) -> None:
    stream, _, _ = encrypted(workers, MemoryDriver())
    assert stream.get_extra_info("ssl_object").version() == "TLSv1.3"
    assert stream.get_extra_info("server_addr") == ("10.0.0.1", 443)


def test_tls_inside_tls_carries_large_data_both_ways(workers: ThreadPoolExecutor) -> None:
    """An HTTPS proxy inside the tunnel, and an HTTPS server behind it."""
    outer, proxy, _ = encrypted(workers, MemoryDriver(), capacity=5000)
    serving = workers.submit(TlsServer, proxy)
    inner = outer.start_tls(client_context(), "server.test", timeout=10)
    server = serving.result(10)
    data = bytes(range(256)) * 1000
    writing = workers.submit(inner.write, data, 10)
    assert read_exactly(server.read, len(data)) == data
    writing.result(10)
    answering = workers.submit(server.write, data)
    assert read_exactly(lambda size: inner.read(size, 10), len(data)) == data
    answering.result(10)
    assert inner.get_extra_info("is_readable") is False


def test_a_failed_handshake_closes_the_connection(workers: ThreadPoolExecutor) -> None:
    driver = MemoryDriver()
    stream, server = plain(driver)
    serving = workers.submit(TlsServer, SyncStream(AsyncTcpStream(driver, server)), server_context())
    with pytest.raises(ssl.SSLCertVerificationError):
        stream.start_tls(client_context(trusted=False), "server.test", timeout=10)
    with pytest.raises(ssl.SSLError, match="ALERT"):  # the server was told why
        serving.result(10)
    assert server.at_eof


def test_a_handshake_that_does_not_end_in_time_closes_the_connection() -> None:
    stream, server = plain(VirtualDriver())
    with pytest.raises(OperationTimeout, match=r"TLS handshake with 10\.0\.0\.1:443 not finished within 3 s"):
        stream.start_tls(client_context(), "server.test", timeout=3)
    assert server.at_eof


def test_an_end_during_the_handshake_is_told_in_words() -> None:
    stream, server = plain(VirtualDriver())
    server.close(0.0)
    with pytest.raises(ConnectionReset, match="ended the connection during the TLS handshake"):
        stream.start_tls(client_context(), "server.test")


def test_a_reader_sends_no_reply_while_a_writer_is_in_the_middle_of_a_record(workers: ThreadPoolExecutor) -> None:
    """Records of two threads must not interleave: the server could not decrypt them."""
    driver = MemoryDriver()
    stream, server, _ = encrypted(workers, driver, capacity=2000)
    writing = workers.submit(stream.write, b"w" * 100_000, 10)
    reading = workers.submit(stream.read, 10, 10)
    driver.until_waiting(2)
    assert read_exactly(server.read, 100_000) == b"w" * 100_000
    server.write(b"ok")
    assert reading.result(10) == b"ok"
    writing.result(10)


def test_many_writers_never_mix_their_records(workers: ThreadPoolExecutor) -> None:
    stream, server, _ = encrypted(workers, MemoryDriver(), capacity=3000)
    start = threading.Barrier(4)

    def send(letter: bytes) -> None:
        start.wait(10)
        for _ in range(20):
            stream.write(letter * 1000, 10)

    sending = [workers.submit(send, letter) for letter in (b"a", b"b", b"c", b"d")]
    received = read_exactly(server.read, 80_000)
    for future in sending:
        future.result(10)
    assert {received[i : i + 1000] for i in range(0, 80_000, 1000)} == {
        b"a" * 1000,
        b"b" * 1000,
        b"c" * 1000,
        b"d" * 1000,
    }


def test_socket_options_that_mean_something_are_read() -> None:
    options: list[tuple[int, int, Any]] = [
        (socket.IPPROTO_TCP, socket.TCP_NODELAY, 0),
        (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
        (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 60),
        (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 5),
        (socket.IPPROTO_TCP, 18, 2500),
    ]
    user_timeout = 2500 if getattr(socket, "TCP_USER_TIMEOUT", None) == 18 else None  # Linux only
    assert TcpOptions.from_socket_options(options) == TcpOptions(
        no_delay=False, keepalive=True, keepalive_interval=60, keepalive_count=5, user_timeout=user_timeout
    )


def test_a_socket_option_without_meaning_is_ignored_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG", "httpx_wireguard")
    assert TcpOptions.from_socket_options([(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)]) == TcpOptions()
    assert "no meaning inside a tunnel" in caplog.text


def test_the_repr_of_a_stream_names_its_ends() -> None:
    stream: SyncStream = plain(VirtualDriver())[0]
    assert repr(stream) == "<SyncStream 10.0.0.2:40000 -> 10.0.0.1:443>"


def test_a_congestion_control_is_chosen_by_its_name() -> None:
    for value in (b"bbr", b"bbr\0\0\0", bytearray(b"bbr")):
        assert TcpOptions.from_socket_options([(socket.IPPROTO_TCP, 13, value)]).congestion_control == "bbr"


def test_an_unknown_congestion_control_is_refused_and_the_known_ones_are_named() -> None:
    with pytest.raises(ConfigError, match=r"'vegas'; choose one of bbr, cubic, reno"):
        TcpOptions.from_socket_options([(socket.IPPROTO_TCP, 13, b"vegas")])
