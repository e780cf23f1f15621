"""Two devices over an in-memory network, in virtual time: the life of sessions (WireGuard paper 5 and 6)."""

from __future__ import annotations

import itertools

import pytest

from httpx_wireguard._config import PeerConfig
from httpx_wireguard._wireguard.drops import Drop
from httpx_wireguard._wireguard.messages import COOKIE_REPLY, INITIATION, KEEPALIVE_SIZE, RESPONSE, TRANSPORT
from tests.wireguard_net import Host, Net, connected, ipv4_packet, public_key, two_hosts


def refuse(net: Net, kind: int) -> None:
    """Lose every message of one kind from now on."""
    net.passes = lambda sent: sent.kind != kind


def refuse_all(net: Net) -> None:
    net.passes = lambda sent: False


def pass_all(net: Net) -> None:
    net.passes = lambda sent: True


def exchange(net: Net, client: Host, server: Host) -> None:
    """One packet each way."""
    net.send(client, server)
    net.advance(0.05)
    net.send(server, client)
    net.advance(0.05)


# --- establishing ---


def test_first_packet_waits_for_the_handshake_and_then_arrives() -> None:
    """Paper 6.1: the first packet is what starts the handshake."""
    net, client, server = two_hosts()
    packet = net.send(client, server)
    net.advance(0.1)
    assert server.received == [packet]
    assert [sent.kind for sent in net.log] == [INITIATION, RESPONSE, TRANSPORT]


def test_initiator_confirms_the_session_at_once_with_an_empty_packet() -> None:
    """Paper 5.4.6: the responder may not send before it has received something under the new keys."""
    net, client, server = two_hosts()
    net.initiate(client, server)
    net.advance(0.1)
    assert [len(sent.data) for sent in net.sent(TRANSPORT, client)] == [KEEPALIVE_SIZE]
    assert server.peer(client).has_session(net.now)


def test_responder_does_not_send_before_the_initiator_has_used_the_session() -> None:
    """Paper 5.4.6 (key confirmation): its packets wait, and go out with the first packet received."""
    net, client, server = two_hosts()
    refuse(net, TRANSPORT)
    net.initiate(client, server)
    net.advance(0.1)
    packet = net.send(server, client)
    assert net.sent(TRANSPORT, server) == []
    pass_all(net)
    net.send(client, server)
    net.advance(0.1)
    assert client.received == [packet]


def test_server_learns_the_endpoint_from_an_authentic_initiation() -> None:
    """Paper 2.1: a peer without a configured endpoint is learnt."""
    net, client, server = connected()
    assert server.peer(client).endpoint == client.address
    packet = net.send(server, client)
    net.advance(0.1)
    assert client.received == [packet]


def test_counters_agree_with_the_datagrams_that_crossed() -> None:
    """What `wg show transfer` counts: the UDP payload of authentic messages, handshakes included."""
    net, client, server = connected()
    exchange(net, client, server)
    client_sent = sum(len(sent.data) for sent in net.log if sent.sender == "client")
    assert client.peer(server).sent_bytes == server.peer(client).received_bytes == client_sent
    server_sent = sum(len(sent.data) for sent in net.log if sent.sender == "server")
    assert server.peer(client).sent_bytes == client.peer(server).received_bytes == server_sent


def test_both_sides_may_initiate_at_the_same_time() -> None:
    """Neither handshake may destroy the other: traffic flows both ways at once."""
    net, client, server = two_hosts(both_know_endpoints=True)
    to_server = net.send(client, server)
    to_client = net.send(server, client)
    net.advance(1.0)
    assert (server.received, client.received) == ([to_server], [to_client])
    exchange(net, client, server)
    assert (len(server.received), len(client.received)) == (2, 2)


def test_packets_beyond_the_staging_queue_push_out_the_oldest() -> None:
    """As in the kernel: 128 packets wait, the newest are the ones worth sending."""
    net, client, server = two_hosts()
    packets = [net.send(client, server, length=60 + number) for number in range(130)]
    net.advance(0.1)
    assert server.received == packets[2:]
    assert client.peer(server).drops[Drop.STAGED_OVERFLOW] == 2


