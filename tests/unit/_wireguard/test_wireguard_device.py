"""The device: dispatch, cryptokey routing, runs, timers of many peers."""

from __future__ import annotations

import pytest

from httpx_wireguard._config import PeerConfig
from httpx_wireguard._wire.ecn import CE, ECT_0, NOT_ECT, with_ecn
from httpx_wireguard._wireguard.crypto import PrivateKey
from httpx_wireguard._wireguard.device import Device
from httpx_wireguard._wireguard.drops import Drop
from httpx_wireguard._wireguard.messages import INITIATION
from tests.simnet import SeededEntropy
from tests.wireguard_net import (
    Host,
    Net,
    connected,
    ipv4_packet,
    private_key,
    public_key,
    receive,
    split,
    take_datagrams,
    two_hosts,
)


class StubKey:
    """A `SecretKey` that `Config` would refuse to hold."""

    def __init__(self, raw: bytes) -> None:
        self._raw = raw

    def reveal(self) -> bytes:
        return self._raw


class StubPeer:
    """A `PeerConfig` that `Config` would refuse to hold."""

    allowed_ips = ()
    endpoint = ("192.0.2.9", 1)
    preshared_key = None
    persistent_keepalive = 5

    def __init__(self, key: bytes) -> None:
        self.public_key = key


class StubConfig:
    mtu = 1420

    def __init__(self, *keys: bytes) -> None:
        self.private_key = StubKey(private_key("client"))
        self.peers = tuple(StubPeer(key) for key in keys)


def send_raw(net: Net, sender: Host, target: Host, *plaintexts: bytes) -> list[bytes]:
    """Seal anything, and return what the target delivers."""
    sender.device.send_packets(sender.peer(target), plaintexts, net.now)
    delivered = []
    for run in sender.device.datagrams_to_send():
        data = memoryview(b"".join(run.buffers))
        delivered += target.device.receive_datagrams(data, run.segment_size, sender.address, net.now)
    return delivered


def test_padding_is_cut_off_by_the_packets_own_length() -> None:
    """Paper 5.4.6."""
    net, client, server = connected()
    for length in (20, 21, 47, 1419):
        packet = ipv4_packet("10.0.0.1", "10.0.0.2", length)
        assert send_raw(net, client, server, packet) == [packet]


@pytest.mark.parametrize(
    "plaintext",
    [
        b"\x45" + bytes(15),
        b"\x45\x00\x00\x13" + bytes(8) + bytes([10, 0, 0, 1]) + bytes(16),
        b"\x45\x00\x00\x99" + bytes(8) + bytes([10, 0, 0, 1]) + bytes(16),
        b"\x60" + bytes(31),
        b"\x60\0\0\0\x00\x99" + bytes(58),
        b"\x00" + bytes(63),
        b"\x75" + bytes(63),
    ],
    ids=["short v4", "length below header", "length above packet", "short v6", "v6 above packet", "v0", "v7"],
)
def test_plaintext_that_is_no_packet_is_dropped(plaintext: bytes) -> None:
    """The session is authentic, so its timers still move."""
    net, client, server = connected()
    before = server.peer(client).received_bytes
    assert send_raw(net, client, server, plaintext) == []
    assert server.device.drops[Drop.MALFORMED_INNER] == 1
    assert server.peer(client).received_bytes > before


def ipv6_packet(source: bytes, length: int) -> bytes:
    return b"\x60\0\0\0" + (length - 40).to_bytes(2, "big") + b"\x3b\x40" + source + bytes(16) + bytes(length - 40)


def test_ipv6_packets_are_checked_and_trimmed_like_ipv4() -> None:
    net = Net()
    own, foreign = (bytes.fromhex("fd00" + "00" * 13 + last) for last in ("01", "02"))
    client = net.add("client", "10.0.0.1", PeerConfig(public_key=public_key("server"), endpoint="h:1"), seed=1)
    server = net.add(
        "server", "10.0.0.2", PeerConfig(public_key=public_key("client"), allowed_ips=("fd00::1/128",)), seed=2
    )
    client.peer(server).endpoint = server.address
    net.initiate(client, server)
    net.advance(0.1)
    packets = [ipv6_packet(own, 1420), ipv6_packet(own, 1420), ipv6_packet(own, 47), ipv6_packet(own, 40)]
    assert send_raw(net, client, server, *packets, ipv6_packet(foreign, 1420)) == packets
    assert server.device.drops[Drop.SOURCE_NOT_ALLOWED] == 1


