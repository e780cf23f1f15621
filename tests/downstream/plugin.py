"""A pytest plugin that runs the test suite of another project through our tunnel, unchanged.

    python -m pytest -p tests.downstream.plugin --through-tunnel=httpx

The suite's clients get our transport (`clients`), a process of its own is the network behind the tunnel (`far_network`)
and nothing here can reach any other (`fence`). `exceptions` lists what does not pass. A run that makes too little use
of the tunnel fails.
"""

from __future__ import annotations

import faulthandler
import json
import os
import subprocess
import sys
import threading
from collections.abc import Generator
from fnmatch import fnmatch

import pytest

from httpx_wireguard import Config, Tunnel
from tests.downstream.clients import LIBRARIES, Traffic
from tests.downstream.exceptions import EXCEPTIONS, MINIMUM, NOT_RUN
from tests.downstream.fence import Fence

KEYS = 2000  # clients that the peer knows; a suite makes some hundreds
HANG = 60.0  # seconds for a test, after which all threads' stacks are printed and the run ends


class FarNetwork:
    """The process with the tunnel's other end."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.downstream.far_network", str(KEYS)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._lock = threading.Lock()
        self._files: list[str] = json.loads(self._read_line())

    def take_config(self) -> Config:
        """The configuration of a client that nobody has been yet."""
        return Config.from_string(self._files.pop())

    def refresh_port(self, port: int) -> None:
        """Open or close `port` of the peer, as it is open or closed on the loopback now."""
        assert self._process.stdin is not None
        with self._lock:
            print(port, file=self._process.stdin, flush=True)
            self._read_line()

    def close(self) -> None:
        """End the process."""
        self._process.communicate()

    def _read_line(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("the far network ended")
        return line


class ThroughTunnel:
    """One suite's run."""

    def __init__(self, suite: str, *, shared: bool) -> None:
        self._suite = suite
        self._tests = 0  # that connected through the tunnel
        self._stderr = os.dup(2)  # the one that pytest does not capture
        self._network = FarNetwork()
        first = self._network.take_config()
        (endpoint,) = [peer.endpoint for peer in first.peers]
        assert endpoint is not None
        self._fence = Fence((endpoint.host, endpoint.port))
        self._traffic = Traffic(self._network.refresh_port)
        self._tunnel = Tunnel(first)
        self._shared = shared
        self._patch = pytest.MonkeyPatch()
        self._traffic.watch(self._patch)
        LIBRARIES[suite](self._conf, self._patch)

    def close(self) -> None:
        """End the tunnel and the network behind it."""
        self._patch.undo()
        self._tunnel.close()
        self._network.close()
        os.close(self._stderr)

    def _conf(self) -> Config | Tunnel:
        return self._tunnel if self._shared else self._network.take_config()

    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        skipped = _matching(NOT_RUN[self._suite], items)
        config.hook.pytest_deselected(items=list(skipped))
        items[:] = [item for item in items if item not in skipped]
        for item, reason in _matching(EXCEPTIONS[self._suite], items).items():
            item.add_marker(pytest.mark.xfail(reason=reason, strict=True))

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self) -> Generator[None, object, object]:
        faulthandler.dump_traceback_later(HANG, exit=True, file=self._stderr)
        before = self._traffic.connections
        try:
            return (yield)
        finally:
            self._tests += self._traffic.connections > before
            faulthandler.cancel_dump_traceback_later()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self) -> Generator[None, object, object]:
        try:
            return (yield)
        finally:
            escapes = self._fence.take_escapes()
            assert not escapes, f"left the tunnel: {escapes}"

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self._tests < MINIMUM[self._suite] and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        terminalreporter.write_line(
            f"{self._tests} tests made {self._traffic.connections} connections through the tunnel; "
            f"at least {MINIMUM[self._suite]} tests have to"
        )


def _matching(patterns: dict[str, str], items: list[pytest.Item]) -> dict[pytest.Item, str]:
    """The reason for each test that a pattern fits."""
    found = {item: reason for pattern, reason in patterns.items() for item in items if fnmatch(item.nodeid, pattern)}
    unused = [pattern for pattern in patterns if not any(fnmatch(item.nodeid, pattern) for item in items)]
    if unused:
        raise pytest.UsageError(f"tests/downstream/exceptions.py names tests that do not exist: {unused}")
    return found


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--through-tunnel", choices=sorted(LIBRARIES), required=True, help="whose suite this is")
    parser.addoption("--tunnels", choices=["own", "shared"], default="shared", help="one for each client, or for all")


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests() -> None:
    """The suites have a package `tests` too: ours, all imported by now, makes room for it."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "tests"]:
        del sys.modules[name]


def pytest_configure(config: pytest.Config) -> None:
    run = ThroughTunnel(config.getoption("--through-tunnel"), shared=config.getoption("--tunnels") == "shared")
    config.pluginmanager.register(run)
    config.add_cleanup(run.close)
