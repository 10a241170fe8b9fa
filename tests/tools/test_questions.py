"""A worker asks back, and the user answers through the LLM."""

import asyncio
import json
from typing import Any, Literal

import pytest
from pipecat.bus.messages import BusJobRequestMessage
from support.tools_stage import NewLLM, Stage, new_llm, raise_stage

from pipecat_jobs import (
    BaseWorker,
    JobInterceptor,
    JobLifeEvent,
    JobLifeEventKind,
    JobQuestionError,
    LLMContextWorker,
    OpenJobState,
    job,
    job_tool,
    list_jobs,
)
from pipecat_jobs.testing import JobHarness, LLMRequest, ScriptedLLMServer, ToolCall, ToolCalls

__all__ = ["new_llm"]

pytestmark = pytest.mark.not_on(
    "pubsub", reason="Pipecat's network buses drop what an answer needs"
)


class Desk(BaseWorker):
    """Books a seat once it knows which."""

    def __init__(self) -> None:
        super().__init__("desk")
        self.failed: asyncio.Queue[JobQuestionError] = asyncio.Queue()
        self.cancelled, self.ended = asyncio.Event(), asyncio.Event()

    @job(name="book")
    async def book(self, message: BusJobRequestMessage) -> dict[str, Any]:
        city = message.payload["city"]
        try:
            seat = await self.ask_requester(f"{city}: aisle or window?", Literal["aisle", "window"])
        except JobQuestionError as error:
            self.failed.put_nowait(error)
            raise
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        finally:
            self.ended.set()
        return {"city": city, "seat": seat}


class Host(LLMContextWorker):
    @job_tool("desk", job="book", cancel_on_interruption=False)
    async def book(self, city: str):
        """Book a seat."""
        return {"city": city}

    @job_tool("desk", job="book")
    async def book_and_wait(self, city: str):
        """Book a seat while the user waits."""
        return {"city": city}


async def begin(
    harness: JobHarness, server: ScriptedLLMServer, llm: Any
) -> tuple[Stage, Desk, LLMRequest]:
    """Have the LLM ask the user the question of the desk; return the LLM's request for that."""
    server.reply(BERLIN, "Aisle or window?")
    desk = Desk()
    stage = await raise_stage(harness, Host("host", llm=llm, active=True), desk)
    await stage.say("book a seat to Berlin")
    _, second = await server.wait_for_requests(2)
    return stage, desk, second


def questions(request: LLMRequest) -> list[dict[str, Any]]:
    """The questions in the newest message of reports."""
    for message in reversed(request.messages):
        text = str(message.get("content"))
        if '"type": "report"' in text:
            reports = [report["report"] for report in json.loads(text)["reports"]]
            return [report for report in reports if "question" in report]
    return []


def tools(request: LLMRequest) -> list[str]:
    return [tool["function"]["name"] for tool in request.body.get("tools", [])]


def answer_tool(question: dict[str, Any]) -> str:
    return str(question["what_to_do"]).split()[-1].rstrip(".")


BERLIN, ROME = (ToolCall("book", {"city": city}) for city in ("Berlin", "Rome"))


async def test_the_user_answers_in_words_and_the_llm_passes_the_answer_on(
    job_harness: JobHarness, scripted_llm: ScriptedLLMServer, new_llm: NewLLM
):
    stage, _, second = await begin(job_harness, scripted_llm, new_llm())
    (question,) = questions(second)
    assert question["question"] == "Berlin: aisle or window?"
    assert question["about"] == "book"
    name = answer_tool(question)
    assert name in tools(second)
    (schema,) = [t["function"] for t in second.body["tools"] if t["function"]["name"] == name]
    assert schema["parameters"]["properties"]["answer"]["enum"] == ["aisle", "window"]

    scripted_llm.reply(ToolCall(name, {"answer": "window"}), "Noted.", "It is booked.")
    await stage.say("by the window, please")

    requests = await scripted_llm.wait_for_requests(5)
    assert requests[-1].mentions('"seat": "window"')
    assert name not in tools(requests[-1])
    await stage.worker.flush_pipeline()


async def test_an_answer_that_does_not_fit_is_asked_for_again_with_the_problem(
    job_harness: JobHarness, scripted_llm: ScriptedLLMServer, new_llm: NewLLM
):
    stage, _, second = await begin(job_harness, scripted_llm, new_llm())
    name = answer_tool(questions(second)[0])

    scripted_llm.reply(ToolCall(name, {"answer": "middle"}), "Noted.", "Only aisle or window.")
    await stage.say("the middle")

    requests = await scripted_llm.wait_for_requests(5)
    (again,) = questions(requests[-1])
    assert "'aisle' or 'window'" in again["last_answer_did_not_fit"]
    assert answer_tool(again) != name
    assert name not in tools(requests[-1])
    await job_harness.end(stage.worker)


