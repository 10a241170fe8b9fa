"""The debate of "Job Coordination", as it is written there, against a provider over real HTTP.

The lines between ``fmt: off`` and ``fmt: on`` are the document's own. Both classes talk to Pipecat's
``OpenAILLMService``, which finds the scripted provider in ``OPENAI_BASE_URL``, as it finds the
sample's key in ``OPENAI_API_KEY``.
"""
# ruff: noqa: E501

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from pipecat.bus.messages import BusJobRequestMessage, BusJobResponseMessage
from pipecat.frames.frames import InterruptionFrame, LLMMessagesAppendFrame
from pipecat.pipeline.pipeline import Pipeline
from pipecat.processors.aggregators.llm_context import LLMContext
from pipecat.processors.aggregators.llm_response_universal import LLMContextAggregatorPair
from pipecat.services.llm_service import FunctionCallParams
from pipecat.services.openai.llm import OpenAILLMService

from pipecat_jobs import (
    BaseWorker,
    JobCancelledError,
    JobTimeoutError,
    LLMContextWorker,
    LLMWorker,
    OutcomeStatus,
    tool,
)
from pipecat_jobs.testing import ChaosBus, JobHarness, LLMRequest, ScriptedLLMServer, Text, ToolCall

pytestmark = pytest.mark.every_bus

#: Long enough for a second job to come meanwhile, on a busy machine too.
DOGS = " ".join(["Dogs are loyal."] * 10)


# fmt: off
class DebateWorker(LLMContextWorker):
    def __init__(self, role: str):
        llm = OpenAILLMService(
            api_key=os.getenv("OPENAI_API_KEY"),
            settings=OpenAILLMService.Settings(system_instruction=f"You argue as a {role}."),
        )
        super().__init__(role, llm=llm)
        self._role = role
        self._current_job_id: str | None = None

        @self.assistant_aggregator.event_handler("on_assistant_turn_stopped")
        async def on_assistant_turn_stopped(aggregator, message):
            if self._current_job_id:
                job_id = self._current_job_id
                self._current_job_id = None
                await self.send_job_response(job_id, {"role": self._role, "text": message.content})

    async def on_job_request(self, message: BusJobRequestMessage) -> None:
        await super().on_job_request(message)
        self._current_job_id = message.job_id
        await self.queue_frame(
            LLMMessagesAppendFrame(
                messages=[{"role": "developer", "content": f"Topic: {message.payload['topic']}"}],
                run_llm=True,
            )
        )
# fmt: on


# fmt: off
class ModeratorAgent(LLMWorker):
    @tool(cancel_on_interruption=False)
    async def debate(self, params: FunctionCallParams, topic: str):
        """Analyze a topic from multiple perspectives.

        Args:
            topic (str): The topic to debate.
        """
        async with self.job_group("advocate", "critic", "analyst", payload={"topic": topic}, timeout=30) as jg:
            pass

        result = "\n\n".join(
            f"{r['role'].upper()}: {r['text']}" for r in jg.responses.values()
        )
        await params.result_callback(result)
# fmt: on


class Requester(BaseWorker):
    async def ask(self, worker: str, topic: str, **keywords: Any) -> dict[str, Any]:
        async with self.job(worker, payload={"topic": topic}, **keywords) as j:
            pass
        return j.response


class Conversation:
    """A worker with its own context, which gets messages as from a user.

    An ``LLMWorker`` has no context of its own: in a voice bot the pipeline of the transport has it.
    Here a context is added around the LLM, and nothing else.
    """

    def __init__(self, moderator_class: type[LLMWorker]):
        self.context = LLMContext()
        aggregators = LLMContextAggregatorPair(self.context)
        llm = OpenAILLMService(
            api_key=os.getenv("OPENAI_API_KEY"),
            settings=OpenAILLMService.Settings(system_instruction="You moderate."),
        )
        self.worker = moderator_class(
            "moderator",
            llm=llm,
            pipeline=Pipeline([aggregators.user(), llm, aggregators.assistant()]),
        )
        self.context.set_tools(self.worker.build_tools())
        self._answers: asyncio.Queue[str] = asyncio.Queue()

        @aggregators.assistant().event_handler("on_assistant_turn_stopped")
        async def on_assistant_turn_stopped(aggregator: object, message: Any) -> None:
            # A turn that only calls a tool also ends, without text.
            if message.content:
                self._answers.put_nowait(message.content)

    async def say(self, text: str) -> None:
        message = {"role": "user", "content": text}
        await self.worker.queue_frame(LLMMessagesAppendFrame(messages=[message], run_llm=True))

    async def next_answer(self) -> str:
        return await self._answers.get()


