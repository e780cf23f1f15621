"""`httpx-wireguard demo`: both ends of a WireGuard tunnel in one process, with nothing but the plain installation."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing
from itertools import zip_longest
from typing import TextIO

import httpx

from httpx_wireguard._errors import WireGuardError
from httpx_wireguard._http.transport import WireGuardTransport
from httpx_wireguard._stats import PeerStats
from httpx_wireguard._tunnel import Tunnel
from httpx_wireguard.testing import HOST, WireGuardPeer, body_pieces

SUMMARY = "Start both ends of a tunnel in this process and download through it; needs no server and no root."
MEGABYTE = 1_000_000  # bytes
TIMEOUT = 10.0  # seconds for the handshake, and for each step of a request; on loopback both take milliseconds
BAR_WIDTH = 30  # characters
LABEL_WIDTH = 16  # characters


class WrongContent(Exception):
    """What came through the tunnel is not what was sent into it."""


def run(megabytes: int, output: TextIO, peer: WireGuardPeer | None = None) -> int:
    """Start a WireGuard server in this process, speak HTTP to it through a tunnel, and tell what happened.

    Nothing but loopback UDP leaves the process.

    Args:
        megabytes: size of the download, in millions of bytes.
        peer: the server to use, not yet started; it is closed at the end.

    Returns:
        The exit code: 0 if all content was right, else 1.
    """
    report = _Report(output)
    try:
        with (
            peer or WireGuardPeer() as server,
            closing(Tunnel(server.client_config(), udp_host="127.0.0.1")) as tunnel,
        ):
            _demonstrate(server, tunnel, megabytes * MEGABYTE, report)
    except BrokenPipeError:  # nobody reads the report any more
        raise
    except (WrongContent, WireGuardError, httpx.HTTPError, OSError) as error:
        report.fail(f"{type(error).__name__}: {error}")
        return 1
    report.line(f"Done: the page and all {megabytes * MEGABYTE:,} bytes were right.")
    return 0


def _demonstrate(server: WireGuardPeer, tunnel: Tunnel, size: int, report: _Report) -> None:
    report.line("A WireGuard server and an httpx client in one process, joined by UDP on 127.0.0.1.")
    report.line()
    report.fact("server", f"{_addresses(server.tunnel)} inside the tunnel, UDP endpoint {server.endpoint}")
    report.fact("client", f"{_addresses(tunnel)} inside the tunnel")
    started = time.perf_counter()
    tunnel.wait_ready(TIMEOUT)
    report.fact("handshake", f"{_ms(started)}, opening the UDP socket included")
    with httpx.Client(transport=WireGuardTransport(tunnel, trust_env=False), timeout=TIMEOUT) as client:
        _fetch_page(client, tunnel, report)
        _fetch_file(client, size, report)
    _print_counters(tunnel.stats().peers[0], tunnel, report)


def _fetch_page(client: httpx.Client, tunnel: Tunnel, report: _Report) -> None:
    started = time.perf_counter()
    response = client.get(f"http://{HOST}/")
    report.fact("first response", f"{_ms(started)}, name lookup and connection included")
    report.fact("", f"GET {response.url} -> {response.http_version} {response.status_code} {response.reason_phrase}")
    response.raise_for_status()
    if not any(f"tunnel to {interface.ip}." in response.text for interface in tunnel.config.address):
        raise WrongContent(f"the page of {response.url} does not name this client's address")


def _fetch_file(client: httpx.Client, size: int, report: _Report) -> None:
    report.line()
    started = time.perf_counter()
    with client.stream("GET", f"http://{HOST}/bytes/{size}") as response:
        response.raise_for_status()
        bar = _ProgressBar(report, size)
        for received in _compared(response, size):
            bar.update(received)
    seconds = time.perf_counter() - started
    report.line()
    report.fact("download", f"{size:,} bytes in {seconds:.2f} s, compared piece by piece")
    report.fact("throughput", f"{size / MEGABYTE / seconds:.1f} MB/s ({size * 8 / MEGABYTE / seconds:.0f} Mbit/s)")


def _compared(response: httpx.Response, size: int) -> Iterator[int]:
    """Read the body, compare it with what the server has to send, yield how many bytes were right so far."""
    received = 0
    piece_size = len(next(body_pieces(size)))
    for piece, expected in zip_longest(response.iter_bytes(piece_size), body_pieces(size), fillvalue=b""):
        if piece != expected:
            raise WrongContent(
                f"the download is wrong after {received:,} bytes: "
                f"{len(piece):,} bytes came that are not the {len(expected):,} expected"
            )
        received += len(piece)
        yield received


def _print_counters(peer: PeerStats, tunnel: Tunnel, report: _Report) -> None:
    drops = {**peer.drops, **tunnel.stats().drops}
    report.fact("sent", f"{peer.sent_bytes:,} bytes of WireGuard messages")
    report.fact("received", f"{peer.received_bytes:,} bytes")
    report.fact("handshakes", f"initiations sent {peer.initiations_sent}, responses received {peer.responses_received}")
    report.fact("dropped", ", ".join(f"{reason} {count:,}" for reason, count in drops.items()) or "nothing")
    report.line()


def _addresses(tunnel: Tunnel) -> str:
    return ", ".join(str(interface.ip) for interface in tunnel.config.address)


def _ms(started: float) -> str:
    return f"{(time.perf_counter() - started) * 1000:.1f} ms"


class _Report:
    """Lines for a person: facts behind aligned labels."""

    def __init__(self, output: TextIO) -> None:
        self.output = output
        self.is_terminal = output.isatty()
        self.pending = ""  # a progress bar that is not finished, without its end of line

    def line(self, text: str = "") -> None:
        self.output.write(f"{text}\n")
        self.output.flush()

    def fact(self, label: str, value: str) -> None:
        self.line(f"  {label:<{LABEL_WIDTH}}{value}")

    def fail(self, why: str) -> None:
        """End an unfinished progress bar, and say why the demonstration failed."""
        if self.pending:
            self.line()
        self.line(f"Failed: {why}")

    def overwrite(self, text: str, *, final: bool) -> None:
        """Write over the terminal's current line."""
        self.output.write(f"\r{text}" + ("\n" if final else ""))
        self.output.flush()
        self.pending = "" if final else text


class _ProgressBar:
    """A bar on a terminal; elsewhere a line for every tenth."""

    def __init__(self, report: _Report, size: int) -> None:
        self._report = report
        self._size = size
        self._percent = 0
        self._started = time.perf_counter()

    def update(self, received: int) -> None:
        percent = received * 100 // self._size
        if percent == self._percent:
            return
        speed = received / MEGABYTE / (time.perf_counter() - self._started)
        amount = f"{percent:3d} %  {received / MEGABYTE:,.1f} of {self._size / MEGABYTE:,.0f} MB  {speed:.1f} MB/s"
        if self._report.is_terminal:
            filled = percent * BAR_WIDTH // 100
            bar = "#" * filled + "." * (BAR_WIDTH - filled)
            self._report.overwrite(f"  [{bar}] {amount}   ", final=received == self._size)
        elif percent // 10 > self._percent // 10:
            self._report.line(f"  {amount}")
        self._percent = percent
