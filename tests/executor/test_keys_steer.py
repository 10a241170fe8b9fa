"""``@job(key=..., on_busy="steer")``: the payload of a second job steers the open one."""

import asyncio
from typing import Any

import pytest
from pipecat.bus.messages import BusJobRequestMessage

from pipecat_jobs import (
    BaseWorker,
    JobCancelledError,
    JobRefusal,
    JobRefusedError,
    job,
    job_steers,
)
from pipecat_jobs._executor.executor import Executor
from pipecat_jobs.testing import JobHarness

pytestmark = pytest.mark.every_bus


class Fleet(BaseWorker):
    """Flies each ship from place to place until it is told to land."""

    job_cancel_grace = 60.0

    def __init__(self) -> None:
        super().__init__("fleet")
        self.begun: asyncio.Queue[str] = asyncio.Queue()
        self.crash = asyncio.Event()

    @job(name="fly", key="ship", on_busy="steer", max_concurrency=1)
    async def fly(self, message: BusJobRequestMessage) -> dict[str, Any]:
        assert message.payload is not None
        steers, route = job_steers(), [message.payload["to"]]
        self.begun.put_nowait(message.job_id)
        async for steer in steers:
            to = steer.data["to"]
            if to == "nowhere":
                steer.refuse("there is no such place")
            elif to == "ground":
                break
            else:
                route.append(to)
        return {"route": route}

    @job(name="wait", key="ship", on_busy="steer")
    async def wait_for_a_crash(self, message: BusJobRequestMessage) -> dict[str, Any]:
        job_steers()
        self.begun.put_nowait(message.job_id)
        await self.crash.wait()
        return {"waited": message.job_id}

    def keys(self) -> int:
        executor = vars(self)["_WorkerJobs__executor"]
        assert isinstance(executor, Executor)
        return sum(len(keys) for keys in executor._keys.values())


class Stage:
    def __init__(self, harness: JobHarness):
        self.harness, self.fleet = harness, Fleet()
        self.pilot, self.tower = BaseWorker("pilot"), BaseWorker("tower")

    def ask(
        self, requester: BaseWorker, to: str, job_id: str, name: str = "fly"
    ) -> asyncio.Task[dict[str, Any]]:
        async def ask() -> dict[str, Any]:
            payload = {"ship": 7, "to": to}
            return await requester.job("fleet", name=name, payload=payload, job_id=job_id)

        return asyncio.create_task(ask())

    async def begin(self, name: str = "fly", job_id: str = "job-1") -> asyncio.Task[dict[str, Any]]:
        task = self.ask(self.pilot, "Mars", job_id, name)
        assert await self.fleet.begun.get() == job_id
        return task


@pytest.fixture
async def stage(job_harness: JobHarness):
    stage = Stage(job_harness)
    await job_harness.start(stage.pilot, stage.tower, stage.fleet)
    yield stage
    await job_harness.settle()
    assert stage.fleet.keys() == 0
    assert job_harness.left_behind() == []


async def test_a_second_job_steers_the_open_one_and_completes(stage: Stage):
    first = await stage.begin()
    assert await stage.ask(stage.pilot, "Venus", "job-2") == {"steered": "job-1"}
    assert await stage.ask(stage.tower, "Io", "job-3") == {"steered": "job-1"}
    assert await stage.ask(stage.tower, "ground", "job-4") == {"steered": "job-1"}
    assert await first == {"route": ["Mars", "Venus", "Io"]}


async def test_a_steer_that_is_refused_refuses_the_second_job(stage: Stage):
    first = await stage.begin()
    with pytest.raises(JobRefusedError, match="there is no such place") as caught:
        await stage.ask(stage.pilot, "nowhere", "job-2")
    outcome = caught.value.outcomes["fleet"]
    assert (outcome.refusal, outcome.held_by) == (JobRefusal.BUSY, "job-1")
    await stage.ask(stage.pilot, "ground", "job-3")
    assert await first == {"route": ["Mars"]}


async def test_a_second_job_that_comes_too_late_to_steer_runs_itself(stage: Stage):
    first = await stage.begin("wait")
    second = stage.ask(stage.pilot, "Venus", "job-2", "wait")
    third = stage.ask(stage.pilot, "Venus", "job-3", "wait")
    await stage.harness.settle()
    stage.fleet.crash.set()
    assert await first == {"waited": "job-1"}
    assert await second == {"waited": "job-2"}
    assert await third == {"waited": "job-3"}
    assert await stage.fleet.begun.get() == "job-2"
    assert await stage.fleet.begun.get() == "job-3"


async def test_a_second_job_runs_itself_when_the_open_one_is_cancelled(stage: Stage):
    first = await stage.begin("wait")
    second = stage.ask(stage.tower, "Venus", "job-2", "wait")
    await stage.harness.settle()
    await stage.pilot.cancel_job_group("job-1")
    with pytest.raises(JobCancelledError):
        await first
    assert await stage.fleet.begun.get() == "job-2"
    stage.fleet.crash.set()
    assert await second == {"waited": "job-2"}


async def test_a_second_job_that_is_cancelled_steers_nothing(stage: Stage):
    first = await stage.begin("wait")
    second = stage.ask(stage.tower, "Venus", "job-2", "wait")
    await stage.harness.settle()
    await stage.tower.cancel_job_group("job-2")
    with pytest.raises(JobCancelledError):
        await second
    stage.fleet.crash.set()
    assert await first == {"waited": "job-1"}


async def test_a_job_that_waits_for_its_slot_is_steered_once_it_begins(stage: Stage):
    first = await stage.begin()

    async def ask(to: str) -> dict[str, Any]:
        return await stage.tower.job("fleet", name="fly", payload={"ship": 8, "to": to})

    waiting = asyncio.create_task(ask("Pluto"))
    await stage.harness.settle()
    steering = asyncio.create_task(ask("Ceres"))
    await stage.harness.settle()
    assert not steering.done()
    await stage.ask(stage.pilot, "ground", "job-2")
    await first
    assert list(await steering) == ["steered"]
    await ask("ground")
    assert await waiting == {"route": ["Pluto", "Ceres"]}
