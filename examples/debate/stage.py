"""Sets up the debate: the LLM, and the four workers on their runner."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from enum import Enum, auto
from typing import Any
from urllib.parse import urlsplit

from openai import AsyncOpenAI
from pipecat.services.openai.llm import OpenAILLMService
from pipecat.workers.runner import WorkerRunner

from examples.debate.board import Board
from examples.debate.script import write_script
from examples.debate.workers import DEBATERS, MODERATOR, Debater, Moderator
from examples.local_llm import MODEL, LocalLLMServer, LocalLLMService, find_weights
from pipecat_jobs.testing import ScriptedLLMServer

SCRIPTED = "No OPENAI_API_KEY: a scripted model answers"
_LOCAL = f"{MODEL} on this machine, a very small model"
_DEFAULT_MODEL = "gpt-4.1-mini"


class _LLM(OpenAILLMService):
    """Pipecat's service, with its connections closed at the end."""

    def create_client(self, **arguments: Any) -> AsyncOpenAI:
        self._connections: AsyncOpenAI = super().create_client(**arguments)
        return self._connections

    async def cleanup(self) -> None:
        await super().cleanup()
        await self._connections.close()


class _LocalLLM(_LLM, LocalLLMService):
    """The service for the local LLM, with its connections closed at the end."""


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

    @property
    def environment(self) -> dict[str, str]:
        """Variables with which `find_running` finds this LLM in another process."""
        given = {"OPENAI_API_KEY": self.api_key, "OPENAI_MODEL": self.model}
        return given | ({"OPENAI_BASE_URL": self.base_url} if self.base_url else {})


@dataclass(frozen=True)
class LocalProvider(Provider):
    """The LLM on this machine, which calls no tools."""

    def llm(self, instruction: str) -> OpenAILLMService:
        """Make a service for one worker, with a system instruction."""
        assert self.base_url is not None
        settings = _LocalLLM.Settings(system_instruction=instruction)
        return _LocalLLM(base_url=self.base_url, settings=settings)

    @property
    def environment(self) -> dict[str, str]:
        """Variables with which `find_running` finds this LLM in another process."""
        return {"DEBATE_LLM_URL": self.base_url or ""}


class _Choice(Enum):
    """The kinds of LLM, of which the user chooses one."""

    KEY = auto()
    LOCAL = auto()
    SCRIPTED = auto()


def find_key() -> Provider | None:
    """Find the LLM of the user's API key; None without a key."""
    if not (key := os.environ.get("OPENAI_API_KEY")):
        return None
    base_url = os.environ.get("OPENAI_BASE_URL") or None
    model = os.environ.get("OPENAI_MODEL") or _DEFAULT_MODEL
    host = urlsplit(base_url or "https://api.openai.com").netloc
    return Provider(f"{model} at {host}", model, key, base_url)


def find_running() -> Provider | None:
    """Find an LLM that runs already: that of the API key, or the local one of another process."""
    if provider := find_key():
        return provider
    url = os.environ.get("DEBATE_LLM_URL")
    return LocalProvider(_LOCAL, MODEL, "none", url) if url else None


def find_notice() -> str:
    """Name the LLM that `find_provider` finds, and check that it can be used.

    Returns:
        A line for the user, without a full stop.

    Raises:
        ValueError: If ``DEBATE_LLM`` names an LLM that does not exist or is not installed.
    """
    return _choose()[1]


def check_choice() -> None:
    """End the program with a line that says what is wrong if the chosen LLM cannot be used."""
    try:
        find_notice()
    except ValueError as error:
        sys.exit(str(error))


def _choose() -> tuple[_Choice, str]:
    """Find which LLM the user has chosen, and its notice."""
    wish = os.environ.get("DEBATE_LLM", "")
    if wish not in ("", "local"):
        raise ValueError(
            f"LLM={wish} is not known: write LLM=local for a small model on this machine, or set "
            "OPENAI_API_KEY for a large one"
        )
    if provider := find_key():
        ignored = " (LLM=local is for use without OPENAI_API_KEY)" if wish else ""
        return _Choice.KEY, provider.notice + ignored
    if not wish:
        return _Choice.SCRIPTED, SCRIPTED
    find_weights()
    return _Choice.LOCAL, _LOCAL


@asynccontextmanager
async def find_provider(*, tempo: float = 1.0) -> AsyncIterator[Provider]:
    """Find the LLM that the user has chosen, and run its server while it is needed.

    It is the one of the user's API key, or the local one with ``DEBATE_LLM=local``, or a scripted
    one.

    Args:
        tempo: The factor of the pauses of the scripted LLM.

    Raises:
        ValueError: If ``DEBATE_LLM`` names an LLM that does not exist or is not installed.
    """
    choice, notice = _choose()
    if choice is not _Choice.KEY:
        # With a proxy in the environment, requests to this machine's own server would go there.
        os.environ["NO_PROXY"] = os.environ["no_proxy"] = "127.0.0.1"
    match choice:
        case _Choice.KEY:
            provider = find_key()
            assert provider is not None
            yield replace(provider, notice=notice)
        case _Choice.LOCAL:
            async with LocalLLMServer() as local:
                yield LocalProvider(notice, MODEL, "none", local.base_url)
        case _Choice.SCRIPTED:
            async with ScriptedLLMServer() as scripted:
                write_script(scripted, tempo=tempo)
                yield Provider(notice, "scripted", "none", scripted.base_url)


@asynccontextmanager
async def debate(
    provider: Provider, board: Board | None = None
) -> AsyncIterator[tuple[Moderator, Board]]:
    """Run the four workers with a provider's LLM, which write on a board."""
    board = board or Board()
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
