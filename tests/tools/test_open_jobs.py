"""The tools by which an LLM lists and cancels the open jobs of its worker."""

from typing import Any

import pytest
from pipecat.processors.aggregators.llm_context import LLMContext
from support.tools_stage import Colleague, NewLLM, Stage, new_llm, raise_stage

from pipecat_jobs import LLMContextWorker, cancel_job, list_jobs
from pipecat_jobs.testing import JobHarness, ScriptedLLMServer, ToolCall

__all__ = ["new_llm"]


class Waiter(LLMContextWorker):
    def build_tools(self) -> list[Any]:
        return [*super().build_tools(), list_jobs, cancel_job]


async def ordering(
    harness: JobHarness, llm: Any, *orders: dict[str, Any], in_context: bool = False
) -> tuple[Stage, Colleague]:
    """Start a waiter who has asked for jobs that do not end by themselves."""
    kitchen = Colleague("kitchen", holds=True)
    if in_context:
        context = LLMContext(tools=[list_jobs, cancel_job])
        waiter = LLMContextWorker("waiter", llm=llm, context=context, active=True)
    else:
        waiter = Waiter("waiter", llm=llm, active=True)
    stage = await raise_stage(harness, waiter, kitchen)
    for order in orders:
        await waiter.request_job("kitchen", name="argue", timeout=300, **order)
        await kitchen.started.get()
    return stage, kitchen


async def end(harness: JobHarness, stage: Stage, kitchen: Colleague) -> None:
    """Let the jobs end, and then the session."""
    kitchen.release.set()
    await harness.settle()
    await harness.end(stage.worker)


async def call(stage: Stage, server: ScriptedLLMServer, name: str, **arguments: Any) -> Any:
    """Have the LLM make a call, and give the result."""
    count = len(stage.results)
    server.reply(ToolCall(name, arguments), "Fine.")
    await stage.say()
    await stage.until_settled(count + 1)
    await stage.worker.flush_pipeline()
    return stage.results[-1]


@pytest.mark.parametrize("in_context", [False, True])
async def test_the_llm_reads_what_runs(
    job_harness: JobHarness, scripted_llm: ScriptedLLMServer, new_llm: NewLLM, in_context: bool
):
    orders = ({"label": "Order 7", "job_id": "0123456789"}, {})
    stage, kitchen = await ordering(job_harness, new_llm(), *orders, in_context=in_context)
    await kitchen.send_job_update("0123456789", {"percent": 40})
    await job_harness.settle()

    result = await call(stage, scripted_llm, "list_jobs")

    first, second = result["jobs"]
    assert first.pop("seconds_so_far") < 60
    assert 240 < first.pop("seconds_left") <= 300
    assert first == {
        "job": "Order 7",
        "id": "01234567",
        "workers": {"kitchen": "sent"},
        "updates": {"kitchen": {"percent": 40}},
    }
    assert second["job"] == "argue"
    await end(job_harness, stage, kitchen)


async def test_the_llm_cancels_a_job_by_its_label(
    job_harness: JobHarness, scripted_llm: ScriptedLLMServer, new_llm: NewLLM
):
    orders = ({"label": "Order 7"}, {"label": "Order 8"})
    stage, kitchen = await ordering(job_harness, new_llm(), *orders)

    result = await call(stage, scripted_llm, "cancel_job", job="order 7")

    assert result == {"cancelled": "Order 7"}
    await kitchen.stopped.get()
    assert [job.label for job in stage.worker.open_jobs] == ["Order 8"]  # pyright: ignore[reportAttributeAccessIssue]
    await end(job_harness, stage, kitchen)


@pytest.mark.parametrize(
    ("asked", "problem"),
    [("cake", "No running job matches 'cake'."), ("or", "Several jobs match 'or'.")],
)
async def test_the_llm_is_told_what_runs_when_not_exactly_one_job_matches(
    job_harness: JobHarness,
    scripted_llm: ScriptedLLMServer,
    new_llm: NewLLM,
    asked: str,
    problem: str,
):
    orders = ({"job_id": "order-7"}, {"job_id": "order-8"})
    stage, kitchen = await ordering(job_harness, new_llm(), *orders)

    result = await call(stage, scripted_llm, "cancel_job", job=asked)

    assert result["error"] == problem
    assert [job["id"] for job in result["jobs"]] == ["order-7", "order-8"]
    assert kitchen.stopped.empty()
    await end(job_harness, stage, kitchen)


async def test_a_job_that_is_not_cancellable_goes_on(
    job_harness: JobHarness, scripted_llm: ScriptedLLMServer, new_llm: NewLLM
):
    order = {"label": "Payment", "cancellable": False}
    stage, kitchen = await ordering(job_harness, new_llm(), order)

    result = await call(stage, scripted_llm, "cancel_job", job="Payment")

    assert result == {"error": "Payment cannot be cancelled."}
    assert kitchen.stopped.empty()
    await end(job_harness, stage, kitchen)
