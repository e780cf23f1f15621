"""What a process has to import before its first response: that is most of the time that it takes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from httpx_wireguard.testing import HOST, IPV4, WireGuardPeer
from tests.wg_quick import wg_quick

IMPORT = "import httpx, httpx_wireguard"
TRANSPORT = f"{IMPORT}; httpx_wireguard.WireGuardTransport"
REQUEST = f"""{IMPORT}, sys
with httpx.Client(transport=httpx_wireguard.WireGuardTransport(sys.argv[1]), trust_env=False) as client:
    assert client.get(sys.argv[2]).status_code == 200
"""
TELL = "\nimport sys; print(*sys.modules, sep='\\n')"

# by the start of their names; asyncio, trio and dataclasses are left out, for httpx imports them too
NOT_FOR_A_REQUEST = (
    *("difflib", "cryptography.hazmat.primitives", "cryptography.hazmat.backends"),
    *(
        f"httpx_wireguard.{name}"
        for name in ("_bridge", "_cli", "_demo", "_sockets", "_stats", "_tls", "_urllib3", "_httpx2", "testing")
    ),
    *(f"httpx_wireguard._drivers.{name}" for name in ("asyncio", "loops", "trio")),
    *(f"httpx_wireguard._netstack.{name}" for name in ("fragments", "listener", "ping", "syn_cookies")),
    *(f"httpx_wireguard._netstack.congestion.{name}" for name in ("bbr", "reno")),
    "httpx_wireguard._wire.icmp",
)
NOT_FOR_AN_ADDRESS = (
    *("dns", "encodings.idna"),
    *(f"httpx_wireguard.{name}" for name in ("_dns", "_netstack.udp", "_wire.udp")),
)
NOT_FOR_A_NAME = ("dns.asyncresolver", "dns.asyncquery", "dns.rdtypes.dnskeybase", "dns.zone")


def modules(code: str, *arguments: str) -> set[str]:
    """What a new process has imported at the end of `code`, beyond what httpx alone imports."""
    return _run(code, arguments) - _run("import httpx, httpcore", ())


def _run(code: str, arguments: tuple[str, ...]) -> set[str]:
    command = [sys.executable, "-c", code + TELL, *arguments]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
    return set(done.stdout.split())


def among(found: set[str], names: tuple[str, ...]) -> list[str]:
    return sorted(m for m in found if any(m == name or m.startswith(f"{name}.") for name in names))


@pytest.mark.parametrize("code", [IMPORT, TRANSPORT])
def test_an_import_loads_only_what_every_request_needs(code: str) -> None:
    assert not among(modules(code), NOT_FOR_A_REQUEST + NOT_FOR_AN_ADDRESS)


@pytest.mark.parametrize(("host", "names"), [(IPV4, NOT_FOR_AN_ADDRESS), (HOST, NOT_FOR_A_NAME)])
def test_a_first_request_loads_only_what_it_needs(host: str, names: tuple[str, ...], tmp_path: Path) -> None:
    with WireGuardPeer() as peer:
        path = tmp_path / "wg0.conf"
        path.write_text(wg_quick(peer.client_config()))
        found = modules(REQUEST, str(path), f"http://{host}/")
    assert "httpx_wireguard._netstack.tcp" in found
    assert not among(found, NOT_FOR_A_REQUEST + names)