#: Closes a worker's HTTP connections when the test ends; a bot leaves that to its process.
Closing = Callable[[LLMWorker], None]


@pytest.fixture
async def closing() -> AsyncIterator[Closing]:
    workers: list[LLMWorker] = []
    yield workers.append
    for worker in workers:
        await worker.llm._client.close()


@pytest.fixture
def provider(scripted_llm: ScriptedLLMServer, monkeypatch: pytest.MonkeyPatch) -> ScriptedLLMServer:
    """The scripted LLM, where the samples' ``OpenAILLMService`` looks for OpenAI."""
    monkeypatch.setenv("OPENAI_API_KEY", "test")
    monkeypatch.setenv("OPENAI_BASE_URL", scripted_llm.base_url)
    return scripted_llm


@pytest.fixture
def debater(provider: ScriptedLLMServer, closing: Closing) -> Callable[[str], DebateWorker]:
    def make(role: str) -> DebateWorker:
        worker = DebateWorker(role)
        closing(worker)
        return worker

    return make


def last_text(request: LLMRequest) -> object:
    return request.messages[-1]["content"]


def asks_about(topic: str) -> Callable[[LLMRequest], bool]:
    # Only the last message: a debater's context keeps its earlier topics.
    return lambda request: last_text(request) == f"Topic: {topic}"


# The debate


async def test_the_debate_reaches_the_user_as_a_summary_of_all_three_perspectives(
    job_harness: JobHarness,
    provider: ScriptedLLMServer,
    debater: Callable[[str], DebateWorker],
    closing: Closing,
):
    provider.on("You argue as a advocate.", "Rules build trust.")
    provider.on("You argue as a critic.", "Rules freeze progress.")
    provider.on("You argue as a analyst.", "It depends on the risk.")
    provider.on(
        "You moderate.",
        ToolCall("debate", {"topic": "whether AI should be regulated"}),
        "In short: trust against progress, weighed by risk.",
    )
    conversation = Conversation(ModeratorAgent)
    closing(conversation.worker)
    debaters = [debater("advocate"), debater("critic"), debater("analyst")]
    await job_harness.start(conversation.worker, *debaters)
    # No worker here holds the conversation; that is the default of an LLM worker.
    assert not any(worker.active for worker in debaters)

    await conversation.say("debate whether AI should be regulated")

    assert await conversation.next_answer() == "In short: trust against progress, weighed by risk."
    first, *debated, last = provider.requests
    assert first.last_user_text == "debate whether AI should be regulated"
    assert first.tools == ["debate"]
    assert sorted(request.system.splitlines()[0] for request in debated) == [
        "You argue as a advocate.",
        "You argue as a analyst.",
        "You argue as a critic.",
    ]
    assert [last_text(r) for r in debated] == ["Topic: whether AI should be regulated"] * 3
    for perspective in (
        "ADVOCATE: Rules build trust.",
        "CRITIC: Rules freeze progress.",
        "ANALYST: It depends on the risk.",
    ):
        assert last.mentions(perspective)
    assert [request.outcome for request in provider.requests] == ["completed"] * 5


async def test_the_debaters_generate_at_the_same_time(
    job_harness: JobHarness,
    provider: ScriptedLLMServer,
    debater: Callable[[str], DebateWorker],
    closing: Closing,
):
    provider.on("You argue as a", Text("One two three four.", pace=0.05))
    provider.on("You moderate.", ToolCall("debate", {"topic": "AI"}), "Done.")
    conversation = Conversation(ModeratorAgent)
    closing(conversation.worker)
    await job_harness.start(
        conversation.worker, debater("advocate"), debater("critic"), debater("analyst")
    )

    await conversation.say("debate AI")
    await conversation.next_answer()

    debated = provider.requests[1:4]
    assert max(r.arrived_at for r in debated) < min(r.ended_at or 0 for r in debated)


