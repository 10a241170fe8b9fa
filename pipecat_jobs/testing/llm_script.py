"""The script of a scripted LLM server: which requests it answers, and with what.

The replies (`Text`, `ToolCall`, `ToolCalls`, `Failure`, `Stall`, `Disconnect`) are plain values,
which any number of scripts can share. A `Rule` says which requests to answer with which replies.
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
        text: What the model says.
        pace: Seconds between one token and the next. With 0 the server still yields to the event
            loop between tokens, so a client can hang up anywhere.
        first_token_after: Seconds between the request and the first token.
        finish_reason: Why the model stopped, as the API says it: ``"length"`` or
            ``"content_filter"`` cut the answer off; None ends the stream without a reason, as a
            server that is restarted does. A reply that calls tools says ``"tool_calls"`` instead of
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
        check_instance("text", self.text, str, "what the model says")
        check_delay("pace", self.pace)
        check_delay("first_token_after", self.first_token_after)

    @property
    def tokens(self) -> list[str]:
        """The tokens this text is streamed as."""
        return tokenize(self.text)

    @property
    def duration(self) -> float:
        """Seconds from the request to the last token."""
        return self.first_token_after + self.pace * max(0, len(self.tokens) - 1)


@dataclass(frozen=True)
class ToolCall:
    """A reply that calls one tool.

    Attributes:
        name: The tool's name.
        arguments: The tool's arguments, sent to the client as JSON.
        call_id: The call's id; None lets the server number it (``"call_1"``, ``"call_2"``...).

    Raises:
        TypeError: If JSON cannot express the arguments.

    Example::

        server = ScriptedLLMServer()
        server.on("weather", ToolCall("get_weather", {"city": "Oslo"}), "It is raining.")
    """

    name: str
    arguments: Mapping[str, JSON] = field(default_factory=dict[str, JSON])
    call_id: str | None = None

    def __post_init__(self) -> None:
        # Encoding once here reports a wrong argument on the line that wrote it, not in the server.
        json.dumps(self.arguments)


@dataclass(frozen=True, init=False)
class ToolCalls:
    """A reply that calls several tools at once, or says something before it calls one.

    Attributes:
        calls: The calls, in the order they are streamed.
        text: What the model says before the calls; its `Text.pace` and `Text.first_token_after`
            apply.

    Example::

        calls = [ToolCall("get_weather", {"city": city}) for city in ("Oslo", "Rome")]
        reply = ToolCalls(*calls, text="Let me look.")
        assert [call.arguments["city"] for call in reply.calls] == ["Oslo", "Rome"]
    """

    calls: tuple[ToolCall, ...]
    text: Text

    def __init__(self, *calls: ToolCall, text: Text | str = "") -> None:
        """Create the reply.

        Args:
            *calls: The calls, in the order they are streamed; at least one.
            text: What the model says before the calls.

        Raises:
            ValueError: If there is no call.
        """
        if not calls:
            raise ValueError("ToolCalls needs at least one ToolCall")
        object.__setattr__(self, "calls", calls)
        object.__setattr__(self, "text", as_text(text))


@dataclass(frozen=True)
class Failure:
    """A reply that is an HTTP error with the error body OpenAI sends.

    Attributes:
        status: The HTTP status, 400 to 599.
        message: The error's message.
        code: The error's code, such as ``"rate_limit_exceeded"``.
        retryable: Whether the client may try again. OpenAI's clients retry some statuses on their
            own, each time taking one more reply from the script; unless this is true the server
            tells them not to (``x-should-retry: false``), so that one failure answers one request.

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
        after: What is sent before the silence.

    Example::

        server = ScriptedLLMServer()
        server.on("dogs", Stall(after="Dogs are loyal, but"))
    """

    after: Text | str = ""


@dataclass(frozen=True)
class Disconnect:
    """A reply the server breaks off: some text, then the connection is dropped.

    A streamed answer has begun by then, so OpenAI's clients raise an error. A client that did not
    ask for a stream has received nothing, and OpenAI's clients then send the request again.

    Attributes:
        after: What is sent before the connection is dropped.

    Example::

        server = ScriptedLLMServer()
        server.on("dogs", Disconnect(after="Dogs are"))
    """

    after: Text | str = ""


Reply: TypeAlias = Text | ToolCall | ToolCalls | Failure | Stall | Disconnect
"""Anything a request can be answered with."""


def as_reply(reply: Reply | str) -> Reply:
    """Return a string as the `Text` it stands for, and a reply as it is."""
    match reply:
        case str():
            return Text(reply)
        case Text() | ToolCall() | ToolCalls() | Failure() | Stall() | Disconnect():
            return reply
        case _:
            raise TypeError(f"{reply!r} is not a reply")


def as_text(text: Text | str) -> Text:
    """Return a string as the `Text` it stands for, and a `Text` as it is."""
    return Text(text) if isinstance(text, str) else text


Match: TypeAlias = str | Callable[[LLMRequest], bool]
"""Which requests a rule answers: those that mention a text, or those a function picks."""

ScriptedReply: TypeAlias = Reply | str | Callable[[LLMRequest], Reply | str]
"""A rule's reply; a string stands for a `Text`, a function computes the reply."""


@dataclass
class Rule:
    """Which requests to answer, and with what; `ScriptedLLMServer.on` adds one.

    Attributes:
        match: Which requests to answer.
        replies: The replies still to give, in order.
        repeat: Whether the last reply answers all later requests too.
    """

    match: Match
    replies: deque[ScriptedReply]
    repeat: bool

    def answers(self, request: LLMRequest) -> bool:
        """Tell whether this rule has a reply to a request."""
        if not self.replies:
            return False
        return request.mentions(self.match) if isinstance(self.match, str) else self.match(request)

    def next_reply(self, request: LLMRequest) -> Reply:
        """Take the next reply."""
        stays = self.repeat and len(self.replies) == 1
        reply = self.replies[0] if stays else self.replies.popleft()
        return as_reply(reply(request) if callable(reply) else reply)
