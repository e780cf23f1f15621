"""Runs fuzz targets one after the other under atheris: `python -m tests.fuzz [--seconds N] [target …]`.

Exits 1 on a finding, whose input is then in `--work`. New inputs that reach new code are collected there too, and are
the start of the next run; `--minimise` puts the ones that matter into the kept corpus.
"""

from __future__ import annotations

import argparse
import hashlib
import logging
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, TypeAlias

from tests.fuzz.harness import CORPUS, MAX_LENGTH, TARGETS, corpus, load

PACKAGE = f"{os.sep}httpx_wireguard{os.sep}_"
MEMORY = 1024  # megabytes that a target may take
INPUT_TIME = 10  # seconds that one input may take
KEPT_LENGTH = 512  # bytes of the longest input that the repository keeps
GENERATED = re.compile(r"[0-9a-f]{16}")

Feature: TypeAlias = tuple[CodeType, int, int]  # code, line, and the size of the count in bits
TraceFunction: TypeAlias = Callable[[FrameType, str, Any], Any]


def fuzz(target: str, seconds: int, work: Path) -> bool:
    """Whether the time passed without a finding."""
    found = work / target
    found.mkdir(parents=True, exist_ok=True)
    limits = [f"-max_total_time={seconds}", f"-rss_limit_mb={MEMORY}", f"-timeout={INPUT_TIME}"]
    inputs = [f"-max_len={MAX_LENGTH}", str(found), str(CORPUS / target)]
    options = [f"-artifact_prefix={work}/{target}-", "-print_final_stats=1"]
    command = [sys.executable, "-m", "tests.fuzz.under_atheris", target, *limits, *options, *inputs]
    return subprocess.run(command).returncode == 0


def minimise(target: str, work: Path) -> None:
    """Keep of the old corpus and of what was found the shortest inputs that do anything not done before.

    Files that somebody gave a name stay: they are there for what they once found, or mean.
    """
    run, known = load(target), set[Feature]()
    named = [path for path in (CORPUS / target).iterdir() if not GENERATED.fullmatch(path.name)]
    for path in named:
        known |= features_of(run, path.read_bytes())
    inputs = {*corpus(target), *(path.read_bytes() for path in (work / target).iterdir())}
    for path in set((CORPUS / target).iterdir()) - set(named):
        path.unlink()
    for data in sorted((data for data in inputs if len(data) <= KEPT_LENGTH), key=len):
        features = features_of(run, data)
        if not features <= known:
            known |= features
            (CORPUS / target / hashlib.sha1(data).hexdigest()[:16]).write_bytes(data)


def features_of(run: Callable[[bytes], None], data: bytes) -> set[Feature]:
    """Which lines of the package an input reaches, and about how often: what libFuzzer calls features.

    Its own -merge would start this process anew, which an interpreter with a module name does not allow.
    """
    counts: Counter[tuple[CodeType, int]] = Counter()

    def trace(frame: FrameType, event: str, argument: object) -> TraceFunction | None:
        if event == "line":
            counts[frame.f_code, frame.f_lineno] += 1
        return trace if PACKAGE in frame.f_code.co_filename else None

    sys.settrace(trace)
    try:
        run(data)
    finally:
        sys.settrace(None)
    return {(code, line, count.bit_length()) for (code, line), count in counts.items()}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("targets", nargs="*", metavar="target", help=f"of {', '.join(TARGETS)}; all if none is named")
    parser.add_argument("--seconds", type=int, default=60, help="for each target (default: 60)")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir(), "httpx-wireguard-fuzz"))
    parser.add_argument("--minimise", action="store_true", help="afterwards, rewrite the kept corpus")
    options = parser.parse_args()
    logging.getLogger("httpx_wireguard").setLevel(logging.CRITICAL)  # no warning for each bad input
    findings = []
    for target in options.targets or TARGETS:
        if not fuzz(target, options.seconds, options.work):
            findings.append(target)
        elif options.minimise:
            minimise(target, options.work)
    print(f"findings: {', '.join(findings) or 'none'}; inputs are in {options.work}")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
