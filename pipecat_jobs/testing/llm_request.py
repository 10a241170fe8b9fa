"""What a scripted LLM server records of each request it receives."""

import asyncio
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, TypeAlias

JSON: TypeAlias = "bool | int | float | str | Sequence[JSON] | Mapping[str, JSON] | None"
"""A value that can be written as JSON."""

Outcome: TypeAlias = Literal[
    "streaming", "completed", "hung_up", "failed", "disconnected", "stopped"
]
"""The state of a request.

- ``"streaming"``: the server is sending the reply.
- ``"completed"``: the server has sent the whole reply.
- ``"hung_up"``: the client closed the connection before the reply was complete.
- ``"failed"``: the server has sent an HTTP error.
- ``"disconnected"``: the server closed the connection, because the reply is a `Disconnect`.
- ``"stopped"``: the server was stopped before the reply was complete.
"""


def tokenize(text: str) -> list[str]:
    """Split a text into the tokens that the server streams: words with the space before them."""
    return re.findall(r"\s*\S+|\s+", text)


class Changes:
    """Lets coroutines wait until a condition on the state of its owner is true."""

    def __init__(self) -> None:
        self._changed = asyncio.Event()

    def notify(self) -> None:
        """Have every waiting coroutine check its condition again."""
        # Each change has a new event, so that a wait that starts now waits for the next change.
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def wait_until(self, condition: Callable[[], bool]) -> None:
        """Wait until a condition is true."""
        while not condition():
            await self._changed.wait()


def message_text(message: Mapping[str, JSON]) -> str:
    """Return the text of a chat message, whether its content is a string or a list of parts."""
    content = message.get("content")
    if isinstance(content, str):
        return content
    if not isinstance(content, Sequence):
        return ""
    texts = [part.get("text") for part in content if isinstance(part, Mapping)]
    return "\n".join(text for text in texts if isinstance(text, str))


