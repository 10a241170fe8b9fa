"""``ask_requester()`` over ``RedisStreamsBus``: questions and answers between processes."""

import asyncio
from typing import Literal

from pipecat.bus.messages import BusJobRequestMessage
from support.redis.processes import Member, redis_server
from support.workers import until

from pipecat_jobs import BaseWorker, JobQuestion, OpenJobState, job, job_attempt
from pipecat_jobs.bus.redis import EmbeddedRedis

__all__ = ["redis_server"]


class Desk(BaseWorker):
    def __init__(self, place: str) -> None:
        super().__init__("desk")
        self.place = place

    @job(name="book")
    async def book(self, message: BusJobRequestMessage) -> dict:
        seat = await self.ask_requester("Aisle or window?", Literal["aisle", "window"])
        return {"seat": seat, "at": self.place, "attempt": job_attempt(message)}


class Host(BaseWorker):
    def __init__(self) -> None:
        super().__init__("host")
        self.questions: asyncio.Queue[JobQuestion] = asyncio.Queue()

    async def on_job_question(self, question: JobQuestion) -> None:
        self.questions.put_nowait(question)


async def test_a_question_and_its_answer_cross_processes(redis_server: EmbeddedRedis):
    host, desk = Host(), Desk("here")
    url = redis_server.url
    async with Member(url, host) as asking, Member(url, desk), asyncio.timeout(100):
        await asking.wait_until_known("desk")
        async with host.job("desk", name="book") as j:
            first = await host.questions.get()
            assert [each.state for each in desk.open_jobs] == [OpenJobState.WAITING_FOR_INPUT]
            await first.answer("the roof")
            second = await host.questions.get()
            assert second.problem is not None
            await second.answer("aisle")
    assert j.response == {"seat": "aisle", "at": "here", "attempt": 1}


async def test_a_job_that_moves_asks_again_and_the_old_question_closes(
    redis_server: EmbeddedRedis,
):
    host, old, new = Host(), Desk("old"), Desk("new")
    url = redis_server.url
    async with Member(url, host) as asking, Member(url, old) as leaving, asyncio.timeout(100):
        await asking.wait_until_known("desk")
        async with host.job("desk", name="book") as j:
            first = await host.questions.get()
            async with Member(url, new):
                await leaving.bus.drain(timeout=0)
                second = await host.questions.get()
                await first.answer("aisle")
                assert second.is_open
                await second.answer("window")
                async for _ in j:
                    pass
    assert j.response == {"seat": "window", "at": "new", "attempt": 2}


async def test_the_death_of_the_requester_ends_the_wait(redis_server: EmbeddedRedis):
    host, desk = Host(), Desk("here")
    url = redis_server.url
    async with Member(url, desk), asyncio.timeout(100):
        async with Member(url, host) as asking:
            await asking.wait_until_known("desk")
            await host.request_job("desk", name="book")
            await host.questions.get()
        await until(lambda: not desk.open_jobs)
