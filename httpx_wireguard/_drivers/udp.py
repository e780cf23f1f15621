"""The UDP sockets that carry the tunnel: whole batches per system call where the kernel can, plain elsewhere.

Linux coalesces datagrams of one flow on receive (UDP_GRO, since 5.0) and splits one large send (UDP_SEGMENT, since
4.18). Everything else gets the same interface with one datagram per call.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import mmap
import os
import select
import socket
import struct
import sys
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

from httpx_wireguard._errors import EndpointError
from httpx_wireguard._wire.ecn import CE, NOT_ECT

BUFFER_SIZE = 1 << 22  # bytes asked of the kernel for each direction; it gives what it allows
READ_SIZE = 65536  # bytes; the largest coalesced read
JOIN_BELOW = 32768  # bytes; ours: larger reads are worth a call of their own
SEND_PATIENCE_MS = 100  # how long a full socket buffer may hold up a send before datagrams are dropped

# linux/udp.h, asm-generic/socket.h: Python has no names for them before 3.12 or at all
_UDP_SEGMENT, _UDP_GRO = 103, 104
_SO_SNDBUFFORCE, _SO_RCVBUFFORCE = 32, 33
_IP_RECVERR, _IPV6_RECVERR = 11, 25
_IP_MTU_DISCOVER, _IPV6_MTU_DISCOVER, _PMTUDISC_DONT = 10, 23, 0
_MSG_ERRQUEUE = 0x2000
_ERROR_NUMBER = struct.Struct("=I")  # ee_errno of struct sock_extended_err, linux/errqueue.h
_SEGMENT = struct.Struct("=H")
_COALESCED = struct.Struct("=i")
_ANCILLARY_SIZE = 64  # bytes; one UDP_GRO message and one with the traffic class, with room
_LINUX = sys.platform == "linux"
_TRAFFIC_CLASS = {  # level, option that sets the byte with the ECN field, option that has it told
    socket.AF_INET: (socket.IPPROTO_IP, socket.IP_TOS, getattr(socket, "IP_RECVTOS", None)),
    socket.AF_INET6: (socket.IPPROTO_IPV6, getattr(socket, "IPV6_TCLASS", 0), getattr(socket, "IPV6_RECVTCLASS", None)),
}

# data, size of each datagram in it, source, and codepoint of the outer ECN field
Batch: TypeAlias = tuple[memoryview, int, tuple[Any, ...], int]

_log = logging.getLogger("httpx_wireguard.udp")


class UdpSocket:
    """One non-blocking UDP socket of one address family."""

    def __init__(self, family: socket.AddressFamily, host: str = "", port: int = 0, *, offload: bool = True) -> None:
        """
        Args:
            host: local address; "" for any.
            port: local port; 0 for any.
            offload: use UDP_GRO and UDP_SEGMENT if the kernel has them.

        Raises:
            EndpointError: the system gives no such socket, or the port is taken.
        """
        try:
            self._socket = socket.socket(family, socket.SOCK_DGRAM)
        except OSError as error:
            raise EndpointError(f"cannot open a UDP socket: {error}") from error
        self.family = family
        try:
            self._socket.setblocking(False)
            if family == socket.AF_INET6:
                self._socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            self._socket.bind((host, port))
        except OSError as error:
            self._socket.close()
            raise EndpointError(f"cannot bind UDP {host or '*'} port {port}: {error}") from error
        self._grow_buffers()
        self._ecn = NOT_ECT  # of what is sent
        self._reads_ecn = self._ask_for_ecn()
        self.coalesces = self.segments = False
        if _LINUX:
            self._set_linux_options(offload)
        self._buffer = _lazy_memory(JOIN_BELOW + READ_SIZE)
        self._held: Batch | None = None  # read, but not of a kind with what was read before it
        self._errors: list[tuple[tuple[Any, ...], OSError]] = []

    def _grow_buffers(self) -> None:
        forced = {socket.SO_RCVBUF: _SO_RCVBUFFORCE, socket.SO_SNDBUF: _SO_SNDBUFFORCE}
        for option, force in forced.items():
            try:
                if not _LINUX:
                    raise PermissionError
                self._socket.setsockopt(socket.SOL_SOCKET, force, BUFFER_SIZE)  # needs CAP_NET_ADMIN
            except OSError:
                with contextlib.suppress(OSError):
                    self._socket.setsockopt(socket.SOL_SOCKET, option, BUFFER_SIZE)

    def _ask_for_ecn(self) -> bool:
        """Have the ECN field of every datagram told; whether the system can."""
        level, _, option = _TRAFFIC_CLASS[self.family]
        if option is None or getattr(self._socket, "recvmsg_into", None) is None:  # Windows
            return False
        try:
            self._socket.setsockopt(level, option, 1)
        except OSError:
            return False
        return True

    def _set_ecn(self, ecn: int) -> None:
        """Send with that codepoint from now on.

        Where the field cannot be read it is not set either: that would tell the far side that we heed its marks.
        """
        self._ecn = ecn
        if self._reads_ecn:
            level, option, _ = _TRAFFIC_CLASS[self.family]
            with contextlib.suppress(OSError):
                self._socket.setsockopt(level, option, ecn)  # cheaper than ancillary data: it changes rarely

    def _set_linux_options(self, offload: bool) -> None:
        level = socket.IPPROTO_IP if self.family == socket.AF_INET else socket.IPPROTO_IPV6
        v4 = self.family == socket.AF_INET
        with contextlib.suppress(OSError):  # ICMP errors are news about the endpoint
            self._socket.setsockopt(level, _IP_RECVERR if v4 else _IPV6_RECVERR, 1)
        with contextlib.suppress(OSError):  # a narrow path must fragment the outer packet, not lose it
            self._socket.setsockopt(level, _IP_MTU_DISCOVER if v4 else _IPV6_MTU_DISCOVER, _PMTUDISC_DONT)
        if not offload:
            return
        with contextlib.suppress(OSError):
            self._socket.setsockopt(socket.IPPROTO_UDP, _UDP_GRO, 1)
            self.coalesces = True
        with contextlib.suppress(OSError):
            self._socket.setsockopt(socket.IPPROTO_UDP, _UDP_SEGMENT, 0)
            self.segments = True

    @property
    def capacity(self) -> int:
        """Bytes of full-size datagrams that the receive buffer holds.

        The kernel counts its own overhead too: with the usual 212,992 bytes, 128 KiB in flight survive and 256 do
        not (measured on Linux 6).
        """
        return int(self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) * 0.6)

    def fileno(self) -> int:
        return self._socket.fileno()

    @property
    def port(self) -> int:
        """The local port."""
        port: int = self._socket.getsockname()[1]
        return port

    @property
    def holds(self) -> bool:
        """Whether the next `receive` has something, of which the system knows nothing any more."""
        return self._held is not None

    @property
    def has_errors(self) -> bool:
        """Whether `take_errors` has something."""
        return bool(self._errors)

    def receive(self, join: bool = True) -> Batch | None:
        """What waits: data, size of each datagram in it (the last may be shorter), source, and codepoint; None when
        nothing does.

        Small reads of equal datagrams are joined here, so that the engine sees batches also where the kernel does not
        coalesce. The data is valid until the next call. ICMP errors go to `take_errors`.

        Args:
            join: False where no stream is under way, and a second read would find nothing.
        """
        if self._held is not None:
            batch, self._held = self._held, None
            return batch
        first = self._read(0)
        if first is None:
            return None
        length, size, source, ecn = first
        while join and size and length < JOIN_BELOW and length % size == 0:
            more = self._read(length)
            if more is None:
                break
            added, added_size, added_source, added_ecn = more
            alike = added_source == source and added_ecn == ecn
            if not alike or not (added_size == size or added == added_size <= size):
                self._held = (memoryview(bytes(self._buffer[length : length + added])), *more[1:])
                break
            length += added
        return self._buffer[:length], size, source, ecn

    def _read(self, offset: int) -> tuple[int, int, tuple[Any, ...], int] | None:
        """One read into the buffer: bytes, size of each datagram among them, source, codepoint."""
        try:
            if not (self.coalesces or self._reads_ecn):
                length, source = self._socket.recvfrom_into(self._buffer[offset:])
                return length, length, source, NOT_ECT
            length, ancillary, _, source = self._socket.recvmsg_into([self._buffer[offset:]], _ANCILLARY_SIZE)
        except BlockingIOError:
            return None
        except OSError:
            self._collect_errors()
            return None
        size, ecn = length, NOT_ECT
        for level, kind, data in ancillary:
            if level == socket.IPPROTO_UDP and kind == _UDP_GRO:
                (size,) = _COALESCED.unpack_from(data)
            elif level == _TRAFFIC_CLASS[self.family][0]:  # one byte or one int
                ecn = int.from_bytes(data, sys.byteorder) & CE
        return length, size, source, ecn

    def take_errors(self) -> list[tuple[tuple[Any, ...], OSError]]:
        """ICMP errors that came since the last call: the endpoint of the datagram, and what is wrong with it."""
        errors, self._errors = self._errors, []
        return errors

    def _collect_errors(self) -> bool:
        """Empty Linux' error queue, which would keep the socket "ready"; returns whether it held anything."""
        found = False
        if _LINUX:
            with contextlib.suppress(OSError):
                while True:
                    _, ancillary, _, endpoint = self._socket.recvmsg(0, 512, _MSG_ERRQUEUE)
                    found = True
                    for _, kind, data in ancillary:
                        if kind in (_IP_RECVERR, _IPV6_RECVERR) and endpoint:
                            (number,) = _ERROR_NUMBER.unpack_from(data)
                            self._errors.append((endpoint, OSError(number, os.strerror(number))))
        return found

    def send(self, buffers: list[bytes], segment_size: int, endpoint: tuple[Any, ...], ecn: int = NOT_ECT) -> None:
        """Send a run: datagrams of `segment_size` bytes, the last may be shorter, as consecutive buffers.

        Raises:
            OSError: the system refuses; some of the run may be lost, as with any UDP.
        """
        if ecn != self._ecn:
            self._set_ecn(ecn)
        total = sum(map(len, buffers))
        if total > segment_size and self.segments:
            option = [(socket.IPPROTO_UDP, _UDP_SEGMENT, _SEGMENT.pack(segment_size))]
            try:
                self._patiently(self._socket.sendmsg, buffers, option, 0, endpoint)
                return
            except OSError as error:
                if error.errno not in (errno.EIO, errno.EINVAL, errno.EMSGSIZE, errno.ENOPROTOOPT):
                    raise
                _log.info("no segmented sends on this path (%s): one datagram a call from now on", error)
                self.segments = False
        data = memoryview(b"".join(buffers))
        for start in range(0, total, segment_size):
            self._patiently(self._socket.sendto, data[start : start + segment_size], endpoint)

    def _patiently(self, send: Callable[..., int], *arguments: Any) -> None:
        """Wait a little for a full buffer: dropping here would look like congestion."""
        for _ in range(3):
            try:
                send(*arguments)
                return
            except BlockingIOError:
                self._wait_writable()
            except OSError:  # perhaps about an earlier datagram, and this one was not sent
                if not self._collect_errors():
                    raise
        _log.debug("socket buffer full: datagrams dropped")

    def _wait_writable(self) -> None:
        if not hasattr(select, "poll"):  # Windows
            select.select([], [self._socket], [], SEND_PATIENCE_MS / 1000)
            return
        poller = select.poll()  # select takes no descriptor above 1023
        poller.register(self._socket, select.POLLOUT)
        poller.poll(SEND_PATIENCE_MS)

    def close(self) -> None:
        self._socket.close()