class LLMRequest:
    """A chat-completions request, and the part of its reply that the server has sent.

    All times are in seconds on the clock of the event loop (``loop.time()``).

    Args:
        body: The JSON body of the request.

    Attributes:
        body: The JSON body of the request.
        model: The name of the model that the client wants.
        messages: The messages of the conversation, as the client sent them.
        sent: The text tokens that were sent until now. A client that does not want a stream gets
            all of them at once.
        arrived_at: The time at which the request arrived.
        first_token_at: The time at which the first piece of the reply, text or a tool call, was
            sent; None before that.
        ended_at: The time at which the request ended in any way; None before that.
        hung_up_at: The time at which the client closed the connection before the reply was
            complete; None if it did not.
        outcome: The state of the request: ``"streaming"``, ``"completed"``, ``"hung_up"``,
            ``"failed"``, ``"disconnected"`` or ``"stopped"``.

    Raises:
        ValueError: If ``body`` is not the body of a chat-completions request.

    Example::

        from openai import AsyncOpenAI

        async with (
            ScriptedLLMServer(default="Hello!") as server,
            AsyncOpenAI(api_key="test", base_url=server.base_url) as client,
        ):
            await client.chat.completions.create(
                model="scripted", messages=[{"role": "user", "content": "Hi."}]
            )
            (request,) = await server.wait_for_requests(1)
            assert (request.model, request.last_user_text) == ("scripted", "Hi.")
            assert (request.outcome, request.sent_text) == ("completed", "Hello!")
    """

    def __init__(self, body: JSON) -> None:
        if not isinstance(body, dict):
            raise ValueError("the body must be a JSON object")
        model, messages = body.get("model"), body.get("messages")
        if not isinstance(model, str):
            raise ValueError("'model' must be a string")
        if not isinstance(messages, list) or not messages:
            raise ValueError("'messages' must be a list of at least one message")
        self.body: dict[str, JSON] = body
        self.model: str = model
        self.messages: list[dict[str, JSON]] = []
        for message in messages:
            if not isinstance(message, dict):
                raise ValueError("every message must be a JSON object")
            self.messages.append(message)
        self.sent: list[str] = []
        self._clock = asyncio.get_running_loop().time
        self.arrived_at: float = self._clock()
        self.first_token_at: float | None = None
        self.ended_at: float | None = None
        self.hung_up_at: float | None = None
        self.outcome: Outcome = "streaming"
        self._changes = Changes()

    def __repr__(self) -> str:
        return f"<LLMRequest {self.last_user_text!r} {self.outcome}, {len(self.sent)} tokens sent>"

    @property
    def system(self) -> str:
        """The text of all system and developer messages."""
        return self._texts_of("system", "developer")

    @property
    def last_user_text(self) -> str:
        """The text of the last user message; empty without a user message."""
        users = [message for message in self.messages if message.get("role") == "user"]
        return message_text(users[-1]) if users else ""

    @property
    def tools(self) -> list[str]:
        """The names of the tools that the client offers."""
        tools = self.body.get("tools")
        if not isinstance(tools, list):
            return []
        functions = [tool.get("function") for tool in tools if isinstance(tool, dict)]
        names = [function.get("name") for function in functions if isinstance(function, dict)]
        return [name for name in names if isinstance(name, str)]

    @property
    def stream(self) -> bool:
        """Whether the client wants a stream."""
        return self.body.get("stream") is True

    @property
    def include_usage(self) -> bool:
        """Whether the client wants a usage chunk at the end of the stream."""
        options = self.body.get("stream_options")
        return isinstance(options, dict) and options.get("include_usage") is True

    @property
    def sent_text(self) -> str:
        """The text that was sent until now."""
        return "".join(self.sent)

    def mentions(self, text: str) -> bool:
        """Return whether a text occurs in any message, also in a system message.

        Args:
            text: The text to look for, in upper or lower case.

        Returns:
            True if it occurs.

        Example::

            server = ScriptedLLMServer()
            server.on(lambda request: request.mentions("weather"), "It is raining.")
        """
        wanted = text.casefold()
        return any(wanted in message_text(message).casefold() for message in self.messages)

    async def wait_started(self) -> None:
        """Wait until the first piece of the reply was sent.

        Raises:
            RuntimeError: If the request ends before that.
        """
        await self._wait(lambda: self.first_token_at is not None, "its reply started")

    async def wait_token(self, count: int) -> None:
        """Wait until a number of text tokens were sent.

        Args:
            count: How many tokens, counted from the beginning of the reply.

        Raises:
            RuntimeError: If the request ends with fewer tokens.

        Example::

            from openai import AsyncOpenAI

            async with (
                ScriptedLLMServer(default=Stall(after="one two")) as server,
                AsyncOpenAI(api_key="test", base_url=server.base_url) as client,
            ):
                stream = await client.chat.completions.create(
                    model="scripted", messages=[{"role": "user", "content": "Hi."}], stream=True
                )
                (request,) = await server.wait_for_requests(1)
                await request.wait_token(2)
                await stream.close()
                await request.wait_hung_up()
        """
        await self._wait(lambda: len(self.sent) >= count, f"{count} tokens were sent")

    async def wait_ended(self) -> None:
        """Wait until the request has ended in any way."""
        await self._changes.wait_until(lambda: self.ended_at is not None)

    async def wait_hung_up(self) -> None:
        """Wait until the client has closed the connection before the reply was complete.

        Raises:
            RuntimeError: If the request ends in another way.
        """
        await self._wait(lambda: self.hung_up_at is not None, "the client hung up")

    def record_start(self) -> None:
        """Record that the first piece of the reply was sent. Called by the server."""
        self.first_token_at = self._clock()
        self._changes.notify()

    def record_tokens(self, *tokens: str) -> None:
        """Record that text was sent. Called by the server."""
        self.sent.extend(tokens)
        self._changes.notify()

    def record_end(self, outcome: Outcome) -> None:
        """Record how the request ended; only the first end counts. Called by the server."""
        if self.ended_at is not None:
            return
        self.outcome = outcome
        self.ended_at = self._clock()
        if outcome == "hung_up":
            self.hung_up_at = self.ended_at
        self._changes.notify()

    def _texts_of(self, *roles: str) -> str:
        texts = (message_text(message) for message in self.messages if message.get("role") in roles)
        return "\n".join(texts)

    async def _wait(self, reached: Callable[[], bool], what: str) -> None:
        await self._changes.wait_until(lambda: reached() or self.ended_at is not None)
        if not reached():
            raise RuntimeError(f"{self!r} ended before {what}")
