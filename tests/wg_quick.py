"""A `Config` as the wg-quick file that it could have come from."""

from __future__ import annotations

import base64

from httpx_wireguard import Config, PeerConfig


def wg_quick(config: Config) -> str:
    """The text of the file, secrets included."""
    lines = ["[Interface]", f"PrivateKey = {_base64(config.private_key.reveal())}"]
    lines += [f"Address = {_joined(config.address)}"] * bool(config.address)
    lines += [f"DNS = {_joined((*config.dns, *config.dns_search))}"] * bool(config.dns or config.dns_search)
    lines += [f"MTU = {config.mtu}"]
    for peer in config.peers:
        lines += ["", "[Peer]", *_peer(peer)]
    return "\n".join([*lines, ""])


def _peer(peer: PeerConfig) -> list[str]:
    lines = [f"PublicKey = {_base64(peer.public_key)}", f"AllowedIPs = {_joined(peer.allowed_ips)}"]
    if peer.endpoint is not None:
        lines.append(f"Endpoint = {peer.endpoint}")
    if peer.preshared_key is not None:
        lines.append(f"PresharedKey = {_base64(peer.preshared_key.reveal())}")
    if peer.persistent_keepalive:
        lines.append(f"PersistentKeepalive = {peer.persistent_keepalive}")
    return lines


def _base64(key: bytes) -> str:
    return base64.b64encode(key).decode()


def _joined(values: tuple[object, ...]) -> str:
    return ", ".join(map(str, values))
