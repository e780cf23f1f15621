"""Cryptokey routing (paper 2): which peer an inner address belongs to, by longest prefix."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Network, IPv6Network
from typing import Generic, TypeVar

from httpx_wireguard._wireguard.constants import MAX_ROUTE_CACHE

T = TypeVar("T")


class AllowedIps(Generic[T]):
    """A routing table per address family: one dictionary for each prefix length in use.

    A lookup tries the lengths in use, longest first, so it costs at most 33 or 129 dictionary lookups however many
    networks there are; answers for recent addresses are remembered. Addresses are packed: 4 or 16 bytes.
    """

    __slots__ = ("_cache", "_tables")

    def __init__(self) -> None:
        # by address size: (bits to shift out, networks of that length), longest prefix first
        self._tables: dict[int, list[tuple[int, dict[int, T]]]] = {4: [], 16: []}
        self._cache: dict[bytes, T | None] = {}

    def add(self, networks: Iterable[IPv4Network | IPv6Network], owner: T) -> None:
        """Route `networks` to `owner`. A network has one owner: the last to claim it, as with `wg set`."""
        for network in networks:
            shift = network.max_prefixlen - network.prefixlen
            table = self._table(network.max_prefixlen // 8, shift)
            table[int(network.network_address) >> shift] = owner
        self._cache.clear()

    def lookup(self, address: bytes) -> T | None:
        """Return the owner of the longest network that covers `address`, or None."""
        try:
            return self._cache[address]
        except KeyError:
            owner = self._lookup_uncached(address)
        if len(self._cache) >= MAX_ROUTE_CACHE:  # a peer may send from any address: bounded
            self._cache.clear()
        self._cache[address] = owner
        return owner

    def clear(self) -> None:
        self._cache.clear()
        for tables in self._tables.values():
            tables.clear()

    def _table(self, size: int, shift: int) -> dict[int, T]:
        tables = self._tables[size]
        for known, table in tables:
            if known == shift:
                return table
        table = {}
        tables.append((shift, table))
        tables.sort(key=lambda entry: entry[0])
        return table

    def _lookup_uncached(self, address: bytes) -> T | None:
        number = int.from_bytes(address, "big")
        for shift, table in self._tables.get(len(address), ()):
            owner = table.get(number >> shift)
            if owner is not None:
                return owner
        return None
