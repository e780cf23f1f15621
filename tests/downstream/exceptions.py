"""What of the suites does not pass through a tunnel, each with its reason. An entry that fits no test is an error.

The patterns are those of `fnmatch`, against pytest's node ids. Brackets are special there: write `?` for one, or `*`
for all parameters.
"""

from __future__ import annotations

_ADDRESS = "prints or compares the server's address, and that is another one inside the tunnel"
_PRIVATE = "looks into the private pool of httpx's own proxied transport; connects nowhere"

# Expected to fail; one that passes is an error too.
EXCEPTIONS: dict[str, dict[str, str]] = {
    "httpx": {
        "tests/test_main.py::test_verbose": _ADDRESS,
        "tests/test_main.py::test_auth": _ADDRESS,
        "tests/test_timeouts.py::test_write_timeout?trio?": (
            "fails without a tunnel too: httpx leaves the generator of a request's body unfinished, and trio warns"
        ),
    },
    "httpcore": {
        "tests/_*sync/test_integration.py::test_extra_info*": _ADDRESS + "; wants a socket, and there is none",
    },
    "requests": {
        "tests/test_lowlevel.py::test_use_proxy_from_environment*": "a SOCKS proxy is refused: PySocks dials by itself",
        "tests/test_requests.py::TestRequests::test_session_pickling": "a tunnel's keys belong to one process",
    },
}

# Not run: these test nothing that the tunnel has a part in.
NOT_RUN: dict[str, dict[str, str]] = {
    "httpx": {
        "tests/client/test_proxies.py::test_socks_proxy": _PRIVATE,
        "tests/client/test_proxies.py::test_transport_for_request*": _PRIVATE,
        "tests/client/test_proxies.py::test_proxies_environ*": _PRIVATE,
    },
    "httpcore": {
        "tests/test_cancellations.py::*": "brings its own network backends; races 10 ms, so a busy machine fails it",
    },
    "requests": {
        "tests/test_testserver.py::*": "tests a server that other tests use, with plain sockets and without requests",
    },
}

# So many tests connect through the tunnel, or the suite does not run as it is meant to.
MINIMUM = {"httpx": 78, "httpcore": 12, "requests": 120}
