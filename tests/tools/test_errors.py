"""The LLM gets only failure texts that were written for it, and no other text."""

import asyncio
from typing import Any

import pytest
from pipecat.pipeline.job_context import JobStatus
from pipecat.services.llm_service import FunctionCallParams
from support.tools_stage import Colleague, NewLLM, calls_debate, new_llm, raise_stage, tool_results
from support.tools_talks import FlowTalk, calls_flow_debate

from pipecat_jobs import (
    BaseWorker,
    ErrorDetails,
    JobToolError,
    LLMContextWorker,
    job,
    job_tool,
    tool,
    tool_call,
)
from pipecat_jobs.errors import JobToolError as JobToolErrorOfErrors
from pipecat_jobs.testing import JobHarness, ScriptedLLMServer

__all__ = ["new_llm"]

SECRET = "postgres://admin:hunter2@db/"


class LookupRefused(JobToolError):
    """A bot's own exception."""


class SecretError(Exception):
    """An exception whose name decides nothing."""


# An exception with the name of ours, but of another class.
Pretender = type("JobToolError", (Exception,), {})


def test_one_class_is_exported_from_both_places():
    assert JobToolErrorOfErrors is JobToolError


@pytest.mark.parametrize(
    ("error", "for_llm"),
    [
        (JobToolError("no such booking"), True),
        (LookupRefused("no such booking"), True),
        (Pretender("no such booking"), False),
        (ValueError("no such booking"), False),
    ],
)
def test_the_text_for_the_llm_is_a_field_that_survives_the_bus(error: Exception, for_llm: bool):
    details = ErrorDetails.from_exception(error)

    assert details.for_llm is for_llm
    assert ErrorDetails.from_response(details.to_response()) == details


@pytest.mark.parametrize("value", [None, 1, "true", False])
def test_only_a_true_value_on_the_bus_makes_a_text_for_the_llm(value: object):
    details = ErrorDetails.from_response({"error": SECRET, "error_for_llm": value})

    assert details is not None
    assert not details.for_llm


class Failing(BaseWorker):
    """Raises or responds "failed" as the test sets it."""

    def __init__(self, name: str, failure: Exception | dict[str, Any]):
        super().__init__(name)
        self.failure = failure

    @job(name="argue")
    async def argue(self, message: Any) -> None:
        if isinstance(self.failure, Exception):
            raise self.failure
        await self.send_job_response(message.job_id, self.failure, status=JobStatus.FAILED)


#: The failure, and the text for the LLM with one worker and with one of several.
FAILURES: dict[str, tuple[Any, str, str]] = {
    "an exception": (
        SecretError(SECRET),
        "debate had an internal error (SecretError)",
        "had an internal error (SecretError)",
    ),
    "an exception named like ours": (
        Pretender(SECRET),
        "debate had an internal error (JobToolError)",
        "had an internal error (JobToolError)",
    ),
    "one for the LLM": (JobToolError("no such booking"), "no such booking", "no such booking"),
    "a kind of one": (LookupRefused("no such booking"), "no such booking", "no such booking"),
    "a long one": (JobToolError("no " * 500), "no " * 500, "no " * 500),
    "an empty one": (
        JobToolError(),
        "debate could not do it",
        "could not do it",
    ),
    "a response that it failed": (
        {"error": "no such booking"},
        "no such booking",
        "no such booking",
    ),
    "such a response without words": ({}, "debate could not do it", "could not do it"),
    "such a response with an exception": (
        {"error": SECRET, "error_type": "SecretError"},
        "debate could not do it",
        "could not do it",
    ),
}


def moderator(llm: Any, *workers: str, **options: Any) -> LLMContextWorker:
    class Moderator(LLMContextWorker):
        @job_tool(*workers, job="argue", timeout=30, **options)
        async def debate(self, topic: str):
            """Analyze a topic."""
            return {"topic": topic}

    return Moderator("moderator", llm=llm, active=True)


async def result_for_llm(
    harness: JobHarness, server: ScriptedLLMServer, worker: LLMContextWorker, *others: BaseWorker
) -> Any:
    calls_debate(server)
    stage = await raise_stage(harness, worker, *others)
    await stage.say()
    _, second = await server.wait_for_requests(2)
    await worker.flush_pipeline()
    assert not any(SECRET in str(request.body) for request in server.requests)
    (result,) = tool_results(second)
    return result


async def test_the_llm_is_told_that_a_worker_is_busy_with_the_same_thing(
    job_harness: JobHarness, scripted_llm: ScriptedLLMServer, new_llm: NewLLM
):
    class Kitchen(BaseWorker):
        release = asyncio.Event()

        @job(name="argue", key="topic", on_busy="refuse")
        async def argue(self, topic: str) -> None:
            await self.release.wait()

    kitchen, requester = Kitchen("kitchen"), BaseWorker("requester")
    await job_harness.start(kitchen, requester)
    await requester.request_job("kitchen", name="argue", payload={"topic": "AI"})
    worker = moderator(new_llm(), "kitchen")

    result = await result_for_llm(job_harness, scripted_llm, worker)

    why = "debate was refused, because an earlier one for the same thing is still running"
    assert result == {"error": why}
    kitchen.release.set()


