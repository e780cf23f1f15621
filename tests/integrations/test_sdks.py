"""Well-known SDKs over a tunnel to a small fake of their API: the one line of docs/sdks.md is all they need."""

from __future__ import annotations

import contextlib
import inspect
import re
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

import anthropic
import groq
import httpx
import openai
import pytest

import httpx_wireguard
import httpx_wireguard.httpx2
from httpx_wireguard import Config, Tunnel
from httpx_wireguard.testing import HOST, WireGuardPeer
from tests.http_clients import run
from tests.integrations.fake_apis import BUSY, BUSY_ONCE, PATIENCE, TOO_MANY, FakeApis, answer_to

# AsyncOpenAI leaves the generators under a stream to the garbage collector, which trio warns of
pytestmark = pytest.mark.filterwarnings("ignore:Async generator 'openai:ResourceWarning")

QUESTION = "Is it far to the ëxit?"
KEY = "a-key"


@dataclass(frozen=True)
class Sdk:
    """How an SDK is called; all of them have the same exceptions and options."""

    name: str
    module: ModuleType
    classes: tuple[str, str]  # the client's for threads, and for event loops
    base_path: str
    ours: ModuleType  # our module for the HTTP library that it is built on
    method: Callable[[Any], Any]  # what asks
    answer: Callable[[Any], str]  # of a response
    piece: Callable[[Any], str]  # of a stream's event
    http: tuple[Any, Any] | None = None  # HTTP clients other than the SDK's own

    def __str__(self) -> str:
        return self.name

    def open(self, waiting: str, conf: Config | Tunnel, host: str, **options: Any) -> Any:
        is_async = waiting != "threads"
        own = (self.module.DefaultHttpxClient, self.module.DefaultAsyncHttpxClient)
        transport = (self.ours.WireGuardTransport, self.ours.AsyncWireGuardTransport)[is_async](conf)
        http_client = (self.http or own)[is_async](transport=transport)
        url = f"http://{host}{self.base_path}"
        return getattr(self.module, self.classes[is_async])(
            api_key=KEY, base_url=url, http_client=http_client, **options
        )


def chat(client: Any) -> Any:
    return client.chat.completions.create


def chat_answer(response: Any) -> str:
    return str(response.choices[0].message.content)


def chat_piece(event: Any) -> str:
    return str(event.choices[0].delta.content)


CHAT = (chat, chat_answer, chat_piece)
OPENAI = ("OpenAI", "AsyncOpenAI")
SDKS = [
    Sdk("openai", openai, OPENAI, "/v1", httpx_wireguard.httpx2, *CHAT),
    Sdk("openai-httpx", openai, OPENAI, "/v1", httpx_wireguard, *CHAT, http=(httpx.Client, httpx.AsyncClient)),
    Sdk("groq", groq, ("Groq", "AsyncGroq"), "", httpx_wireguard, *CHAT),
    Sdk(
        "anthropic",
        anthropic,
        ("Anthropic", "AsyncAnthropic"),
        "",
        httpx_wireguard.httpx2,
        lambda client: client.messages.create,
        lambda response: str(response.content[0].text),
        lambda event: event.delta.text if event.type == "content_block_delta" else "",
    ),
]

every_sdk = pytest.mark.parametrize("sdk", SDKS, ids=str)
everywhere = pytest.mark.parametrize("waiting", ["threads", "asyncio", "trio"])


@pytest.fixture
def apis() -> FakeApis:
    return FakeApis()


@pytest.fixture
def peer(apis: FakeApis) -> Iterator[WireGuardPeer]:
    with WireGuardPeer(handler=apis.handler) as peer:
        yield peer


@contextlib.asynccontextmanager
async def opened(
    sdk: Sdk, waiting: str, conf: Config | Tunnel, host: str = HOST, **options: Any
) -> AsyncIterator[Callable[..., Any]]:
    """An SDK's client, closed at the end; yields what asks it `QUESTION`."""

    async def ask(model: str = "model", stream: bool = False) -> Any:
        messages = [{"role": "user", "content": QUESTION}]
        asked = sdk.method(client)(model=model, messages=messages, max_tokens=100, stream=stream)
        return await asked if inspect.isawaitable(asked) else asked

    client = sdk.open(waiting, conf, host, **{"timeout": PATIENCE, **options})
    try:
        yield ask
    finally:
        closing = client.close()
        if inspect.isawaitable(closing):
            await closing


async def pieces_of(sdk: Sdk, stream: Any) -> AsyncIterator[str]:
    """The texts of a stream's events."""
    if hasattr(stream, "__aiter__"):
        async for event in stream:
            yield sdk.piece(event)
    else:
        for event in stream:
            yield sdk.piece(event)


