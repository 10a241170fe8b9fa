"""What a scripted LLM server records of each request it receives."""

import asyncio
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, TypeAlias

JSON: TypeAlias = "bool | int | float | str | Sequence[JSON] | Mapping[str, JSON] | None"
"""A value that JSON can express."""

Outcome: TypeAlias = Literal[
    "streaming", "completed", "hung_up", "failed", "disconnected", "stopped"
]
"""How a request stands.

- ``"streaming"``: still being answered.
- ``"completed"``: answered in full.
- ``"hung_up"``: the client closed the connection before the answer was complete.
- ``"failed"``: answered with an HTTP error.
- ``"disconnected"``: the server dropped the connection, as a `Disconnect` says.
- ``"stopped"``: the server was stopped in the middle of the answer.
"""


def tokenize(text: str) -> list[str]:
    """Split a text into the tokens the server streams, each a word with the space before it."""
    return re.findall(r"\s*\S+|\s+", text)


class Changes:
    """Lets coroutines wait until the state of its owner satisfies a condition."""

    def __init__(self) -> None:
        self._changed = asyncio.Event()

    def notify(self) -> None:
        """Have every waiting coroutine look at its condition again."""
        # A new event for each change: a wait that starts now waits for the next change.
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def wait_until(self, condition: Callable[[], bool]) -> None:
        """Wait until a condition holds; return at once if it does already."""
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
    """One chat-completions request: what was asked, what was sent, how it ended.

    All times are in seconds on the event loop's clock (``loop.time()``).

    Attributes:
        body: The request's JSON body.
        model: The model asked for.
        messages: The conversation, as the client sent it.
        sent: The text tokens sent so far. A client that did not ask for a stream gets all of them
            at once.
        arrived_at: When the request arrived.
        first_token_at: When the first piece of the answer, text or tool call, was sent; None
            before.
        ended_at: When the exchange ended, in any way; None before.
        hung_up_at: When the client closed the connection in the middle of the answer; None if it
            did not.
        outcome: How the request stands.
    """

    def __init__(self, body: JSON) -> None:
        """Read a request.

        Args:
            body: The request's JSON body.

        Raises:
            ValueError: If it is not the body of a chat-completions request.
        """
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
        """The text of the last user message; empty if there is none."""
        users = [message for message in self.messages if message.get("role") == "user"]
        return message_text(users[-1]) if users else ""

    @property
    def tools(self) -> list[str]:
        """The names of the tools the client offered."""
        tools = self.body.get("tools")
        if not isinstance(tools, list):
            return []
        functions = [tool.get("function") for tool in tools if isinstance(tool, dict)]
        names = [function.get("name") for function in functions if isinstance(function, dict)]
        return [name for name in names if isinstance(name, str)]

    @property
    def stream(self) -> bool:
        """Whether the client asked for a stream."""
        return self.body.get("stream") is True

    @property
    def include_usage(self) -> bool:
        """Whether the client asked for a usage chunk at the end of the stream."""
        options = self.body.get("stream_options")
        return isinstance(options, dict) and options.get("include_usage") is True

    @property
    def sent_text(self) -> str:
        """The text sent so far."""
        return "".join(self.sent)

    def mentions(self, text: str) -> bool:
        """Tell whether a text occurs in any message, the system's included.

        Args:
            text: The text to look for; upper and lower case are the same.

        Returns:
            True if it occurs.
        """
        wanted = text.casefold()
        return any(wanted in message_text(message).casefold() for message in self.messages)

    async def wait_started(self) -> None:
        """Wait until the first piece of the answer was sent.

        Raises:
            RuntimeError: If the request ended without one.
        """
        await self._wait(lambda: self.first_token_at is not None, "its answer started")

    async def wait_token(self, count: int) -> None:
        """Wait until a number of text tokens were sent.

        Args:
            count: How many tokens in all.

        Raises:
            RuntimeError: If the request ended with fewer.
        """
        await self._wait(lambda: len(self.sent) >= count, f"{count} tokens were sent")

    async def wait_ended(self) -> None:
        """Wait until the exchange has ended, in any way."""
        await self._changes.wait_until(lambda: self.ended_at is not None)

    async def wait_hung_up(self) -> None:
        """Wait until the client hung up.

        Raises:
            RuntimeError: If the request ended in another way.
        """
        await self._wait(lambda: self.hung_up_at is not None, "the client hung up")

    def record_start(self) -> None:
        """Record, for the server, that the first piece of the answer was sent."""
        self.first_token_at = self._clock()
        self._changes.notify()

    def record_tokens(self, *tokens: str) -> None:
        """Record, for the server, that text was sent."""
        self.sent.extend(tokens)
        self._changes.notify()

    def record_end(self, outcome: Outcome) -> None:
        """Record, for the server, how the exchange ended; only the first end counts."""
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
