"""The UDP sockets on loopback: joined reads, split sends, errors that come back."""

from __future__ import annotations

import contextlib
import fcntl
import select
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from httpx_wireguard import EndpointError
from httpx_wireguard._drivers import udp
from httpx_wireguard._drivers.udp import UdpSocket, UdpSockets
from httpx_wireguard._wire.ecn import CE, ECT_0, ECT_1, NOT_ECT

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


def test_without_joining_a_read_is_one_of_the_systems(receiver: UdpSocket, sender: socket.socket) -> None:
    receiver.coalesces = False
    send_all(sender, receiver, b"a" * 100)
    send_all(sender, receiver, b"b" * 100)
    first = receiver.receive(join=False)
    assert first is not None
    assert not receiver.holds
    assert bytes(first[0]) == b"a" * 100
    assert receive_all(receiver) == [(b"b" * 100, 100)]


def test_what_is_held_back_is_known(receiver: UdpSocket, sender: socket.socket) -> None:
    send_all(sender, receiver, b"a" * 100, b"b" * 150)
    first = receiver.receive()
    assert first is not None
    if len(first[0]) == 100:  # else the system has coalesced them
        assert receiver.holds
        assert datagrams_of(receive_all(receiver)) == [b"b" * 150]
    assert not receiver.holds


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


@pytest.fixture
def ours() -> Iterator[UdpSocket]:
    one = UdpSocket(socket.AF_INET, "127.0.0.1")
    yield one
    one.close()


FAMILIES = [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")]
reads_ecn = pytest.mark.skipif(not hasattr(socket, "IP_RECVTOS"), reason="the system does not tell the traffic class")


@reads_ecn
@pytest.mark.parametrize("offload", [True, False])
@pytest.mark.parametrize(("family", "host"), FAMILIES)
def test_the_codepoint_of_a_run_arrives_with_it(family: socket.AddressFamily, host: str, offload: bool) -> None:
    """RFC 3168 5: also of the datagrams that the kernel cut a run into, and put together again."""
    try:
        ours = UdpSocket(family, host, offload=offload)
    except EndpointError:
        pytest.skip("no such addresses here")
    with contextlib.closing(ours), contextlib.closing(UdpSocket(family, host, offload=offload)) as theirs:
        endpoint = (host, theirs.port, 0, 0)[: 4 if family == socket.AF_INET6 else 2]
        data = [bytes([number]) * 1000 for number in range(3)]
        for codepoint in (NOT_ECT, ECT_0, CE, ECT_1, NOT_ECT, ECT_0):
            ours.send(data, 1000, endpoint, codepoint)
            wait_readable(theirs)
            batches = []
            while (batch := theirs.receive()) is not None:
                batches.append((bytes(batch[0]), batch[1], batch[3]))
            assert batches == [(b"".join(data), 1000, codepoint)]


@reads_ecn
def test_codepoints_are_not_mixed(receiver: UdpSocket, ours: UdpSocket) -> None:
    """Neither in a joined read, nor in what is held for the next one."""
    for codepoint in (ECT_0, ECT_0, CE, ECT_0, NOT_ECT, NOT_ECT):
        ours.send([b"a" * 100], 100, ("127.0.0.1", receiver.port), codepoint)
    wait_readable(receiver)
    batches = []
    while (batch := receiver.receive()) is not None:
        batches.append((len(batch[0]), batch[3]))
    assert batches == [(200, ECT_0), (100, CE), (100, ECT_0), (100, NOT_ECT), (100, NOT_ECT)]


@reads_ecn
@pytest.mark.parametrize("option", [None, 9999], ids=["no option", "option refused"])
def test_without_the_means_to_read_marks_nothing_is_sent_ecn_capable(
    monkeypatch: pytest.MonkeyPatch, receiver: UdpSocket, option: int | None
) -> None:
    """An ECN-capable datagram tells the far side that marks are heeded here."""
    monkeypatch.setitem(udp._TRAFFIC_CLASS, socket.AF_INET, (socket.IPPROTO_IP, socket.IP_TOS, option))
    with contextlib.closing(UdpSocket(socket.AF_INET, "127.0.0.1", offload=False)) as ours:
        ours.send([b"a" * 100], 100, ("127.0.0.1", receiver.port), ECT_0)
        receiver.send([b"b" * 100], 100, ("127.0.0.1", ours.port), CE)
        for one, data in ((receiver, b"a" * 100), (ours, b"b" * 100)):
            wait_readable(one)
            batch = one.receive()
            assert batch is not None
            assert (bytes(batch[0]), batch[3]) == (data, NOT_ECT)


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


def test_a_full_buffer_is_waited_for_also_by_a_socket_of_a_high_number() -> None:
    """select() takes no descriptor above 1023, and a process with many tunnels has such."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 2048:
        pytest.skip("this system allows too few descriptors")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2048), hard))
    with contextlib.closing(UdpSocket(socket.AF_INET, "127.0.0.1", offload=False)) as one:
        low, high = one._socket, socket.socket(fileno=fcntl.fcntl(one.fileno(), fcntl.F_DUPFD_CLOEXEC, 1500))
        with low, high:
            one._socket = FullOnce(high)  # type: ignore[assignment]  # what it needs of a socket
            one.send([b"late"], 4, ("127.0.0.1", one.port))
            assert one.receive() is not None
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


class FullOnce:
    """A socket whose buffer is full when it is first sent from."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._full = True

    def sendto(self, data: bytes, endpoint: tuple[str, int]) -> int:
        if self._full:
            self._full = False
            raise BlockingIOError
        return self._sock.sendto(data, endpoint)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)
