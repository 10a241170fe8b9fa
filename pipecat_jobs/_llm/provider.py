"""Observes the streams of the LLM providers' SDKs.

Pipecat's services read a stream of their provider's SDK and pass on only its text. This module
observes the streams of the SDKs that it knows. It notices an answer that was cut off, streams an
answer that a service requests in one piece, and closes a stream that is no longer read.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextvars import ContextVar
from types import TracebackType
from typing import Any, NamedTuple, Protocol, Self
from urllib.parse import urlsplit
from weakref import WeakSet

from loguru import logger
from pipecat.processors.aggregators.llm_context import LLMContext
from pipecat.services.llm_service import LLMService

from pipecat_jobs._pipecat import ProviderKind, find_provider


class AnswerCutError(Exception):
    """The provider's stream ended before the answer did."""

    def __init__(self, field: str, reason: str | None):
        if reason is None:
            text = f"the provider's stream ended in the middle of an answer, without a {field}"
        else:
            text = f"the provider cut the answer off: {field} '{reason}'"
        super().__init__(text)
        self.reason = reason


class Piece(NamedTuple):
    """The content of one chunk of a stream."""

    text: str = ""
    reason: str | None = None
    """Why the provider stopped; None in all chunks except the one that has the reason."""


class Dialect(Protocol):
    """The requests and chunks of one SDK."""

    field: str
    """The field that has the reason why the provider stopped."""

    def read(self, chunk: Any) -> Piece:
        """Read a chunk of a stream."""
        ...

    def is_whole(self, reason: str) -> bool:
        """Return whether an answer that ended for this reason is complete."""
        ...

    def join(self, text: str) -> object:
        """Build the SDK's response in one piece that holds this text."""
        ...

    def requests(self, client: Any) -> list["Request"]:
        """List the SDK's methods that send a request."""
        ...


class Request(NamedTuple):
    """A method of an SDK that sends a request."""

    resource: Any
    method: str
    streams: Callable[[dict[str, Any]], bool]
    """Whether a call with these keywords is answered by a stream."""
    open_stream: Callable[..., Awaitable[Any]]
    """The same request, answered by a stream."""


class _ChatCompletions:
    """https://platform.openai.com/docs/api-reference/chat-streaming."""

    field = "finish_reason"

    def read(self, chunk: Any) -> Piece:
        if not chunk.choices:
            return Piece()
        choice = chunk.choices[0]
        return Piece((choice.delta and choice.delta.content) or "", choice.finish_reason or None)

    def is_whole(self, reason: str) -> bool:
        # Other servers with this API have more reasons for a complete answer.
        return reason not in ("length", "content_filter")

    def join(self, text: str) -> object:
        from openai.types.chat import ChatCompletion, ChatCompletionMessage
        from openai.types.chat.chat_completion import Choice

        message = ChatCompletionMessage(role="assistant", content=text)
        choice = Choice(finish_reason="stop", index=0, message=message)
        return ChatCompletion.model_construct(choices=[choice])

    def requests(self, client: Any) -> list[Request]:
        return [_request_with_stream_option(client.chat.completions)]


class _Responses:
    """https://platform.openai.com/docs/api-reference/responses-streaming."""

    field = "status"

    def read(self, chunk: Any) -> Piece:
        match chunk.type:
            case "response.output_text.delta":
                return Piece(chunk.delta)
            case "response.completed":
                return Piece(reason="completed")
            case "response.incomplete":
                details = chunk.response.incomplete_details
                return Piece(reason=(details and details.reason) or "incomplete")
            case "response.failed":
                error = chunk.response.error
                return Piece(reason=(error and error.message) or "failed")
            case "error":
                return Piece(reason=chunk.message)
            case _:
                return Piece()

    def is_whole(self, reason: str) -> bool:
        return reason == "completed"

    def join(self, text: str) -> object:
        from openai.types.responses import Response, ResponseOutputMessage, ResponseOutputText

        part = ResponseOutputText(type="output_text", text=text, annotations=[])
        message = ResponseOutputMessage(
            id="", type="message", role="assistant", status="completed", content=[part]
        )
        return Response.model_construct(output=[message])

    def requests(self, client: Any) -> list[Request]:
        return [_request_with_stream_option(client.responses)]


