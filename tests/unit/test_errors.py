from __future__ import annotations

import pytest

from httpx_wireguard._errors import (
    HandshakeTimeout,
    NameResolutionError,
    NoRoute,
    TunnelClosed,
    WireGuardError,
    renewed,
)


@pytest.mark.parametrize(
    "error",
    [
        TunnelClosed("closed"),
        NoRoute("no route", "10.0.0.1"),
        HandshakeTimeout("host:1", 3, 5.0),
        NameResolutionError("host", "why", ("10.0.0.1",), "NXDOMAIN"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_renewed_error_is_the_same_without_the_old_traceback(error: WireGuardError) -> None:
    cause = ValueError("cause")
    with pytest.raises(WireGuardError):
        raise error from cause
    fresh = renewed(error)
    assert fresh is not error
    assert (type(fresh), str(fresh), fresh.args) == (type(error), str(error), error.args)
    assert (vars(fresh), fresh.__cause__, fresh.__traceback__) == (vars(error), cause, None)
    assert getattr(fresh, "errno", None) == getattr(error, "errno", None)