def test_packets_wait_while_the_configured_endpoint_is_being_resolved() -> None:
    net, client, server = two_hosts()
    client.peer(server).endpoint = None
    packet = net.send(client, server)
    assert net.log == []
    client.peer(server).endpoint = server.address
    net.initiate(client, server)
    net.advance(0.1)
    assert server.received == [packet]


def test_packets_to_a_peer_that_was_never_heard_are_dropped_with_a_reason() -> None:
    """As EDESTADDRREQ of the kernel: no endpoint configured, none learnt."""
    net, client, server = two_hosts()
    net.send(server, client)
    assert net.log == []
    assert server.peer(client).drops[Drop.NO_ENDPOINT] == 1
    assert server.peer(client).last_error == "peer has no endpoint"


# --- retries ---


def test_lost_response_is_answered_by_a_new_initiation_with_jitter() -> None:
    """Paper 6.4: REKEY_TIMEOUT and up to 333 ms; fresh ephemeral key, fresh index, later time stamp."""
    net, client, server = two_hosts()
    refuse(net, RESPONSE)
    packet = net.send(client, server)
    net.advance(5.0)
    assert net.times(INITIATION, client) == [0.0]
    pass_all(net)
    net.advance(0.4)
    first, second = net.sent(INITIATION, client)
    assert 1005.0 <= second.time <= 1005.334
    assert first.data[4:8] != second.data[4:8]
    assert first.data[8:40] != second.data[8:40]
    assert server.received == [packet]


def test_retries_go_on_every_five_seconds_without_backoff() -> None:
    net, client, server = two_hosts()
    refuse_all(net)
    net.send(client, server)
    net.advance(60.0)
    times = net.times(INITIATION, client)
    gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert len(gaps) >= 10
    assert all(5.0 <= gap <= 5.334 for gap in gaps)
    assert len({round(gap, 6) for gap in gaps}) > 5  # jitter differs each time


def test_attempts_end_after_ninety_seconds_and_the_staged_packets_go() -> None:
    """Paper 6.4: REKEY_ATTEMPT_TIME. Nothing more is sent, and the caller learns of it once."""
    net, client, server = two_hosts()
    refuse_all(net)
    net.send(client, server)
    net.advance(89.0)
    assert client.device.take_given_up() == []
    net.advance(10.0)
    assert client.device.take_given_up() == [client.peer(server)]
    assert client.device.take_given_up() == []
    sent = len(net.log)
    net.advance(400.0)
    assert len(net.log) == sent
    assert client.peer(server).drops[Drop.STAGED_GIVEN_UP] == 1


def test_giving_up_erases_the_keys_540_seconds_later() -> None:
    """Paper 6.3: also those of a handshake that never became a session."""
    net, client, server = two_hosts()
    refuse_all(net)
    net.send(client, server)
    net.advance(100.0)
    given_up = client.device.next_timeout()
    assert given_up is not None
    assert 1000.0 + 90.0 + 540.0 <= given_up <= 1000.0 + 96.0 + 540.0
    net.advance(600.0)
    assert client.device.next_timeout() is None


def test_attempts_are_counted_for_the_diagnosis() -> None:
    net, client, server = two_hosts()
    refuse_all(net)
    net.send(client, server)
    net.advance(12.0)
    peer = client.peer(server)
    assert (peer.attempts, peer.initiations_sent, peer.first_attempt) == (3, 3, 1000.0)
    pass_all(net)
    net.advance(6.0)
    assert (peer.attempts, peer.initiations_sent, peer.first_attempt) == (0, 4, None)
    assert peer.responses_received == 1


def test_packet_after_giving_up_starts_a_new_round() -> None:
    net, client, server = two_hosts()
    refuse_all(net)
    net.send(client, server)
    net.advance(120.0)
    before = client.peer(server).attempts
    pass_all(net)
    packet = net.send(client, server, fill=1)
    net.advance(1.0)
    assert server.received == [packet]
    assert before >= 17


def test_packet_during_the_attempts_prolongs_them() -> None:
    """Paper 6.4: the attempt time counts from the last packet that asked for a session."""
    net, client, server = two_hosts()
    refuse_all(net)
    net.send(client, server)
    net.advance(60.0)
    net.send(client, server)
    net.advance(80.0)
    assert client.device.take_given_up() == []
    net.advance(20.0)
    assert client.device.take_given_up() == [client.peer(server)]