class UdpSockets:
    """The sockets of one tunnel: at most one per address family, opened when first needed."""

    def __init__(self, host: str | None, port: int | None, *, offload: bool = True) -> None:
        """
        Args:
            host: local address, which confines the tunnel to its family; None for any.
            port: local port; None for any.
        """
        self._host = host
        self._port = port or 0
        self._offload = offload
        self._by_family: dict[socket.AddressFamily, UdpSocket] = {}
        self._opened: tuple[UdpSocket, ...] = ()  # the same; another thread may open one while this is gone through

    def open(self, family: socket.AddressFamily) -> UdpSocket:
        """
        Raises:
            EndpointError: the system gives no such socket, or the local address is of the other family.
        """
        found = self._by_family.get(family)
        if found is None:
            if self._host is not None and (":" in self._host) != (family == socket.AF_INET6):
                raise EndpointError(f"the local address {self._host} cannot send to addresses of the other IP version")
            found = self._by_family[family] = UdpSocket(family, self._host or "", self._port, offload=self._offload)
            self._opened = tuple(self._by_family.values())
        return found

    def for_endpoint(self, endpoint: tuple[Any, ...]) -> UdpSocket:
        family = _family(endpoint)
        return self._by_family.get(family) or self.open(family)

    def usable(self, endpoints: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
        """Those of the socket addresses for whose IP version a socket is open."""
        return [endpoint for endpoint in endpoints if _family(endpoint) in self._by_family]

    def __len__(self) -> int:
        return len(self._by_family)

    def __iter__(self) -> Iterator[UdpSocket]:
        return iter(self._opened)

    def close(self) -> None:
        for one in self._by_family.values():
            one.close()


def _lazy_memory(size: int) -> memoryview:
    """Memory that the system gives page by page as it is used: the tunnels of a process are many, and most are idle."""
    if hasattr(mmap, "MAP_PRIVATE"):  # not Windows
        return memoryview(mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))
    return memoryview(bytearray(size))


def _family(endpoint: tuple[Any, ...]) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in endpoint[0] else socket.AF_INET
