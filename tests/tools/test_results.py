"""The results of a job tool's call that the LLM gets."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pytest
from pipecat.bus.messages import BusJobRequestMessage
from support.tools_stage import (
    WORKERS,
    Colleague,
    NewLLM,
    calls_debate,
    new_llm,
    raise_stage,
    tool_results,
)

from pipecat_jobs import (
    JobInterceptor,
    JobLifeEvent,
    JobOutcome,
    JobToolError,
    LLMContextWorker,
    OutcomeStatus,
    Retry,
    job,
    job_headers,
    job_tool,
)
from pipecat_jobs.testing import JobHarness, ScriptedLLMServer
from pipecat_jobs.testing.fixtures import LogRecord

__all__ = ["new_llm"]


def moderator(llm: Any, *workers: str, **options: Any) -> LLMContextWorker:
    options = {"job": "argue", "timeout": 30} | options

    class Moderator(LLMContextWorker):
        @job_tool(*workers, **options)
        async def debate(self, topic: str):
            """Analyze a topic."""
            return {"topic": topic}

    return Moderator("moderator", llm=llm, active=True)


async def result_of(
    harness: JobHarness,
    server: ScriptedLLMServer,
    worker: LLMContextWorker,
    *others: Colleague,
) -> Any:
    """The tool's result that the provider gets, with a request to comment on it."""
    calls_debate(server)
    stage = await raise_stage(harness, worker, *others)
    await stage.say()
    _, second = await server.wait_for_requests(2)
    await worker.flush_pipeline()
    assert len(stage.settled) == 1
    (result,) = tool_results(second)
    return result


async def test_the_response_of_one_worker_is_the_result(
    job_harness: JobHarness, scripted_llm: ScriptedLLMServer, new_llm: NewLLM
):
    advocate = Colleague("advocate")
    worker = moderator(new_llm(), "advocate")

    result = await result_of(job_harness, scripted_llm, worker, advocate)

    assert result == {"text": "advocate says"}
    assert advocate.payloads == [{"topic": "AI"}]


@pytest.mark.not_on("pubsub", reason="headers are dropped, since a plain peer could not read them")
@pytest.mark.parametrize("once", [True, False])
async def test_run_once_jobs_of_a_tool_are_never_started_twice(
    job_harness: JobHarness, scripted_llm: ScriptedLLMServer, new_llm: NewLLM, once: bool
):
    seen: list[bool] = []

    class Cashier(Colleague):
        @job(name="pay")
        async def pay(self, message: BusJobRequestMessage) -> dict[str, Any]:
            seen.append(job_headers(message).run_once)
            return {}

    options: dict[str, Any] = {"run_once": True} if once else {}
    worker = moderator(new_llm(), "cashier", job="pay", **options)
    await result_of(job_harness, scripted_llm, worker, Cashier("cashier"))
    assert seen == [once]


async def test_a_job_of_a_tool_that_failed_is_asked_again(
    job_harness: JobHarness, scripted_llm: ScriptedLLMServer, new_llm: NewLLM
):
    class Overloaded(Colleague):
        calls = 0

        @job(name="look_up")
        async def look_up(self, message: BusJobRequestMessage) -> dict[str, Any]:
            self.calls += 1
            if self.calls == 1:
                raise ValueError("overloaded")
            return {"calls": self.calls}

    retry = Retry(on={OutcomeStatus.ERROR}, wait_initial=0)
    worker = moderator(new_llm(), "overloaded", job="look_up", retry=retry)
    result = await result_of(job_harness, scripted_llm, worker, Overloaded("overloaded"))
    assert result == {"calls": 2}


async def test_the_responses_of_a_group_are_given_by_worker(
    job_harness: JobHarness, scripted_llm: ScriptedLLMServer, new_llm: NewLLM
):
    worker = moderator(new_llm(), *WORKERS)

    result = await result_of(job_harness, scripted_llm, worker, *map(Colleague, WORKERS))

    assert result == {"answers": {name: {"text": f"{name} says"} for name in WORKERS}}