async def test_an_interruption_of_the_tool_cancels_the_jobs_it_waits_for(
    job_harness: JobHarness, provider: ScriptedLLMServer, closing: Closing
):
    """Pipecat cancels a tool with ``cancel_on_interruption=True`` when the user speaks."""

    class Researcher(BaseWorker):
        def __init__(self, name: str):
            super().__init__(name)
            self.working = asyncio.Event()
            self.stopped = asyncio.Event()

        async def on_job_request(self, message: BusJobRequestMessage) -> None:
            self.working.set()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                self.stopped.set()
                raise

    class Moderator(LLMWorker):
        @tool(cancel_on_interruption=True)
        async def research(self, params: FunctionCallParams, topic: str):
            """Look a topic up.

            Args:
                topic (str): The topic.
            """
            data = {"topic": topic}
            # fmt: off
            # If an exception or CancelledError is raised inside the block,
            # all agents are cancelled automatically
            async with self.job_group("w1", "w2", payload=data) as jg:
                # ... if this raises, the agents get cancelled
                pass
            # fmt: on
            await params.result_callback(jg.responses)

    provider.on("You moderate.", ToolCall("research", {"topic": "AI"}))
    conversation = Conversation(Moderator)
    closing(conversation.worker)
    w1, w2 = Researcher("w1"), Researcher("w2")
    await job_harness.start(conversation.worker, w1, w2)
    await conversation.say("look AI up")
    await w1.working.wait()
    await w2.working.wait()

    await conversation.worker.queue_frame(InterruptionFrame())

    await w1.stopped.wait()
    await w2.stopped.wait()
    await job_harness.settle()
    assert not conversation.worker.job_groups
    assert len(provider.requests) == 1


# Two jobs at once on one DebateWorker


@pytest.mark.parametrize("requesters", [("requester", "requester"), ("requester", "other")])
async def test_a_second_job_waits_for_the_end_of_the_first_and_each_gets_its_own_text(
    chaos_harness: JobHarness,
    chaos_bus: ChaosBus,
    provider: ScriptedLLMServer,
    debater: Callable[[str], DebateWorker],
    requesters: tuple[str, str],
):
    responded_before_second: list[dict[str, Any] | None] = []

    def second_text(request: LLMRequest) -> str:
        responded_before_second.extend(
            message.response
            for message in chaos_bus.sent
            if isinstance(message, BusJobResponseMessage)
        )
        return "Cats are aloof."

    provider.on(asks_about("dogs"), Text("Dogs are loyal.", pace=0.8))
    provider.on(asks_about("cats"), second_text)
    workers = {name: Requester(name) for name in requesters}
    advocate = debater("advocate")
    await chaos_harness.start(advocate, *workers.values())

    first, second = (
        asyncio.create_task(workers[name].ask("advocate", topic, timeout=30))
        for name, topic in zip(requesters, ("dogs", "cats"), strict=True)
    )
    (request,) = await provider.wait_for_requests(1)
    await request.wait_token(1)
    await chaos_harness.settle()
    assert len(advocate.active_jobs) == 2
    assert provider.requests == [request]

    assert await first == {"role": "advocate", "text": "Dogs are loyal."}
    assert await second == {"role": "advocate", "text": "Cats are aloof."}
    assert responded_before_second == [{"role": "advocate", "text": "Dogs are loyal."}]
    assert [last_text(r) for r in provider.requests] == ["Topic: dogs", "Topic: cats"]


async def test_two_groups_over_the_same_debaters_do_not_mix(
    job_harness: JobHarness,
    provider: ScriptedLLMServer,
    debater: Callable[[str], DebateWorker],
):
    class GroupRequester(BaseWorker):
        async def ask(self, topic: str) -> dict[str, str]:
            async with self.job_group(
                "advocate", "critic", payload={"topic": topic}, timeout=30
            ) as jg:
                pass
            return {name: response["text"] for name, response in jg.responses.items()}

    for topic in ("dogs", "cats"):
        provider.on(asks_about(topic), f"All about {topic}.")
    one, two = GroupRequester("one"), GroupRequester("two")
    await job_harness.start(one, two, debater("advocate"), debater("critic"))

    dogs, cats = await asyncio.gather(one.ask("dogs"), two.ask("cats"))

    assert dogs == {"advocate": "All about dogs.", "critic": "All about dogs."}
    assert cats == {"advocate": "All about cats.", "critic": "All about cats."}


@pytest.mark.not_on("redis", reason="the waiting job is in the bus")
async def test_a_job_cancelled_while_it_waits_for_its_turn_never_reaches_the_llm(
    job_harness: JobHarness,
    provider: ScriptedLLMServer,
    debater: Callable[[str], DebateWorker],
):
    provider.on(asks_about("dogs"), Text(DOGS, pace=0.1))
    provider.on(asks_about("birds"), "Birds are free.")
    requester, advocate = Requester("requester"), debater("advocate")
    await job_harness.start(requester, advocate)
    first = asyncio.create_task(requester.ask("advocate", "dogs", timeout=30))
    (request,) = await provider.wait_for_requests(1)
    await request.wait_token(1)
    waiting = asyncio.create_task(requester.ask("advocate", "cats", timeout=30))
    await job_harness.settle()
    assert len(advocate.active_jobs) == 2

    waiting.cancel()

    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert await first == {"role": "advocate", "text": DOGS}
    assert await requester.ask("advocate", "birds", timeout=30) == {
        "role": "advocate",
        "text": "Birds are free.",
    }
    assert [last_text(r) for r in provider.requests] == ["Topic: dogs", "Topic: birds"]
    assert not any(r.mentions("cats") for r in provider.requests)