def test_never_two_initiations_within_five_seconds() -> None:
    """Paper 6.1, whatever asks for them: packets, the caller, timers."""
    net, client, server = two_hosts(keepalive=1)
    refuse_all(net)
    for _ in range(40):
        net.send(client, server)
        net.initiate(client, server)
        net.advance(0.5)
    times = net.times(INITIATION, client)
    assert all(later - earlier >= 5.0 for earlier, later in itertools.pairwise(times))


# --- keeping a session fresh ---


def test_initiator_rekeys_when_it_sends_after_120_seconds() -> None:
    """Paper 6.2: REKEY_AFTER_TIME."""
    net, client, server = connected()
    net.advance(119.5)
    exchange(net, client, server)
    assert len(net.sent(INITIATION)) == 1
    net.advance(1.0)
    exchange(net, client, server)
    assert [s.sender for s in net.sent(INITIATION)] == ["client", "client"]


def test_responder_does_not_rekey_by_age() -> None:
    """Paper 6.2: or both would start at once."""
    net, client, server = connected()
    net.advance(130.0)
    net.send(server, client)
    net.advance(0.1)
    assert len(net.sent(INITIATION)) == 1


def test_traffic_does_not_stop_for_a_rekey() -> None:
    """The old session stays in use until the new one is there: no packet is lost or staged."""
    net, client, server = connected()
    packets = []
    for number in range(300):
        packets.append(net.send(client, server, length=60 + number))
        net.send(server, client)
        net.advance(0.9)
    assert server.received == packets
    assert len(client.received) == 300
    assert len(net.sent(RESPONSE)) == 3


def test_initiator_rekeys_when_it_receives_shortly_before_the_end() -> None:
    """Paper 6.2: a host that only receives asks at 165 s, once."""
    net, client, server = connected()
    net.advance(164.0)
    net.send(server, client)
    net.advance(0.1)
    assert len(net.sent(INITIATION)) == 1
    net.advance(1.5)
    refuse(net, INITIATION)
    for _ in range(5):
        net.send(server, client)
        net.advance(0.1)
    assert len(net.sent(INITIATION)) == 2


def test_no_packet_is_sent_or_accepted_with_a_session_of_180_seconds() -> None:
    """Paper 6.2: REJECT_AFTER_TIME; the packet waits for a new session instead."""
    net, client, server = connected()
    replayable = net.send(client, server)
    held = net.log[-1].data
    net.advance(181.0)
    assert not client.peer(server).has_session(net.now)
    assert net.inject(held, client.address, server) == []
    assert server.peer(client).drops[Drop.SESSION_EXPIRED] == 1
    packet = net.send(client, server, fill=2)
    assert net.log[-1].kind == INITIATION
    net.advance(0.1)
    assert server.received == [replayable, packet]


def test_all_keys_are_erased_540_seconds_after_the_last_session() -> None:
    """Paper 6.3: three times REJECT_AFTER_TIME."""
    net, client, server = connected()
    net.advance(539.0)
    assert all(host.peer(other).current for host, other in ((client, server), (server, client)))
    net.advance(2.0)
    for host, other in ((client, server), (server, client)):
        peer = host.peer(other)
        assert not any((peer.previous, peer.current, peer.next))
    assert client.device.next_timeout() is None


def test_session_survives_one_rekey_as_previous() -> None:
    """Packets that were under way during a rekey are still accepted."""
    net, client, server = connected()
    net.advance(121.0)
    late = ipv4_packet("10.0.0.1", "10.0.0.2", 99)
    net.passes = lambda sent: sent.kind != TRANSPORT or len(sent.data) != 32 + 112
    client.device.send_packets(client.peer(server), [late], net.now)
    net.advance(0.5)
    pass_all(net)
    held = next(s.data for s in net.sent(TRANSPORT, client) if len(s.data) == 32 + 112)
    assert len(net.sent(RESPONSE)) == 2
    assert net.inject(held, client.address, server) == [late]


# --- keepalives and dead peers ---


