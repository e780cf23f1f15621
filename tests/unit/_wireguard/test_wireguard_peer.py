"""One peer: which session is previous, current and next, and what counts for diagnosis."""

from __future__ import annotations

from httpx_wireguard._wireguard.messages import INITIATION, RESPONSE, TRANSPORT
from tests.wireguard_net import Host, Net, connected, ipv4_packet, receive, take_datagrams, two_hosts


def sessions(host: Host, other: Host) -> list[str]:
    """The slots that are filled."""
    peer = host.peer(other)
    slots = {"previous": peer.previous, "current": peer.current, "next": peer.next}
    return [name for name, session in slots.items() if session is not None]


def rekey(net: Net, initiator: Host, responder: Host) -> None:
    net.advance(121.0)
    net.initiate(initiator, responder)
    net.advance(0.1)


def test_first_session_is_current_for_the_initiator_and_next_for_the_responder() -> None:
    """Paper 5.4.6: until the initiator has shown that it has the keys."""
    net, client, server = two_hosts()
    net.passes = lambda sent: sent.kind != TRANSPORT
    net.initiate(client, server)
    net.advance(0.1)
    assert sessions(client, server) == ["current"]
    assert sessions(server, client) == ["next"]


def test_confirmation_makes_next_current() -> None:
    _, client, server = connected()
    assert sessions(server, client) == ["current"]


def test_rekey_keeps_the_old_session_as_previous() -> None:
    net, client, server = connected()
    old = client.peer(server).current
    rekey(net, client, server)
    assert client.peer(server).previous is old
    assert sessions(server, client) == ["previous", "current"]


def test_second_rekey_forgets_the_oldest_session() -> None:
    net, client, server = connected()
    oldest = client.peer(server).current
    assert oldest is not None
    rekey(net, client, server)
    rekey(net, client, server)
    assert len(client.peer(server)._interface.sessions) == 2
    assert oldest.local_index not in client.peer(server)._interface.sessions


def test_new_initiation_replaces_an_unconfirmed_next_and_the_previous() -> None:
    """A responder holds at most current and next."""
    net, client, server = connected()
    rekey(net, client, server)
    net.passes = lambda sent: sent.kind == INITIATION
    net.advance(6.0)
    for _ in range(2):
        client.peer(server).current = None
        net.initiate(client, server)
        net.advance(6.0)
    assert sessions(server, client) == ["current", "next"]
    assert len(server.peer(client)._interface.sessions) == 2


def test_response_demotes_our_own_unconfirmed_session_to_previous() -> None:
    """Both sides initiated: what the far side sends with its session still has to open."""
    net, client, server = two_hosts(both_know_endpoints=True)
    net.initiate(client, server)
    net.initiate(server, client)
    net.advance(0.1)
    for host, other in ((client, server), (server, client)):
        assert sessions(host, other) == ["previous", "current"]
    for sender, target in ((client, server), (server, client)):
        packet = net.send(sender, target)
        net.advance(0.1)
        assert target.received == [packet]


def test_session_that_the_far_side_made_ends_our_own_handshake() -> None:
    """One session is enough, and a pending ephemeral key is worth forgetting."""
    net, client, server = two_hosts(both_know_endpoints=True)
    net.passes = lambda sent: sent.sender == "client" or sent.kind == RESPONSE
    net.initiate(server, client)
    net.initiate(client, server)
    assert server.peer(client)._interface.handshakes
    net.advance(0.1)
    assert not server.peer(client)._interface.handshakes
    net.advance(9.0)
    assert len(net.sent(INITIATION, server)) == 1


def test_retry_takes_a_new_index_and_forgets_the_old_one() -> None:
    """An answer to the first initiation comes too late: its ephemeral key is gone."""
    net, client, server = two_hosts()
    net.passes = lambda sent: sent.kind != RESPONSE
    net.initiate(client, server)
    net.advance(5.1)
    late = net.sent(RESPONSE)[0].data
    net.advance(0.3)
    assert len(net.sent(INITIATION)) == 2
    net.inject(late, server.address, client)
    assert not client.peer(server).has_session(net.now)
    assert len(client.peer(server)._interface.handshakes) == 1