@pytest.mark.parametrize(("failure", "one", "_"), FAILURES.values(), ids=FAILURES)
@pytest.mark.parametrize("options", [{}, {"on_failure": "fail"}])
async def test_the_failure_of_one_worker_is_reported_without_its_name(
    job_harness: JobHarness,
    scripted_llm: ScriptedLLMServer,
    new_llm: NewLLM,
    options: dict[str, Any],
    failure: Any,
    one: str,
    _: str,
):
    worker = moderator(new_llm(), "bookings", **options)

    result = await result_for_llm(job_harness, scripted_llm, worker, Failing("bookings", failure))

    assert result == {"error": one}


@pytest.mark.parametrize(("failure", "_", "several"), FAILURES.values(), ids=FAILURES)
async def test_the_failures_of_several_workers_are_reported_by_worker(
    job_harness: JobHarness,
    scripted_llm: ScriptedLLMServer,
    new_llm: NewLLM,
    failure: Any,
    _: str,
    several: str,
):
    worker = moderator(new_llm(), "bookings", "critic")

    result = await result_for_llm(
        job_harness, scripted_llm, worker, Failing("bookings", failure), Colleague("critic")
    )

    assert result == {
        "answers": {"critic": {"text": "critic says"}},
        "missing": {"bookings": several},
    }


async def test_the_first_failure_of_several_names_its_worker(
    job_harness: JobHarness, scripted_llm: ScriptedLLMServer, new_llm: NewLLM
):
    worker = moderator(new_llm(), "bookings", "critic", on_failure="fail")
    failing = Failing("bookings", JobToolError("no such booking"))

    result = await result_for_llm(
        job_harness, scripted_llm, worker, failing, Colleague("critic", holds=True)
    )

    assert result == {"error": "bookings: no such booking"}


@pytest.mark.parametrize(
    ("error", "result"),
    [
        (SecretError(SECRET), "debate had an internal error (SecretError)."),
        (JobToolError("no such topic"), "no such topic"),
    ],
)
async def test_a_hand_written_tool_reports_no_other_exception_text(
    job_harness: JobHarness,
    scripted_llm: ScriptedLLMServer,
    new_llm: NewLLM,
    error: Exception,
    result: str,
):
    class Moderator(LLMContextWorker):
        @tool
        async def debate(self, params: FunctionCallParams, topic: str):
            """Analyze a topic."""
            async with tool_call(params):
                raise error

    worker = Moderator("moderator", llm=new_llm(), active=True)

    assert await result_for_llm(job_harness, scripted_llm, worker) == {"error": result}


@pytest.mark.parametrize(
    ("failure", "result"),
    [
        (SecretError(SECRET), "debate had an internal error (SecretError)"),
        (JobToolError("no such booking"), "no such booking"),
    ],
)
async def test_a_job_of_a_hand_written_tool_is_reported_like_that_of_a_job_tool(
    job_harness: JobHarness,
    scripted_llm: ScriptedLLMServer,
    new_llm: NewLLM,
    failure: Exception,
    result: str,
):
    class Moderator(LLMContextWorker):
        @tool
        async def debate(self, params: FunctionCallParams, topic: str):
            """Analyze a topic."""
            async with tool_call(params) as call, call.job("bookings", name="argue", timeout=30):
                pass

    worker = Moderator("moderator", llm=new_llm(), active=True)

    assert await result_for_llm(
        job_harness, scripted_llm, worker, Failing("bookings", failure)
    ) == {"error": result}


@pytest.mark.parametrize(
    ("error", "result"),
    [
        (SecretError(SECRET), "flow_debate had an internal error (SecretError)."),
        (JobToolError("no such topic"), "no such topic"),
    ],
)
async def test_a_function_of_a_flow_reports_no_other_exception_text(
    job_harness: JobHarness,
    scripted_llm: ScriptedLLMServer,
    new_llm: NewLLM,
    error: Exception,
    result: str,
):
    @job_tool("critic", job="argue")
    async def flow_debate(flow_manager, topic: str):
        """Analyze a topic."""
        raise error

    calls_flow_debate(scripted_llm)
    talk = FlowTalk(new_llm(), flow_debate)
    await job_harness.start(talk.worker)
    await talk.begin()

    _, second = await scripted_llm.wait_for_requests(2)
    assert tool_results(second) == [{"error": result}]
    await talk.worker.flush_pipeline()