class _Messages:
    """https://docs.anthropic.com/en/api/messages-streaming."""

    field = "stop_reason"

    def read(self, chunk: Any) -> Piece:
        match chunk.type:
            case "content_block_delta" if chunk.delta.type == "text_delta":
                return Piece(chunk.delta.text)
            case "message_delta":
                return Piece(reason=chunk.delta.stop_reason)
            case _:
                return Piece()

    def is_whole(self, reason: str) -> bool:
        return reason in ("end_turn", "tool_use", "stop_sequence")

    def join(self, text: str) -> object:
        from anthropic.types.beta import BetaMessage, BetaTextBlock

        block = BetaTextBlock(type="text", text=text)
        return BetaMessage.model_construct(content=[block], stop_reason="end_turn")

    def requests(self, client: Any) -> list[Request]:
        return [_request_with_stream_option(client.beta.messages)]


class _GenerateContent:
    """https://ai.google.dev/api/generate-content."""

    field = "finish_reason"

    def read(self, chunk: Any) -> Piece:
        if not chunk.candidates:
            return Piece()
        candidate = chunk.candidates[0]
        parts = (candidate.content and candidate.content.parts) or []
        text = "".join(part.text for part in parts if part.text and not part.thought)
        return Piece(text, candidate.finish_reason and candidate.finish_reason.name)

    def is_whole(self, reason: str) -> bool:
        return reason in ("STOP", "FINISH_REASON_UNSPECIFIED")

    def join(self, text: str) -> object:
        from google.genai.types import Candidate, Content, GenerateContentResponse, Part

        content = Content(role="model", parts=[Part(text=text)])
        return GenerateContentResponse(candidates=[Candidate(content=content)])

    def requests(self, client: Any) -> list[Request]:
        models = client.aio.models
        stream = models.generate_content_stream
        return [
            Request(models, "generate_content_stream", _is_streamed, stream),
            Request(models, "generate_content", _is_in_one_piece, stream),
        ]


def _request_with_stream_option(resource: Any) -> Request:
    create = resource.create

    async def open_stream(*args: Any, **keywords: Any) -> Any:
        return await create(*args, **{**keywords, "stream": True})

    return Request(resource, "create", _asks_for_stream, open_stream)


def _asks_for_stream(keywords: dict[str, Any]) -> bool:
    return keywords.get("stream") is True


def _is_streamed(keywords: dict[str, Any]) -> bool:
    return True


def _is_in_one_piece(keywords: dict[str, Any]) -> bool:
    return False


_DIALECTS: dict[ProviderKind, Dialect] = {
    ProviderKind.OPENAI_CHAT: _ChatCompletions(),
    ProviderKind.OPENAI_RESPONSES: _Responses(),
    ProviderKind.ANTHROPIC: _Messages(),
    ProviderKind.GOOGLE: _GenerateContent(),
}

#: The answer to which the requests of the running code belong.
_asking: ContextVar["Answer | None"] = ContextVar("pipecat_jobs_answer", default=None)

_observed: WeakSet[Any] = WeakSet()


def _observe_provider(llm: LLMService[Any]) -> None:
    """Observe the streams of a service's provider, if its SDK is known."""
    found = find_provider(llm)
    if found is None:
        return
    kind, client = found
    dialect = _DIALECTS[kind]
    requests = dialect.requests(client)
    if requests[0].resource in _observed:
        return
    _observed.add(requests[0].resource)
    for request in requests:
        setattr(request.resource, request.method, _observe(request, dialect))


def _observe(request: Request, dialect: Dialect) -> Callable[..., Awaitable[Any]]:
    send = getattr(request.resource, request.method)

    async def ask(*args: Any, **keywords: Any) -> Any:
        answer = _asking.get()
        if answer is None or answer.ended:
            return await send(*args, **keywords)
        if request.streams(keywords):
            return await answer.open(dialect, send(*args, **keywords))
        if isinstance(answer, StreamedAnswer):
            return await answer.join(dialect, request.open_stream(*args, **keywords))
        return await send(*args, **keywords)

    return ask


class Answer:
    """A provider's answer to one run of an LLM.

    With ``must_be_whole``, reading a stream that ends before the answer is complete raises, as
    reading from a dropped connection does.
    """

    def __init__(self, *, must_be_whole: bool):
        self.must_be_whole = must_be_whole
        self.failure: Exception | None = None
        """The last exception of the provider's SDK."""
        self.reason: str | None = None
        """Why the provider stopped, in its own word."""
        self.ended = False
        """Whether later requests to the provider belong to another answer."""
        self._streams: list[ProviderStream] = []

    def expect(self, llm: LLMService[Any]) -> None:
        """Have the next requests of the running code belong to this answer."""
        _observe_provider(llm)
        _asking.set(self)

    async def open(self, dialect: Dialect, opening: Awaitable[Any]) -> Any:
        """Await the opening of one of its streams; return the stream, observed."""
        self.failure = self.reason = None
        try:
            opened = ProviderStream(await opening, dialect, self)
        except Exception as error:
            self.failure = error
            raise
        self._streams.append(opened)
        return opened

    async def on_piece(self, piece: Piece) -> None:
        """Note the content of a chunk, before the service reads it."""

    async def close(self) -> None:
        """Close its open connections."""
        self.ended = True
        while self._streams:
            await self._streams.pop().close()


