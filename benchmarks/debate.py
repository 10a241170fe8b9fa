"""The debate of "Job Coordination", on Pipecat's own jobs and on ours.

`Moderator` and `Debater` are written once, on Pipecat's classes and as in that document: a tool
that requests a group, a handler that queues a frame, an event handler that sends the response.
`JobsModerator` and `JobsDebater` are the same classes on our workers, so that only the job layer
differs.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from pipecat.bus.messages import BusJobRequestMessage
from pipecat.frames.frames import LLMMessagesAppendFrame
from pipecat.pipeline.job_context import JobGroupParams
from pipecat.pipeline.pipeline import Pipeline
from pipecat.processors.aggregators.llm_context import LLMContext
from pipecat.processors.aggregators.llm_response_universal import (
    AssistantTurnStoppedMessage,
    LLMAssistantAggregator,
    LLMContextAggregatorPair,
)
from pipecat.services.llm_service import FunctionCallParams
from pipecat.workers.llm import LLMContextWorker, LLMWorker, tool
from pipecat.workers.runner import WorkerRunner

from benchmarks.llm import LLM
from pipecat_jobs import LLMContextWorker as JobsLLMContextWorker
from pipecat_jobs import LLMWorker as JobsLLMWorker

MODERATOR = "You moderate."
DEBATERS = ("advocate", "critic", "analyst")


def instruction(debater: str) -> str:
    """Make the system instruction of a debater, by which the script recognizes its requests."""
    return f"You argue as the {debater}."


class Moderator(LLMWorker):
    """Starts a debate when its LLM calls the tool."""

    def __init__(self, llm: LLM, pipeline: Pipeline):
        """Create the active worker of the conversation, whose service is in ``pipeline``."""
        super().__init__("moderator", llm=llm, pipeline=pipeline, active=True)
        #: Set when the tool was cancelled.
        self.tool_cancelled = asyncio.Event()

    @tool(cancel_on_interruption=True)
    async def debate(self, params: FunctionCallParams, topic: str) -> None:
        """Analyze a topic from multiple perspectives.

        Args:
            params: How Pipecat calls a tool.
            topic: The topic to debate.
        """
        asked = JobGroupParams(payload={"topic": topic}, timeout=30)
        try:
            async with self.job_group(*DEBATERS, params=asked) as group:
                pass
        except asyncio.CancelledError:
            self.tool_cancelled.set()
            raise
        texts = [f"{name}: {response['text']}" for name, response in group.responses.items()]
        await params.result_callback("\n\n".join(texts))


class Debater(LLMContextWorker):
    """Responds to a job with the next text of its LLM."""

    def __init__(self, name: str, llm: LLM, *, active: bool = False):
        """Create a debater. On Pipecat's own jobs, only an active worker gets requests."""
        super().__init__(name, llm=llm, active=active)
        self._job_id: str | None = None
        self.assistant_aggregator.add_event_handler("on_assistant_turn_stopped", self._answer)

    async def on_job_request(self, message: BusJobRequestMessage) -> None:
        """Queue the topic of a job for the LLM."""
        await super().on_job_request(message)
        self._job_id = message.job_id
        topic = {"role": "developer", "content": f"Topic: {message.payload['topic']}"}
        await self.queue_frame(LLMMessagesAppendFrame([topic], run_llm=True))

    async def _answer(
        self, _: LLMAssistantAggregator, message: AssistantTurnStoppedMessage
    ) -> None:
        job_id, self._job_id = self._job_id, None
        if job_id in self.active_jobs:
            await self.send_job_response(job_id, {"text": message.content})


class JobsModerator(JobsLLMWorker, Moderator):
    """The same moderator on our jobs."""


class JobsDebater(JobsLLMContextWorker, Debater):
    """The same debater on our jobs."""


@dataclass(frozen=True)
class JobLayer:
    """The implementation of jobs that a debate uses."""

    name: str
    moderator: type[Moderator]
    debater: type[Debater]
    #: Whether the debaters must be active to get requests.
    active: bool


OURS = JobLayer("pipecat-jobs", JobsModerator, JobsDebater, active=False)
PIPECATS = JobLayer("Pipecat's own jobs", Moderator, Debater, active=True)


class Debate:
    """A moderator and three debaters on a runner of their own, without a transport."""

    def __init__(self, layer: JobLayer, base_url: str):
        """Create the workers, whose LLM provider is at ``base_url``."""
        self.context = LLMContext()
        aggregators = LLMContextAggregatorPair(self.context)
        #: Set when the moderator has given the summary; cleared when a debate is opened.
        self.summed_up = asyncio.Event()
        aggregators.assistant().add_event_handler("on_assistant_turn_stopped", self._note_summary)
        llm = LLM(base_url, MODERATOR)
        self.moderator = layer.moderator(
            llm, Pipeline([aggregators.user(), llm, aggregators.assistant()])
        )
        self.llms = {name: LLM(base_url, instruction(name)) for name in DEBATERS}
        self.debaters = [
            layer.debater(name, llm, active=layer.active) for name, llm in self.llms.items()
        ]

    def _note_summary(
        self, _: LLMAssistantAggregator, message: AssistantTurnStoppedMessage
    ) -> None:
        if message.content:
            self.summed_up.set()

    async def open(self) -> None:
        """Clear the contexts of all workers, and have the user ask for a debate."""
        for worker in (self.moderator, *self.debaters):
            await worker.flush_pipeline()
        for context in (self.context, *(debater.context for debater in self.debaters)):
            context.set_messages([])
        self.summed_up.clear()
        wish = {"role": "user", "content": "Should AI be regulated?"}
        await self.moderator.queue_frame(LLMMessagesAppendFrame([wish], run_llm=True))

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Run the workers as long as the context is open."""
        runner = WorkerRunner(handle_sigint=False)
        await runner.add_workers(self.moderator, *self.debaters)
        ready = asyncio.Event()
        self.moderator.add_event_handler("on_activated", lambda *_: ready.set())
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(runner.run(auto_end=False))
            try:
                await ready.wait()
                yield
            finally:
                await runner.end()