async def test_a_question_leaves_the_functions_among_the_tools_callable(
    job_harness: JobHarness, scripted_llm: ScriptedLLMServer, new_llm: NewLLM
):
    class Lister(Host):
        def build_tools(self) -> list[Any]:
            return [*super().build_tools(), list_jobs]

    scripted_llm.reply(BERLIN, "Aisle or window?")
    stage = await raise_stage(job_harness, Lister("host", llm=new_llm(), active=True), Desk())
    await stage.say("book a seat to Berlin")
    _, second = await scripted_llm.wait_for_requests(2)
    name = answer_tool(questions(second)[0])

    scripted_llm.reply(ToolCall("list_jobs"), "One.")
    await stage.say("what is going on?")
    requests = await scripted_llm.wait_for_requests(4)
    assert requests[-1].mentions(f'"desk": "{OpenJobState.WAITING_FOR_INPUT}"')

    scripted_llm.reply(ToolCall(name, {"answer": "window"}), "Noted.", "It is booked.")
    await stage.say("by the window, please")
    await scripted_llm.wait_for_requests(7)
    scripted_llm.reply(ToolCall("list_jobs"), "None.")
    await stage.say("what is going on now?")

    requests = await scripted_llm.wait_for_requests(9)
    assert requests[-1].mentions('{"jobs": []}')
    await stage.worker.flush_pipeline()


async def test_two_open_questions_do_not_cross(
    job_harness: JobHarness, scripted_llm: ScriptedLLMServer, new_llm: NewLLM
):
    scripted_llm.reply(ToolCalls(BERLIN, ROME), "Two questions.")
    stage = await raise_stage(job_harness, Host("host", llm=new_llm(), active=True), Desk())
    await stage.say("book Berlin and Rome")
    _, second = await scripted_llm.wait_for_requests(2)
    names = {str(q["question"]).partition(":")[0]: answer_tool(q) for q in questions(second)}
    assert set(names) == {"Berlin", "Rome"}

    scripted_llm.reply(
        ToolCalls(
            ToolCall(names["Rome"], {"answer": "aisle"}),
            ToolCall(names["Berlin"], {"answer": "window"}),
        ),
        "Noted.",
        "Both are booked.",
    )
    await stage.say("aisle to Rome, and a window to Berlin")

    requests = await scripted_llm.wait_for_requests(5)
    last = str(requests[-1].messages[-1]["content"])
    booked = {r["report"]["result"]["city"]: r["report"]["result"]["seat"]
              for r in json.loads(last)["reports"]}  # fmt: skip
    assert booked == {"Berlin": "window", "Rome": "aisle"}
    await stage.worker.flush_pipeline()


async def test_a_second_answer_to_a_question_is_not_passed_on(
    job_harness: JobHarness, scripted_llm: ScriptedLLMServer, new_llm: NewLLM
):
    stage, _, second = await begin(job_harness, scripted_llm, new_llm())
    name = answer_tool(questions(second)[0])

    both = (ToolCall(name, {"answer": seat}) for seat in ("window", "aisle"))
    scripted_llm.reply(ToolCalls(*both), "Noted.", "It is booked.")
    await stage.say("by the window")

    await stage.until_settled(2)
    statuses = [result["status"] for result in stage.results if "question" in str(result)]
    assert statuses == ["The question is not open any more; nothing was passed on."]
    requests = await scripted_llm.wait_for_requests(4)
    if not requests[-1].mentions('"seat": "window"'):
        requests = await scripted_llm.wait_for_requests(5)
    assert requests[-1].mentions('"seat": "window"')
    await stage.worker.flush_pipeline()


async def test_never_mind_cancels_the_job(
    job_harness: JobHarness, scripted_llm: ScriptedLLMServer, new_llm: NewLLM
):
    stage, desk, second = await begin(job_harness, scripted_llm, new_llm())
    name = answer_tool(questions(second)[0])

    scripted_llm.reply(ToolCall(name, {"never_mind": True}), "As you like.", "It is off.")
    await stage.say("never mind")

    await desk.cancelled.wait()
    # Pipecat 1.8 has no run of its own for the answer's result, because another one follows it.
    requests = await scripted_llm.wait_for_requests(4)
    if not requests[-1].mentions("the user does not want to answer"):
        requests = await scripted_llm.wait_for_requests(5)
    assert requests[-1].mentions("the user does not want to answer")
    await stage.worker.flush_pipeline()


async def test_a_job_for_whose_result_the_llm_waits_cannot_ask_the_user(
    job_harness: JobHarness, scripted_llm: ScriptedLLMServer, new_llm: NewLLM
):
    scripted_llm.reply(ToolCall("book_and_wait", {"city": "Berlin"}), "Sorry.")
    desk = Desk()
    stage = await raise_stage(job_harness, Host("host", llm=new_llm(), active=True), desk)
    await stage.say("book a seat to Berlin")

    error = await desk.failed.get()

    assert "cancel_on_interruption=False" in error.reason
    await scripted_llm.wait_for_requests(2)
    await stage.worker.flush_pipeline()


async def test_the_end_of_the_session_ends_a_question_that_the_user_has_not_heard(
    job_harness: JobHarness, scripted_llm: ScriptedLLMServer, new_llm: NewLLM
):
    asked = asyncio.Event()

    class Watch(JobInterceptor):
        def on_event(self, event: JobLifeEvent) -> None:
            if event.kind is JobLifeEventKind.QUESTION:
                asked.set()

    class Busy(Host):
        job_interceptors = (Watch(),)

        def holds_reports(self) -> bool:
            return True

    scripted_llm.reply(BERLIN)
    desk = Desk()
    worker = Busy("host", llm=new_llm(), active=True)
    stage = await raise_stage(job_harness, worker, desk)
    await stage.say("book a seat to Berlin")
    await asked.wait()

    await job_harness.end(worker)

    await desk.ended.wait()
