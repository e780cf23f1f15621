from __future__ import annotations

from importlib.resources import files

import pytest

from tests.httpx2_twin import twin


def test_the_adapters_to_httpx2_are_the_twin_of_those_to_httpx() -> None:
    sources, targets = (
        {
            path.name: path.read_text()
            for path in files(f"httpx_wireguard.{package}").iterdir()
            if path.name[-3:] == ".py"
        }
        for package in ("_http", "_httpx2")
    )
    expected = {name: twin(name, text) for name, text in sources.items()}
    stale = [name for name in {*expected, *targets} if expected.get(name) != targets.get(name)]
    assert not stale, "run `python -m tests.httpx2_twin` in the checkout"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("import httpcore\nimport httpx\n", "import httpcore2\nimport httpx2\n"),
        ("httpx.Client, httpx's; `httpcore.Request`", "httpx2.Client, httpx2's; `httpcore2.Request`"),
        ("from httpx_wireguard._http.backend import X", "from httpx_wireguard._httpx2.backend import X"),
        ("from httpx_wireguard._tunnel import Tunnel", "from httpx_wireguard._tunnel import Tunnel"),
    ],
)
def test_a_twin_changes_the_names_of_the_libraries_and_no_other(text: str, expected: str) -> None:
    assert twin("x.py", text).split("\n", 1)[1] == expected
