"""A question of a worker's worker travels up to the requester that can answer it."""

import asyncio
from typing import Any, Literal

import pytest
from pipecat.bus.messages import BusJobRequestMessage

from pipecat_jobs import BaseWorker, JobQuestion, JobQuestionError, OpenJobState, job
from pipecat_jobs.testing import JobHarness

pytestmark = [
    pytest.mark.every_bus,
    pytest.mark.not_on("pubsub", reason="Pipecat's network buses drop what an answer needs"),
]


class Pantry(BaseWorker):
    timeout: float | None = None

    @job(name="fetch")
    async def fetch(self, message: BusJobRequestMessage) -> dict[str, Any]:
        try:
            sauce = await self.ask_requester(
                "Which sauce?", Literal["soy", "mint"], timeout=self.timeout
            )
        except JobQuestionError as error:
            return {"reason": error.reason}
        return {"sauce": sauce}


class Kitchen(BaseWorker):
    """Has the pantry fetch what it needs, and knows nothing of questions."""

    @job(name="cook")
    async def cook(self, message: BusJobRequestMessage) -> dict[str, Any]:
        return await self.job("pantry", name="fetch")

    @job(name="cook beside")
    async def cook_beside(self, message: BusJobRequestMessage) -> dict[str, Any]:
        """Ask in a task, and end before the answer."""
        self.fetching = self.create_task(self._fetch(), "fetch")
        await asyncio.sleep(0)
        return {"started": True}

    async def _fetch(self) -> Any:
        return await self.job("pantry", name="fetch")


class Waiter(BaseWorker):
    def __init__(self) -> None:
        super().__init__("waiter")
        self.questions: asyncio.Queue[JobQuestion] = asyncio.Queue()

    async def on_job_question(self, question: JobQuestion) -> None:
        self.questions.put_nowait(question)


async def start(harness: JobHarness) -> tuple[Waiter, Kitchen, Pantry]:
    waiter, kitchen, pantry = Waiter(), Kitchen("kitchen"), Pantry("pantry")
    await harness.start(waiter, kitchen, pantry)
    return waiter, kitchen, pantry


async def test_a_question_travels_up_and_the_answer_down(job_harness: JobHarness):
    waiter, kitchen, pantry = await start(job_harness)
    async with asyncio.timeout(100), waiter.job("kitchen", name="cook") as j:
        question = await waiter.questions.get()
        assert (question.text, question.worker, question.job_name) == (
            "Which sauce?",
            "kitchen",
            "cook",
        )
        assert question.schema["enum"] == ["soy", "mint"]
        for worker in (waiter, kitchen, pantry):
            states = {each.state for each in worker.open_jobs}
            assert states == {OpenJobState.WAITING_FOR_INPUT}
        await question.answer("ketchup")
        again = await waiter.questions.get()
        assert again.problem is not None
        await again.answer("mint")
    assert j.response == {"sauce": "mint"}
    await job_harness.settle()


async def test_a_question_that_is_refused_above_is_refused_below(job_harness: JobHarness):
    waiter, _, _ = await start(job_harness)
    async with asyncio.timeout(100), waiter.job("kitchen", name="cook") as j:
        await (await waiter.questions.get()).refuse("the guest has left")
    assert j.response == {"reason": "the guest has left"}


async def test_a_question_that_is_withdrawn_below_closes_above(job_harness: JobHarness):
    waiter, _, pantry = await start(job_harness)
    pantry.timeout = 0.05
    async with asyncio.timeout(100), waiter.job("kitchen", name="cook") as j:
        question = await waiter.questions.get()
        async for _ in j:
            pass
    assert j.response == {"reason": "none came within 0.05 s"}
    assert not question.is_open


async def test_a_cancel_above_closes_the_question_everywhere(job_harness: JobHarness):
    waiter, kitchen, pantry = await start(job_harness)
    job_id = await waiter.request_job("kitchen", name="cook")
    async with asyncio.timeout(100):
        question = await waiter.questions.get()
    await waiter.cancel_job_group(job_id)
    assert not question.is_open
    await job_harness.settle()
    assert (kitchen.open_jobs, pantry.open_jobs) == ((), ())


async def test_a_question_of_a_job_whose_outer_job_has_ended_is_refused(job_harness: JobHarness):
    waiter, kitchen, _ = await start(job_harness)
    async with asyncio.timeout(100):
        assert await waiter.job("kitchen", name="cook beside") == {"started": True}
        response = await kitchen.fetching
    assert "reason" in response
    assert waiter.questions.qsize() <= 1