def test_each_packet_of_a_batch_is_checked_for_its_source() -> None:
    """The shortcut for look-alikes may not let a foreign source through."""
    net, client, server = connected()
    own, foreign = (ipv4_packet(f"10.0.0.{last}", "10.0.0.2", 1420) for last in (1, 7))
    longer = own[:2] + (1419).to_bytes(2, "big") + own[4:]
    assert send_raw(net, client, server, own, foreign, own, longer, own) == [own, own, longer[:1419], own]
    assert server.device.drops[Drop.SOURCE_NOT_ALLOWED] == 1


def test_keepalives_in_a_batch_deliver_nothing() -> None:
    net, client, server = connected()
    packet = ipv4_packet("10.0.0.1", "10.0.0.2")
    assert send_raw(net, client, server, b"", b"", packet, b"") == [packet]
    assert not server.device.drops


def test_run_of_datagrams_from_one_read_is_delivered_in_order() -> None:
    net, client, server = connected()
    packets = [ipv4_packet("10.0.0.1", "10.0.0.2", 1420, fill=number) for number in range(45)] + [
        ipv4_packet("10.0.0.1", "10.0.0.2", 500)
    ]
    assert send_raw(net, client, server, *packets) == packets


def test_one_read_may_mix_sessions_and_garbage() -> None:
    net, client, server = connected()
    client.device.send_packets(client.peer(server), [ipv4_packet("10.0.0.1", "10.0.0.2", 116)] * 4, net.now)
    (run,) = client.device.datagrams_to_send()
    messages = split(run.buffers, 148 + 12)
    garbage = b"\x04\0\0\0" + b"\xee" * (len(messages[0]) - 4)
    data = memoryview(b"".join([messages[0], garbage, messages[1], b"\xff" * len(garbage), messages[2], messages[3]]))
    assert len(server.device.receive_datagrams(data, len(garbage), client.address, net.now)) == 4
    assert server.device.drops == {Drop.UNKNOWN_INDEX: 1, Drop.MALFORMED: 1}


def test_empty_read_is_nothing() -> None:
    _, client, server = two_hosts()
    assert client.device.receive_datagrams(memoryview(b""), 0, server.address, 1.0) == []


def capable(fill: int, sender: str = "10.0.0.1", target: str = "10.0.0.2") -> bytes:
    """A packet with ECT(0)."""
    return with_ecn(ipv4_packet(sender, target, fill=fill), ECT_0)


def seal(net: Net, sender: Host, target: Host, *packets: bytes) -> list[tuple[int, memoryview]]:
    """Runs of datagrams of one size, each with its outer codepoint."""
    sender.device.send_packets(sender.peer(target), packets, net.now)
    return [(run.ecn, memoryview(b"".join(run.buffers))) for run in sender.device.datagrams_to_send()]


def test_a_congestion_mark_outside_the_tunnel_goes_on_inside() -> None:
    """RFC 6040 4.2, for the reads that were marked and for no other."""
    net, client, server = connected()
    plain = ipv4_packet("10.0.0.1", "10.0.0.2")
    packets = [capable(1), plain, capable(2)]
    datagrams = [data for _, data in seal(net, client, server, *packets)]
    size = sum(map(len, datagrams)) // 3
    read = memoryview(b"".join(datagrams))
    arrived = server.device.receive_datagrams(read, size, client.address, net.now, ecn=CE)
    assert arrived == [with_ecn(packets[0], CE), with_ecn(packets[2], CE)]
    assert server.device.drops == server.peer(client).drops == {Drop.CONGESTION: 1}
    read = memoryview(b"".join(data for _, data in seal(net, client, server, *packets)))
    assert server.device.receive_datagrams(read, size, client.address, net.now, ecn=NOT_ECT) == packets


