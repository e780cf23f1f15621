"""Makes `httpx_wireguard/_httpx2`, the adapters to httpx2, out of `httpx_wireguard/_http`, those to httpx.

`python -m tests.httpx2_twin` in the checkout writes it anew; the tests compare.
"""

from __future__ import annotations

import re
from pathlib import Path

HEADER = "# Made from _http/{name}: edit that, then run `python -m tests.httpx2_twin`.\n"
PACKAGE = Path(__file__).parent.parent / "httpx_wireguard"


def twin(name: str, text: str) -> str:
    """The text of file `name` with httpx2 in place of httpx, and httpcore2 in place of httpcore."""
    text = re.sub(r"\b(httpx|httpcore)\b", r"\g<1>2", text)
    return HEADER.format(name=name) + text.replace("httpx_wireguard._http.", "httpx_wireguard._httpx2.")


def main() -> None:
    target = PACKAGE / "_httpx2"
    target.mkdir(exist_ok=True)
    sources = {path.name: path.read_text() for path in (PACKAGE / "_http").glob("*.py")}
    for stale in target.glob("*.py"):
        if stale.name not in sources:
            stale.unlink()
    for name, text in sources.items():
        (target / name).write_text(twin(name, text))


if __name__ == "__main__":
    main()
