"""Pipecat's OpenAI service, as the benchmarks use it."""

from collections.abc import AsyncIterator, Callable
from typing import Any

from openai import AsyncOpenAI, AsyncStream
from openai.types.chat import ChatCompletionChunk
from pipecat.processors.aggregators.llm_context import LLMContext
from pipecat.services.openai.llm import OpenAILLMService


class _Stream:
    """The stream of a provider, which reports that it began and that the client closed it."""

    def __init__(
        self,
        stream: AsyncStream[ChatCompletionChunk],
        on_began: Callable[[], None],
        on_closed: Callable[[], None],
    ):
        self._stream = stream
        self._on_began = on_began
        self._on_closed = on_closed

    async def __aiter__(self) -> AsyncIterator[ChatCompletionChunk]:
        chunks = aiter(self._stream)
        yield await anext(chunks)
        self._on_began()
        async for chunk in chunks:
            yield chunk

    async def close(self) -> None:
        await self._stream.close()
        self._on_closed()


class LLM(OpenAILLMService):
    """Pipecat's service, which reports the begin and the end of each stream."""

    def __init__(self, base_url: str, instruction: str):
        """Create a service that uses the scripted server at ``base_url``."""
        #: Called when the first chunk of a stream was handled.
        self.on_stream_began: Callable[[], None] = lambda: None
        #: Called when the client has closed a stream.
        self.on_stream_closed: Callable[[], None] = lambda: None
        super().__init__(
            api_key="none",
            base_url=base_url,
            settings=OpenAILLMService.Settings(model="scripted", system_instruction=instruction),
        )

    def create_client(self, **arguments: Any) -> AsyncOpenAI:
        """Create the client, and keep it for the clean-up."""
        self._connections: AsyncOpenAI = super().create_client(**arguments)
        return self._connections

    async def get_chat_completions(self, context: LLMContext) -> Any:
        """Send a request to the provider."""
        stream = await super().get_chat_completions(context)
        return _Stream(stream, lambda: self.on_stream_began(), lambda: self.on_stream_closed())

    async def cleanup(self) -> None:
        """Close the connections of the client, which Pipecat keeps open."""
        await super().cleanup()
        await self._connections.close()
