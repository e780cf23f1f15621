"""What watches or replaces httpx's transports sees, or replaces, ours."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from opentelemetry import trace
from opentelemetry.instrumentation.httpx import HTTPXClientInstrumentor
from opentelemetry.trace import NonRecordingSpan, Span, SpanContext, Tracer, TracerProvider
from pytest_httpx import HTTPXMock

from httpx_wireguard._http.clients import AsyncClient, Client
from httpx_wireguard._http.mounts import async_mounts_for, mounts_for
from httpx_wireguard.testing import HOST, WireGuardPeer
from tests.http_clients import FAMILIES, LOOPS, Kind
from tests.recording_tunnel import recording_tunnel

HTTPX = FAMILIES[0]
URL = f"http://{HOST}/"
WAYS = ["transport", "client", "mounts"]
KIND = pytest.mark.parametrize("kind", [Kind(HTTPX, waiting) for waiting in ("threads", *LOOPS)], ids=str)


class RecordedSpan(NonRecordingSpan):
    """Keeps what is told about a request."""

    def __init__(self, name: str, attributes: Any) -> None:
        super().__init__(SpanContext(trace_id=0x1234, span_id=0x5678, is_remote=False, trace_flags=trace.TraceFlags(1)))
        self.name = name
        self.attributes: dict[str, Any] = dict(attributes or {})

    def is_recording(self) -> bool:
        return True

    def set_attribute(self, key: str, value: Any) -> None:
        self.attributes[key] = value

    def set_attributes(self, attributes: Any) -> None:
        self.attributes.update(attributes)


class Recorder(TracerProvider, Tracer):
    """Collects spans."""

    def __init__(self) -> None:
        self.spans: list[RecordedSpan] = []

    def get_tracer(self, *arguments: Any, **named: Any) -> Tracer:
        return self

    def start_span(self, name: str, *arguments: Any, **named: Any) -> Span:
        self.spans.append(RecordedSpan(name, named.get("attributes")))
        return self.spans[-1]

    def start_as_current_span(self, name: str, *arguments: Any, **named: Any) -> Any:
        return trace.use_span(self.start_span(name, **named))


def open_client(kind: Kind, conf: Any, way: str) -> Any:
    """A client of `kind` whose requests go through a tunnel, in one of three `WAYS`."""
    if way == "transport":
        return plain_client(kind)(transport=kind.transport(conf))
    if way == "client":
        return (AsyncClient if kind.is_async else Client)(conf)
    mounts: Any = (async_mounts_for if kind.is_async else mounts_for)(conf, [HOST], strict=True)
    return plain_client(kind)(mounts=mounts)


def plain_client(kind: Kind) -> Any:
    return httpx.AsyncClient if kind.is_async else httpx.Client


def get(kind: Kind, client: Any, url: str = URL) -> httpx.Response:
    async def request() -> httpx.Response:
        if kind.is_async:
            async with client:
                response: httpx.Response = await client.get(url)
        else:
            with client:
                response = client.get(url)
        return response

    return kind.run(request)


@pytest.fixture
def peer() -> Iterator[WireGuardPeer]:
    with WireGuardPeer() as running:
        yield running


@pytest.mark.parametrize("way", WAYS)
@KIND
def test_opentelemetry_sees_each_request_once(kind: Kind, way: str, peer: WireGuardPeer) -> None:
    recorder, instrumentor = Recorder(), HTTPXClientInstrumentor()
    instrumentor.instrument(tracer_provider=recorder)
    try:
        response = get(kind, open_client(kind, peer.client_config(), way), f"{URL}headers")
    finally:
        instrumentor.uninstrument()
    (span,) = recorder.spans
    assert URL in str(span.attributes)
    assert 200 in span.attributes.values()
    assert "00001234" in response.json()["traceparent"]


@pytest.mark.parametrize("way", WAYS)
@KIND
def test_opentelemetry_of_one_client(kind: Kind, way: str, peer: WireGuardPeer) -> None:
    recorder = Recorder()
    client = open_client(kind, peer.client_config(), way)
    HTTPXClientInstrumentor.instrument_client(client, tracer_provider=recorder)
    assert get(kind, client).status_code == 200
    assert [span.name for span in recorder.spans] == ["GET"]
    assert 200 in recorder.spans[0].attributes.values()


@pytest.mark.parametrize("way", WAYS)
@KIND
def test_pytest_httpx_answers_in_place_of_the_tunnel(kind: Kind, way: str, httpx_mock: HTTPXMock) -> None:
    httpx_mock.add_response(url=URL, text="mocked")
    tunnel = recording_tunnel(kind)
    assert get(kind, open_client(kind, tunnel, way)).text == "mocked"
    assert tunnel.asked == []
