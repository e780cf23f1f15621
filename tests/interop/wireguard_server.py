"""wireguard-go on a TUN interface of a namespace, and the wg-quick files of its clients."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

from httpx_wireguard import Config
from tests.interop.namespaces import CommandFailed, Namespace, eventually, run, stop

INTERFACE = "wg0"
LISTEN_PORT = 51820
OUTER_IPV4, OUTER_IPV6 = "192.0.2.1", "2001:db8:2::1"  # documentation addresses: RFC 5737, RFC 3849
INNER_IPV4, INNER_IPV6 = "10.99.0.1", "fd99::1"
MTU = 1420
ACCEPTS_CONNECTIONS = "00010000"  # flags in /proc/net/unix: __SO_ACCEPTCON, linux/net.h
UAPI_DIRECTORY = "/var/run/wireguard"  # wireguard-go's control sockets; one directory for all namespaces


@dataclass(frozen=True, slots=True)
class Profile:
    """What a client's wg-quick file says; `dataclasses.replace` makes a wrong one of it."""

    private_key: str
    server_key: str
    ipv4: str
    ipv6: str | None
    preshared_key: str | None = None
    endpoint: str = f"{OUTER_IPV4}:{LISTEN_PORT}"
    dns: str | None = INNER_IPV4
    allowed_ips: str = "0.0.0.0/0, ::/0"
    keepalive: int = 0

    def text(self) -> str:
        """The file."""
        addresses = ", ".join(address for address in (self.ipv4, self.ipv6) if address)
        lines = ["[Interface]", f"PrivateKey = {self.private_key}", f"Address = {addresses}", f"MTU = {MTU}"]
        if self.dns is not None:
            lines.append(f"DNS = {self.dns}")
        lines += ["[Peer]", f"PublicKey = {self.server_key}", f"AllowedIPs = {self.allowed_ips}"]
        if self.preshared_key is not None:
            lines.append(f"PresharedKey = {self.preshared_key}")
        lines += [f"Endpoint = {self.endpoint}", f"PersistentKeepalive = {self.keepalive}"]
        return "\n".join(lines) + "\n"

    def config(self) -> Config:
        return Config.from_string(self.text())


def new_private_key() -> str:
    return run("wg", "genkey").strip()


def public_key(private_key: str) -> str:
    return run("wg", "pubkey", text=private_key).strip()


class WireGuardServer:
    """One wireguard-go. It gives every client keys and addresses of its own, and remembers them over a restart."""

    def __init__(self, namespace: Namespace, directory: Path) -> None:
        self._namespace = namespace
        self._directory = directory
        self._sockets = directory / "uapi"
        self._sockets.mkdir()
        Path(UAPI_DIRECTORY).mkdir(parents=True, exist_ok=True)
        private_key = new_private_key()
        self.public_key = public_key(private_key)
        self._sections = [f"[Interface]\nPrivateKey = {private_key}\nListenPort = {LISTEN_PORT}\n"]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it with all the peers there are, and give the interface its addresses."""
        (self._sockets / f"{INTERFACE}.sock").unlink(missing_ok=True)  # of one that was killed
        command = self._privately("wireguard-go", "-f", INTERFACE)
        self._process = self._namespace.start(*command, log=self._directory / "wireguard-go.log")
        eventually(self._listens, "wireguard-go's control socket")
        self.wg("setconf", INTERFACE, "/dev/stdin", text="".join(self._sections))
        for address in (f"{INNER_IPV4}/24", f"{INNER_IPV6}/64"):
            self._namespace.ip("address", "add", address, "dev", INTERFACE, "nodad")
        self._namespace.ip("link", "set", INTERFACE, "mtu", str(MTU), "up")

    def restart(self) -> None:
        """Kill it, and its interface with it, and start a new one that knows no session and no endpoint."""
        assert self._process is not None
        stop(self._process, kill=True)
        self.start()

    def new_client(self, *, preshared: bool = False) -> Profile:
        """A new peer's file. Its own key, because a server drops a second handshake of one key within 20 ms."""
        number = len(self._sections) + 1
        profile = Profile(
            private_key=new_private_key(),
            server_key=self.public_key,
            ipv4=f"10.99.0.{number}",
            ipv6=f"fd99::{number:x}",
            preshared_key=run("wg", "genpsk").strip() if preshared else None,
        )
        section = f"[Peer]\nPublicKey = {public_key(profile.private_key)}\n"
        section += f"AllowedIPs = {profile.ipv4}/32, {profile.ipv6}/128\n"
        if profile.preshared_key is not None:
            section += f"PresharedKey = {profile.preshared_key}\n"
        self._sections.append(section)
        self.wg("addconf", INTERFACE, "/dev/stdin", text=section)
        return profile

    def transferred(self, profile: Profile) -> tuple[int, int]:
        """Bytes received from, and sent to, a client, as `wg show transfer` counts them."""
        lines = map(str.split, self.wg("show", INTERFACE, "transfer").splitlines())
        counters = {key: (int(received), int(sent)) for key, received, sent in lines}
        return counters[public_key(profile.private_key)]

    def wg(self, *arguments: str, text: str = "") -> str:
        """The `wg` tool."""
        return self._namespace.run(*self._privately("wg", *arguments), text=text)

    def _listens(self) -> bool:
        """Whether its control socket is there. `wg` itself must not be asked: it deletes one that refuses it."""
        assert self._process is not None
        if self._process.poll() is not None:
            raise CommandFailed((self._directory / "wireguard-go.log").read_text())
        sockets = map(str.split, self._namespace.run("cat", "/proc/net/unix").splitlines())
        return any(line[3] == ACCEPTS_CONNECTIONS and line[-1].endswith(f"/{INTERFACE}.sock") for line in sockets)

    def _privately(self, *command: str) -> tuple[str, ...]:
        """`command` with control sockets of its own, so that no other wireguard-go of this machine is touched.

        `ip netns exec` gives each command its own mounts.
        """
        return ("sh", "-c", f'mount --bind "$0" {UAPI_DIRECTORY} && exec "$@"', str(self._sockets), *command)