def test_received_data_is_answered_within_ten_seconds() -> None:
    """Paper 6.5: KEEPALIVE_TIMEOUT, so that the sender knows that we are alive."""
    net, client, server = connected()
    net.log.clear()
    net.send(client, server)
    net.advance(9.9)
    assert net.sent(TRANSPORT, server) == []
    net.advance(0.2)
    assert [len(s.data) for s in net.sent(TRANSPORT, server)] == [KEEPALIVE_SIZE]


def test_keepalives_do_not_answer_keepalives() -> None:
    """Paper 6.5: an idle tunnel falls silent."""
    net, client, server = connected()
    exchange(net, client, server)
    net.advance(30.0)
    sent = len(net.log)
    net.advance(500.0)
    assert len(net.log) == sent


def test_answering_in_time_makes_a_keepalive_unnecessary() -> None:
    net, client, server = connected()
    net.log.clear()
    for _ in range(20):
        net.send(client, server)
        net.advance(1.0)
        net.send(server, client)
        net.advance(1.0)
    assert all(len(s.data) > KEEPALIVE_SIZE for s in net.log)


def test_data_that_arrived_while_a_keepalive_waited_brings_one_more() -> None:
    net, client, server = connected()
    net.send(client, server)
    net.advance(5.0)
    net.send(client, server)
    net.log.clear()
    net.advance(60.0)
    assert len(net.sent(TRANSPORT, server)) == 2


def test_silence_for_15_seconds_after_sending_makes_a_new_handshake() -> None:
    """Paper 6.5: KEEPALIVE_TIMEOUT + REKEY_TIMEOUT: the far side may have restarted."""
    net, client, server = connected()
    net.advance(20.0)
    refuse_all(net)
    net.send(client, server)
    sent_at = net.now
    net.advance(15.5)
    retry = net.sent(INITIATION, client)[-1]
    assert 15.0 <= retry.time - sent_at <= 15.334


def test_dead_session_recovers_when_the_server_restarts() -> None:
    """The server forgets its keys; traffic resumes within 15 s and a round trip."""
    net, client, server = connected()
    net.advance(20.0)
    server.peer(client).erase_keys()
    net.send(client, server)
    net.advance(16.0)
    packet = net.send(client, server, fill=9)
    net.advance(0.1)
    assert server.received[-1] == packet


def test_persistent_keepalive_goes_out_after_that_time_of_silence() -> None:
    """Paper 6.5 and wg(8): every interval, but only if nothing else was sent or received."""
    net, _, _ = connected(keepalive=25)
    net.log.clear()
    net.advance(100.0)
    keepalives = [s for s in net.log if len(s.data) == KEEPALIVE_SIZE and s.sender == "client"]
    assert len(keepalives) == 4
    assert len(net.log) == 4


def test_persistent_keepalive_makes_the_first_handshake_by_itself() -> None:
    net, client, server = two_hosts(keepalive=25)
    net.advance(1.0)
    assert server.peer(client).has_session(net.now)
    assert client.peer(server).last_handshake is not None


def test_persistent_keepalive_waits_for_traffic() -> None:
    net, client, server = connected(keepalive=25)
    net.log.clear()
    for _ in range(10):
        net.advance(9.0)
        exchange(net, client, server)
    assert all(len(s.data) > KEEPALIVE_SIZE for s in net.sent(TRANSPORT, client))


# --- attackers and accidents ---


def test_peer_is_followed_to_a_new_address() -> None:
    """Paper 2.1: roaming, both ways."""
    net, client, server = connected()
    net.move(client, ("198.51.100.7", 4444))
    net.send(client, server)
    net.advance(0.1)
    packet = net.send(server, client)
    net.advance(0.1)
    assert client.received == [packet]
    assert server.peer(client).endpoint == ("198.51.100.7", 4444)


def test_forged_datagram_moves_neither_endpoint_nor_window() -> None:
    """Authentication comes before everything that an attacker could want."""
    net, client, server = connected()
    packet = net.send(client, server)
    genuine = net.log[-1].data
    net.advance(0.001)
    forged = genuine[:8] + (2**40).to_bytes(8, "little") + genuine[16:]
    flipped = genuine[:-1] + bytes([genuine[-1] ^ 1])
    for datagram in (forged, flipped):
        assert net.inject(datagram, ("203.0.113.66", 1), server) == []
    net.advance(0.1)
    assert server.received == [packet]
    assert server.peer(client).endpoint == client.address
    assert server.device.drops[Drop.NOT_AUTHENTIC] == 2


