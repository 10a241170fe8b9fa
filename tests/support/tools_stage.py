"""A moderator with job tools, its workers, and the visible effects of its calls."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from pipecat.bus.messages import BusJobRequestMessage
from pipecat.frames.frames import (
    Frame,
    FunctionCallCancelFrame,
    FunctionCallResultFrame,
    LLMMessagesAppendFrame,
    TTSSpeakFrame,
)
from pipecat.pipeline.job_context import JobStatus
from pipecat.services.openai.llm import OpenAILLMService
from pipecat.workers.llm import LLMContextWorker as PipecatLLMContextWorker

from pipecat_jobs import BaseWorker, LLMContextWorker, job
from pipecat_jobs.testing import JobHarness, LLMRequest, Reply, ScriptedLLMServer, ToolCall

#: Makes a service that talks to the test's provider, and closes its connections afterwards.
NewLLM = Callable[..., OpenAILLMService]

WORKERS = ("advocate", "critic", "analyst")


@pytest.fixture
async def new_llm(scripted_llm: ScriptedLLMServer) -> AsyncIterator[NewLLM]:
    services: list[OpenAILLMService] = []

    def make(**keywords: Any) -> OpenAILLMService:
        service = scripted_service(scripted_llm, **keywords)
        services.append(service)
        return service

    yield make
    for service in services:
        await service._client.close()


def scripted_service(server: ScriptedLLMServer, **keywords: Any) -> OpenAILLMService:
    settings = OpenAILLMService.Settings(model="scripted", system_instruction="You moderate.")
    return OpenAILLMService(api_key="test", base_url=server.base_url, settings=settings, **keywords)


class Colleague(BaseWorker):
    """Responds to an "argue" job as the test sets it."""

    def __init__(self, name: str, *, holds: bool = False, response: Any = "default"):
        super().__init__(name)
        self.payloads: list[dict[str, Any]] = []
        self.started: asyncio.Queue[str] = asyncio.Queue()
        self.stopped: asyncio.Queue[str] = asyncio.Queue()
        self.response = {"text": f"{name} says"} if response == "default" else response
        self.release = asyncio.Event()
        if not holds:
            self.release.set()

    @job(name="argue")
    async def argue(self, message: BusJobRequestMessage) -> dict[str, Any] | None:
        self.payloads.append(message.payload)
        self.started.put_nowait(message.job_id)
        try:
            await self.release.wait()
        except asyncio.CancelledError:
            self.stopped.put_nowait(message.job_id)
            raise
        if isinstance(self.response, Exception):
            raise self.response
        if isinstance(self.response, str):
            failure = {"error": self.response}
            await self.send_job_response(message.job_id, failure, status=JobStatus.FAILED)
            return None
        return self.response


class Stage:
    """Records the tool calls of one worker that owns its conversation."""

    def __init__(self, worker: PipecatLLMContextWorker):
        self.worker = worker
        self.settled: list[FunctionCallResultFrame | FunctionCallCancelFrame] = []
        self.reported: list[Any] = []
        self.spoken: list[str] = []
        self.seen: set[int] = set()
        """Ids of the frames that have reached the LLM."""
        self._changed = asyncio.Event()
        worker.assistant_aggregator.add_event_handler("on_before_process_frame", self._keep)
        worker.llm.add_event_handler("on_after_process_frame", self._record)
        worker.assistant_aggregator.add_event_handler("on_after_process_frame", self._wake)

    def _keep(self, _: object, frame: Frame) -> None:
        match frame:
            case FunctionCallResultFrame() if frame.properties and not frame.properties.is_final:
                self.reported.append(frame.result)
            case FunctionCallResultFrame() | FunctionCallCancelFrame():
                self.settled.append(frame)
            case TTSSpeakFrame():
                self.spoken.append(frame.text)
                assert not frame.append_to_context

    def _record(self, _: object, frame: Frame) -> None:
        self.seen.add(frame.id)
        self._wake(_, frame)

    def _wake(self, _: object, frame: Frame) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            await self._changed.wait()

    async def say(self, text: str = "debate AI") -> None:
        message = {"role": "user", "content": text}
        await self.worker.queue_frame(LLMMessagesAppendFrame(messages=[message], run_llm=True))

    async def until_settled(self, count: int = 1) -> None:
        await self.until(lambda: len(self.settled) >= count)

    @property
    def results(self) -> list[Any]:
        """The results that were reported, in order; None for a call that Pipecat cancelled."""
        return [getattr(frame, "result", None) for frame in self.settled]

    @property
    def messages(self) -> list[Any]:
        return self.worker.context.get_messages()

    @property
    def tool_texts(self) -> list[str]:
        """The text in the context for each tool's result."""
        return [m["content"] for m in self.messages if m["role"] == "tool"]


def calls_debate(server: ScriptedLLMServer, *then: Reply | str, **arguments: Any) -> None:
    """Have the LLM call ``debate`` first, and then answer the rest in order."""
    replies = then or ("Summary.",)
    server.reply(ToolCall("debate", arguments or {"topic": "AI"}), *replies)


def tool_schema(request: LLMRequest, name: str = "debate") -> dict[str, Any]:
    """The schema of a tool that the provider got."""
    (function,) = [
        tool["function"] for tool in request.body["tools"] if tool["function"]["name"] == name
    ]
    return function


def tool_results(request: LLMRequest) -> list[Any]:
    """The tool results the provider was sent, as JSON."""
    return [
        json.loads(message["content"]) for message in request.messages if message["role"] == "tool"
    ]


async def raise_stage(
    harness: JobHarness, moderator: LLMContextWorker, *others: BaseWorker
) -> Stage:
    """Start the workers."""
    stage = Stage(moderator)
    await harness.start(moderator, *others)
    # The worker sets its tools once it is active.
    await moderator.flush_pipeline()
    return stage
