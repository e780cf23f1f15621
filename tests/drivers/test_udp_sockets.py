"""The UDP sockets on loopback: joined reads, split sends, errors that come back."""

from __future__ import annotations

import select
import socket
from collections.abc import Iterator

import pytest

from httpx_wireguard import EndpointError
from httpx_wireguard._drivers.udp import UdpSocket, UdpSockets

PATIENCE_MS = 5000


@pytest.fixture(params=[True, False], ids=["offload", "plain"])
def receiver(request: pytest.FixtureRequest) -> Iterator[UdpSocket]:
    one = UdpSocket(socket.AF_INET, "127.0.0.1", offload=request.param)
    yield one
    one.close()


@pytest.fixture
def sender() -> Iterator[socket.socket]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        one.bind(("127.0.0.1", 0))
        yield one


def send_all(sender: socket.socket, receiver: UdpSocket, *datagrams: bytes) -> None:
    for datagram in datagrams:
        sender.sendto(datagram, ("127.0.0.1", receiver.port))
    wait_readable(receiver)


def wait_readable(receiver: UdpSocket) -> None:
    poller = select.poll()
    poller.register(receiver, select.POLLIN)
    assert poller.poll(PATIENCE_MS)


def receive_all(receiver: UdpSocket) -> list[tuple[bytes, int]]:
    batches = []
    while (batch := receiver.receive()) is not None:
        batches.append((bytes(batch[0]), batch[1]))
    return batches


def datagrams_of(batches: list[tuple[bytes, int]]) -> list[bytes]:
    return [data[at : at + size] for data, size in batches for at in range(0, len(data), size)]


def test_equal_datagrams_of_one_source_are_one_batch(receiver: UdpSocket, sender: socket.socket) -> None:
    datagrams = [bytes([i]) * 1000 for i in range(10)]
    send_all(sender, receiver, *datagrams)
    assert receive_all(receiver) == [(b"".join(datagrams), 1000)]


def test_a_shorter_datagram_ends_its_batch(receiver: UdpSocket, sender: socket.socket) -> None:
    send_all(sender, receiver, b"a" * 100, b"b" * 100, b"c" * 30, b"d" * 100)
    assert receive_all(receiver) == [(b"a" * 100 + b"b" * 100 + b"c" * 30, 100), (b"d" * 100, 100)]


def test_a_longer_datagram_begins_a_batch_of_its_own(receiver: UdpSocket, sender: socket.socket) -> None:
    send_all(sender, receiver, b"a" * 100, b"b" * 150, b"c" * 150)
    assert datagrams_of(receive_all(receiver)) == [b"a" * 100, b"b" * 150, b"c" * 150]


def test_sources_are_not_mixed(receiver: UdpSocket, sender: socket.socket) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        send_all(sender, receiver, b"a" * 100)
        send_all(other, receiver, b"b" * 100)
        sources = []
        while (batch := receiver.receive()) is not None:
            sources.append((bytes(batch[0]), batch[2]))
        assert sources == [(b"a" * 100, sender.getsockname()), (b"b" * 100, ("127.0.0.1", other.getsockname()[1]))]


def test_an_empty_datagram_is_survived(receiver: UdpSocket, sender: socket.socket) -> None:
    send_all(sender, receiver, b"", b"a" * 100, b"", b"b" * 100)
    assert b"".join(data for data, _ in receive_all(receiver)) == b"a" * 100 + b"b" * 100


@pytest.mark.parametrize("offload", [True, False])
def test_a_run_arrives_as_its_datagrams(receiver: UdpSocket, offload: bool) -> None:
    """Buffers need not end where datagrams do; the last datagram may be shorter."""
    data = bytes(range(256)) * 10
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as plain:
        plain.bind(("127.0.0.1", 0))
        ours = UdpSocket(socket.AF_INET, "127.0.0.1", offload=offload)
        ours.send([data[:7], data[7:1999], data[1999:]], 1000, plain.getsockname())
        ours.close()
        assert [plain.recv(2000) for _ in range(3)] == [data[:1000], data[1000:2000], data[2000:]]


@pytest.mark.skipif(not hasattr(socket, "MSG_ERRQUEUE"), reason="the error queue is Linux'")
def test_a_datagram_that_comes_back_is_an_error_of_its_endpoint(receiver: UdpSocket) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as gone:
        gone.bind(("127.0.0.1", 0))
        endpoint = gone.getsockname()
    receiver.send([b"hello"], 5, endpoint)
    wait_readable(receiver)
    assert receiver.receive() is None
    ((where, error),) = receiver.take_errors()
    assert (where, error.strerror) == (endpoint, "Connection refused")
    assert receiver.take_errors() == []
    assert not select.select([receiver], [], [], 0)[0], "the error queue still makes the socket look ready"


def test_a_local_address_confines_to_its_family() -> None:
    sockets = UdpSockets("127.0.0.1", None)
    with pytest.raises(EndpointError, match="other IP version"):
        sockets.for_endpoint(("::1", 51820, 0, 0))
    sockets.close()


def test_a_taken_port_is_named(receiver: UdpSocket) -> None:
    with pytest.raises(EndpointError, match=rf"127\.0\.0\.1 port {receiver.port}"):
        UdpSockets("127.0.0.1", receiver.port).open(socket.AF_INET)