def test_a_datagram_that_is_not_authentic_shows_nothing_about_the_peer() -> None:
    """Nor does one that repeats, or whose inner source is not the peer's."""
    net, client, server = connected()
    ((_, shown),) = seal(net, client, server, capable(1))
    forged = memoryview(bytes(shown[:-1]) + bytes([shown[-1] ^ 1]))
    ((_, foreign),) = seal(net, client, server, capable(2, "10.0.0.9"))
    for data in (forged, foreign):
        assert server.device.receive_datagrams(data, len(data), client.address, net.now, ecn=ECT_0) == []
    for codepoint in (NOT_ECT, ECT_0):
        server.device.receive_datagrams(shown, len(shown), client.address, net.now, ecn=codepoint)
    assert server.device.drops == {Drop.NOT_AUTHENTIC: 1, Drop.SOURCE_NOT_ALLOWED: 1, Drop.REPLAYED: 1}
    back = capable(3, "10.0.0.2", "10.0.0.1")
    assert [ecn for ecn, _ in seal(net, server, client, back, back)] == [ECT_0, NOT_ECT]


def test_two_of_us_find_out_that_both_carry_marks() -> None:
    """The first ECN-capable packet of each side tells the other."""
    net, client, server = connected()
    there, back = capable(1), capable(2, "10.0.0.2", "10.0.0.1")
    ((outer, data), *_) = seal(net, client, server, there, there)
    server.device.receive_datagrams(data, len(data), client.address, net.now, ecn=outer)
    assert [ecn for ecn, _ in seal(net, server, client, back, back)] == [ECT_0]
    assert [ecn for ecn, _ in seal(net, client, server, there, there)] == [NOT_ECT]
    ((outer, data),) = seal(net, server, client, back)
    client.device.receive_datagrams(data, len(data), server.address, net.now, ecn=outer)
    assert [ecn for ecn, _ in seal(net, client, server, there, there)] == [ECT_0]


def test_what_a_peer_has_shown_ends_with_the_session() -> None:
    """Another implementation may have come up under the same key."""
    net, client, server = connected()
    ((outer, data),) = seal(net, client, server, capable(1))
    server.device.receive_datagrams(data, len(data), client.address, net.now, ecn=outer)
    session = server.peer(client).current
    net.advance(121.0)
    net.send(client, server)
    net.advance(0.1)
    assert server.peer(client).current is not session
    back = capable(2, "10.0.0.2", "10.0.0.1")
    assert [ecn for ecn, _ in seal(net, server, client, back, back)] == [ECT_0, NOT_ECT]


def test_handshakes_and_keepalives_are_not_ecn_capable() -> None:
    """Also towards a peer that carries marks: nothing in them slows down."""
    net, client, server = connected()
    ((outer, data),) = seal(net, client, server, capable(1))
    server.device.receive_datagrams(data, len(data), client.address, net.now, ecn=outer)
    net.now += 121.0
    assert [ecn for ecn, _ in seal(net, server, client, b"")] == [NOT_ECT]
    server.device.initiate(server.peer(client), net.now)
    (run,) = server.device.datagrams_to_send()
    assert (run.ecn, run.buffers[0][0]) == (NOT_ECT, INITIATION)


def test_route_takes_the_longest_allowed_prefix() -> None:
    net = Net()
    host = net.add(
        "client",
        "10.0.0.1",
        PeerConfig(public_key=public_key("gateway"), allowed_ips=("0.0.0.0/0",)),
        PeerConfig(public_key=public_key("office"), allowed_ips=("10.8.0.0/16",)),
        seed=1,
    )
    gateway, office = host.device.peers
    assert host.device.route(bytes([10, 8, 1, 1])) is office
    assert host.device.route(bytes([10, 9, 1, 1])) is gateway
    assert host.device.route(bytes(16)) is None


def test_own_key_as_a_peer_is_ignored() -> None:
    """As `wg set` does."""
    device = Device(StubConfig(public_key("client"), public_key("server")), SeededEntropy(1))  # type: ignore[arg-type]  # Config refuses it
    assert [peer.public_key for peer in device.peers] == [public_key("server")]


