"""The fuzz targets without a fuzzer: the kept corpus, and mutations of it that are the same every time."""

from __future__ import annotations

import random

import pytest

from tests.fuzz.harness import CORPUS, TARGETS, corpus, load, mutated

MUTATIONS = 200


@pytest.mark.parametrize("target", TARGETS)
def test_the_kept_corpus_finds_nothing(target: str) -> None:
    run = load(target)
    for data in corpus(target):
        run(data)


@pytest.mark.parametrize("target", TARGETS)
def test_mutations_of_the_corpus_find_nothing(target: str) -> None:
    run, inputs, rng = load(target), corpus(target), random.Random(target)
    for _ in range(MUTATIONS):
        run(mutated(rng, inputs))


def test_the_corpus_stays_small() -> None:
    assert {path.name for path in CORPUS.iterdir()} == set(TARGETS)
    assert sum(path.stat().st_size for path in CORPUS.glob("*/*")) < 300_000
