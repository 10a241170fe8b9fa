"""A server that streams as four providers do, and the Pipecat services that talk to it."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from aiohttp import web
from pipecat.services.llm_service import LLMService

Send = Callable[[bytes], Awaitable[None]]

#: The finish reasons of a whole answer and of one cut off, for each provider.
WHOLE = {"chat": "stop", "responses": "completed", "anthropic": "end_turn", "google": "STOP"}
CUT = {
    "chat": ["length", "content_filter"],
    "responses": ["max_output_tokens"],
    "anthropic": ["max_tokens", "refusal"],
    "google": ["MAX_TOKENS", "SAFETY"],
}
KINDS = list(WHOLE)


@dataclass
class Scripted:
    """One answer."""

    words: list[str]
    pace: float = 0.0
    #: The finish reason; None closes the stream without one.
    reason: str | None = ""
    #: Whether the stream stalls after the words.
    stalls: bool = False


@dataclass
class Asked:
    """One request, and how much of its answer was sent."""

    body: dict[str, Any]
    sent: int = 0
    progress: asyncio.Condition = field(default_factory=asyncio.Condition)
    over: asyncio.Event = field(default_factory=asyncio.Event)
    hung_up: bool = False

    async def wait_sent(self, words: int) -> None:
        async with self.progress:
            await self.progress.wait_for(lambda: self.sent >= words or self.over.is_set())


class FakeProvider:
    """Answers each request with the next of its answers, always as a stream."""

    def __init__(self) -> None:
        self.answers: list[Scripted] = []
        self.asked: list[Asked] = []
        self._arrived = asyncio.Condition()
        self._runner: web.AppRunner | None = None
        self.port = 0

    async def start(self) -> None:
        app = web.Application(client_max_size=2**26)
        app.router.add_post("/v1/chat/completions", self._handle(_chat))
        app.router.add_post("/v1/responses", self._handle(_responses))
        app.router.add_post("/v1/messages", self._handle(_anthropic))
        app.router.add_post("/{path:.*}:streamGenerateContent", self._handle(_google))
        self._runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        assert self._runner is not None
        await self._runner.cleanup()

    def say(self, text: str, **how: Any) -> None:
        self.answers.append(Scripted(text.split(" "), **how))

    async def wait_asked(self, count: int) -> Asked:
        async with self._arrived:
            await self._arrived.wait_for(lambda: len(self.asked) >= count)
        return self.asked[count - 1]

    def _handle(self, dialect: "Dialect") -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        async def handle(http: web.Request) -> web.StreamResponse:
            asked = Asked(await http.json())
            async with self._arrived:
                self.asked.append(asked)
                self._arrived.notify_all()
            response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
            await response.prepare(http)
            try:
                await dialect(self.answers.pop(0), asked, response.write)
            except (asyncio.CancelledError, ConnectionError):
                asked.hung_up = True
                raise
            finally:
                async with asked.progress:
                    asked.over.set()
                    asked.progress.notify_all()
            return response

        return handle


Dialect = Callable[[Scripted, Asked, Send], Awaitable[None]]


async def _send_words(
    scripted: Scripted, asked: Asked, send: Callable[[str], Awaitable[None]]
) -> None:
    for position, word in enumerate(scripted.words):
        await asyncio.sleep(scripted.pace if position else 0)
        await send(word if position == 0 else f" {word}")
        async with asked.progress:
            asked.sent += 1
            asked.progress.notify_all()
    if scripted.stalls:
        await asyncio.Event().wait()


async def _chat(scripted: Scripted, asked: Asked, send: Send) -> None:
    async def chunk(delta: dict[str, Any], reason: str | None = None) -> None:
        choice = {"index": 0, "delta": delta, "finish_reason": reason}
        head = {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": "m"}
        await send(f"data: {json.dumps({**head, 'choices': [choice]})}\n\n".encode())

    await _send_words(scripted, asked, lambda word: chunk({"content": word}))
    if scripted.reason is not None:
        await chunk({}, scripted.reason or WHOLE["chat"])
        await send(b"data: [DONE]\n\n")


async def _responses(scripted: Scripted, asked: Asked, send: Send) -> None:
    numbers = iter(range(10**9))
    base: dict[str, Any] = {"id": "r", "object": "response", "created_at": 1, "model": "m"}
    base |= {"output": [], "parallel_tool_calls": True, "tool_choice": "auto", "tools": []}

    async def event(kind: str, **rest: Any) -> None:
        data = {"type": kind, "sequence_number": next(numbers), **rest}
        await send(f"event: {kind}\ndata: {json.dumps(data)}\n\n".encode())

    async def word(text: str) -> None:
        place = {"item_id": "m", "output_index": 0, "content_index": 0, "logprobs": []}
        await event("response.output_text.delta", delta=text, **place)

    await event("response.created", response={**base, "status": "in_progress"})
    item = {"id": "m", "type": "message", "role": "assistant", "status": "in_progress"}
    await event("response.output_item.added", output_index=0, item={**item, "content": []})
    await _send_words(scripted, asked, word)
    if scripted.reason == "":
        await event("response.completed", response={**base, "status": "completed"})
    elif scripted.reason is not None:
        why = {"status": "incomplete", "incomplete_details": {"reason": scripted.reason}}
        await event("response.incomplete", response={**base, **why})


async def _anthropic(scripted: Scripted, asked: Asked, send: Send) -> None:
    usage = {"input_tokens": 1, "output_tokens": 1}

    async def event(kind: str, **rest: Any) -> None:
        await send(f"event: {kind}\ndata: {json.dumps({'type': kind, **rest})}\n\n".encode())

    async def word(text: str) -> None:
        delta = {"type": "text_delta", "text": text}
        await event("content_block_delta", index=0, delta=delta)

    message = {"id": "m", "type": "message", "role": "assistant", "content": [], "model": "m"}
    message |= {"stop_reason": None, "stop_sequence": None, "usage": usage}
    await event("message_start", message=message)
    await event("content_block_start", index=0, content_block={"type": "text", "text": ""})
    await _send_words(scripted, asked, word)
    if scripted.reason is not None:
        await event("content_block_stop", index=0)
        delta = {"stop_reason": scripted.reason or WHOLE["anthropic"], "stop_sequence": None}
        await event("message_delta", delta=delta, usage=usage)
        await event("message_stop")


async def _google(scripted: Scripted, asked: Asked, send: Send) -> None:
    async def chunk(parts: list[dict[str, Any]], reason: str | None = None) -> None:
        candidate: dict[str, Any] = {"content": {"role": "model", "parts": parts}, "index": 0}
        if reason is not None:
            candidate["finishReason"] = reason
        await send(f"data: {json.dumps({'candidates': [candidate]})}\r\n\r\n".encode())

    await _send_words(scripted, asked, lambda word: chunk([{"text": word}]))
    if scripted.reason is not None:
        await chunk([], scripted.reason or WHOLE["google"])


def new_service(kind: str, port: int) -> LLMService[Any]:
    """Make the service of one kind that talks to a port of this machine."""
    return _SERVICES[kind](f"http://127.0.0.1:{port}")


def _new_chat(url: str) -> LLMService[Any]:
    from pipecat.services.openai.llm import OpenAILLMService

    settings = OpenAILLMService.Settings(model="m")
    return OpenAILLMService(api_key="k", base_url=f"{url}/v1", settings=settings)


def _new_responses(url: str) -> LLMService[Any]:
    from pipecat.services.openai.responses.llm import OpenAIResponsesHttpLLMService

    settings = OpenAIResponsesHttpLLMService.Settings(model="m")
    return OpenAIResponsesHttpLLMService(api_key="k", base_url=f"{url}/v1", settings=settings)


def new_anthropic(url: str, **client: Any) -> LLMService[Any]:
    anthropic = pytest.importorskip("anthropic")
    from pipecat.services.anthropic.llm import AnthropicLLMService

    settings = AnthropicLLMService.Settings(model="m", max_tokens=100)
    client = {"api_key": "k", "base_url": url, "max_retries": 0, **client}
    return AnthropicLLMService(
        api_key="k", client=anthropic.AsyncAnthropic(**client), settings=settings
    )


def _new_google(url: str) -> LLMService[Any]:
    pytest.importorskip("google.genai")
    from google.genai.types import HttpOptions
    from pipecat.services.google.llm import GoogleLLMService

    options = HttpOptions(base_url=url)
    settings = GoogleLLMService.Settings(model="gemini-m")
    return GoogleLLMService(api_key="k", http_options=options, settings=settings)


_SERVICES = {
    "chat": _new_chat,
    "responses": _new_responses,
    "anthropic": new_anthropic,
    "google": _new_google,
}
