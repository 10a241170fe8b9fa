"""A scripted LLM behind a real HTTP server, for tests without an API key and without a network.

`ScriptedLLMServer` implements the chat-completions API of OpenAI, with and without streaming
(https://platform.openai.com/docs/api-reference/chat). Give its ``base_url`` to Pipecat's
``OpenAILLMService`` or to any other client of that API.
"""

import asyncio
import json
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, NoReturn, Self

from aiohttp import web
from loguru import logger
from yarl import URL

from pipecat_jobs._protocol.checks import check_port, check_text
from pipecat_jobs.testing.llm_request import (
    JSON,
    Changes,
    LLMRequest,
    Outcome,
    message_text,
    tokenize,
)
from pipecat_jobs.testing.llm_script import (
    Disconnect,
    Failure,
    Match,
    Reply,
    Rule,
    ScriptedReply,
    Stall,
    Text,
    ToolCall,
    ToolCalls,
    as_reply,
    as_text,
)

__all__ = [
    "JSON",
    "Disconnect",
    "Failure",
    "LLMRequest",
    "Match",
    "Outcome",
    "Reply",
    "ScriptedLLMServer",
    "ScriptedReply",
    "Stall",
    "Text",
    "ToolCall",
    "ToolCalls",
]

# A conversation with images is larger than 1 MiB, the default limit of aiohttp.
_MAX_BODY_BYTES = 64 * 1024 * 1024

_ARGUMENTS_PIECE = 8  # Characters of a tool call's arguments per chunk.