@pytest.mark.parametrize("key", [bytes(32), b"\1" + bytes(31), (2**255 - 20).to_bytes(32, "little")])
def test_peer_whose_key_is_of_low_order_is_never_sent_anything(key: bytes) -> None:
    """The shared secret would be zero: the Linux self-test waits two seconds for silence."""
    device = Device(StubConfig(key), SeededEntropy(1))  # type: ignore[arg-type]  # Config refuses it
    (peer,) = device.peers
    peer.endpoint = ("192.0.2.9", 1)
    device.send_packets(peer, [ipv4_packet("10.0.0.1", "10.0.0.2")], 1.0)
    device.initiate(peer, 1.0)
    for now in range(2, 60):
        device.handle_timeout(float(now))
    assert device.datagrams_to_send() == []
    assert peer.drops[Drop.UNUSABLE_KEY] == 1


def test_initiations_of_one_peer_are_accepted_50_times_a_second_at_most() -> None:
    """The kernel's INITIATIONS_PER_SECOND: each costs two X25519."""
    net, client, server = two_hosts()
    net.passes = lambda sent: False
    for _ in range(3):
        net.initiate(client, server)
        net.advance(5.4)
    early, late = [sent.data for sent in net.sent(INITIATION)[:2]]
    receive(server.device, early, client.address, 50.0)
    receive(server.device, late, client.address, 50.019)
    assert len(take_datagrams(server.device)) == 1
    assert server.device.drops[Drop.INITIATION_FLOOD] == 1
    receive(server.device, late, client.address, 50.021)
    assert len(take_datagrams(server.device)) == 1


def test_spurious_timeouts_do_nothing() -> None:
    net, client, server = connected()
    net.send(client, server)
    take_datagrams(client.device)
    due = client.device.next_timeout()
    for _ in range(3):
        client.device.handle_timeout(net.now)
    assert client.device.datagrams_to_send() == []
    assert client.device.next_timeout() == due


def test_each_of_many_peers_keeps_its_own_time() -> None:
    net = Net()
    names = [f"peer{number}" for number in range(20)]
    host = net.add("client", "10.0.0.1", *(PeerConfig(public_key=public_key(n), endpoint="h:1") for n in names), seed=1)
    for number, peer in enumerate(host.device.peers):
        peer.endpoint = ("198.51.100.1", number)
        host.device.initiate(peer, 1000.0 + number / 10)
    net.now = 1002.0
    net.collect()
    net.log.clear()
    net.advance(5.5)
    assert [peer.initiations_sent for peer in host.device.peers] == [2] * 20
    assert len(net.log) == 20


def test_send_error_is_remembered_and_the_next_session_clears_it() -> None:
    net, client, server = two_hosts()
    client.device.on_send_error(server.address, OSError(101, "Network is unreachable"))
    assert client.peer(server).last_error == "[Errno 101] Network is unreachable"
    net.send(client, server)
    net.advance(0.1)
    assert client.peer(server).last_error is None


def test_runs_never_exceed_what_one_segmented_send_takes() -> None:
    net, client, server = connected()
    client.device.send_packets(client.peer(server), [ipv4_packet("10.0.0.1", "10.0.0.2", 1420)] * 100, net.now)
    runs = client.device.datagrams_to_send()
    assert [sum(map(len, run.buffers)) // 1452 for run in runs] == [44, 44, 12]
    assert {run.segment_size for run in runs} == {1452}


def test_initiate_is_a_no_op_with_a_fresh_session() -> None:
    net, client, server = connected()
    net.log.clear()
    net.initiate(client, server)
    net.advance(30.0)
    net.initiate(client, server)
    assert net.log == []
    net.advance(100.0)
    net.initiate(client, server)
    assert [sent.kind for sent in net.log] == [INITIATION]


def test_no_secret_is_in_any_repr() -> None:
    net, client, server = two_hosts(psk=(b"preshared-preshared-preshared-12", b"preshared-preshared-preshared-12"))
    net.send(client, server)
    net.advance(0.1)
    peer = client.peer(server)
    shown = " ".join(map(repr, (client.device, peer, peer.current, peer._handshake, peer._interface.private_key)))
    for secret in (private_key("client"), b"preshared-preshared"):
        assert secret.decode()[:8] not in shown
        assert secret.hex()[:16] not in shown


def test_close_drops_every_key() -> None:
    _, client, server = connected()
    peer = client.peer(server)
    client.device.close()
    assert (peer.current, peer.previous, peer.next) == (None, None, None)
    assert peer._interface.private_key.public == PrivateKey(bytes(32)).public
    assert not peer._interface.sessions
    assert not peer._interface.handshakes
