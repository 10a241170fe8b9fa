"""LLM workers that talk to the scripted provider, for the tests of turns and tools."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from pipecat.bus.messages import BusJobRequestMessage
from pipecat.frames.frames import LLMMessagesAppendFrame
from pipecat.services.llm_service import FunctionCallParams
from pipecat.services.openai.llm import OpenAILLMService

from pipecat_jobs import BaseWorker, LLMContextWorker, job, tool
from pipecat_jobs.testing import JobHarness, LLMRequest, ScriptedLLMServer, Text

#: An answer whose end no test waits for.
LONG = Text(" ".join(f"word{number}" for number in range(400)), pace=0.01)

#: Makes a service that talks to the test's provider, and closes its connections afterwards.
NewLLM = Callable[..., OpenAILLMService]


@pytest.fixture
async def new_llm(scripted_llm: ScriptedLLMServer) -> AsyncIterator[NewLLM]:
    services: list[OpenAILLMService] = []

    def make(instruction: str, **options: Any) -> OpenAILLMService:
        settings = OpenAILLMService.Settings(model="scripted", system_instruction=instruction)
        service = OpenAILLMService(
            api_key="test", base_url=scripted_llm.base_url, settings=settings, **options
        )
        services.append(service)
        return service

    yield make
    for service in services:
        await service._client.close()


class Debater(LLMContextWorker):
    """Responds to jobs with the text of its LLM."""

    def __init__(self, name: str = "debater", *, llm: OpenAILLMService, **keywords: Any):
        super().__init__(name, llm=llm, **keywords)
        self.failed: asyncio.Queue[Exception] = asyncio.Queue()

    @job(name="argue")
    async def argue(self, message: BusJobRequestMessage) -> dict[str, Any]:
        payload = dict(message.payload or {})
        try:
            return {"text": await self.llm_turn(payload.pop("topic"), **payload)}
        except Exception as error:
            self.failed.put_nowait(error)
            raise


class Researcher(Debater):
    """A debater whose LLM has tools."""

    def __init__(self, **keywords: Any):
        super().__init__(**keywords)
        self.calls: asyncio.Queue[str] = asyncio.Queue()
        self.cancelled: asyncio.Queue[str] = asyncio.Queue()
        self.release = asyncio.Event()

    async def _wait(self, name: str) -> None:
        self.calls.put_nowait(name)
        try:
            await self.release.wait()
        except asyncio.CancelledError:
            self.cancelled.put_nowait(name)
            raise

    @tool
    async def look_up(self, params: FunctionCallParams, word: str):
        """Look a word up.

        Args:
            word: The word.
        """
        await params.result_callback({"found": f"{word} in the book"})

    @tool
    async def wait_here(self, params: FunctionCallParams):
        """Wait."""
        await self._wait("wait_here")
        await params.result_callback({"waited": True})

    @tool(cancel_on_interruption=False)
    async def wait_behind(self, params: FunctionCallParams):
        """Wait in the background."""
        await self._wait("wait_behind")
        await params.result_callback({"waited": True})


class SeedDebater(LLMContextWorker):
    """The document's ``DebateWorker``: queues a frame, and responds from the event handler."""

    def __init__(self, name: str = "debater", *, llm: OpenAILLMService, **keywords: Any):
        super().__init__(name, llm=llm, **keywords)
        self._current_job_id: str | None = None

        @self.assistant_aggregator.event_handler("on_assistant_turn_stopped")
        async def on_assistant_turn_stopped(aggregator: object, message: Any) -> None:
            if self._current_job_id:
                job_id = self._current_job_id
                self._current_job_id = None
                await self.send_job_response(job_id, {"text": message.content})

    async def on_job_request(self, message: BusJobRequestMessage) -> None:
        await super().on_job_request(message)
        self._current_job_id = message.job_id
        topic = {"role": "developer", "content": message.payload["topic"]}
        await self.queue_frame(LLMMessagesAppendFrame(messages=[topic], run_llm=True))


class Requester(BaseWorker):
    """A requester that asks the debater."""

    async def ask(self, topic: str, **payload: Any) -> dict[str, Any]:
        payload["topic"] = topic
        async with self.job("debater", name="argue", payload=payload, timeout=30) as j:
            pass
        return j.response

    async def ask_seed(self, topic: str) -> dict[str, Any]:
        async with self.job("debater", payload={"topic": topic}, timeout=30) as j:
            pass
        return j.response


class Talk:
    """The user's end of an active worker's conversation."""

    def __init__(self, worker: LLMContextWorker):
        self.worker = worker
        self.said: asyncio.Queue[str] = asyncio.Queue()

        @worker.assistant_aggregator.event_handler("on_assistant_turn_stopped")
        async def on_assistant_turn_stopped(aggregator: object, message: Any) -> None:
            self.said.put_nowait(message.content)

    async def say(self, text: str) -> None:
        message = {"role": "user", "content": text}
        await self.worker.queue_frame(LLMMessagesAppendFrame(messages=[message], run_llm=True))


async def start(harness: JobHarness, *workers: Any) -> Requester:
    requester = Requester("requester")
    await harness.start(requester, *workers)
    return requester


def asked(request: LLMRequest) -> list[object]:
    """The messages that the provider got, without the system instruction."""
    return [m.get("content") for m in request.messages if m["role"] != "system"]


def last_asked(text: str) -> Callable[[LLMRequest], bool]:
    return lambda request: asked(request)[-1] == text
