"""Tunnels that note where they are asked to connect to, and refuse, or give a stream that takes all and ends."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from httpx_wireguard import ConnectionRefused
from tests.http_clients import Kind


class RecordingStream:
    """Takes what is written, and ends."""

    def __init__(self) -> None:
        self.written = b""

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self.written += buffer

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return b""

    def close(self) -> None:
        """Nothing to give back."""

    def get_extra_info(self, info: str) -> Any:
        return None


class RecordingTunnel:
    """A tunnel that notes what it is asked to connect to."""

    def __init__(self, *, refuses: bool = True) -> None:
        self.asked: list[tuple[str, int]] = []
        self.connects: list[dict[str, Any]] = []
        self.stream = RecordingStream()
        self._refuses = refuses

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> Any:
        self.asked.append((host, port))
        self.connects.append({"local_address": local_address, "socket_options": list(socket_options or ())})
        if self._refuses:
            raise ConnectionRefused("refused")
        return self.stream

    def start(self) -> None:
        """Nothing to begin."""

    def close(self) -> None:
        """Nothing to end."""


class AsyncRecordingStream:
    def __init__(self, stream: RecordingStream) -> None:
        self._stream = stream
        self.get_extra_info = stream.get_extra_info

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._stream.write(buffer)

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return b""

    async def aclose(self) -> None:
        """Nothing to give back."""


class AsyncRecordingTunnel:
    """A `RecordingTunnel` for event loops."""

    def __init__(self, *, refuses: bool = True) -> None:
        self._tunnel = RecordingTunnel(refuses=refuses)
        self.asked, self.connects, self.stream = self._tunnel.asked, self._tunnel.connects, self._tunnel.stream

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> Any:
        return AsyncRecordingStream(self._tunnel.connect_tcp(host, port, timeout, local_address, socket_options))

    async def start(self) -> None:
        """Nothing to begin."""

    async def aclose(self) -> None:
        """Nothing to end."""


def recording_tunnel(kind: Kind, *, refuses: bool = True) -> Any:
    return AsyncRecordingTunnel(refuses=refuses) if kind.is_async else RecordingTunnel(refuses=refuses)
