"""One target under atheris: `python -m tests.fuzz.under_atheris TARGET [libFuzzer's arguments]`."""

from __future__ import annotations

import importlib
import logging
import sys

from tests.fuzz.harness import load


def main() -> None:
    atheris = importlib.import_module("atheris")  # by name: neither the tests nor mypy need it
    target = sys.argv.pop(1)
    logging.getLogger("httpx_wireguard").setLevel(logging.CRITICAL)  # no warning for each bad input
    with atheris.instrument_imports(include=["httpx_wireguard"]):
        run = load(target)
    atheris.Setup(sys.argv, run)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
