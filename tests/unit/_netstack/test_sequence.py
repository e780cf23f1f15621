"""Unwrapping of 32-bit sequence numbers (RFC 9293 3.4)."""

from __future__ import annotations

import pytest

from httpx_wireguard._netstack.sequence import unwrap


@pytest.mark.parametrize("near", [0, 2**31, 2**32 - 1, 2**32, 7 * 2**32 + 12345])
@pytest.mark.parametrize("ahead", [-(2**31), -1, 0, 1, 2**31 - 1])
def test_unwrap_finds_the_nearest_offset(near: int, ahead: int) -> None:
    assert unwrap((near + ahead) % 2**32, near) == near + ahead