def test_replayed_datagram_is_dropped_and_moves_no_endpoint() -> None:
    """Paper 5.4.6: each counter once, even from the right key."""
    net, client, server = connected()
    packet = net.send(client, server)
    net.advance(0.1)
    assert net.inject(net.log[-1].data, ("203.0.113.66", 1), server) == []
    assert server.received == [packet]
    assert server.peer(client).endpoint == client.address
    assert server.device.drops[Drop.REPLAYED] == 1


def test_replayed_initiation_is_dropped() -> None:
    """Paper 5.1: the time stamp must grow; a replay may not make the responder forget its session."""
    net, client, server = connected()
    replies = len(net.sent(RESPONSE))
    net.advance(1.0)
    net.inject(net.sent(INITIATION)[0].data, ("203.0.113.66", 1), server)
    assert len(net.sent(RESPONSE)) == replies
    assert server.device.drops[Drop.REPLAYED_INITIATION] == 1
    assert server.peer(client).endpoint == client.address


def test_second_copy_of_a_response_is_ignored() -> None:
    net, client, server = connected()
    session = client.peer(server).current
    net.inject(net.sent(RESPONSE)[0].data, server.address, client)
    assert client.peer(server).current is session


def test_forged_response_leaves_the_handshake_usable() -> None:
    """Paper 5.4.3: one bad answer may not cancel the good one behind it."""
    net, client, server = two_hosts()
    refuse(net, RESPONSE)
    packet = net.send(client, server)
    net.advance(0.1)
    genuine = net.sent(RESPONSE)[0].data
    # a host that knows both public keys can make a valid mac1, but not the AEAD tag
    forged = bytearray(genuine)
    forged[44] ^= 1
    stamped = server.peer(client)._stamper.stamp(bytes(forged), net.now)
    net.inject(stamped, ("203.0.113.66", 1), client)
    assert client.device.drops[Drop.HANDSHAKE_FAILED] == 1
    assert client.peer(server).endpoint == server.address
    pass_all(net)
    net.inject(genuine, server.address, client)
    net.advance(0.1)
    assert server.received == [packet]


@pytest.mark.parametrize("psk", [(b"a" * 32, b"b" * 32), (b"a" * 32, None), (None, b"b" * 32)])
def test_different_preshared_keys_make_no_session(psk: tuple[bytes | None, bytes | None]) -> None:
    """Paper 5.2: it goes into the response, which then does not open."""
    net, client, server = two_hosts(psk=psk)
    net.send(client, server)
    net.advance(4.0)
    assert len(net.sent(RESPONSE)) == 1
    assert client.device.drops[Drop.HANDSHAKE_FAILED] == 1
    assert not client.peer(server).has_session(net.now)


def test_equal_preshared_keys_make_a_session() -> None:
    net, client, server = two_hosts(psk=(b"a" * 32, b"a" * 32))
    packet = net.send(client, server)
    net.advance(0.1)
    assert server.received == [packet]


def test_stranger_gets_no_answer_of_any_kind() -> None:
    """Paper 5.1: a valid initiation from a key that the server does not know."""
    net, _, server = two_hosts()
    stranger = net.add(
        "stranger",
        "10.0.0.3",
        PeerConfig(public_key=public_key("server"), allowed_ips=("10.0.0.2/32",), endpoint="192.0.2.2:51820"),
        seed=3,
    )
    stranger.peer(server).endpoint = server.address
    net.send(stranger, server)
    net.advance(1.0)
    assert [s.sender for s in net.log] == ["stranger"]
    assert server.device.drops[Drop.UNKNOWN_PEER] == 1


def test_initiation_for_another_servers_key_gets_no_answer() -> None:
    """Paper 5.4.4: mac1 is under the receiver's public key."""
    net, client, server = two_hosts()
    impostor = net.add("impostor", "10.0.0.9", PeerConfig(public_key=public_key("client")), seed=4)
    net.send(client, server)
    net.inject(net.log[-1].data, client.address, impostor)
    assert [s for s in net.log if s.sender == "impostor"] == []
    assert impostor.device.drops[Drop.INVALID_MAC1] == 1