def test_indices_are_random_and_unique() -> None:
    net, client, server = two_hosts()
    net.passes = lambda sent: False
    net.initiate(client, server)
    net.advance(80.0)
    indices = [sent.data[4:8] for sent in net.sent(INITIATION)]
    assert len(set(indices)) == len(indices) >= 15


def test_session_of_the_far_side_alone_does_not_count_as_ours() -> None:
    """`has_session` answers whether a packet would leave at once."""
    net, client, server = two_hosts()
    assert not client.peer(server).has_session(net.now)
    net.passes = lambda sent: sent.kind != TRANSPORT
    net.initiate(client, server)
    net.advance(0.1)
    assert client.peer(server).has_session(net.now)
    assert not server.peer(client).has_session(net.now)
    assert server.peer(client).last_handshake is None


def test_handshake_time_is_that_of_the_newest_session() -> None:
    net, client, server = connected()
    first = client.peer(server).last_handshake
    rekey(net, client, server)
    second = client.peer(server).last_handshake
    assert first is not None
    assert second is not None
    assert second - first > 120.0


def test_unconfirmed_responder_that_has_something_to_say_initiates_itself() -> None:
    """Its response was lost, and the initiator is gone: after five seconds it is its own turn."""
    net, client, server = two_hosts()
    net.passes = lambda sent: sent.sender == "client"
    net.initiate(client, server)
    net.advance(0.1)
    client.device.close()
    net.send(server, client)
    net.advance(6.0)
    assert [sent.kind for sent in net.log if sent.sender == "server"] == [RESPONSE, INITIATION]


def test_roaming_follows_each_kind_of_authentic_message() -> None:
    """Paper 2.1: initiation, response and data."""
    net, client, server = two_hosts()
    elsewhere = ("203.0.113.5", 5)
    net.initiate(client, server)
    (initiation,) = [sent.data for sent in net.log]
    receive(server.device, initiation, elsewhere, net.now)
    assert server.peer(client).endpoint == elsewhere
    (response,) = take_datagrams(server.device)
    receive(client.device, response, elsewhere, net.now)
    assert client.peer(server).endpoint == elsewhere
    (keepalive,) = take_datagrams(client.device)
    receive(server.device, keepalive, ("203.0.113.6", 6), net.now)
    assert server.peer(client).endpoint == ("203.0.113.6", 6)


def test_cookie_reply_does_not_move_the_endpoint() -> None:
    """Its sender is proven, but a stale one can be sent from anywhere."""
    net, client, server = two_hosts(load=1)
    net.initiate(client, server)
    (initiation,) = [sent.data for sent in net.log]
    receive(server.device, initiation, client.address, net.now)
    (reply,) = take_datagrams(server.device)
    receive(client.device, reply, ("203.0.113.5", 5), net.now)
    assert client.peer(server).cookies_received == 1
    assert client.peer(server).endpoint == server.address


def test_keepalive_of_the_peer_alone_is_not_data() -> None:
    """It needs no answer."""
    net, _, server = connected()
    net.advance(20.0)
    assert [len(sent.data) for sent in net.sent(TRANSPORT, server)] == []


def test_packets_staged_by_a_responder_leave_in_order_behind_the_confirmation() -> None:
    net, client, server = two_hosts()
    net.passes = lambda sent: sent.kind != TRANSPORT
    net.initiate(client, server)
    net.advance(0.1)
    packets = [ipv4_packet("10.0.0.2", "10.0.0.1", 60 + number) for number in range(5)]
    server.device.send_packets(server.peer(client), packets, net.now)
    net.passes = lambda sent: True
    net.send(client, server)
    net.advance(0.1)
    assert client.received == packets
