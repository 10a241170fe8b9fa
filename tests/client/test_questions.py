"""The questions of handlers, which the client of a bot may answer."""

import asyncio
from typing import Any, Literal

import pytest
from pipecat.bus.messages import BusJobRequestMessage
from pipecat.frames.frames import LLMMessagesAppendFrame
from pipecat.pipeline.pipeline import Pipeline
from pipecat.pipeline.worker import PipelineWorker as PipecatPipelineWorker
from pipecat.processors.filters.identity_filter import IdentityFilter
from support.client import Client
from support.llm_workers import NewLLM, new_llm

from pipecat_jobs import (
    BaseWorker,
    ClientJobs,
    JobCancelledError,
    JobError,
    JobQuestion,
    JobQuestionError,
    LLMContextWorker,
    PipelineWorker,
    job,
    job_tool,
)
from pipecat_jobs.testing import JobHarness, ScriptedLLMServer, ToolCall

__all__ = ["new_llm"]

pytestmark = pytest.mark.not_on(
    "pubsub", reason="Pipecat's network buses drop what an answer needs"
)

SEATS = Literal["aisle", "window"]


class Desk(BaseWorker):
    """Asks what the payload says, and responds with the answer."""

    @job(name="book")
    async def book(self, message: BusJobRequestMessage) -> dict[str, Any]:
        payload = message.payload or {}
        text, timeout = payload.get("text", "Aisle or window?"), payload.get("timeout")
        try:
            return {"seat": await self.ask_requester(text, SEATS, timeout=timeout)}
        except JobQuestionError as error:
            return {"refused": error.reason}


class Agency(BaseWorker):
    """Passes its jobs on."""

    @job(name="book")
    async def book(self, message: BusJobRequestMessage) -> dict[str, Any]:
        return await self.job("desk", name="book", payload=message.payload)


@pytest.fixture
async def client(job_harness: JobHarness) -> Client:
    return Client()


@pytest.fixture
async def host(job_harness: JobHarness, client: Client) -> BaseWorker:
    host = BaseWorker("host")
    await follow(job_harness, client, host)
    return host


async def follow(
    harness: JobHarness, client: Client, host: BaseWorker, client_jobs: type = ClientJobs
) -> None:
    bot = client.worker(PipecatPipelineWorker)
    client_jobs(bot).follow(host)
    await harness.start(host, bot, Desk("desk"), Agency("agency"))
    await client.connect()


def of_event(client: Client, event: str) -> list[Any]:
    return [data for data in client.of_type("server-message") if data["event"] == event]


async def wait_for_question(client: Client, number: int = 1) -> Any:
    await client.wait_until(lambda: len(of_event(client, "question")) >= number)
    return of_event(client, "question")[number - 1]


async def wait_for_close(client: Client, question_id: str) -> None:
    await client.wait_until(
        lambda: [data["id"] for data in of_event(client, "question_closed")] == [question_id]
    )


def answer(question_id: str, value: Any) -> dict[str, Any]:
    return {"action": "answer", "question_id": question_id, "value": value}


async def test_the_client_answers_a_question(host: BaseWorker, client: Client):
    async with host.job("desk", name="book", label="Your seat") as j:
        question = await wait_for_question(client)
        response = await client.request(answer(question["id"], "aisle"))

    assert j.response == {"seat": "aisle"}
    assert response["data"] == {"t": "pipecat-jobs", "d": {"answered": question["id"]}}
    await wait_for_close(client, question["id"])
    assert question.pop("at") > 1_600_000_000_000
    assert question == {
        "type": "pipecat-jobs",
        "event": "question",
        "id": question["id"],
        "worker": "desk",
        "job_id": j.job_id,
        "label": "Your seat",
        "text": "Aisle or window?",
        "schema": {"enum": ["aisle", "window"], "type": "string"},
        "problem": None,
    }