def test_inner_source_outside_the_allowed_ips_is_dropped() -> None:
    """Paper 2: cryptokey routing binds inner addresses to keys."""
    net, client, server = connected()
    spoofed = ipv4_packet("10.0.0.77", "10.0.0.2")
    client.device.send_packets(client.peer(server), [spoofed], net.now)
    net.advance(0.1)
    assert server.received == []
    assert server.peer(client).drops[Drop.SOURCE_NOT_ALLOWED] == 1


def test_two_peers_share_a_server_but_not_their_addresses() -> None:
    net = Net()
    to_server = PeerConfig(public_key=public_key("server"), allowed_ips=("10.0.0.0/24",), endpoint="192.0.2.3:51820")
    one = net.add("one", "10.0.0.11", to_server, seed=1)
    two = net.add("two", "10.0.0.12", to_server, seed=2)
    server = net.add(
        "server",
        "10.0.0.1",
        PeerConfig(public_key=public_key("one"), allowed_ips=("10.0.0.11/32",)),
        PeerConfig(public_key=public_key("two"), allowed_ips=("10.0.0.12/32",)),
        seed=3,
    )
    for client in (one, two):
        client.peer(server).endpoint = server.address
    packets = [net.send(one, server), net.send(two, server)]
    net.advance(0.1)
    assert server.received == packets
    two.device.send_packets(two.peer(server), [ipv4_packet("10.0.0.11", "10.0.0.1")], net.now)
    answer = net.send(server, one)
    net.advance(0.1)
    assert (one.received, two.received) == ([answer], [])
    assert server.received == packets
    assert server.peer(two).drops[Drop.SOURCE_NOT_ALLOWED] == 1


def test_server_under_load_sends_a_cookie_and_admits_the_retry_that_carries_it() -> None:
    """Paper 5.3: the cookie goes into mac2 of the next attempt; it never triggers one by itself."""
    net, client, server = two_hosts(load=2)
    server.device._load.count(net.now)
    packet = net.send(client, server)
    net.advance(4.9)
    assert [s.kind for s in net.log] == [INITIATION, COOKIE_REPLY]
    assert client.peer(server).cookies_received == 1
    net.advance(0.1)
    server.device._load.count(net.now)
    net.advance(0.5)
    assert server.received == [packet]
    assert net.sent(INITIATION, client)[-1].data[132:] != bytes(16)


def test_under_load_a_source_gets_only_its_share_of_handshakes() -> None:
    """Paper 5.3: with a valid mac2 comes a token bucket for each address."""
    net, client, server = two_hosts(load=1)
    refuse(net, RESPONSE)
    net.send(client, server)
    net.advance(5.4)
    stamped = net.sent(INITIATION, client)[-1].data
    answered = server.device.drops[Drop.UNDER_LOAD]
    for _ in range(10):
        net.inject(stamped, client.address, server)
    assert server.device.drops[Drop.UNDER_LOAD] - answered == 5  # burst 5
    assert len(net.sent(COOKIE_REPLY)) == 1


def test_wall_clock_that_steps_back_does_not_lock_the_client_out() -> None:
    """Paper 5.1: the server would drop every initiation until the clock has caught up."""
    net, client, server = connected()
    client.entropy.wall_clock -= 3600
    net.advance(200.0)
    packet = net.send(client, server)
    net.advance(0.1)
    assert server.received == [packet]


def test_duplicated_and_reordered_datagrams_arrive_once_each() -> None:
    net, client, server = connected()
    refuse_all(net)
    packets = [net.send(client, server, length=60 + number) for number in range(20)]
    datagrams = [s.data for s in net.sent(TRANSPORT, client)[-20:]]
    for datagram in [*reversed(datagrams), *datagrams]:
        net.inject(datagram, client.address, server)
    assert server.received == packets[::-1]


def test_closed_device_is_deaf_and_mute() -> None:
    """Keys are gone; nothing is raised."""
    net, client, server = connected()
    datagram = net.send(server, client) and net.log[-1].data
    client.device.close()
    assert net.inject(datagram, server.address, client) == []
    net.send(client, server)
    net.initiate(client, server)
    assert client.device.datagrams_to_send() == []
    assert client.device.next_timeout() is None
    assert not client.peer(server).has_session(net.now)