class StreamedAnswer(Answer):
    """An answer that is streamed although the service requests it in one piece.

    A server notices a closed connection when it writes. A server that streams therefore stops
    within a token; a server that answers in one piece generates all of it. ``on_text`` is called
    with each text that arrives, or once if the answer cannot be streamed.
    """

    def __init__(self, on_text: Callable[[str], Awaitable[None]] | None = None):
        super().__init__(must_be_whole=True)
        self.text = ""
        """The LLM's text so far."""
        self._on_text = on_text

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def run_inference(self, llm: LLMService[Any], context: LLMContext) -> str | None:
        """Run a service on a context outside of its pipeline; return None for an empty answer."""
        before = _asking.get()
        self.expect(llm)
        try:
            text = await llm.run_inference(context)
        finally:
            _asking.set(before)
        if text and not self.text:
            await self._note_text(text)
        return text

    async def join(self, dialect: Dialect, opening: Awaitable[Any]) -> Any:
        """Read a stream to its end; return the SDK's response in one piece."""
        self.text = ""
        async for _ in await self.open(dialect, opening):
            pass
        return dialect.join(self.text)

    async def on_piece(self, piece: Piece) -> None:
        """Pass the text of a chunk on."""
        if piece.text:
            await self._note_text(piece.text)

    async def _note_text(self, text: str) -> None:
        self.text += text
        if self._on_text is not None:
            await self._on_text(text)


class ProviderStream:
    """A stream of a provider's SDK that is observed while the service reads it."""

    def __init__(self, stream: Any, dialect: Dialect, answer: Answer):
        self._stream = stream
        self._chunks: AsyncIterator[Any] = aiter(stream)
        self._dialect = dialect
        self._answer = answer
        self._read_from = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Any:
        self._read_from = True
        try:
            chunk = await anext(self._chunks)
        except StopAsyncIteration:
            self._check_whole()
            raise
        except Exception as error:
            self._answer.failure = error
            raise
        piece = self._dialect.read(chunk)
        self._answer.reason = piece.reason or self._answer.reason
        await self._answer.on_piece(piece)
        return chunk

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _check_whole(self) -> None:
        reason = self._answer.reason
        whole = reason is not None and self._dialect.is_whole(reason)
        if whole or not self._answer.must_be_whole:
            return
        cut = AnswerCutError(self._dialect.field, reason)
        self._answer.failure = cut
        raise cut

    async def close(self) -> None:
        """Close the connection, even if the stream was not read to its end."""
        if not isinstance(self._stream, AsyncGenerator):
            await self._stream.close()
            return
        if self._read_from:
            await _cancel_reading(self._chunks)
        await self._stream.aclose()

    aclose = close


async def _cancel_reading(chunks: AsyncIterator[Any]) -> None:
    """Cancel a read, which ends every generator inside this one.

    ``aclose()`` ends only the outermost generator. The generators inside it, and the connection,
    would be left to the garbage collector.
    """
    try:
        async with asyncio.timeout(0):
            async for _ in chunks:
                pass
    except TimeoutError:
        pass
    except Exception as error:
        logger.debug(f"a provider's stream raised while it was closed: {error!r}")


def describe_failure(error: BaseException) -> str:
    """Describe an SDK's exception in one line without credentials.

    If the provider cannot be reached, the line has its address and the cause.
    """
    text = str(error) or type(error).__name__
    root = _find_root(error)
    address = _find_address(error)
    if root is error or address is None:
        return text
    cause = str(root) or type(root).__name__
    return f"{text} ({address}: {cause})"


def _find_root(error: BaseException) -> BaseException:
    while True:
        inner = error.__cause__ or error.__context__
        # asyncio.timeout() raises from a CancelledError, which does not explain anything.
        if inner is None or isinstance(inner, asyncio.CancelledError):
            return error
        error = inner


def _find_address(error: BaseException) -> str | None:
    """Find the URL of a request that got no response."""
    if getattr(error, "response", None) is not None:
        return None
    try:
        # The exceptions of the SDKs and of their HTTP client have the request. The HTTP client's
        # attribute raises if it was not set.
        url: object = getattr(getattr(error, "request", None), "url", None)
    except RuntimeError:
        return None
    if url is None:
        return None
    parts = urlsplit(str(url))
    host = parts.netloc.rpartition("@")[2]
    return f"{parts.scheme}://{host}{parts.path}"
