"""``steer()``: a worker is told more about a job that it does, and says what becomes of that."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from pipecat.bus.messages import BusJobRequestMessage
from pipecat.pipeline.job_context import JobGroup as PipecatJobGroup
from support.workers import until

from pipecat_jobs import (
    BaseWorker,
    InvalidJobError,
    InvalidJobTypeError,
    JobCancelledError,
    JobError,
    JobGroup,
    JobInterceptor,
    JobLifeEvent,
    JobLifeEventKind,
    JobSteer,
    JobToolError,
    OutcomeStatus,
    Retry,
    SteerOutcome,
    UnknownJobError,
    job,
    job_steers,
)
from pipecat_jobs.testing import JobHarness

pytestmark = [
    pytest.mark.every_bus,
    pytest.mark.not_on("pubsub", reason="Pipecat's network buses drop what a steer is attached to"),
]

BRAKES = {"also": "brakes"}
ACCEPTED = SteerOutcome("accepted", "garage")


class Garage(BaseWorker):
    """Inspects cars until it is told to stop; each handler takes steers in its own way."""

    def __init__(self, name: str = "garage") -> None:
        super().__init__(name)
        self.begun: asyncio.Queue[str] = asyncio.Queue()
        self.release = asyncio.Event()
        self.taken: list[dict[str, Any]] = []
        self.hooked: list[dict[str, Any]] = []
        self.steers: list[JobSteer] = []

    async def on_job_steered(self, steer: JobSteer) -> None:
        self.steers.append(steer)
        if steer.data.get("wait"):
            try:
                await asyncio.Event().wait()
            finally:
                self.hooked.append({"cut off": True})
        if steer.data.get("odd"):
            raise ValueError("odd")
        if "paint" in steer.data:
            steer.refuse("no paint here")
        else:
            self.hooked.append(steer.data)

    def _take(self, steer: JobSteer) -> bool:
        """Take a steer, and tell whether it is the last one."""
        self.steers.append(steer)
        if "paint" in steer.data:
            steer.refuse("no paint here")
        elif "stop" not in steer.data:
            self.taken.append(steer.data)
        return "stop" in steer.data

    @job(name="loop")
    async def inspect_in_a_loop(self, message: BusJobRequestMessage) -> dict:
        steers = job_steers()
        self.begun.put_nowait(message.job_id)
        async for steer in steers:
            if self._take(steer):
                break
        return {"taken": self.taken}

    @job(name="steps")
    async def inspect_in_steps(self, message: BusJobRequestMessage) -> dict:
        steers = job_steers()
        self.begun.put_nowait(message.job_id)
        await self.release.wait()
        taken = [steer.data for steer in steers.take_waiting()]
        assert steers.take_waiting() == []
        return {"taken": taken}

    @job(name="raise")
    async def raise_at_a_steer(self, message: BusJobRequestMessage) -> dict:
        async for steer in job_steers():
            raise ValueError(str(steer))
        return {}

    @job(name="hook")
    async def leave_it_to_the_hook(self, message: BusJobRequestMessage) -> dict:
        self.begun.put_nowait(message.job_id)
        await self.release.wait()
        return {"hooked": self.hooked}

    @job(name="hook one", max_concurrency=1)
    async def leave_one_to_the_hook(self, message: BusJobRequestMessage) -> dict:
        return await self.leave_it_to_the_hook(message)

    @job(name="one", max_concurrency=1)
    async def inspect_one(self, message: BusJobRequestMessage) -> dict:
        return await self.inspect_in_a_loop(message)

    @job(name="flaky")
    async def fail_at_first(self, message: BusJobRequestMessage) -> dict:
        steers = job_steers()
        first = await anext(steers)
        if len(self.steers) == 0:
            self.steers.append(first)
            first.accept()
            raise JobToolError("the lift is stuck")
        return {"again": first.data}


class Keeper(JobInterceptor):
    """Keeps the events of steers."""

    def __init__(self) -> None:
        self.steered: list[JobLifeEvent] = []

    def on_event(self, event: JobLifeEvent) -> None:
        if event.kind is JobLifeEventKind.STEERED:
            self.steered.append(event)


class Stage:
    def __init__(self, harness: JobHarness):
        self.harness, self.garage, self.owner = harness, Garage(), BaseWorker("owner")
        self.keeper = Keeper()

    async def ask(self, name: str, job_id: str = "job-1", **options: Any) -> asyncio.Task[Any]:
        async def ask() -> Any:
            return await self.owner.job("garage", name=name, job_id=job_id, **options)

        task = asyncio.create_task(ask())
        await self.harness.settle()
        return task

    async def ask_and_begin(self, name: str, job_id: str = "job-1") -> asyncio.Task[Any]:
        task = await self.ask(name, job_id)
        async with asyncio.timeout(100):
            assert await self.garage.begun.get() == job_id
        return task

    async def steer(self, data: dict[str, Any], job_id: str = "job-1") -> SteerOutcome:
        async with asyncio.timeout(100):
            return await self.owner.steer(job_id, data)


@pytest.fixture
async def stage(job_harness: JobHarness) -> AsyncIterator[Stage]:
    stage = Stage(job_harness)
    stage.owner.add_job_interceptor(stage.keeper)
    await job_harness.start(stage.owner, stage.garage)
    yield stage
    await job_harness.settle()
    assert job_harness.left_behind() == []


# -- in a loop of the handler -----------------------------------------------------------------


async def test_a_loop_takes_steers_in_order_and_accepts_them(stage: Stage):
    asked = await stage.ask_and_begin("loop")
    assert await stage.steer(BRAKES) == ACCEPTED
    assert await stage.steer({"also": "lights"}) == ACCEPTED
    assert await stage.steer({"stop": True}) == ACCEPTED
    assert await asked == {"taken": [BRAKES, {"also": "lights"}]}
    assert stage.garage.hooked == []
    assert [steer.requester for steer in stage.garage.steers] == ["owner"] * 3


async def test_a_loop_refuses_a_steer_with_a_reason(stage: Stage):
    asked = await stage.ask_and_begin("loop")
    outcome = await stage.steer({"paint": "red"})
    assert outcome == SteerOutcome("refused", "garage", "no paint here")
    assert not outcome.accepted
    await stage.steer({"stop": True})
    assert await asked == {"taken": []}


async def test_a_handler_takes_between_its_steps_what_has_arrived(stage: Stage):
    asked = await stage.ask_and_begin("steps")
    steers = [asyncio.create_task(stage.steer({"number": number})) for number in range(3)]
    await stage.harness.settle()
    assert not any(steer.done() for steer in steers)
    stage.garage.release.set()
    assert await asyncio.gather(*steers) == [ACCEPTED] * 3
    assert await asked == {"taken": [{"number": number} for number in range(3)]}


async def test_a_steer_at_which_the_handler_raises_is_over(stage: Stage):
    asked = await stage.ask("raise")
    outcome = await stage.steer(BRAKES)
    assert outcome == SteerOutcome("over", "garage", "the job has ended: error")
    with pytest.raises(JobError):
        await asked


async def test_a_steer_that_is_not_taken_before_the_job_ends_is_over(stage: Stage):
    asked = await stage.ask_and_begin("loop")
    last = asyncio.create_task(stage.steer({"stop": True}))
    late = asyncio.create_task(stage.steer(BRAKES))
    assert await last == ACCEPTED
    assert await late == SteerOutcome("over", "garage", "the job has ended: completed")
    assert await asked == {"taken": []}


async def test_a_job_that_waits_for_its_slot_takes_its_steers_once_it_begins(stage: Stage):
    first = await stage.ask("one", "job-1")
    second = await stage.ask("one", "job-2")
    steer = asyncio.create_task(stage.steer(BRAKES, "job-2"))
    await stage.harness.settle()
    assert not steer.done()
    await stage.steer({"stop": True}, "job-1")
    await first
    assert await steer == ACCEPTED
    await stage.steer({"stop": True}, "job-2")
    assert (await second)["taken"] == [BRAKES]


async def test_a_decided_steer_cannot_be_decided_again(stage: Stage):
    asked = await stage.ask_and_begin("loop")
    await stage.steer(BRAKES)
    (steer,) = stage.garage.steers
    assert steer.state == "accepted"
    with pytest.raises(InvalidJobError, match="accepted already"):
        steer.refuse("too late")
    await stage.steer({"stop": True})
    await asked
    with pytest.raises(InvalidJobTypeError, match="reason"):
        steer.refuse(7)  # type: ignore[arg-type]


def test_steers_are_taken_in_a_handler_alone():
    with pytest.raises(InvalidJobError, match="outside of a job"):
        job_steers()


# -- by the hook ------------------------------------------------------------------------------


async def test_the_hook_takes_steers_of_a_handler_without_a_loop(stage: Stage):
    asked = await stage.ask_and_begin("hook")
    assert await stage.steer(BRAKES) == ACCEPTED
    assert await stage.steer({"paint": "red"}) == SteerOutcome("refused", "garage", "no paint here")
    stage.garage.release.set()
    assert await asked == {"hooked": [BRAKES]}


async def test_the_hook_takes_what_came_while_the_job_waited_for_its_slot(stage: Stage):
    first = await stage.ask_and_begin("hook one", "job-1")
    second = await stage.ask("hook one", "job-2")
    steer = asyncio.create_task(stage.steer(BRAKES, "job-2"))
    await stage.harness.settle()
    assert not steer.done()
    await stage.owner.cancel_job_group("job-1")
    with pytest.raises(JobCancelledError):
        await first
    assert await steer == ACCEPTED
    stage.garage.release.set()
    assert await second == {"hooked": [BRAKES]}


async def test_a_hook_that_raises_refuses(stage: Stage):
    asked = await stage.ask_and_begin("hook")
    outcome = await stage.steer({"odd": True})
    assert outcome == SteerOutcome("refused", "garage", "on_job_steered() raised ValueError")
    stage.garage.release.set()
    await asked


async def test_a_hook_that_runs_is_cancelled_with_its_job(stage: Stage):
    asked = await stage.ask_and_begin("hook")
    steer = asyncio.create_task(stage.steer({"wait": True}))
    await stage.harness.settle()
    await stage.owner.cancel_job_group("job-1")
    assert (await steer).state == "over"
    with pytest.raises(JobCancelledError):
        await asked
    await stage.harness.settle()
    assert stage.garage.hooked == [{"cut off": True}]


async def test_a_group_of_pipecats_own_class_refuses(stage: Stage):
    stage.owner.job_groups["job-1"] = PipecatJobGroup("job-1", ["garage"])
    outcome = await stage.steer(BRAKES)
    assert (outcome.state, outcome.worker) == ("refused", "garage")
    assert "take JobGroup from pipecat_jobs" in str(outcome.reason)
    del stage.owner.job_groups["job-1"]


async def test_a_worker_that_takes_no_steers_refuses_at_once(job_harness: JobHarness):
    class Plain(BaseWorker):
        @job(name="wait")
        async def wait_for_ever(self, message: BusJobRequestMessage) -> dict:
            await asyncio.Event().wait()
            return {}

    owner = BaseWorker("owner")
    await job_harness.start(owner, Plain("plain"))
    job_id = await owner.request_job("plain", name="wait")
    async with asyncio.timeout(100):
        outcome = await owner.steer(job_id, BRAKES)
    assert outcome.state == "refused"
    assert "job_steers()" in str(outcome.reason)
    await owner.cancel_job_group(job_id)


# -- jobs that end, and jobs that are not there -----------------------------------------------


async def test_a_cancelled_job_is_over_for_a_steer(stage: Stage):
    asked = await stage.ask_and_begin("steps")
    steer = asyncio.create_task(stage.steer(BRAKES))
    await stage.harness.settle()
    await stage.owner.cancel_job_group("job-1")
    assert (await steer).state == "over"
    assert [event.steered for event in stage.keeper.steered] == [await steer]
    with pytest.raises(JobCancelledError):
        await asked
    assert await stage.steer(BRAKES) == SteerOutcome("over", "garage", "the job has ended")


async def test_a_lost_worker_is_over_for_a_steer(stage: Stage):
    asked = await stage.ask_and_begin("steps")
    steer = asyncio.create_task(stage.steer(BRAKES))
    await stage.harness.settle()
    await stage.owner.worker_lost("garage", reason="burned down")
    assert await steer == SteerOutcome("over", "garage", "the job has ended: lost")
    with pytest.raises(JobError):
        await asked


async def test_a_job_that_was_never_asked_for_raises(stage: Stage):
    with pytest.raises(UnknownJobError):
        await stage.steer(BRAKES, "no such job")


async def test_data_that_is_not_a_dict_raises(stage: Stage):
    for data in (None, "brakes"):
        with pytest.raises(InvalidJobTypeError, match="data is"):
            await stage.steer(data)  # type: ignore[arg-type]


async def test_a_cancelled_steer_leaves_nothing(stage: Stage):
    asked = await stage.ask_and_begin("steps")
    steer = asyncio.create_task(stage.steer(BRAKES))
    await stage.harness.settle()
    steer.cancel()
    await asyncio.wait({steer})
    group = stage.owner.job_groups["job-1"]
    assert isinstance(group, JobGroup)
    exchange = group.handles["garage"].exchange
    assert exchange is not None
    assert exchange.steers == {}
    stage.garage.release.set()
    await asked


# -- several workers and attempts -------------------------------------------------------------


async def test_a_group_is_steered_one_worker_at_a_time(job_harness: JobHarness):
    owner, one, two = BaseWorker("owner"), Garage("one"), Garage("two")
    await job_harness.start(owner, one, two)
    group = await owner.create_job_group_and_request_job(["one", "two"], name="loop")
    with pytest.raises(InvalidJobError, match="worker_name, one of 'one', 'two'"):
        await owner.steer(group.job_id, BRAKES)
    with pytest.raises(InvalidJobError, match="not of worker 'three'"):
        await owner.steer(group.job_id, BRAKES, worker_name="three")
    async with asyncio.timeout(100):
        assert (await owner.steer(group.job_id, BRAKES, worker_name="two")).accepted
        assert isinstance(group, JobGroup)
        assert (await group.handles["one"].send({"stop": 1})).accepted
        assert (await group.handles["two"].send({"stop": 1})).accepted
        await group.wait()
    assert group.responses == {"one": {"taken": []}, "two": {"taken": [BRAKES]}}


async def test_a_steer_waits_for_a_worker_that_is_not_ready(job_harness: JobHarness):
    owner, garage = BaseWorker("owner"), Garage()
    await job_harness.start(owner)
    asked = asyncio.create_task(owner.request_job("garage", name="loop", job_id="job-1"))
    await until(lambda: "job-1" in owner.job_groups)
    steer = asyncio.create_task(owner.steer("job-1", BRAKES))
    await job_harness.settle()
    assert not steer.done()
    await job_harness.start(garage)
    async with asyncio.timeout(100):
        await asked
        assert await steer == ACCEPTED
        await owner.steer("job-1", {"stop": True})
        await until(lambda: not owner.job_groups)


async def test_the_next_attempt_gets_what_the_last_one_accepted(stage: Stage):
    asked = await stage.ask(
        "flaky", retry=Retry(attempts=2, on={OutcomeStatus.FAILED}, wait_initial=0)
    )
    assert await stage.steer(BRAKES) == ACCEPTED
    async with asyncio.timeout(100):
        assert await asked == {"again": BRAKES}


# -- interceptors -----------------------------------------------------------------------------


async def test_interceptors_get_an_event_for_each_steer(stage: Stage):
    asked = await stage.ask_and_begin("loop")
    await stage.steer(BRAKES)
    await stage.steer({"paint": "red"})
    await stage.steer({"stop": True})
    await asked
    events = [(event.data, event.steered) for event in stage.keeper.steered]
    assert events == [
        (BRAKES, ACCEPTED),
        ({"paint": "red"}, SteerOutcome("refused", "garage", "no paint here")),
        ({"stop": True}, ACCEPTED),
    ]
