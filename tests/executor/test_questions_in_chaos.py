"""Questions and answers on a bus that delays, reorders and repeats messages."""

import asyncio
from collections import Counter
from typing import Any

import pytest
from pipecat.bus.messages import BusJobRequestMessage, BusJobUpdateMessage

from pipecat_jobs import BaseWorker, JobQuestion, job
from pipecat_jobs.testing import ChaosBus, Faults, JobHarness


class Desk(BaseWorker):
    @job(name="count")
    async def count(self, message: BusJobRequestMessage) -> dict[str, Any]:
        numbers = range(10)
        answers = await asyncio.gather(
            *(self.ask_requester(f"{number} times 3?", int) for number in numbers)
        )
        return {"answers": answers}

    @job(name="give up")
    async def give_up(self, message: BusJobRequestMessage) -> dict[str, Any]:
        asking = self.create_task(self.ask_requester("Hello?"), "asking")
        await asyncio.sleep(0)
        asking.cancel()
        await asyncio.wait({asking})
        return await asyncio.Event().wait() or {}


class Host(BaseWorker):
    def __init__(self) -> None:
        super().__init__("host")
        self.asked: Counter[str] = Counter()

    async def on_job_question(self, question: JobQuestion) -> object:
        self.asked[question.text] += 1
        return 3 * int(question.text.split()[0])


@pytest.mark.schedules
@pytest.mark.parametrize("seed", range(5))
async def test_each_question_is_asked_once_and_gets_its_own_answer(seed: int):
    faults = Faults(delay=0.4, duplicate=0.4, slow_publish=0.2, max_delay=0.02)
    host = Host()
    bus = ChaosBus(seed=seed, faults=faults)
    async with JobHarness(bus, timeout=100) as harness:
        await harness.start(host, Desk("desk"))
        async with asyncio.timeout(100):
            response = await host.job("desk", name="count")
        # The end of a question may still be on its way.
        await bus.drain()
    assert response == {"answers": [3 * number for number in range(10)]}
    assert host.asked == {f"{number} times 3?": 1 for number in range(10)}


async def test_a_question_that_was_withdrawn_before_it_arrives_is_not_asked():
    bus = ChaosBus()
    held = bus.hold(
        lambda message: isinstance(message, BusJobUpdateMessage) and "Hello" in str(message.update)
    )
    host = Host()
    async with JobHarness(bus, timeout=100) as harness, asyncio.timeout(100):
        await harness.start(host, Desk("desk"))
        job_id = await host.request_job("desk", name="give up")
        await held.wait()
        await harness.settle()
        held.release()
        await harness.settle()
        assert host.asked == {}
        await host.cancel_job_group(job_id)