async def test_the_responses_are_reported_with_the_missing_workers_and_why(
    job_harness: JobHarness, scripted_llm: ScriptedLLMServer, new_llm: NewLLM
):
    worker = moderator(new_llm(), "advocate", "critic", "analyst", "late", timeout=0.3)
    others = (
        Colleague("advocate"),
        Colleague("critic", response=ValueError("no such topic")),
        Colleague("analyst", response="the source is offline"),
        Colleague("late", holds=True),
    )

    result = await result_of(job_harness, scripted_llm, worker, *others)

    assert result == {
        "answers": {"advocate": {"text": "advocate says"}},
        "missing": {
            "critic": "had an internal error (ValueError)",
            "analyst": "the source is offline",
            "late": "did not answer in time",
        },
    }


async def test_a_single_missing_worker_is_reported_without_its_name(
    job_harness: JobHarness, scripted_llm: ScriptedLLMServer, new_llm: NewLLM
):
    worker = moderator(new_llm(), "nobody", timeout=0.05)

    result = await result_of(job_harness, scripted_llm, worker)

    assert result == {"error": "debate did not answer in time"}


async def test_a_lost_worker_is_reported_as_missing_and_the_others_with_their_responses(
    job_harness: JobHarness, scripted_llm: ScriptedLLMServer, new_llm: NewLLM
):
    gone = Colleague("critic", holds=True)
    worker = moderator(new_llm(), "advocate", "critic")
    calls_debate(scripted_llm)
    stage = await raise_stage(job_harness, worker, Colleague("advocate"), gone)
    await stage.say()
    await gone.started.get()

    await worker.worker_lost("critic", reason="its host is down")

    _, second = await scripted_llm.wait_for_requests(2)
    assert tool_results(second) == [
        {
            "answers": {"advocate": {"text": "advocate says"}},
            "missing": {"critic": "went away without an answer"},
        }
    ]


# The options need, partial_after and hedge_after


async def test_the_first_response_is_enough_and_the_workers_not_needed_are_not_missing(
    job_harness: JobHarness, scripted_llm: ScriptedLLMServer, new_llm: NewLLM
):
    slow = Colleague("critic", holds=True)
    worker = moderator(new_llm(), "advocate", "critic", need="first")
    calls_debate(scripted_llm)
    first = Colleague("advocate", holds=True)
    stage = await raise_stage(job_harness, worker, first, slow)
    await stage.say()
    await slow.started.get()
    first.release.set()

    _, second = await scripted_llm.wait_for_requests(2)

    assert tool_results(second) == [{"answers": {"advocate": {"text": "advocate says"}}}]
    await slow.stopped.get()
    await worker.flush_pipeline()


async def test_a_worker_that_failed_before_so_many_completed_is_missing(
    job_harness: JobHarness, scripted_llm: ScriptedLLMServer, new_llm: NewLLM
):
    worker = moderator(new_llm(), "advocate", "critic", "analyst", need=1)
    calls_debate(scripted_llm)
    first = Colleague("advocate", holds=True)
    critic = Colleague("critic", response=JobToolError("no table"))
    stage = await raise_stage(job_harness, worker, first, critic, Colleague("analyst", holds=True))

    class ReleaseFirst(JobInterceptor):
        def on_event(self, event: JobLifeEvent) -> None:
            if event.outcome is not None and event.outcome.worker == "critic":
                first.release.set()

    worker.add_job_interceptor(ReleaseFirst())
    await stage.say()

    _, second = await scripted_llm.wait_for_requests(2)

    assert tool_results(second) == [
        {"answers": {"advocate": {"text": "advocate says"}}, "missing": {"critic": "no table"}}
    ]
    await worker.flush_pipeline()


async def test_too_few_responses_are_reported_with_the_missing_workers_and_why(
    job_harness: JobHarness, scripted_llm: ScriptedLLMServer, new_llm: NewLLM
):
    worker = moderator(new_llm(), "advocate", "critic", need="first")
    others = (
        Colleague("advocate", response=JobToolError("no table")),
        Colleague("critic", response=JobToolError("closed today")),
    )

    result = await result_of(job_harness, scripted_llm, worker, *others)

    assert result == {"answers": {}, "missing": {"advocate": "no table", "critic": "closed today"}}


