"""Congestion controls, by the names under which a user chooses them.

- `bbr`: BBR version 3 (draft-ietf-ccwg-bbr), which measures the path instead of waiting for losses.
- `cubic`: CUBIC (RFC 9438), the default of most systems. For long fast paths, fair to others on the rest.
- `reno`: Reno (RFC 5681), the plain standard that the others are measured by.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from httpx_wireguard._netstack.congestion.bbr import Bbr
    from httpx_wireguard._netstack.congestion.cubic import Cubic
    from httpx_wireguard._netstack.congestion.reno import Reno

    Control: TypeAlias = type[Bbr | Cubic | Reno]


class _Controls(Mapping[str, "Control"]):
    """Classes by name, imported when first chosen: most processes use one."""

    _names = ("bbr", "cubic", "reno")

    def __getitem__(self, name: str) -> Control:
        if name not in self._names:
            raise KeyError(name)
        control: Control = getattr(import_module(f"{__name__}.{name}"), name.capitalize())
        return control

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


CONTROLS = _Controls()  # each takes the payload bytes of a full segment

DEFAULT_CONTROL = "cubic"
