"""The script of a scripted LLM server: replies, and rules that match them to requests.

The replies (`Text`, `ToolCall`, `ToolCalls`, `Failure`, `Stall`, `Disconnect`) are immutable values
that several scripts can share.
"""

import json
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from pipecat_jobs._protocol.checks import check_delay, check_instance
from pipecat_jobs.testing.llm_request import JSON, LLMRequest, tokenize


@dataclass(frozen=True)
class Text:
    """A reply of plain text, streamed word by word.

    Attributes:
        text: The text of the reply.
        pace: Seconds between one token and the next. With 0, the server still yields to the event
            loop between tokens, so that a client can hang up after any token.
        first_token_after: Seconds between the request and the first token.
        finish_reason: The ``finish_reason`` of the API: ``"stop"``, or ``"length"`` or
            ``"content_filter"`` for a reply that is cut off; None ends the stream without one, like
            a server that is restarted. A reply that calls tools has ``"tool_calls"`` in place of
            ``"stop"``. See https://platform.openai.com/docs/api-reference/chat-streaming.

    Raises:
        InvalidJobTypeError: If a value has the wrong type.
        InvalidJobError: If a time is negative.

    Example::

        server = ScriptedLLMServer()
        server.reply(Text("It is raining in Oslo.", first_token_after=0.3, pace=0.02))
    """

    text: str
    pace: float = 0.0
    first_token_after: float = 0.0
    finish_reason: str | None = "stop"

    def __post_init__(self) -> None:
        check_instance("text", self.text, str, "the text of the reply")
        check_delay("pace", self.pace)
        check_delay("first_token_after", self.first_token_after)

    @property
    def tokens(self) -> list[str]:
        """The tokens that the server streams: words with the space before them."""
        return tokenize(self.text)

    @property
    def duration(self) -> float:
        """Seconds from the request to the last token."""
        return self.first_token_after + self.pace * max(0, len(self.tokens) - 1)


@dataclass(frozen=True)
class ToolCall:
    """A reply that calls one tool.

    Attributes:
        name: The name of the tool.
        arguments: The arguments of the tool, sent to the client as JSON.
        call_id: The id of the call; with None, the server numbers it (``"call_1"``, ``"call_2"``).

    Raises:
        TypeError: If the arguments cannot be written as JSON.

    Example::

        server = ScriptedLLMServer()
        server.on("weather", ToolCall("get_weather", {"city": "Oslo"}), "It is raining.")
    """

    name: str
    arguments: Mapping[str, JSON] = field(default_factory=dict[str, JSON])
    call_id: str | None = None

    def __post_init__(self) -> None:
        # Encoded here once, so that a wrong argument raises in the test and not in the server.
        json.dumps(self.arguments)


@dataclass(frozen=True, init=False)
class ToolCalls:
    """A reply that calls several tools at once, or has text before a tool call.

    Args:
        *calls: The calls, in the order in which they are streamed; at least one.
        text: The text before the calls.

    Attributes:
        calls: The calls, in the order in which they are streamed.
        text: The text before the calls; its `Text.pace` and `Text.first_token_after` apply.

    Raises:
        ValueError: If there is no call.

    Example::

        calls = [ToolCall("get_weather", {"city": city}) for city in ("Oslo", "Rome")]
        reply = ToolCalls(*calls, text="Let me look.")
        assert [call.arguments["city"] for call in reply.calls] == ["Oslo", "Rome"]
    """

    calls: tuple[ToolCall, ...]
    text: Text

    def __init__(self, *calls: ToolCall, text: Text | str = "") -> None:
        if not calls:
            raise ValueError("ToolCalls needs at least one ToolCall")
        object.__setattr__(self, "calls", calls)
        object.__setattr__(self, "text", as_text(text))


@dataclass(frozen=True)
class Failure:
    """A reply that is an HTTP error with an error body like OpenAI's.

    Attributes:
        status: The HTTP status, from 400 to 599.
        message: The message of the error.
        code: The code of the error, such as ``"rate_limit_exceeded"``.
        retryable: Whether the client may send the request again. OpenAI's clients do that by
            themselves after some statuses (https://github.com/openai/openai-python#retries), and
            each time take another reply from the script. With False, the server sends the header
            ``x-should-retry: false``, so that they do not.

    Raises:
        ValueError: If the status is not an error.

    Example::

        server = ScriptedLLMServer()
        server.reply(Failure(429, "too many requests", code="rate_limit_exceeded"), "Hello!")
    """

    status: int = 500
    message: str = "scripted failure"
    code: str | None = None
    retryable: bool = False

    def __post_init__(self) -> None:
        if not 400 <= self.status <= 599:
            raise ValueError(f"a Failure's status is 400 to 599, not {self.status}")


@dataclass(frozen=True)
class Stall:
    """A reply that never ends: some text, then nothing until the client hangs up.

    Attributes:
        after: The text that is sent first; may be empty.

    Example::

        server = ScriptedLLMServer()
        server.on("dogs", Stall(after="Dogs are loyal, but"))
    """

    after: Text | str = ""


@dataclass(frozen=True)
class Disconnect:
    """A reply that the server does not finish: some text, then it closes the connection.

    In a stream, the reply has begun then, and OpenAI's clients raise an error. Without a stream,
    the client has got nothing, and OpenAI's clients send the request again
    (https://github.com/openai/openai-python#retries).

    Attributes:
        after: The text that is sent first; may be empty.

    Example::

        server = ScriptedLLMServer()
        server.on("dogs", Disconnect(after="Dogs are"))
    """

    after: Text | str = ""


Reply: TypeAlias = Text | ToolCall | ToolCalls | Failure | Stall | Disconnect
"""Any reply to a request."""


def as_reply(reply: Reply | str) -> Reply:
    """Turn a string into a `Text`, and return a reply unchanged."""
    match reply:
        case str():
            return Text(reply)
        case Text() | ToolCall() | ToolCalls() | Failure() | Stall() | Disconnect():
            return reply
        case _:
            raise TypeError(f"{reply!r} is not a reply")


def as_text(text: Text | str) -> Text:
    """Turn a string into a `Text`, and return a `Text` unchanged."""
    return Text(text) if isinstance(text, str) else text


Match: TypeAlias = str | Callable[[LLMRequest], bool]
"""Selects requests: by a text that they mention, or by a function that returns whether it does."""

ScriptedReply: TypeAlias = Reply | str | Callable[[LLMRequest], Reply | str]
"""A reply of a rule: a reply, a string for a `Text`, or a function that makes one of these."""


@dataclass
class Rule:
    """Matches replies to requests; `ScriptedLLMServer.on` adds one."""

    match: Match
    #: The replies that are left, in order.
    replies: deque[ScriptedReply]
    #: Whether all later requests get the last reply as well.
    repeat: bool

    def matches(self, request: LLMRequest) -> bool:
        """Return whether this rule has a reply to a request."""
        if not self.replies:
            return False
        return request.mentions(self.match) if isinstance(self.match, str) else self.match(request)

    def next_reply(self, request: LLMRequest) -> Reply:
        """Remove and return the next reply."""
        stays = self.repeat and len(self.replies) == 1
        reply = self.replies[0] if stays else self.replies.popleft()
        return as_reply(reply(request) if callable(reply) else reply)