@every_sdk
@everywhere
def test_a_question_is_answered_through_the_tunnel(sdk: Sdk, waiting: str, peer: WireGuardPeer, apis: FakeApis) -> None:
    config = peer.client_config()

    async def body() -> None:
        async with opened(sdk, waiting, config) as ask:
            assert sdk.answer(await ask()) == "".join(answer_to(QUESTION))

    run(waiting, body)
    (asked,) = apis.asked
    assert asked.source in [str(address.ip) for address in config.address]
    assert asked.key in (KEY, f"Bearer {KEY}")


@every_sdk
@everywhere
def test_a_streamed_answer_comes_piece_by_piece(sdk: Sdk, waiting: str, peer: WireGuardPeer, apis: FakeApis) -> None:
    """The server sends the last piece only after the first ones were seen."""

    async def body() -> list[str]:
        seen: list[str] = []
        async with opened(sdk, waiting, peer.client_config()) as ask:
            async for piece in pieces_of(sdk, await ask(stream=True)):
                seen += [piece] if piece else []
                if seen == answer_to(QUESTION)[:-1]:
                    assert not apis.go_on.is_set()
                    apis.go_on.set()
        return seen

    assert run(waiting, body) == answer_to(QUESTION)


@every_sdk
@everywhere
def test_too_many_requests_are_tried_again_and_then_reported(
    sdk: Sdk, waiting: str, peer: WireGuardPeer, apis: FakeApis
) -> None:
    async def body() -> None:
        async with opened(sdk, waiting, peer.client_config(), max_retries=1) as ask:
            assert sdk.answer(await ask(BUSY_ONCE)) == "".join(answer_to(QUESTION))
            assert [asked.model for asked in apis.asked] == [BUSY_ONCE] * 2
            with pytest.raises(sdk.module.RateLimitError, match=TOO_MANY):
                await ask(BUSY)
            assert [asked.model for asked in apis.asked[2:]] == [BUSY] * 2

    run(waiting, body)


@every_sdk
@everywhere
def test_a_failure_of_the_tunnel_is_told_by_the_cause_of_the_sdk_s_error(sdk: Sdk, waiting: str) -> None:
    """The text of the SDK's own exception is "Connection error."; ours is one step behind it."""
    with WireGuardPeer() as peer:
        config, endpoint = peer.client_config(), peer.endpoint  # where nobody listens any more

    async def body() -> Any:
        async with opened(sdk, waiting, config, max_retries=0, timeout=0.5) as ask:
            with pytest.raises(sdk.module.APIConnectionError) as caught:
                await ask()
        return caught.value.__cause__

    assert re.search(f"{endpoint} come back: .*refused", str(run(waiting, body)))


@every_sdk
@everywhere
def test_a_name_is_not_looked_up_outside_the_tunnel(sdk: Sdk, waiting: str, peer: WireGuardPeer) -> None:
    async def body() -> Any:
        async with opened(sdk, waiting, peer.client_config(), host="localhost.example", max_retries=0) as ask:
            with pytest.raises(sdk.module.APIConnectionError) as caught:
                await ask()
        return caught.value.__cause__

    assert "localhost.example" in str(run(waiting, body))


@every_sdk
def test_the_transport_for_another_http_library_is_refused(sdk: Sdk, peer: WireGuardPeer, apis: FakeApis) -> None:
    other = httpx_wireguard if sdk.ours is httpx_wireguard.httpx2 else httpx_wireguard.httpx2

    async def body() -> str:
        with pytest.raises((TypeError, sdk.module.APIConnectionError)) as caught:
            async with opened(replace(sdk, ours=other), "threads", peer.client_config(), max_retries=0) as ask:
                await ask()
        return f"{caught.value} {caught.value.__cause__}"

    text = run("threads", body)
    assert re.search("httpx_wireguard.* import WireGuardTransport|Use `httpx2.HTTPTransport` instead", text)
    assert apis.asked == []


@every_sdk
@everywhere
def test_a_stream_ends_with_an_error_when_its_tunnel_is_closed(
    sdk: Sdk, waiting: str, peer: WireGuardPeer, apis: FakeApis
) -> None:
    """In the middle of an answer some SDKs raise their own error, others their HTTP library's."""

    async def body() -> list[BaseException | None]:
        with Tunnel(peer.client_config()) as tunnel:
            async with opened(sdk, waiting, tunnel) as ask:
                with pytest.raises(Exception) as caught:
                    async for _ in pieces_of(sdk, await ask(stream=True)):
                        tunnel.close()
        return [caught.value, caught.value.__cause__]

    errors = run(waiting, body)
    apis.go_on.set()
    assert any(type(error).__name__ == "ReadError" and "closed" in str(error) for error in errors)
