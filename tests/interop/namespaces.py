"""Network namespaces of our own, and processes in them that end with a `with` block."""

from __future__ import annotations

import contextlib
import ctypes
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

CLONE_NEWNET = 0x40000000  # linux/sched.h; os.setns came with Python 3.12
POLL_INTERVAL = 0.01  # seconds


class CommandFailed(Exception):
    """A tool ended with an error; the text holds its output."""


def run(*command: str, text: str = "", timeout: float = 30.0) -> str:
    """Run a tool to its end, `text` on its standard input, and return its standard output."""
    done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=timeout, check=False)
    if done.returncode:
        raise CommandFailed(f"{' '.join(command)}: status {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


def eventually(condition: Callable[[], object], what: str, seconds: float = 10.0) -> None:
    """Return as soon as `condition()` is true."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {seconds:g} s")
        time.sleep(POLL_INTERVAL)


class Namespace:
    """A network namespace. Leaving its `with` block ends the processes started in it, then itself."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._processes: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        run("ip", "netns", "add", self.name)
        self.ip("link", "set", "lo", "up")
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            for process in reversed(self._processes):
                stop(process)
        finally:
            run("ip", "netns", "delete", self.name)

    def ip(self, *arguments: str) -> None:
        """The `ip` tool, on this namespace."""
        run("ip", "-n", self.name, *arguments)

    def run(self, *command: str, text: str = "", timeout: float = 30.0) -> str:
        """`run`, in this namespace."""
        return run("ip", "netns", "exec", self.name, *command, text=text, timeout=timeout)

    def start(self, *command: str, log: Path) -> subprocess.Popen[bytes]:
        """Start a process that stays; `ip netns exec` becomes the command, so that the process id is its own."""
        with log.open("ab") as output:
            process = subprocess.Popen(
                ("ip", "netns", "exec", self.name, *command),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        self._processes.append(process)
        return process

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """This thread, and the threads that it starts, have this namespace's network meanwhile."""
        before = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        inside = os.open(f"/run/netns/{self.name}", os.O_RDONLY)
        try:
            _set_namespace(inside)
            try:
                yield
            finally:
                _set_namespace(before)
        finally:
            os.close(inside)
            os.close(before)


def _set_namespace(descriptor: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(descriptor, CLONE_NEWNET):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def stop(process: subprocess.Popen[bytes], *, kill: bool = False) -> None:
    """End a process and wait until it is gone."""
    (process.kill if kill else process.terminate)()
    try:
        process.wait(timeout=5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(timeout=5)