async def test_an_answer_that_does_not_fit_is_asked_for_again(host: BaseWorker, client: Client):
    async with host.job("desk", name="book") as j:
        first = await wait_for_question(client)
        await client.request(answer(first["id"], "the roof"))
        second = await wait_for_question(client, 2)
        await client.request(answer(second["id"], "window"))

    assert j.response == {"seat": "window"}
    assert (first["problem"], first["id"] == second["id"]) == (None, False)
    assert "window" in second["problem"]


async def test_two_open_questions_do_not_cross(host: BaseWorker, client: Client):
    asking = [
        asyncio.create_task(host.request_job("desk", name="book", payload={"text": text}))
        for text in ("A?", "B?")
    ]
    job_ids = await asyncio.gather(*asking)
    await wait_for_question(client, 2)
    ids = {data["text"]: data["id"] for data in of_event(client, "question")}
    await client.request(answer(ids["B?"], "window"))
    await client.request(answer(ids["A?"], "aisle"))
    await client.wait_until(lambda: client.cards().count(("closed",)) == 2)

    ends = [data for data in client.of_type("ui-job-group") if data["kind"] == "job_completed"]
    responses = {data["job_id"]: data["response"]["seat"] for data in ends}
    assert [responses[job_id] for job_id in job_ids] == ["aisle", "window"]


async def test_a_question_closes_with_its_job(host: BaseWorker, client: Client):
    with pytest.raises(JobCancelledError):
        async with host.job("desk", name="book") as j:
            question = await wait_for_question(client)
            await client.request({"action": "cancel", "job_id": j.job_id})

    await wait_for_close(client, question["id"])
    response = await client.request(answer(question["id"], "aisle"))
    assert response["type"] == "error-response"
    assert response["data"]["error"].startswith(f"there is no open question '{question['id']}'")


async def test_a_question_closes_when_its_handler_waits_no_more(host: BaseWorker, client: Client):
    async with host.job("desk", name="book", payload={"timeout": 0.05}) as j:
        question = await wait_for_question(client)
        await wait_for_close(client, question["id"])

    assert "refused" in j.response


async def test_a_client_that_connects_again_gets_the_open_questions(
    host: BaseWorker, client: Client
):
    async with host.job("desk", name="book"):
        question = await wait_for_question(client)
        client.got.clear()
        await client.connect()
        assert await wait_for_question(client) == question
        await client.request(answer(question["id"], "aisle"))


async def test_a_question_of_an_inner_job_reaches_the_client(host: BaseWorker, client: Client):
    async with host.job("agency", name="book") as j:
        question = await wait_for_question(client)
        await client.request(answer(question["id"], "aisle"))

    assert j.response == {"seat": "aisle"}
    assert (question["worker"], question["job_id"]) == ("agency", j.job_id)


async def test_the_bot_may_answer_before_the_client(job_harness: JobHarness, client: Client):
    class Host(BaseWorker):
        async def on_job_question(self, question: JobQuestion) -> object:
            return "window"

    host = Host("host")
    await follow(job_harness, client, host)

    assert await host.job("desk", name="book") == {"seat": "window"}
    question = await wait_for_question(client)
    await wait_for_close(client, question["id"])


@pytest.mark.parametrize("first", ["client", "bot"])
async def test_the_first_answer_counts(job_harness: JobHarness, client: Client, first: str):
    class Host(BaseWorker):
        async def on_job_question(self, question: JobQuestion) -> object:
            self.asked = question
            return None

    host = Host("host")
    await follow(job_harness, client, host)

    async with host.job("desk", name="book") as j:
        question = await wait_for_question(client)
        if first == "client":
            await client.request(answer(question["id"], "aisle"))
        else:
            await host.asked.answer("window")
            late = await client.request(answer(question["id"], "aisle"))
            assert late["type"] == "error-response"
    await wait_for_close(client, question["id"])

    assert j.response == {"seat": "aisle" if first == "client" else "window"}
    assert not host.asked.is_open


async def test_the_client_answers_where_a_pipeline_has_no_llm(
    job_harness: JobHarness, client: Client
):
    host = PipelineWorker(Pipeline([IdentityFilter()]), name="host")
    await follow(job_harness, client, host)

    async with host.job("desk", name="book") as j:
        question = await wait_for_question(client)
        await client.request(answer(question["id"], "aisle"))

    assert j.response == {"seat": "aisle"}


