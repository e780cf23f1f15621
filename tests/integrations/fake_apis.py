"""Enough of the APIs of OpenAI, Groq and Anthropic for their SDKs: one question, one answer, at once or in pieces."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from typing import Any, NamedTuple

BUSY, BUSY_ONCE = "busy", "busy-once"  # models that answer 429: always, or to what is no repetition
TOO_MANY = "too many questions"  # what is wrong then
PATIENCE = 10.0  # seconds


def answer_to(question: str) -> list[str]:
    """The pieces of the answer: the server says that it read the question."""
    return ["You asked", ": ", question]


class Asked(NamedTuple):
    """What the server saw of a request."""

    path: str
    source: str
    key: str | None
    model: str


class FakeApis:
    """A site for `WireGuardPeer(handler=...)`.

    Attributes:
        asked: the requests that came.
        go_on: waited for before the last piece of an answer in pieces.
    """

    def __init__(self) -> None:
        self.asked: list[Asked] = []
        self.go_on = threading.Event()

    @property
    def handler(self) -> type[BaseHTTPRequestHandler]:
        return type("Handler", (_Handler,), {"apis": self})


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    apis: FakeApis

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        key = self.headers.get("X-Api-Key") or self.headers.get("Authorization")
        self.apis.asked.append(Asked(self.path, self.client_address[0], key, request["model"]))
        busy_now = request["model"] == BUSY_ONCE and self.headers["X-Stainless-Retry-Count"] == "0"
        pieces = answer_to(request["messages"][0]["content"])
        whole, in_pieces = _APIS[self.path]
        if request["model"] == BUSY or busy_now:
            self._answer(429, {"error": {"message": TOO_MANY}, "type": "error"})
        elif request.get("stream"):
            self._stream(in_pieces(self._held_back(pieces)))
        else:
            self._answer(200, whole("".join(pieces)))

    def _answer(self, status: int, content: Any) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Retry-After-Ms", "1")
        self.end_headers()
        self.wfile.write(body)

    def _stream(self, events: Iterator[str]) -> None:
        """Server-sent events, each in a chunk of its own."""
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for event in events:
            data = event.encode()
            self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))
        self.wfile.write(b"0\r\n\r\n")

    def _held_back(self, pieces: list[str]) -> Iterator[str]:
        yield from pieces[:-1]
        if self.apis.go_on.wait(PATIENCE):
            yield pieces[-1]

    def log_message(self, format: str, *args: object) -> None:
        """A test's output is not ours to fill."""


def _openai_response(text: str) -> dict[str, Any]:
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "finish_reason": "stop", "message": message}
    return {"id": "1", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice]}


def _openai_events(pieces: Iterator[str]) -> Iterator[str]:
    for piece in pieces:
        choice = {"index": 0, "finish_reason": None, "delta": {"content": piece}}
        chunk = {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]}
        yield f"data: {json.dumps(chunk)}\n\n"
    yield "data: [DONE]\n\n"


def _anthropic_response(text: str) -> dict[str, Any]:
    usage = {"input_tokens": 1, "output_tokens": 1}
    content = [{"type": "text", "text": text}]
    return {"id": "1", "type": "message", "role": "assistant", "model": "m", "content": content, "usage": usage}


def _anthropic_events(pieces: Iterator[str]) -> Iterator[str]:
    def event(name: str, **fields: Any) -> str:
        return f"event: {name}\ndata: {json.dumps({'type': name, **fields})}\n\n"

    yield event("message_start", message=_anthropic_response("") | {"content": []})
    yield event("content_block_start", index=0, content_block={"type": "text", "text": ""})
    for piece in pieces:
        yield event("content_block_delta", index=0, delta={"type": "text_delta", "text": piece})
    yield event("content_block_stop", index=0)
    yield event("message_stop")


_APIS: dict[str, tuple[Callable[[str], Any], Callable[[Iterator[str]], Iterator[str]]]] = {
    "/v1/chat/completions": (_openai_response, _openai_events),
    "/openai/v1/chat/completions": (_openai_response, _openai_events),
    "/v1/messages": (_anthropic_response, _anthropic_events),
}