async def test_the_responses_after_some_seconds_are_the_result(
    job_harness: JobHarness, scripted_llm: ScriptedLLMServer, new_llm: NewLLM
):
    slow = Colleague("critic", holds=True)
    worker = moderator(new_llm(), "advocate", "critic", partial_after=0.2)

    result = await result_of(job_harness, scripted_llm, worker, Colleague("advocate"), slow)

    assert result == {"answers": {"advocate": {"text": "advocate says"}}}
    await slow.stopped.get()


async def test_the_deadline_comes_first_if_the_function_took_the_time_before_partial_after(
    job_harness: JobHarness, scripted_llm: ScriptedLLMServer, new_llm: NewLLM
):
    class Moderator(LLMContextWorker):
        @job_tool("advocate", "critic", job="argue", timeout=2, partial_after=1.95)
        async def debate(self, topic: str):
            """Analyze a topic."""
            await asyncio.sleep(0.1)
            return {"topic": topic}

    worker = Moderator("moderator", llm=new_llm(), active=True)
    others = Colleague("advocate"), Colleague("critic", holds=True)

    result = await result_of(job_harness, scripted_llm, worker, *others)

    assert result["missing"] == {"critic": "did not answer in time"}


async def test_a_slow_worker_is_hedged_with_the_next_one(
    job_harness: JobHarness, scripted_llm: ScriptedLLMServer, new_llm: NewLLM
):
    slow = Colleague("advocate", holds=True)
    worker = moderator(new_llm(), "advocate", "critic", need="first", hedge_after=0.1)

    result = await result_of(job_harness, scripted_llm, worker, slow, Colleague("critic"))

    assert result == {"answers": {"critic": {"text": "critic says"}}}
    await slow.stopped.get()


async def test_fail_cancels_all_at_the_first_failure_and_names_the_worker_and_why(
    job_harness: JobHarness, scripted_llm: ScriptedLLMServer, new_llm: NewLLM
):
    slow = Colleague("advocate", holds=True)
    worker = moderator(new_llm(), "advocate", "critic", on_failure="fail")
    critic = Colleague("critic", response=ValueError("no such topic"))

    result = await result_of(job_harness, scripted_llm, worker, slow, critic)

    assert result == {"error": "critic had an internal error (ValueError)"}
    await slow.stopped.get()


async def test_fail_reports_responses_as_usual_when_no_worker_fails(
    job_harness: JobHarness, scripted_llm: ScriptedLLMServer, new_llm: NewLLM
):
    worker = moderator(new_llm(), "advocate", on_failure="fail")

    result = await result_of(job_harness, scripted_llm, worker, Colleague("advocate"))

    assert result == {"text": "advocate says"}


@pytest.mark.parametrize(
    ("workers", "expected"),
    [
        (("advocate",), {"status": "debate finished, and had nothing to add"}),
        (
            ("advocate", "critic"),
            {
                "answers": {
                    "advocate": "finished, and had nothing to add",
                    "critic": {"text": "critic says"},
                }
            },
        ),
    ],
)
async def test_gap_27_an_empty_response_does_not_silence_the_bot(
    job_harness: JobHarness,
    scripted_llm: ScriptedLLMServer,
    new_llm: NewLLM,
    workers: tuple[str, ...],
    expected: object,
):
    worker = moderator(new_llm(), *workers)
    others = (Colleague("advocate", response={}), Colleague("critic"))

    assert await result_of(job_harness, scripted_llm, worker, *others) == expected


@dataclass
class Opaque:
    """A value that JSON cannot express."""

    words: set[str]


