"""Every test here runs in the clients' namespace, and none may leak. Without root or a tool they are skipped."""

from __future__ import annotations

import os
import shutil
import ssl
from collections.abc import Iterator

import pytest

from tests.interop.lab import TOOLS, Lab, opened_lab
from tests.interop.wireguard_server import Profile


@pytest.fixture(scope="session")
def built_lab() -> Iterator[Lab]:
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    reason = "needs root" if os.geteuid() else f"needs {', '.join(missing)}" if missing else None
    if reason is not None:
        if os.environ.get("HTTPX_WIREGUARD_REQUIRE_INTEROP") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    with opened_lab() as lab:
        yield lab


@pytest.fixture(autouse=True)
def lab(built_lab: Lab) -> Iterator[Lab]:
    with built_lab.outside.entered(), built_lab.leaks.recording():
        yield built_lab
    assert built_lab.leaks.take_leaks() == []
    assert built_lab.leaks.take_packets()["other"] == 0


@pytest.fixture
def profile(lab: Lab) -> Profile:
    """A client that the server knows."""
    return lab.server.new_client()


@pytest.fixture
def tls(lab: Lab) -> ssl.SSLContext:
    """Trusts the site's authority and no other."""
    return ssl.create_default_context(cafile=lab.site.certificate_authority)