class ScriptedLLMServer:
    """An OpenAI-compatible chat-completions server that takes its replies from a script.

    It listens on the loopback interface, accepts any API key, and records every request. A request
    gets the first reply of these: from the rules (`on`), in the order in which they were added;
    from the queue (`reply`); the default. If none has a reply, the request gets an HTTP 500 with a
    message that says how to script one. Usage is counted in the tokens of the server, which are
    words.

    Example::

        async with ScriptedLLMServer() as server:
            server.on("weather", ToolCall("get_weather", {"city": "Oslo"}), "It is raining.")
            server.reply("Hello there!")

            llm = OpenAILLMService(
                api_key="test",
                base_url=server.base_url,
                settings=OpenAILLMService.Settings(model="scripted"),
            )
            context = LLMContext([{"role": "user", "content": "Hi!"}])
            assert await llm.run_inference(context) == "Hello there!"

            (request,) = await server.wait_for_requests(1)
            await request.wait_ended()
            assert request.sent_text == "Hello there!"
    """

    def __init__(
        self, *, host: str = "127.0.0.1", port: int = 0, default: Reply | str | None = None
    ) -> None:
        """Create a server, which listens after `start()` or inside ``async with``.

        Args:
            host: The address to listen on.
            port: The port to listen on, from 0 to 65535; 0 takes a free port.
            default: The reply to a request for which neither a rule nor the queue has one. With
                None, such a request gets an HTTP 500 that says how to script a reply.

        Raises:
            InvalidJobTypeError: If an argument has the wrong type.
            InvalidJobError: If the host is empty or the port out of range.
        """
        self.requests: list[LLMRequest] = []
        """All valid requests, in order of arrival."""
        self._host = check_text("host", host, "the address to listen on")
        self._port = check_port("port", port, least=0)
        self._default = None if default is None else as_reply(default)
        self._rules: list[Rule] = []
        self._queue: deque[Reply] = deque()
        self._arrivals = Changes()
        self._runner: web.AppRunner | None = None
        self._connections: set[asyncio.Task[None]] = set()
        self._calls = 0

    async def __aenter__(self) -> Self:
        """Start the server."""
        await self.start()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop the server."""
        await self.stop()

    @property
    def base_url(self) -> str:
        """The base URL for clients, such as ``"http://127.0.0.1:40123/v1"``.

        Raises:
            RuntimeError: If the server is not running.
        """
        if self._runner is None:
            raise RuntimeError("the server is not running: use `async with` or `await start()`")
        host, port = self._runner.addresses[0][:2]
        return str(URL.build(scheme="http", host=host, port=port, path="/v1"))

    async def start(self) -> None:
        """Start to listen.

        Raises:
            RuntimeError: If the server is running already.
            OSError: If it cannot listen on the host and port.

        Example::

            server = ScriptedLLMServer(default="Hello!")
            await server.start()
            assert server.base_url.startswith("http://127.0.0.1:")
            await server.stop()
        """
        if self._runner is not None:
            raise RuntimeError("the server is running already")
        app = web.Application(client_max_size=_MAX_BODY_BYTES)
        app.router.add_post("/v1/chat/completions", self._chat_completions)
        app.router.add_get("/v1/models", self._models)
        app.on_shutdown.append(self._cancel_connections)
        # If a client hangs up while nothing is written, only a cancelled handler shows it.
        runner = web.AppRunner(app, access_log=None, handler_cancellation=True)
        await runner.setup()
        try:
            await web.TCPSite(runner, self._host, self._port).start()
        except BaseException:
            await runner.cleanup()
            raise
        self._runner = runner

    async def stop(self) -> None:
        """Close all connections and stop to listen, if the server is running."""
        if self._runner is None:
            return
        runner, self._runner = self._runner, None
        await runner.cleanup()
        # aiohttp does not wait for a connection that was lost just before, so its task may not have
        # ended yet.
        if self._connections:
            await asyncio.wait(self._connections)
        self._arrivals.notify()

    def reply(self, *replies: Reply | str) -> None:
        """Add replies to the queue. Each request for which no rule has a reply takes the next one.

        Args:
            *replies: The replies, in order; a string is a `Text`.

        Example::

            server = ScriptedLLMServer()
            server.reply("Hello!", Failure(429), "Hello again!")
        """
        self._queue.extend(as_reply(reply) for reply in replies)

    def on(self, match: Match, *replies: ScriptedReply, repeat: bool = True) -> None:
        """Add a rule, which gives its replies to the requests that it matches.

        Args:
            match: A text that occurs, in upper or lower case, in any message of the conversation,
                also in a system message; or a function that returns whether a request matches,
                such as ``lambda request: "book" in request.last_user_text``.
            *replies: The replies to the first matching request, the second, and so on; a function
                makes the reply from the request.
            repeat: Whether all later matching requests get the last reply as well. Otherwise they
                go to the next rule or the queue.

        Raises:
            ValueError: If there is no reply.

        Example::

            server = ScriptedLLMServer()
            server.on("weather", ToolCall("get_weather", {"city": "Oslo"}), "It is raining.")
            server.on(lambda request: "book" in request.last_user_text, "On shelf 7.")
        """
        if not replies:
            raise ValueError("a rule needs at least one reply")
        self._rules.append(Rule(match, deque(replies), repeat))

    async def wait_for_requests(self, count: int) -> list[LLMRequest]:
        """Wait until a number of requests have arrived since the server was created.

        Args:
            count: How many requests to wait for, counted from the first one.

        Returns:
            All requests until now, in order of arrival, at least ``count``.

        Raises:
            RuntimeError: If the server is not running, or stops, before ``count`` have arrived.
        """
        await self._arrivals.wait_until(lambda: len(self.requests) >= count or self._runner is None)
        if len(self.requests) < count:
            raise RuntimeError(f"waited for {count} requests, {len(self.requests)} had arrived")
        return list(self.requests)

    async def _models(self, http: web.Request) -> web.Response:
        self._track_connection(http)
        model = {"id": "scripted", "object": "model", "created": 0, "owned_by": "pipecat-jobs"}
        return web.json_response({"object": "list", "data": [model]})

    async def _chat_completions(self, http: web.Request) -> web.StreamResponse:
        self._track_connection(http)
        raw = await http.read()
        try:
            request = LLMRequest(json.loads(raw))
        except ValueError as error:
            return _error_response(Failure(400, f"malformed request: {error}"))
        self.requests.append(request)
        self._arrivals.notify()
        exchange = _Exchange(http, request, len(self.requests), self._next_call_id)
        try:
            return await exchange.reply(self._choose(request))
        except asyncio.CancelledError:
            # Without a transport, the client has closed the connection; otherwise `stop` cancelled.
            request.record_end("hung_up" if http.transport is None else "stopped")
            raise

    def _choose(self, request: LLMRequest) -> Reply:
        try:
            for rule in self._rules:
                if rule.matches(request):
                    return rule.next_reply(request)
        except Exception as error:
            # A function of the script failed. The author of the test must see why, and the client
            # must not retry, because that would call the function again.
            logger.exception("ScriptedLLMServer: a rule raised an exception")
            return Failure(500, f"a rule of the ScriptedLLMServer raised {error!r}", "script_error")
        if self._queue:
            return self._queue.popleft()
        return self._default or _unscripted(request)

    def _next_call_id(self) -> str:
        self._calls += 1
        return f"call_{self._calls}"

    def _track_connection(self, http: web.Request) -> None:
        self._connections.add(http.task)
        http.task.add_done_callback(self._connections.discard)

    async def _cancel_connections(self, app: web.Application) -> None:
        for connection in self._connections:
            connection.cancel()


@dataclass(frozen=True)
class _Turn:
    """The form of all replies except failures: text, then tool calls, then an ending."""

    text: Text
    calls: tuple[ToolCall, ...] = ()
    ending: Literal["finish", "stall", "disconnect"] = "finish"

    @classmethod
    def of(cls, reply: Text | ToolCall | ToolCalls | Stall | Disconnect) -> Self:
        match reply:
            case Text():
                return cls(reply)
            case ToolCall():
                return cls(Text(""), (reply,))
            case ToolCalls(calls=calls, text=text):
                return cls(text, calls)
            case Stall(after=after):
                return cls(as_text(after), ending="stall")
            case Disconnect(after=after):
                return cls(as_text(after), ending="disconnect")


class _Exchange:
    """Sends the reply to one request."""

    def __init__(
        self,
        http: web.Request,
        request: LLMRequest,
        number: int,
        next_call_id: Callable[[], str],
    ) -> None:
        self._http = http
        self._request = request
        self._next_call_id = next_call_id
        self._stream = web.StreamResponse(
            headers={"Content-Type": "text/event-stream", "Cache-Control": "no-cache"}
        )
        self._envelope: dict[str, JSON] = {
            "id": f"chatcmpl-{number}",
            "created": int(time.time()),
            "model": request.model,
        }

    async def reply(self, reply: Reply) -> web.StreamResponse:
        if isinstance(reply, Failure):
            self._request.record_end("failed")
            return _error_response(reply)
        turn = _Turn.of(reply)
        if not self._request.stream:
            return await self._reply_whole(turn)
        try:
            await self._reply_streaming(turn)
        except ConnectionError:
            # A write can fail before aiohttp reports that the connection is lost.
            self._request.record_end("hung_up")
        return self._stream

    async def _reply_whole(self, turn: _Turn) -> web.Response:
        await asyncio.sleep(turn.text.duration)
        if turn.ending != "finish":
            await self._break_off(turn)
        message: dict[str, JSON] = {"role": "assistant", "content": turn.text.text or None}
        if turn.calls:
            message["tool_calls"] = [
                self._call(call, json.dumps(call.arguments)) for call in turn.calls
            ]
        self._request.record_start()
        self._request.record_tokens(*turn.text.tokens)
        self._request.record_end("completed")
        choice: JSON = {"index": 0, "message": message, "finish_reason": _finish_reason(turn)}
        completion = {**self._envelope, "object": "chat.completion", "choices": [choice]}
        return web.json_response({**completion, "usage": self._usage(turn)})

    async def _reply_streaming(self, turn: _Turn) -> None:
        await self._stream.prepare(self._http)
        await asyncio.sleep(turn.text.first_token_after)
        if turn.ending == "finish" or turn.text.text:
            await self._send_delta({"role": "assistant", "content": "" if turn.text.text else None})
            self._request.record_start()
        for position, token in enumerate(turn.text.tokens):
            await asyncio.sleep(turn.text.pace if position else 0)
            await self._send_delta({"content": token})
            self._request.record_tokens(token)
        if turn.ending != "finish":
            await self._break_off(turn)
        for index, call in enumerate(turn.calls):
            await self._send_call(index, call)
        if (reason := _finish_reason(turn)) is not None:
            await self._send_delta({}, finish_reason=reason)
            if self._request.include_usage:
                await self._send_chunk([], usage=self._usage(turn))
            await self._stream.write(b"data: [DONE]\n\n")
        self._request.record_end("completed")

    async def _break_off(self, turn: _Turn) -> NoReturn:
        if turn.ending == "disconnect":
            self._request.record_end("disconnected")
            if self._http.transport is not None:
                self._http.transport.close()
        # aiohttp cancels this handler once one of the two sides has closed the connection.
        while True:
            await asyncio.Event().wait()

    async def _send_call(self, index: int, call: ToolCall) -> None:
        # As from OpenAI, the first chunk has the id and name, and the next ones the arguments.
        await self._send_delta({"tool_calls": [{"index": index, **self._call(call, "")}]})
        arguments = json.dumps(call.arguments)
        for start in range(0, len(arguments), _ARGUMENTS_PIECE):
            await asyncio.sleep(0)
            piece = arguments[start : start + _ARGUMENTS_PIECE]
            await self._send_delta(
                {"tool_calls": [{"index": index, "function": {"arguments": piece}}]}
            )

    async def _send_delta(
        self, delta: dict[str, JSON], *, finish_reason: str | None = None
    ) -> None:
        choice: JSON = {"index": 0, "delta": delta, "finish_reason": finish_reason}
        await self._send_chunk([choice], usage=None)

    async def _send_chunk(self, choices: list[JSON], *, usage: JSON) -> None:
        chunk = {**self._envelope, "object": "chat.completion.chunk", "choices": choices}
        if self._request.include_usage:
            chunk["usage"] = usage
        await self._stream.write(f"data: {json.dumps(chunk)}\n\n".encode())

    def _call(self, call: ToolCall, arguments: str) -> dict[str, JSON]:
        return {
            "id": call.call_id or self._next_call_id(),
            "type": "function",
            "function": {"name": call.name, "arguments": arguments},
        }

    def _usage(self, turn: _Turn) -> JSON:
        # Counted in the tokens of this server, so that a test can predict them.
        prompt = sum(len(tokenize(message_text(message))) for message in self._request.messages)
        arguments = (tokenize(json.dumps(call.arguments)) for call in turn.calls)
        completion = len(turn.text.tokens) + sum(map(len, arguments))
        return {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
        }


def _finish_reason(turn: _Turn) -> str | None:
    reason = turn.text.finish_reason
    return "tool_calls" if turn.calls and reason == "stop" else reason


def _unscripted(request: LLMRequest) -> Failure:
    return Failure(
        500,
        "no reply is scripted for this request"
        f' (model "{request.model}", last user text "{request.last_user_text}").'
        ' Script one before it arrives: server.reply("...") is for the next request,'
        ' server.on("some text", "...") for the requests that mention the text,'
        ' and ScriptedLLMServer(default=Text("...")) for all others.',
        "unscripted",
    )


def _error_response(failure: Failure) -> web.Response:
    error: JSON = {
        "message": failure.message,
        "type": "server_error" if failure.status >= 500 else "invalid_request_error",
        "param": None,
        "code": failure.code,
    }
    return web.json_response(
        {"error": error},
        status=failure.status,
        headers={} if failure.retryable else {"x-should-retry": "false"},
    )
