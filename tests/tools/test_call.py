"""Hand-written tools whose jobs are tied to the call of the tool."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from pipecat.frames.frames import EndFrame, FunctionCallCancelFrame, InterruptionFrame
from pipecat.services.llm_service import FunctionCallParams
from pipecat.workers.llm import LLMContextWorker as PipecatLLMContextWorker
from support.tools_stage import (
    Colleague,
    NewLLM,
    Stage,
    calls_debate,
    new_llm,
    raise_stage,
    tool_results,
)

from pipecat_jobs import InvalidJobError, LLMContextWorker, ToolCallContext, tool, tool_call
from pipecat_jobs.testing import JobHarness, ScriptedLLMServer
from pipecat_jobs.testing.fixtures import LogRecord

__all__ = ["new_llm"]

Body = Callable[[ToolCallContext], Awaitable[None]]


def moderator(
    llm: Any, body: Body, *, base: Any = LLMContextWorker, cancel_on_interruption: bool = True
) -> Any:
    class Moderator(base):
        @tool(cancel_on_interruption=cancel_on_interruption)
        async def debate(self, params: FunctionCallParams, topic: str):
            """Analyze a topic."""
            async with tool_call(params) as call:
                await body(call)

    return Moderator("moderator", llm=llm, active=True)


async def ask(call: ToolCallContext) -> None:
    async with call.job("advocate", name="argue", payload={"topic": "AI"}, timeout=30) as j:
        pass
    await call.finish(j.response)


async def ask_both(call: ToolCallContext) -> None:
    async with call.job_group("advocate", "critic", name="argue", timeout=30) as group:
        pass
    await call.finish(group.responses)


async def finish_not(call: ToolCallContext) -> None:
    pass


async def finish_empty(call: ToolCallContext) -> None:
    await call.finish({})


async def finish_opaque(call: ToolCallContext) -> None:
    await call.finish({"kinds": {KeyError}})


async def fail(call: ToolCallContext) -> None:
    raise ValueError("no such topic")


async def time_out(call: ToolCallContext) -> None:
    async with asyncio.timeout(0):
        await asyncio.Event().wait()


async def ask_unknown_worker(call: ToolCallContext) -> None:
    async with call.job("nobody", timeout=0.02):
        pass


async def await_what_is_cancelled(call: ToolCallContext) -> None:
    inner = asyncio.create_task(asyncio.Event().wait())
    inner.cancel()
    await inner


NOTHING = {"status": "debate finished, and had nothing to add"}

ENDINGS: dict[str, tuple[Body, Any]] = {
    "a job": (ask, {"text": "advocate says"}),
    "a group": (
        ask_both,
        {"advocate": {"text": "advocate says"}, "critic": {"text": "critic says"}},
    ),
    "no finish": (finish_not, NOTHING),
    "an empty result": (finish_empty, NOTHING),
    "a result that is not JSON": (finish_opaque, {"kinds": ["<class 'KeyError'>"]}),
    "an exception": (fail, {"error": "debate had an internal error (ValueError)."}),
    "a timeout of its own": (time_out, {"error": "debate had an internal error (TimeoutError)."}),
    "a job that fails": (ask_unknown_worker, {"error": "debate did not answer in time"}),
    "a cancelled task of its own": (
        await_what_is_cancelled,
        {"error": "debate had an internal error (CancelledError)."},
    ),
}


@pytest.mark.parametrize(("body", "expected"), ENDINGS.values(), ids=ENDINGS)
async def test_the_llm_gets_one_readable_result_after_any_end_of_the_block(
    job_harness: JobHarness,
    scripted_llm: ScriptedLLMServer,
    new_llm: NewLLM,
    body: Body,
    expected: Any,
):
    calls_debate(scripted_llm)
    worker = moderator(new_llm(), body)
    stage = await raise_stage(job_harness, worker, Colleague("advocate"), Colleague("critic"))
    await stage.say()

    _, second = await scripted_llm.wait_for_requests(2)
    await worker.flush_pipeline()
    assert tool_results(second) == [expected]
    assert len(stage.settled) == 1
    assert len(scripted_llm.requests) == 2


async def begin(
    harness: JobHarness, server: ScriptedLLMServer, worker: Any
) -> tuple[Stage, Colleague]:
    calls_debate(server)
    advocate = Colleague("advocate", holds=True)
    stage = await raise_stage(harness, worker, advocate)
    await stage.say()
    await advocate.started.get()
    return stage, advocate


async def test_an_interruption_cancels_the_jobs_and_pipecat_settles_the_call(
    job_harness: JobHarness, scripted_llm: ScriptedLLMServer, new_llm: NewLLM
):
    stage, advocate = await begin(job_harness, scripted_llm, moderator(new_llm(), ask))

    await stage.worker.queue_frame(InterruptionFrame())

    await advocate.stopped.get()
    await stage.worker.flush_pipeline()
    assert [type(frame) for frame in stage.settled] == [FunctionCallCancelFrame]
    assert len(scripted_llm.requests) == 1


async def test_the_end_of_the_session_leaves_the_block_and_runs_no_llm(
    job_harness: JobHarness, scripted_llm: ScriptedLLMServer, new_llm: NewLLM
):
    cleaned_up = asyncio.Event()

    async def body(call: ToolCallContext) -> None:
        try:
            await ask(call)
        finally:
            cleaned_up.set()

    stage, advocate = await begin(job_harness, scripted_llm, moderator(new_llm(), body))

    await stage.worker.queue_frame(EndFrame())
    await stage.worker.wait()

    await advocate.stopped.get()
    await cleaned_up.wait()
    assert stage.results == [{"stopped": "The session ended before debate had its result."}]
    assert len(scripted_llm.requests) == 1


async def test_a_background_call_reports_progress_without_running_the_llm(
    job_harness: JobHarness, scripted_llm: ScriptedLLMServer, new_llm: NewLLM
):
    async def body(call: ToolCallContext) -> None:
        await call.report({"percent": 50})
        await ask(call)

    worker = moderator(new_llm(), body, cancel_on_interruption=False)
    stage, advocate = await begin(job_harness, scripted_llm, worker)
    await stage.until(lambda: stage.reported == [{"percent": 50}])
    await worker.flush_pipeline()
    assert len(scripted_llm.requests) == 1

    advocate.release.set()
    await scripted_llm.wait_for_requests(2)
    await worker.flush_pipeline()
    assert stage.results == [{"text": "advocate says"}]


async def test_finish_may_keep_the_llm_silent(
    job_harness: JobHarness, scripted_llm: ScriptedLLMServer, new_llm: NewLLM
):
    async def body(call: ToolCallContext) -> None:
        await call.finish("done", run_llm=False)

    calls_debate(scripted_llm)
    worker = moderator(new_llm(), body)
    stage = await raise_stage(job_harness, worker)
    await stage.say()

    await stage.until_settled()
    await worker.flush_pipeline()
    assert len(scripted_llm.requests) == 1
    assert stage.tool_texts == ['"done"']


async def test_a_second_result_is_refused(
    job_harness: JobHarness, scripted_llm: ScriptedLLMServer, new_llm: NewLLM
):
    refused: list[InvalidJobError] = []

    async def body(call: ToolCallContext) -> None:
        await call.finish("one")
        for again in (call.finish, call.report):
            with pytest.raises(InvalidJobError, match="call has one result") as caught:
                await again("two")
            refused.append(caught.value)

    calls_debate(scripted_llm)
    worker = moderator(new_llm(), body)
    stage = await raise_stage(job_harness, worker)
    await stage.say()

    await scripted_llm.wait_for_requests(2)
    await worker.flush_pipeline()
    assert stage.results == ["one"]
    assert len(refused) == 2


async def test_an_exception_after_the_result_goes_to_pipecat(
    job_harness: JobHarness,
    scripted_llm: ScriptedLLMServer,
    new_llm: NewLLM,
    job_log: list[LogRecord],
):
    async def body(call: ToolCallContext) -> None:
        await call.finish("one")
        raise ValueError("too late")

    calls_debate(scripted_llm)
    worker = moderator(new_llm(), body)
    stage = await raise_stage(job_harness, worker)
    await stage.say()

    await scripted_llm.wait_for_requests(2)
    await worker.flush_pipeline()
    assert stage.results == ["one"]
    assert [r for r in job_log if r.level == "ERROR" and "too late" in r.message]


async def test_a_plain_pipecat_worker_raises_an_error_that_says_what_to_import(
    job_harness: JobHarness,
    scripted_llm: ScriptedLLMServer,
    new_llm: NewLLM,
    job_log: list[LogRecord],
):
    calls_debate(scripted_llm)
    worker = moderator(new_llm(), ask, base=PipecatLLMContextWorker)
    stage = await raise_stage(job_harness, worker)
    await stage.say()

    _, second = await scripted_llm.wait_for_requests(2)
    failure = {"error": "debate is not set up correctly and cannot be used."}
    assert tool_results(second) == [failure]
    (record,) = [r for r in job_log if r.message.startswith("tool debate raised")]
    assert "from pipecat_jobs, or add JobsMixin" in str(record.exception)
    await worker.flush_pipeline()
