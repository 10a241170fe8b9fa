"""Pipecat's OpenAI service, as the benchmarks use it."""

from collections.abc import AsyncIterator, Callable
from typing import Any

from openai import AsyncOpenAI, AsyncStream
from openai.types.chat import ChatCompletionChunk
from pipecat.processors.aggregators.llm_context import LLMContext
from pipecat.services.openai.llm import OpenAILLMService


class _Stream:
    """A provider's stream, which tells when it begins and when the client has closed it."""

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
    """Pipecat's service, which tells when a stream begins and ends, and hangs up at its clean-up.

    Attributes:
        on_stream_began: Called whenever the second chunk of a provider's stream is due.
        on_stream_closed: Called whenever the client has closed a provider's stream.
    """

    def __init__(self, base_url: str, instruction: str):
        """Create a service that talks to a scripted server.

        Args:
            base_url: Where the server is.
            instruction: The system instruction of every request.
        """
        self.on_stream_began: Callable[[], None] = lambda: None
        self.on_stream_closed: Callable[[], None] = lambda: None
        super().__init__(
            api_key="none",
            base_url=base_url,
            settings=OpenAILLMService.Settings(model="scripted", system_instruction=instruction),
        )

    def create_client(self, **arguments: Any) -> AsyncOpenAI:
        """Create the client, as the service does.

        Args:
            **arguments: What the service was created with.

        Returns:
            The client.
        """
        self._connections: AsyncOpenAI = super().create_client(**arguments)
        return self._connections

    async def get_chat_completions(self, context: LLMContext) -> Any:
        """Ask the provider.

        Args:
            context: The conversation.

        Returns:
            The provider's stream.
        """
        stream = await super().get_chat_completions(context)
        return _Stream(stream, lambda: self.on_stream_began(), lambda: self.on_stream_closed())

    async def cleanup(self) -> None:
        """Close the client's connections."""
        await super().cleanup()
        await self._connections.close()
