"""What all tests share."""

from __future__ import annotations

from hypothesis import settings

# no limit on an example's time: it says more of the machine's other work than of the code
settings.register_profile("httpx-wireguard", parent=settings.default, deadline=None)
settings.load_profile("httpx-wireguard")