class Clerk(LLMContextWorker):
    @job_tool("desk", job="book")
    async def book(self) -> dict[str, Any]:
        """Book a seat while the user waits."""
        return {}

    @job_tool("desk", job="book", cancel_on_interruption=False)
    async def book_later(self) -> dict[str, Any]:
        """Book a seat."""
        return {}


async def begin_booking(
    harness: JobHarness, client: Client, server: ScriptedLLMServer, llm: Any, tool: str
) -> Clerk:
    """Have an LLM call a tool whose job asks a question."""
    clerk = Clerk("host", llm=llm, active=True)
    await follow(harness, client, clerk)
    await clerk.flush_pipeline()
    server.reply(ToolCall(tool, {}), "Aisle or window?", "It is booked.")
    message = {"role": "user", "content": "Book a seat."}
    await clerk.queue_frame(LLMMessagesAppendFrame([message], run_llm=True))
    return clerk


async def test_the_client_answers_where_the_llm_waits_for_the_job(
    job_harness: JobHarness, client: Client, scripted_llm: ScriptedLLMServer, new_llm: NewLLM
):
    clerk = await begin_booking(job_harness, client, scripted_llm, new_llm("You book."), "book")

    question = await wait_for_question(client)
    await client.request(answer(question["id"], "aisle"))

    *_, last = await scripted_llm.wait_for_requests(2)
    assert last.mentions('"seat": "aisle"')
    await clerk.flush_pipeline()


async def test_the_client_answers_what_the_llm_has_asked_the_user(
    job_harness: JobHarness, client: Client, scripted_llm: ScriptedLLMServer, new_llm: NewLLM
):
    llm = new_llm("You book.")
    clerk = await begin_booking(job_harness, client, scripted_llm, llm, "book_later")

    question = await wait_for_question(client)
    *_, asking = await scripted_llm.wait_for_requests(2)
    assert asking.mentions("Aisle or window?")
    await client.request(answer(question["id"], "aisle"))

    *_, last = await scripted_llm.wait_for_requests(3)
    assert "aisle" in str(last.messages[-1])
    await clerk.flush_pipeline()


@pytest.mark.parametrize("raises", [False, True])
async def test_a_question_that_the_client_does_not_see_goes_its_own_way(
    job_harness: JobHarness, client: Client, raises: bool
):
    class Silent(ClientJobs):
        def shows_question(self, question: JobQuestion) -> bool:
            if raises:
                raise ValueError("a bug of the bot")
            return False

    host = BaseWorker("host")
    await follow(job_harness, client, host, Silent)

    response = await host.job("desk", name="book")

    assert "answers no questions" in response["refused"]
    assert of_event(client, "question") == []


@pytest.mark.parametrize(
    "value", ["\ud800", {"text": "\ud800"}, float("nan"), "x" * 16_000, [[["x"] * 6_000]]]
)
async def test_an_answer_that_a_bus_could_not_carry_is_refused(
    host: BaseWorker, client: Client, value: Any
):
    async with host.job("desk", name="book"):
        question = await wait_for_question(client)
        response = await client.request(answer(question["id"], value))
        assert response["type"] == "error-response"
        assert len(response["data"]["error"]) <= 200
        await client.request(answer(question["id"], "aisle"))


@pytest.mark.parametrize(
    "data", [{"action": "answer"}, answer("other", 1), {"action": "answer", "question_id": "x"}]
)
async def test_an_answer_to_no_question_is_refused(host: BaseWorker, client: Client, data: Any):
    response = await client.request(data)
    assert response["type"] == "error-response"


async def test_a_client_that_never_answers_leaves_the_job_to_its_deadline(
    host: BaseWorker, client: Client
):
    with pytest.raises(JobError):
        await host.job("desk", name="book", timeout=0.1)
    question = await wait_for_question(client)
    await wait_for_close(client, question["id"])
