"""Sets up the debate: the LLM, and the four workers on their runner."""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from openai import AsyncOpenAI
from pipecat.services.openai.llm import OpenAILLMService
from pipecat.workers.runner import WorkerRunner

from examples.debate.board import Board
from examples.debate.script import write_script
from examples.debate.workers import DEBATERS, MODERATOR, Debater, Moderator
from pipecat_jobs.testing import ScriptedLLMServer

SCRIPTED = "No OPENAI_API_KEY: a scripted model answers"
_DEFAULT_MODEL = "gpt-4.1-mini"


class _LLM(OpenAILLMService):
    """Pipecat's service, with its connections closed at the end."""

    def create_client(self, **arguments: Any) -> AsyncOpenAI:
        self._connections: AsyncOpenAI = super().create_client(**arguments)
        return self._connections

    async def cleanup(self) -> None:
        await super().cleanup()
        await self._connections.close()


@dataclass(frozen=True)
class Provider:
    """The LLM of the debate.

    Parameters:
        notice: A line for the user that names the LLM.
        model: The name of the model.
        api_key: The key for the provider.
        base_url: The URL of the provider; None for OpenAI.
    """

    notice: str
    model: str
    api_key: str
    base_url: str | None = None

    def llm(self, instruction: str) -> OpenAILLMService:
        """Make a service for one worker, with a system instruction."""
        return _LLM(
            api_key=self.api_key,
            base_url=self.base_url,
            settings=_LLM.Settings(model=self.model, system_instruction=instruction),
        )


def find_key() -> Provider | None:
    """Find the LLM of the user's API key; None without a key."""
    if not (key := os.environ.get("OPENAI_API_KEY")):
        return None
    base_url = os.environ.get("OPENAI_BASE_URL") or None
    model = os.environ.get("OPENAI_MODEL") or _DEFAULT_MODEL
    host = urlsplit(base_url or "https://api.openai.com").netloc
    return Provider(f"{model} at {host}", model, key, base_url)


@asynccontextmanager
async def find_provider(*, tempo: float = 1.0) -> AsyncIterator[Provider]:
    """Find the LLM of the user's API key, or run the scripted server while it is needed.

    ``tempo`` multiplies the pauses of the scripted LLM.
    """
    if provider := find_key():
        yield provider
        return
    # With a proxy in the environment, requests to this machine's own server would go to the proxy.
    os.environ["NO_PROXY"] = os.environ["no_proxy"] = "127.0.0.1"
    async with ScriptedLLMServer() as server:
        write_script(server, tempo=tempo)
        yield Provider(SCRIPTED, "scripted", "none", server.base_url)


@asynccontextmanager
async def debate(provider: Provider) -> AsyncIterator[tuple[Moderator, Board]]:
    """Run the four workers with a provider's LLM."""
    board = Board(DEBATERS)
    moderator = Moderator(provider.llm(MODERATOR), board)
    debaters = [Debater(name, llm=provider.llm(role)) for name, role in DEBATERS.items()]
    runner = WorkerRunner(handle_sigint=False)
    await runner.add_workers(moderator, *debaters)
    ready = asyncio.Event()
    moderator.add_event_handler("on_activated", lambda *_: ready.set())
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(runner.run(auto_end=False))
        try:
            await ready.wait()
            yield moderator, board
        finally:
            await runner.cancel()
