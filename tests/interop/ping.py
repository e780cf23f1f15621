"""Send echo requests to argv[1], one after the other's reply, argv[2] times; print each reply's payload size."""

import socket
import sys

ECHO_REQUEST = {socket.AF_INET: 8, socket.AF_INET6: 128}  # RFC 792, RFC 4443 4.1
ECHO_REPLY = {socket.AF_INET: 0, socket.AF_INET6: 129}
HEADER_SIZE = 8

address, count = sys.argv[1], int(sys.argv[2])
family = socket.AF_INET6 if ":" in address else socket.AF_INET
protocol = socket.IPPROTO_ICMPV6 if ":" in address else socket.IPPROTO_ICMP
with socket.socket(family, socket.SOCK_DGRAM, protocol) as sock:  # the kernel fills in identifier and checksum
    sock.settimeout(5)
    sock.connect((address, 0))
    for sequence in range(1, count + 1):
        header = bytes((ECHO_REQUEST[family], 0, 0, 0, 0, 0)) + sequence.to_bytes(2, "big")
        sock.send(header + bytes(1000 + sequence))
        reply = sock.recv(2048)
        assert reply[0] == ECHO_REPLY[family]
        assert reply[6:8] == sequence.to_bytes(2, "big")
        print(len(reply) - HEADER_SIZE)
