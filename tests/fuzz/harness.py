"""What the fuzz targets share: a fuzzer's bytes read as decisions, the kept corpus, and mutation without a fuzzer.

A target is a module `fuzz_<name>.py` with one function, `run(data)`. It returns whatever the bytes are; an exception
that leaves it is a finding. `python -m tests.fuzz` runs the targets under atheris, `test_corpus.py` without.
"""

from __future__ import annotations

import importlib
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

HERE = Path(__file__).parent
CORPUS = HERE / "corpus"
TARGETS = tuple(sorted(path.stem.removeprefix("fuzz_") for path in HERE.glob("fuzz_*.py")))
MAX_LENGTH = 1024  # bytes of an input: some two hundred steps

_T = TypeVar("_T")
_EDGES = (0, 1, 0x7F, 0x80, 0xFF)


def load(target: str) -> Callable[[bytes], None]:
    """The function that takes one input."""
    run: Callable[[bytes], None] = importlib.import_module(f"tests.fuzz.fuzz_{target}").run
    return run


def corpus(target: str) -> list[bytes]:
    """The inputs kept for a target, in an order that is the same everywhere."""
    return [path.read_bytes() for path in sorted((CORPUS / target).iterdir())]


class Script:
    """Decisions out of bytes, from the first on; past the end every decision is the first choice, every number 0.

    Most decisions take one byte, so that a byte changed, inserted or left out leaves the rest of the script as it was.
    """

    __slots__ = ("_at", "_data")

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def __bool__(self) -> bool:
        """Whether there is more to read."""
        return self._at < len(self._data)

    def byte(self) -> int:
        self._at += 1
        return self._data[self._at - 1] if self._at <= len(self._data) else 0

    def signed(self) -> int:
        """-128 to 127."""
        return (self.byte() + 128) % 256 - 128

    def number(self, size: int) -> int:
        """Of `size` bytes, big-endian."""
        return int.from_bytes(self.take(size).ljust(size, b"\0"), "big")

    def flag(self) -> bool:
        return bool(self.byte() & 1)

    def choose(self, options: Sequence[_T]) -> _T:
        return options[self.byte() % len(options)]

    def take(self, size: int) -> bytes:
        """Up to `size` bytes as they are."""
        self._at += size
        return self._data[self._at - size : self._at]

    def rest(self) -> bytes:
        return self.take(len(self._data))


def mutated(rng: random.Random, inputs: Sequence[bytes]) -> bytes:
    """A random input, or one of `inputs` with a few changes: what a fuzzer does, without its feedback.

    Half of what is new is zeros, the first choice of every decision: a script of nothing but surprises gets nowhere.
    """
    if not inputs or not rng.randrange(8):
        return bytes(rng.choice((0, rng.randrange(256))) for _ in range(rng.randrange(200)))
    data = bytearray(rng.choice(inputs))
    for _ in range(1 << rng.randrange(5)):
        at = rng.randrange(len(data) + 1)
        match rng.randrange(5):
            case 0:
                data[at : at + 1] = [rng.choice(_EDGES)]
            case 1:
                data[at : at + 1] = [rng.randrange(256)]
            case 2:
                data[at:at] = bytes(rng.choice((0, rng.randrange(256))) for _ in range(rng.randrange(1, 9)))
            case 3:
                del data[at : at + rng.randrange(1, 9)]
            case _:
                other = rng.choice(inputs)
                start = rng.randrange(len(other) + 1)
                data[at:at] = other[start : start + rng.randrange(64)]
    return bytes(data[:MAX_LENGTH])
