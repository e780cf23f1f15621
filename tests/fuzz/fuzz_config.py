"""Configuration text, as a file has it: a `Config` or a `ConfigError`, which shows no key that stands in the text."""

from __future__ import annotations

import re

from httpx_wireguard._config import Config, _decode
from httpx_wireguard._errors import ConfigError

KEY = re.compile(r"[A-Za-z0-9+/]{43}=")
SECRET = re.compile(r"(?:PrivateKey|PresharedKey)\s*=\s*([A-Za-z0-9+/]{43}=)", re.IGNORECASE)


def run(data: bytes) -> None:
    try:
        text = _decode(data, "fuzz.conf")
        config = Config.from_string(text, "fuzz.conf")
    except ConfigError as error:
        assert error.source == "fuzz.conf", error
        assert not KEY.search(str(error)), error
        return
    shown = repr(config)
    for secret in SECRET.findall(text):
        assert secret not in shown or any(secret in line for line in text.split("\n") if "PublicKey" in line), shown
    again = Config(
        **{name: getattr(config, name) for name in ("private_key", "address", "dns", "dns_search", "mtu")},
        listen_port=config.listen_port,
        peers=config.peers,
    )
    assert again == config
