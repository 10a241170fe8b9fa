"""``steer()`` over ``RedisStreamsBus``: it reaches the process that does the job."""

import asyncio

from pipecat.bus.messages import BusJobRequestMessage
from support.redis.processes import Member, redis_server

from pipecat_jobs import BaseWorker, SteerOutcome, job, job_attempt, job_steers
from pipecat_jobs.bus.redis import EmbeddedRedis

__all__ = ["redis_server"]

DATA = {"also": ("brakes", b"lights", {1: None})}


class Garage(BaseWorker):
    """Takes steers until it is told to stop."""

    def __init__(self, place: str) -> None:
        super().__init__("garage")
        self.place = place
        self.begun: asyncio.Queue[int] = asyncio.Queue()

    @job(name="inspect", max_concurrency=1)
    async def inspect(self, message: BusJobRequestMessage) -> dict:
        taken = []
        steers = job_steers()
        self.begun.put_nowait(job_attempt(message))
        async for steer in steers:
            if "stop" in steer.data:
                break
            taken.append(steer.data)
        return {"taken": taken, "at": self.place}


async def test_a_steer_reaches_the_process_that_does_the_job(redis_server: EmbeddedRedis):
    owner, garage = BaseWorker("owner"), Garage("here")
    async with Member(redis_server.url, owner) as asking, Member(redis_server.url, garage):
        await asking.wait_until_known("garage")
        async with asyncio.timeout(100), owner.job("garage", name="inspect") as j:
            assert await owner.steer(j.job_id, DATA) == SteerOutcome("accepted", "garage")
            assert (await owner.steer(j.job_id, {"stop": True})).accepted
    assert j.response == {"taken": [DATA], "at": "here"}


async def test_a_steer_waits_with_a_job_that_waits_for_a_slot_in_the_server(
    redis_server: EmbeddedRedis,
):
    owner, garage = BaseWorker("owner"), Garage("here")
    async with Member(redis_server.url, owner) as asking, Member(redis_server.url, garage):
        await asking.wait_until_known("garage")
        async with asyncio.timeout(100), owner.job("garage", name="inspect") as first:
            await garage.begun.get()
            async with owner.job("garage", name="inspect") as second:
                steer = asyncio.create_task(owner.steer(second.job_id, DATA))
                await asking.wait_until_sent()
                assert not steer.done()
                assert (await owner.steer(first.job_id, {"stop": True})).accepted
                assert (await steer).accepted
                assert (await owner.steer(second.job_id, {"stop": True})).accepted
    assert second.response["taken"] == [DATA]


async def test_a_steer_follows_a_job_that_moves_to_another_process(redis_server: EmbeddedRedis):
    owner, old, new = BaseWorker("owner"), Garage("old"), Garage("new")
    url = redis_server.url
    async with Member(url, owner) as asking, Member(url, old) as leaving, asyncio.timeout(100):
        await asking.wait_until_known("garage")
        async with owner.job("garage", name="inspect") as j:
            assert await old.begun.get() == 1
            async with Member(url, new):
                await leaving.bus.drain(timeout=0)
                assert await new.begun.get() == 2
                assert (await owner.steer(j.job_id, DATA)).accepted
                assert (await owner.steer(j.job_id, {"stop": True})).accepted
                async for _ in j:
                    pass
    assert j.response == {"taken": [DATA], "at": "new"}
