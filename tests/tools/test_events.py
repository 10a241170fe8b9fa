"""What ends a job tool's call, and what happens to the jobs, the call and the conversation."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import pytest
from pipecat.bus import WorkerBus
from pipecat.frames.frames import (
    CancelFrame,
    EndFrame,
    FunctionCallCancelFrame,
    FunctionCallResultFrame,
    InterruptionFrame,
    StopFrame,
)
from support.tools_stage import (
    WORKERS,
    Colleague,
    NewLLM,
    Stage,
    calls_debate,
    new_llm,
    raise_stage,
    scripted_service,
    tool_results,
)

from pipecat_jobs import JobsMixin, LLMContextWorker, job_tool
from pipecat_jobs.testing import (
    JobHarness,
    ScriptedLLMServer,
    ToolCall,
    ToolCalls,
    run_virtual,
)

__all__ = ["new_llm"]

ENDED = {"stopped": "The session ended before debate had its result."}


def moderator(llm: Any, *workers: str, **options: Any) -> LLMContextWorker:
    class Moderator(LLMContextWorker):
        @job_tool(*(workers or WORKERS), job="argue", **options)
        async def debate(self, topic: str):
            """Analyze a topic."""
            return {"topic": topic}

    return Moderator("moderator", llm=llm, active=True)


@dataclass
class Scene:
    """A call of the tool whose jobs run."""

    harness: JobHarness
    server: ScriptedLLMServer
    stage: Stage
    others: list[Colleague]

    @property
    def worker(self) -> Any:
        return self.stage.worker

    async def jobs_stop(self) -> None:
        for other in self.others:
            await other.stopped.get()
        await self.harness.settle()
        assert not self.worker.job_groups

    def jobs_run_on(self) -> bool:
        return all(other.active_jobs and other.stopped.empty() for other in self.others)


async def begin(
    harness: JobHarness,
    server: ScriptedLLMServer,
    worker: LLMContextWorker,
    *then: Any,
    workers: tuple[str, ...] = WORKERS,
) -> Scene:
    calls_debate(server, *then)
    others = [Colleague(name, holds=True) for name in workers]
    stage = await raise_stage(harness, worker, *others)
    await stage.say()
    for other in others:
        await other.started.get()
    return Scene(harness, server, stage, others)


# The events


async def interruption(scene: Scene) -> None:
    await scene.worker.queue_frame(InterruptionFrame())


async def llm_cancels(scene: Scene) -> None:
    await scene.stage.say("never mind")


async def nothing(scene: Scene) -> None:
    """The deadline passes by itself."""


def queued(frame: type[EndFrame] | type[CancelFrame] | type[StopFrame]) -> Any:
    async def end(scene: Scene) -> None:
        await scene.worker.queue_frame(frame())
        await scene.worker.wait()

    return end


async def stopped(scene: Scene) -> None:
    await queued(StopFrame)(scene)
    # Pipecat keeps the processors, to be run again.
    await scene.worker._pipeline.cleanup()


async def worker_ends(scene: Scene) -> None:
    await scene.harness.end(scene.worker)


async def worker_is_cancelled(scene: Scene) -> None:
    await scene.harness.cancel(scene.worker)


@dataclass
class Event:
    """An event and its expected effects.

    Parameters:
        happens: Triggers the event.
        settled_as: The result that the call gets, or None for Pipecat's cancellation.
        comments: How often the LLM runs afterwards.
        options: The options of the tool.
        llm: The options of the LLM service.
    """

    happens: Callable[[Scene], Awaitable[None]]
    settled_as: Any
    comments: int
    options: dict[str, Any]
    llm: dict[str, Any]

    def __init__(
        self,
        happens: Callable[[Scene], Awaitable[None]],
        settled_as: Any = None,
        comments: int = 0,
        llm: dict[str, Any] | None = None,
        **options: Any,
    ):
        self.happens, self.settled_as, self.comments = happens, settled_as, comments
        self.options, self.llm = options, llm or {}


LATE = {"answers": {}, "missing": dict.fromkeys(WORKERS, "did not answer in time")}
BACKGROUND = {"cancel_on_interruption": False, "report": "at_once"}
PROTECTED = {"protected": True, "report": "at_once"}

EVENTS = {
    "interruption": Event(interruption),
    "deadline": Event(nothing, LATE, 1, timeout=0.1),
    "deadline, background": Event(nothing, LATE, 1, timeout=0.1, **BACKGROUND),
    "Pipecat's limit": Event(
        nothing, None, 1, timeout=None, llm={"function_call_timeout_secs": 0.1}
    ),
    "Pipecat's limit, background": Event(
        nothing, None, 1, timeout=None, llm={"function_call_timeout_secs": 0.1}, **BACKGROUND
    ),
    # The LLM runs once for the user's words, and once for the result of its cancelling.
    "cancel_debate": Event(llm_cancels, None, 2, cancellable_by_llm=True, **BACKGROUND),
}
for mode, options in {"": {}, ", background": BACKGROUND, ", protected": PROTECTED}.items():
    EVENTS |= {
        f"EndFrame{mode}": Event(queued(EndFrame), ENDED, **options),
        f"StopFrame{mode}": Event(stopped, ENDED, **options),
        f"CancelFrame{mode}": Event(queued(CancelFrame), ENDED, **options),
        f"the worker ends{mode}": Event(worker_ends, ENDED, **options),
        f"the worker is cancelled{mode}": Event(worker_is_cancelled, ENDED, **options),
    }


@pytest.mark.parametrize("event", EVENTS.values(), ids=EVENTS)
async def test_every_cancellation_of_a_call_stops_its_jobs_and_settles_it_once(
    job_harness: JobHarness, scripted_llm: ScriptedLLMServer, new_llm: NewLLM, event: Event
):
    worker = moderator(new_llm(**event.llm), **event.options)
    then = [ToolCall("cancel_debate")] if event.happens is llm_cancels else []
    scene = await begin(job_harness, scripted_llm, worker, *then, "Understood.")

    await event.happens(scene)

    await scene.jobs_stop()
    requests = await scripted_llm.wait_for_requests(1 + event.comments)
    if not worker.has_finished():
        await worker.flush_pipeline()
    debates = [frame for frame in scene.stage.settled if frame.function_name == "debate"]
    assert len(debates) == 1
    if event.settled_as is None:
        assert isinstance(debates[0], FunctionCallCancelFrame)
    else:
        assert isinstance(debates[0], FunctionCallResultFrame)
        assert debates[0].result == event.settled_as
    assert scripted_llm.requests == requests
    assert "IN_PROGRESS" not in scene.stage.tool_texts


async def test_gap_28_the_llm_does_not_comment_on_the_end_of_its_own_session(
    job_harness: JobHarness, scripted_llm: ScriptedLLMServer, new_llm: NewLLM
):
    scene = await begin(job_harness, scripted_llm, moderator(new_llm()), "The worker stopped.")

    await scene.worker.queue_frame(EndFrame())
    await scene.worker.wait()

    await scene.jobs_stop()
    assert len(scripted_llm.requests) == 1
    assert scene.stage.results == [ENDED]
    assert "The session ended" in scene.stage.tool_texts[0]


async def test_jobs_stop_when_the_end_reaches_the_llm_rather_than_when_the_pipeline_is_done(
    job_harness: JobHarness, scripted_llm: ScriptedLLMServer, new_llm: NewLLM
):
    scene = await begin(job_harness, scripted_llm, moderator(new_llm()))
    played_out = asyncio.Event()

    async def play_out(_: object, frame: object) -> None:
        if isinstance(frame, EndFrame):
            await played_out.wait()

    scene.worker.assistant_aggregator.add_event_handler("on_before_push_frame", play_out)
    await scene.worker.queue_frame(EndFrame())

    await scene.jobs_stop()
    assert not scene.worker.has_finished()
    played_out.set()
    await scene.worker.wait()


async def test_an_interruption_leaves_background_jobs_running_and_the_result_comes_later(
    job_harness: JobHarness, scripted_llm: ScriptedLLMServer, new_llm: NewLLM
):
    worker = moderator(new_llm(), "advocate", cancel_on_interruption=False, report="at_once")
    scene = await begin(
        job_harness, scripted_llm, worker, "It is noon.", "Done.", workers=("advocate",)
    )

    await interruption(scene)
    await scene.stage.say("what time is it?")
    await scripted_llm.wait_for_requests(2)
    await worker.flush_pipeline()
    assert scene.jobs_run_on()
    assert scene.stage.settled == []

    scene.others[0].release.set()
    _, _, last = await scripted_llm.wait_for_requests(3)
    await last.wait_ended()
    assert last.outcome == "completed"
    assert scene.stage.results == [{"text": "advocate says"}]
    assert last.mentions("advocate says")


async def test_a_protected_call_survives_interruptions_and_is_not_offered_to_be_cancelled(
    job_harness: JobHarness, scripted_llm: ScriptedLLMServer, new_llm: NewLLM
):
    # Pipecat's own limit does not end the call either.
    worker = moderator(
        new_llm(function_call_timeout_secs=0.05), "advocate", protected=True, report="at_once"
    )
    scene = await begin(job_harness, scripted_llm, worker, "Paid.", workers=("advocate",))

    for _ in range(2):
        await interruption(scene)
        await worker.flush_pipeline()
    # The limit passes in this time; no event shows a limit without an effect.
    passed = asyncio.Event()
    asyncio.get_running_loop().call_later(0.1, passed.set)
    await passed.wait()
    assert scene.jobs_run_on()

    scene.others[0].release.set()
    first, last = await scripted_llm.wait_for_requests(2)
    await last.wait_ended()
    assert last.outcome == "completed"
    assert first.tools == ["debate"]
    description = first.body["tools"][0]["function"]["description"]
    assert description.startswith("Analyze a topic.\n")
    assert "cannot be cancelled or taken back" in description
    assert scene.stage.results == [{"text": "advocate says"}]


async def test_a_cancelled_group_is_reported_and_commented_on(
    job_harness: JobHarness, scripted_llm: ScriptedLLMServer, new_llm: NewLLM
):
    """This happens when a user closes its card."""
    scene = await begin(job_harness, scripted_llm, moderator(new_llm()), "As you like.")
    (job_id,) = scene.worker.job_groups

    await scene.worker.cancel_job_group(job_id, reason="the user closed it")

    _, second = await scripted_llm.wait_for_requests(2)
    why = "was stopped before it answered: the user closed it"
    assert tool_results(second) == [{"answers": {}, "missing": dict.fromkeys(WORKERS, why)}]
    await scene.worker.flush_pipeline()


async def test_progress_arrives_without_an_inference_for_each(
    job_harness: JobHarness, scripted_llm: ScriptedLLMServer, new_llm: NewLLM
):
    worker = moderator(new_llm(), "advocate", cancel_on_interruption=False, report="at_once")
    scene = await begin(job_harness, scripted_llm, worker, "Done.", workers=("advocate",))
    (job_id,) = worker.job_groups
    (advocate,) = scene.others

    for percent in (10, 90):
        await advocate.send_job_update(job_id, {"percent": percent})
    await scene.stage.until(lambda: len(scene.stage.reported) == 2)
    await worker.flush_pipeline()

    assert len(scripted_llm.requests) == 1
    assert scene.stage.reported == [
        {"worker": "advocate", "update": {"percent": 10}},
        {"worker": "advocate", "update": {"percent": 90}},
    ]
    advocate.release.set()
    _, last = await scripted_llm.wait_for_requests(2)
    await worker.flush_pipeline()
    # The text is quoted within Pipecat's message.
    assert last.mentions('\\"percent\\": 90')


@pytest.mark.parametrize("options", [{"progress": False, **BACKGROUND}, {}])
async def test_no_progress_is_reported_when_the_option_is_off(
    job_harness: JobHarness,
    scripted_llm: ScriptedLLMServer,
    new_llm: NewLLM,
    job_log: list[Any],
    options: dict[str, Any],
):
    worker = moderator(new_llm(), "advocate", **options)
    scene = await begin(job_harness, scripted_llm, worker, "Done.", workers=("advocate",))
    (job_id,) = worker.job_groups

    await scene.others[0].send_job_update(job_id, {"percent": 10})
    scene.others[0].release.set()

    await scripted_llm.wait_for_requests(2)
    await worker.flush_pipeline()
    assert scene.stage.reported == []
    assert not [r for r in job_log if "is_final=False" in r.message]


def test_the_deadline_counts_the_tools_own_work(new_local_bus: Callable[[], WorkerBus]):
    class Moderator(LLMContextWorker):
        @job_tool("advocate", job="argue", timeout=30)
        async def debate(self, topic: str):
            """Analyze a topic."""
            await asyncio.sleep(20)
            return {"topic": topic}

    async def main() -> float:
        async with (
            JobHarness(new_local_bus(), timeout=500) as harness,
            ScriptedLLMServer() as server,
        ):
            calls_debate(server)
            llm = scripted_service(server)
            worker = Moderator("moderator", llm=llm, active=True)
            stage = await raise_stage(harness, worker, Colleague("advocate", holds=True))
            await stage.say()
            await stage.until_settled()
            assert stage.results == [{"error": "debate did not answer in time"}]
            settled_at = asyncio.get_running_loop().time()
            await server.wait_for_requests(2)
            await harness.cancel(worker)
            await llm._client.close()
            return settled_at

    assert run_virtual(main()) == pytest.approx(30, abs=0.5)


async def test_two_tool_calls_of_one_generation_are_commented_on_once(
    job_harness: JobHarness, scripted_llm: ScriptedLLMServer, new_llm: NewLLM
):
    both = (ToolCall("debate", {"topic": "AI"}), ToolCall("debate", {"topic": "cats"}))
    scripted_llm.reply(ToolCalls(*both), "Both.")
    worker = moderator(new_llm())
    stage = await raise_stage(job_harness, worker, *map(Colleague, WORKERS))

    await stage.say()

    _, second = await scripted_llm.wait_for_requests(2)
    await worker.flush_pipeline()
    assert len(tool_results(second)) == 2
    assert len(scripted_llm.requests) == 2


@pytest.mark.parametrize("calls", [1, 3])
async def test_every_open_call_is_settled_at_the_end(
    job_harness: JobHarness, scripted_llm: ScriptedLLMServer, new_llm: NewLLM, calls: int
):
    topics = [ToolCall("debate", {"topic": f"topic {number}"}) for number in range(calls)]
    scripted_llm.reply(ToolCalls(*topics))
    advocate = Colleague("advocate", holds=True)
    worker = moderator(new_llm(), "advocate", **BACKGROUND)
    stage = await raise_stage(job_harness, worker, advocate)
    await stage.say()
    for _ in range(calls):
        await advocate.started.get()

    await worker.queue_frame(EndFrame())
    await worker.wait()

    assert stage.results == [ENDED] * calls
    await job_harness.settle()
    assert advocate.stopped.qsize() == calls


async def test_a_custom_worker_class_has_job_tools_through_the_mixin(
    job_harness: JobHarness, scripted_llm: ScriptedLLMServer, new_llm: NewLLM
):
    from pipecat.workers.llm import LLMContextWorker as PipecatLLMContextWorker

    class Moderator(PipecatLLMContextWorker, JobsMixin):
        @job_tool("advocate", job="argue")
        async def debate(self, topic: str):
            """Analyze a topic."""
            return {"topic": topic}

    worker = Moderator("moderator", llm=new_llm(), active=True)
    calls_debate(scripted_llm)
    stage = await raise_stage(job_harness, worker, Colleague("advocate"))
    await stage.say()

    _, second = await scripted_llm.wait_for_requests(2)
    assert tool_results(second) == [{"text": "advocate says"}]
    await worker.flush_pipeline()


async def test_a_plain_pipecat_worker_raises_an_error_that_says_what_to_import(
    job_harness: JobHarness,
    scripted_llm: ScriptedLLMServer,
    new_llm: NewLLM,
    job_log: list[Any],
):
    from pipecat.workers.llm import LLMContextWorker as PipecatLLMContextWorker

    class Moderator(PipecatLLMContextWorker):
        @job_tool("advocate", job="argue")
        async def debate(self, topic: str):
            """Analyze a topic."""
            return {"topic": topic}

    worker = Moderator("moderator", llm=new_llm(), active=True)
    calls_debate(scripted_llm)
    stage = await raise_stage(job_harness, worker, Colleague("advocate"))
    await stage.say()

    _, second = await scripted_llm.wait_for_requests(2)
    failure = {"error": "debate is not set up correctly and cannot be used."}
    assert tool_results(second) == [failure]
    (record,) = [r for r in job_log if r.message.startswith("tool debate raised")]
    assert "import PipelineWorker, LLMWorker or LLMContextWorker from pipecat_jobs" in str(
        record.exception
    )
    await worker.flush_pipeline()
