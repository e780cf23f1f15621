"""What holds for every text: a configuration or a ConfigError, and no secret in sight."""

from __future__ import annotations

import base64
import logging
import traceback

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from httpx_wireguard._config import Config, PeerConfig, SecretKey
from httpx_wireguard._errors import ConfigError

PUBLIC = "LTk0wqdAJpr8shgzzt7a0/6RQQnLIm+tlmuOI3pS0Fc="
KEYS = (
    *("PrivateKey", "Address", "DNS", "MTU", "ListenPort", "PublicKey", "AllowedIPs", "Endpoint", "PresharedKey"),
    *("PersistentKeepalive", "PostUp", "Table", "Unknown"),
)

secrets = st.binary(min_size=32, max_size=32).filter(any).map(lambda raw: base64.b64encode(raw).decode())
scraps = st.one_of(
    st.text(max_size=30),
    st.sampled_from(
        ["", "off", "0", "1420", "10.0.0.1/8", "fd00::/8", "[::1]:1", "vpn:51820", "::1%x", ",", "#", PUBLIC]
    ),
    st.integers().map(str),
    st.ip_addresses().map(str),
)


@st.composite
def near_misses(draw: st.DrawFn, secret: str) -> str:
    """Lines that look like a configuration, with `secret` as some of the values, names and sections."""
    part = scraps | st.just(secret)
    line = st.one_of(
        st.sampled_from(["[Interface]", "[Peer]", f"PublicKey = {PUBLIC}", f"PrivateKey = {secret}"]),
        st.builds("{} = {}".format, st.sampled_from(KEYS) | part, part),
        st.builds("{}={}, {}".format, st.sampled_from(KEYS), part, part),
        st.builds("[{}]".format, part),
        part,
    )
    return "\n".join(["[Interface]", *draw(st.lists(line, max_size=12))])


@given(st.text())
def test_arbitrary_text_is_a_config_or_a_config_error(text: str) -> None:
    try:
        assert isinstance(Config.from_string(text), Config)
    except ConfigError as error:
        assert error.source == "<string>"


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data(), secrets)
def test_no_error_log_or_repr_shows_a_secret(
    caplog: pytest.LogCaptureFixture, data: st.DataObject, secret: str
) -> None:
    caplog.clear()
    caplog.set_level(logging.DEBUG)
    text = data.draw(near_misses(secret))
    try:
        shown = repr(Config.from_string(text))
    except ConfigError as error:
        shown = "".join(traceback.format_exception(error)) + repr(error) + repr(vars(error))
    shown += caplog.text
    raw = base64.b64decode(secret)
    assert secret not in shown
    assert raw.hex() not in shown
    assert repr(raw) not in shown


@given(st.text(max_size=60), st.sampled_from(["public_key", "allowed_ips", "endpoint", "preshared_key"]))
def test_arbitrary_arguments_are_a_peer_or_a_config_error(value: str, name: str) -> None:
    arguments = {"public_key": PUBLIC, name: value}
    try:
        assert isinstance(PeerConfig(**arguments), PeerConfig)
    except ConfigError as error:
        assert error.key == name


@given(st.lists(st.ip_addresses(), unique=True, max_size=20))
def test_addresses_survive_the_text_form(addresses: list[object]) -> None:
    allowed = ", ".join(map(str, addresses))
    assert PeerConfig(PUBLIC, allowed).allowed_ips == PeerConfig(PUBLIC, addresses).allowed_ips  # type: ignore[arg-type]  # from hypothesis


@given(st.binary(min_size=32, max_size=32))
def test_a_key_survives_base64(raw: bytes) -> None:
    assert SecretKey(base64.b64encode(raw).decode()).reveal() == raw
