"""A poll that another thread can end."""

from __future__ import annotations

import contextlib
import math
import os
import select
import socket
from collections.abc import Sequence
from typing import Any, Protocol

LONGEST_POLL = 86_400.0  # seconds; poll takes milliseconds in an int


class _WakeUp(Protocol):
    """Readable once it was set, until it is cleared; from any thread, also when it is closed."""

    def fileno(self) -> int: ...

    def set(self) -> None: ...

    def clear(self) -> None: ...

    def close(self) -> None: ...


class _EventWakeUp:
    """One descriptor: Linux' eventfd."""

    def __init__(self) -> None:
        self._descriptor = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    def fileno(self) -> int:
        return self._descriptor

    def set(self) -> None:
        with contextlib.suppress(OSError, ValueError):  # closed
            os.eventfd_write(self._descriptor, 1)

    def clear(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            os.eventfd_read(self._descriptor)

    def close(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1  # first: its number may be somebody else's at once
        if descriptor >= 0:
            os.close(descriptor)


class _PairWakeUp:
    """The same with a pair of sockets, which every system has."""

    def __init__(self) -> None:
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)
        self._writer.setblocking(False)

    def fileno(self) -> int:
        return self._reader.fileno()

    def set(self) -> None:
        with contextlib.suppress(OSError):  # full: it is awake already
            self._writer.send(b"\0")

    def clear(self) -> None:
        with contextlib.suppress(OSError):
            self._reader.recv(4096)

    def close(self) -> None:
        self._reader.close()
        self._writer.close()


class Sleeper:
    """Sleeps until a descriptor is ready, or another thread wakes it up. One thread sleeps at a time."""

    def __init__(self) -> None:
        self._wake_up: _WakeUp = _EventWakeUp() if hasattr(os, "eventfd") else _PairWakeUp()
        self._woken = False
        self._polls = hasattr(select, "poll")
        self._poller: Any = None
        self._own = self._wake_up.fileno()
        self._watched: tuple[Sequence[Any], Sequence[Any]] | None = None  # what the poller knows beside us

    def wake(self) -> None:
        """End the sleep, or the next one if none is under way. From any thread."""
        self._wake_up.set()

    def sleep(self, readers: Sequence[Any], writers: Sequence[Any], timeout: float | None) -> None:
        """Until one of them is ready or broken, we are woken, or `timeout` seconds passed."""
        try:
            if not self._polls:
                ready, _, _ = select.select([self._wake_up, *readers], writers, [], timeout)
                self._woken = self._wake_up in ready
                return
            if (readers, writers) != self._watched:
                self._watch(readers, writers)
            limit = None if timeout is None else math.ceil(min(timeout, LONGEST_POLL) * 1000)
            for descriptor, _ in self._poller.poll(limit):
                if descriptor == self._own:
                    self._woken = True
        except (ValueError, OSError):
            return  # closed under our feet: the caller looks and sees

    def _watch(self, readers: Sequence[Any], writers: Sequence[Any]) -> None:
        self._watched = None
        self._poller = select.poll()
        for reader in (self._wake_up, *readers):
            self._poller.register(reader, select.POLLIN)
        for writer in writers:
            self._poller.register(writer, select.POLLOUT | (select.POLLIN if writer in readers else 0))
        self._watched = (readers, writers)

    def clear(self) -> None:
        """Be ready for the next `wake`, if it was that which ended the sleep."""
        if self._woken:
            self._woken = False
            self._wake_up.clear()

    def close(self) -> None:
        self._wake_up.close()