@pytest.mark.not_on("redis", "pubsub", reason="values that are not JSON do not cross a server")
async def test_a_response_that_is_not_json_is_written_as_the_values_it_holds(
    job_harness: JobHarness, scripted_llm: ScriptedLLMServer, new_llm: NewLLM
):
    response = {"opaque": Opaque({"one"}), "kind": KeyError}
    worker = moderator(new_llm(), "advocate")

    result = await result_of(
        job_harness, scripted_llm, worker, Colleague("advocate", response=response)
    )

    assert result == {"opaque": {"words": ["one"]}, "kind": "<class 'KeyError'>"}


async def test_no_traceback_reaches_the_llm(
    job_harness: JobHarness, scripted_llm: ScriptedLLMServer, new_llm: NewLLM
):
    traceback = f"it broke\nTraceback (most recent call last):\n  File x\n{'y' * 2000}"
    worker = moderator(new_llm(), "advocate", "critic")
    others = (
        Colleague("advocate", response=traceback),
        Colleague("critic", response="x" * 2000),
    )

    result = await result_of(job_harness, scripted_llm, worker, *others)

    assert result["missing"]["advocate"] == "it broke"
    assert len(result["missing"]["critic"]) < 350


# The render option


async def in_order(outcomes: Mapping[str, JobOutcome]) -> str:
    return "; ".join(f"{name} {outcome.status}" for name, outcome in outcomes.items())


def lengths(outcomes: Mapping[str, JobOutcome]) -> dict[str, int]:
    return {name: len(o.response["text"]) for name, o in outcomes.items() if o.completed}


@pytest.mark.parametrize(
    ("render", "expected"),
    [(in_order, "critic completed; advocate error"), (lengths, {"critic": 11})],
)
async def test_render_gets_the_outcomes_in_the_order_of_the_workers(
    job_harness: JobHarness,
    scripted_llm: ScriptedLLMServer,
    new_llm: NewLLM,
    render: Any,
    expected: object,
):
    worker = moderator(new_llm(), "critic", "advocate", render=render)
    others = (Colleague("critic"), Colleague("advocate", response=ValueError("no")))

    assert await result_of(job_harness, scripted_llm, worker, *others) == expected


def broken(outcomes: Mapping[str, JobOutcome]) -> str:
    raise LookupError("no words")


@pytest.mark.parametrize("render", [broken, lambda _: "", lambda _: None])
async def test_a_render_without_a_usable_result_is_logged_and_replaced(
    job_harness: JobHarness,
    scripted_llm: ScriptedLLMServer,
    new_llm: NewLLM,
    job_log: list[LogRecord],
    render: Any,
):
    worker = moderator(new_llm(), "critic", render=render)

    result = await result_of(job_harness, scripted_llm, worker, Colleague("critic"))

    assert result == {"text": "critic says"}
    assert [r.level for r in job_log if r.message.startswith("render ")] == ["ERROR"]


# The return value of the method


@pytest.mark.parametrize(
    ("made", "explanation"),
    [
        (ValueError("no such topic"), "debate had an internal error (ValueError)."),
        (JobToolError("no such topic"), "no such topic"),
        (JobToolError(), "debate could not do it"),
        ("a text", "debate is not set up correctly and cannot be used."),
        (None, "debate is not set up correctly and cannot be used."),
    ],
)
async def test_a_method_that_returns_no_payload_is_logged_and_reported_to_the_llm(
    job_harness: JobHarness,
    scripted_llm: ScriptedLLMServer,
    new_llm: NewLLM,
    job_log: list[LogRecord],
    made: object,
    explanation: str,
):
    class Moderator(LLMContextWorker):
        @job_tool("advocate", job="argue")
        async def debate(self, topic: str):
            """Analyze a topic."""
            if isinstance(made, Exception):
                raise made
            return made

    advocate = Colleague("advocate")
    worker = Moderator("moderator", llm=new_llm(), active=True)

    assert await result_of(job_harness, scripted_llm, worker, advocate) == {"error": explanation}

    assert advocate.payloads == []
    (record,) = [r for r in job_log if r.message.startswith("tool debate ")]
    refused = isinstance(made, JobToolError)
    assert record.level == ("INFO" if refused else "ERROR")
    assert (record.exception is None) is refused
