"""Steers on a bus that delays, reorders, repeats and loses messages."""

import asyncio
from collections import Counter

import pytest
from pipecat.bus.messages import (
    BusJobRequestMessage,
    BusJobUpdateMessage,
    BusJobUpdateRequestMessage,
)

from pipecat_jobs import (
    BaseWorker,
    JobInterceptor,
    JobLifeEvent,
    JobLifeEventKind,
    job,
    job_steers,
)
from pipecat_jobs.testing import ChaosBus, Faults, JobHarness


class Garage(BaseWorker):
    def __init__(self) -> None:
        super().__init__("garage")
        self.taken: list[int] = []

    @job(name="inspect")
    async def inspect(self, message: BusJobRequestMessage) -> dict:
        async for steer in job_steers():
            number = steer.data["number"]
            if number == message.payload["last"]:
                break
            if number % 3 == 0:
                steer.refuse("a multiple of three")
            self.taken.append(number)
        return {"taken": self.taken}


class Counting(JobInterceptor):
    def __init__(self) -> None:
        self.steered: Counter[int] = Counter()

    def on_event(self, event: JobLifeEvent) -> None:
        if event.kind is JobLifeEventKind.STEERED and event.data is not None:
            self.steered[event.data["number"]] += 1


@pytest.mark.schedules
@pytest.mark.parametrize("seed", range(5))
async def test_each_steer_is_taken_once_and_acknowledged_once(seed: int):
    faults = Faults(delay=0.4, duplicate=0.4, slow_publish=0.2, max_delay=0.02)
    bus = ChaosBus(seed=seed, faults=faults)
    owner, garage, counting = BaseWorker("owner"), Garage(), Counting()
    owner.add_job_interceptor(counting)
    async with JobHarness(bus, timeout=100) as harness, asyncio.timeout(100):
        await harness.start(owner, garage)
        async with owner.job("garage", name="inspect", payload={"last": 20}) as j:
            outcomes = await asyncio.gather(
                *(owner.steer(j.job_id, {"number": number}) for number in range(1, 20))
            )
            # Its acknowledgement may come behind the response of the job.
            await owner.steer(j.job_id, {"number": 20})
    assert sorted(garage.taken) == list(range(1, 20))
    states = ["refused" if number % 3 == 0 else "accepted" for number in range(1, 20)]
    assert [outcome.state for outcome in outcomes] == states
    assert counting.steered == dict.fromkeys(range(1, 21), 1)


@pytest.mark.parametrize("lost", [BusJobUpdateRequestMessage, BusJobUpdateMessage])
async def test_a_steer_or_a_reply_that_is_lost_is_sent_again(lost: type):
    bus = ChaosBus()
    owner, garage = BaseWorker("owner"), Garage()
    async with JobHarness(bus, timeout=100) as harness, asyncio.timeout(100):
        await harness.start(owner, garage)
        async with owner.job("garage", name="inspect", payload={"last": 2}) as j:
            bus.drop(lost, count=1)
            steers = [asyncio.create_task(owner.steer(j.job_id, {"number": 1}))]
            await harness.settle()
            # The loop asks for the next one only then, which accepts the first.
            assert (await steers[0]).accepted
            assert (await owner.steer(j.job_id, {"number": 2})).accepted
    assert j.response == {"taken": [1]}


async def test_a_steer_that_overtakes_its_request_waits_for_it():
    bus = ChaosBus()
    held = bus.hold(BusJobRequestMessage)
    owner, garage = BaseWorker("owner"), Garage()
    async with JobHarness(bus, timeout=100) as harness, asyncio.timeout(100):
        await harness.start(owner, garage)
        payload = {"last": 2}
        async with owner.job("garage", name="inspect", payload=payload) as j:
            steer = asyncio.create_task(owner.steer(j.job_id, {"number": 1}))
            await held.wait()
            await harness.settle()
            assert not steer.done()
            held.release()
            assert (await steer).accepted
            assert (await owner.steer(j.job_id, {"number": 2})).accepted
    assert garage.taken == [1]