async def test_a_job_that_times_out_while_it_waits_for_its_turn_never_reaches_the_llm(
    job_harness: JobHarness,
    provider: ScriptedLLMServer,
    debater: Callable[[str], DebateWorker],
):
    provider.on(asks_about("dogs"), Text("Dogs are loyal.", pace=0.1))
    requester = Requester("requester")
    await job_harness.start(requester, debater("advocate"))
    first = asyncio.create_task(requester.ask("advocate", "dogs", timeout=30))
    (request,) = await provider.wait_for_requests(1)
    await request.wait_token(1)

    with pytest.raises(JobTimeoutError, match="'advocate'"):
        await requester.ask("advocate", "cats", timeout=0.02)

    assert await first == {"role": "advocate", "text": "Dogs are loyal."}
    await job_harness.settle()
    assert [last_text(r) for r in provider.requests] == ["Topic: dogs"]


@pytest.mark.not_on("redis", reason="the waiting job is in the bus")
@pytest.mark.parametrize("second_waits", [True, False])
async def test_text_of_a_job_cancelled_during_generation_never_reaches_the_next_job(
    job_harness: JobHarness,
    provider: ScriptedLLMServer,
    debater: Callable[[str], DebateWorker],
    second_waits: bool,
):
    provider.on(asks_about("dogs"), Text("Dogs are loyal.", pace=60.0))
    provider.on(asks_about("cats"), "Cats are aloof.")
    requester, advocate = Requester("requester"), debater("advocate")
    await job_harness.start(requester, advocate)
    first = asyncio.create_task(requester.ask("advocate", "dogs", timeout=30))
    (request,) = await provider.wait_for_requests(1)
    await request.wait_token(1)
    second: asyncio.Task[dict[str, Any]] | None = None
    if second_waits:
        second = asyncio.create_task(requester.ask("advocate", "cats", timeout=30))
        await job_harness.settle()
        assert len(advocate.active_jobs) == 2

    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    if second is None:
        second = asyncio.create_task(requester.ask("advocate", "cats", timeout=30))

    assert await second == {"role": "advocate", "text": "Cats are aloof."}
    assert request.outcome == "hung_up"
    assert "loyal" not in request.sent_text


# A debater that stops


async def test_a_debater_that_stops_while_it_generates_ends_the_job_as_cancelled(
    job_harness: JobHarness,
    provider: ScriptedLLMServer,
    debater: Callable[[str], DebateWorker],
):
    provider.on(asks_about("dogs"), Text("Dogs are loyal.", pace=3600))
    requester, advocate = Requester("requester"), debater("advocate")
    await job_harness.start(requester, advocate)
    # Without a timeout, only the debater's own response can end the job.
    asking = asyncio.create_task(requester.ask("advocate", "dogs"))
    (request,) = await provider.wait_for_requests(1)
    await request.wait_token(1)

    await job_harness.cancel(advocate)

    with pytest.raises(JobCancelledError, match="'advocate'") as caught:
        await asking
    assert caught.value.outcomes["advocate"].status is OutcomeStatus.CANCELLED
    assert caught.value.outcomes["advocate"].reason == "worker 'advocate' stopped"
    await request.wait_hung_up()


@pytest.mark.not_on("redis", reason="the waiting job is in the bus")
async def test_a_debater_that_is_ended_finishes_its_text_and_cancels_waiting_jobs(
    job_harness: JobHarness,
    provider: ScriptedLLMServer,
    debater: Callable[[str], DebateWorker],
):
    provider.on(asks_about("dogs"), Text(DOGS, pace=0.1))
    requester, advocate = Requester("requester"), debater("advocate")
    await job_harness.start(requester, advocate)
    first = asyncio.create_task(requester.ask("advocate", "dogs"))
    (request,) = await provider.wait_for_requests(1)
    await request.wait_token(1)
    waiting = asyncio.create_task(requester.ask("advocate", "cats"))
    await job_harness.settle()

    await job_harness.end(advocate)

    assert await first == {"role": "advocate", "text": DOGS}
    with pytest.raises(JobCancelledError, match="worker 'advocate' stopped"):
        await waiting
    assert provider.requests == [request]
