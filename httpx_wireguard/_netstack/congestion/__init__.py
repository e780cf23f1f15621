"""Congestion controls, by the names under which a user chooses them.

- `bbr`: BBR version 3 (draft-ietf-ccwg-bbr), which measures the path instead of waiting for losses.
- `cubic`: CUBIC (RFC 9438), the default of most systems. For long fast paths, fair to others on the rest.
- `reno`: Reno (RFC 5681), the plain standard that the others are measured by.
"""

from __future__ import annotations

from httpx_wireguard._netstack.congestion.bbr import Bbr
from httpx_wireguard._netstack.congestion.cubic import Cubic
from httpx_wireguard._netstack.congestion.reno import Reno

CONTROLS: dict[str, type[Bbr | Cubic | Reno]] = {  # each takes the payload bytes of a full segment
    "bbr": Bbr,
    "cubic": Cubic,
    "reno": Reno,
}

DEFAULT_CONTROL = "cubic"
