from __future__ import annotations

import os
import time

import pytest

from httpx_wireguard import Config
from httpx_wireguard._drivers.endpoints import remember, space_out


def interface() -> Config:
    return Config(private_key=os.urandom(32), address="10.0.0.2/32", peers=[])


def test_two_starts_of_one_key_keep_a_distance_and_those_of_two_keys_do_not() -> None:
    one, other = interface(), interface()
    assert (space_out(one), space_out(other)) == (0, 0)
    assert 0 < space_out(one) <= 0.025
    assert 0.025 < space_out(one) <= 0.05


def test_the_distance_counts_from_the_last_handshake_of_a_tunnel_that_ended() -> None:
    """The responder counts from when it took that one up, which a busy machine may do late."""
    config = interface()
    space_out(config)
    remember(config, time.monotonic() + 10)
    remember(config, time.monotonic())  # an older one does not shorten it
    assert space_out(config) == pytest.approx(10.025, abs=0.02)
