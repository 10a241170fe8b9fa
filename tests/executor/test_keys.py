"""``@job(key=..., on_busy=...)``: one job at a time for each key, by each of the four rules."""

import asyncio
from typing import Annotated, Any

import pytest
from pipecat.bus.messages import BusJobCancelMessage, BusJobRequestMessage, BusJobResponseMessage
from pydantic import Field
from support.workers import Requester, until

from pipecat_jobs import (
    BaseWorker,
    CancelReason,
    InvalidJobError,
    InvalidJobTypeError,
    JobCancelledError,
    JobError,
    JobEvent,
    JobRefusal,
    JobRefusedError,
    JobTimeoutError,
    OutcomeStatus,
    job,
)
from pipecat_jobs._executor.executor import Executor
from pipecat_jobs.testing import JobHarness

pytestmark = pytest.mark.every_bus


class Fleet(BaseWorker):
    """A worker whose handlers run until the test lets them go on."""

    job_cancel_grace = 60.0

    def __init__(self) -> None:
        super().__init__("fleet")
        self.begun: asyncio.Queue[str] = asyncio.Queue()
        self.cleaned: asyncio.Event = asyncio.Event()
        self.cleaned.set()
        self.results: dict[str, asyncio.Future[dict]] = {}
        self.cancels: list[BusJobCancelMessage] = []

    async def on_job_cancelled(self, message: BusJobCancelMessage) -> None:
        self.cancels.append(message)

    async def fly(self, message: BusJobRequestMessage) -> dict:
        result = self.results[message.job_id] = asyncio.get_running_loop().create_future()
        self.begun.put_nowait(message.job_id)
        try:
            return await result
        finally:
            await self.cleaned.wait()

    @job(name="queue", key="ship")
    async def fly_in_turn(self, message: BusJobRequestMessage) -> dict:
        return await self.fly(message)

    @job(name="refuse", key="ship", on_busy="refuse")
    async def fly_or_refuse(self, message: BusJobRequestMessage) -> dict:
        return await self.fly(message)

    @job(name="replace", key="ship", on_busy="replace")
    async def fly_instead(self, message: BusJobRequestMessage) -> dict:
        return await self.fly(message)

    @job(name="join", key="ship", on_busy="join")
    async def fly_along(self, message: BusJobRequestMessage) -> dict:
        return await self.fly(message)

    @job(name="narrow", key="ship", max_concurrency=2)
    async def fly_in_a_pair(self, message: BusJobRequestMessage) -> dict:
        return await self.fly(message)

    @job(name="later", key="ship")
    async def respond_later(self, message: BusJobRequestMessage) -> None:
        self.begun.put_nowait(message.job_id)

    @job(name="seat", key=("row", "seat"), on_busy="refuse")
    async def take_seat(self, message: BusJobRequestMessage) -> dict:
        return await self.fly(message)

    async def next_begun(self) -> str:
        async with asyncio.timeout(100):
            return await self.begun.get()

    def land(self, job_id: str, **result: Any) -> None:
        self.results[job_id].set_result(result)

    def crash(self, job_id: str, error: BaseException) -> None:
        self.results[job_id].set_exception(error)

    def keys(self) -> int:
        """How many keys the worker has an entry for."""
        return sum(len(keys) for keys in self.executor()._keys.values())

    def executor(self) -> Executor:
        return vars(self)["_WorkerJobs__executor"]


class Asked:
    """A job that a requester has asked for, by a task of its own."""

    def __init__(self, requester: BaseWorker, name: str, job_id: str, **options: Any):
        self.job_id, self.events = job_id, list[JobEvent]()
        self._asking = self._ask(requester, name, **{"payload": {"ship": 7}, **options})
        self.task = asyncio.create_task(self._asking)

    async def _ask(self, requester: BaseWorker, name: str, **options: Any) -> dict:
        async with requester.job("fleet", name=name, job_id=self.job_id, **options) as j:
            async for event in j:
                self.events.append(event)
        return j.response

    async def response(self) -> dict:
        async with asyncio.timeout(100):
            return await self.task

    async def outcome(self) -> Any:
        with pytest.raises(JobError) as caught:
            await self.response()
        return caught.value.outcomes["fleet"]


class Stage:
    """A worker with keys, its requester, and the bus between them."""

    def __init__(self, harness: JobHarness):
        self.harness, self.fleet, self.requester = harness, Fleet(), Requester()

    async def start(self) -> "Stage":
        await self.harness.start(self.requester, self.fleet)
        return self

    async def ask(self, name: str, job_id: str, **options: Any) -> Asked:
        """Ask for a job, which has arrived when this returns."""
        asked = Asked(self.requester, name, job_id, **options)
        await self.harness.settle()
        return asked

    async def ask_and_begin(self, name: str, job_id: str, **options: Any) -> Asked:
        asked = await self.ask(name, job_id, **options)
        assert await self.fleet.next_begun() == job_id
        return asked

    async def end(self) -> None:
        """Check that no key has an entry once all jobs have ended."""
        await until(lambda: not self.fleet.keys())
        await self.harness.settle()
        assert self.fleet.begun.empty()


@pytest.fixture
async def stage(job_harness: JobHarness) -> Stage:
    return await Stage(job_harness).start()


# -- queue -----------------------------------------------------------------------------------


async def test_jobs_of_one_key_run_one_after_the_other_in_order_of_arrival(stage: Stage):
    first = await stage.ask_and_begin("queue", "j1")
    others = [await stage.ask("queue", job_id) for job_id in ("j2", "j3")]
    assert stage.fleet.begun.empty()
    stage.fleet.land("j1")
    for asked in (first, *others):
        if asked is not first:
            assert await stage.fleet.next_begun() == asked.job_id
            stage.fleet.land(asked.job_id, by=asked.job_id)
        await asked.response()
    await stage.end()


async def test_jobs_of_different_keys_run_at_once(stage: Stage):
    keys: list[Any] = [1, "1", True, 1.5]
    for number, ship in enumerate(keys):
        await stage.ask_and_begin("queue", f"j{number}", payload={"ship": ship})
    for number in range(len(keys)):
        stage.fleet.land(f"j{number}")
    await stage.end()


async def test_numbers_that_are_equal_are_one_key(stage: Stage):
    one = await stage.ask_and_begin("refuse", "j1", payload={"ship": 7})
    two = await stage.ask("refuse", "j2", payload={"ship": 7.0})
    assert (await two.outcome()).held_by == "j1"
    stage.fleet.land("j1")
    await one.response()
    await stage.end()


async def test_handlers_do_not_share_their_keys(stage: Stage):
    for name in ("queue", "refuse"):
        await stage.ask_and_begin(name, name)
    for name in ("queue", "refuse"):
        stage.fleet.land(name)
    await stage.end()


async def test_a_job_holds_its_key_until_its_response(stage: Stage):
    first = await stage.ask_and_begin("later", "j1")
    await stage.ask("later", "j2")
    assert stage.fleet.begun.empty()
    await stage.fleet.send_job_response("j1", {"done": 1})
    assert await first.response() == {"done": 1}
    assert await stage.fleet.next_begun() == "j2"
    await stage.fleet.send_job_response("j2", {})
    await stage.end()


async def test_a_job_waits_for_its_key_without_a_slot(stage: Stage):
    await stage.ask_and_begin("narrow", "j1")
    await stage.ask("narrow", "j2")
    await stage.ask_and_begin("narrow", "j3", payload={"ship": 8})
    await stage.ask("narrow", "j4", payload={"ship": 9})
    assert stage.fleet.begun.empty()
    stage.fleet.land("j3")
    assert await stage.fleet.next_begun() == "j4"
    for job_id in ("j1", "j4"):
        stage.fleet.land(job_id)
    assert await stage.fleet.next_begun() == "j2"
    stage.fleet.land("j2")
    await stage.end()


async def test_a_job_that_is_cancelled_while_it_waits_for_its_key_never_begins(stage: Stage):
    await stage.ask_and_begin("queue", "j1")
    second = await stage.ask("queue", "j2")
    await stage.ask("queue", "j3")
    second.task.cancel()
    await stage.harness.settle()
    stage.fleet.land("j1")
    assert await stage.fleet.next_begun() == "j3"
    stage.fleet.land("j3")
    await stage.end()


async def test_a_job_whose_turn_and_cancel_come_at_once_never_begins(stage: Stage):
    first = await stage.ask_and_begin("queue", "j1")
    second = await stage.ask("queue", "j2")
    executor, responses = stage.fleet.executor(), stage.fleet._job_responses
    holder = responses.get("j1")
    assert holder is not None
    assert holder.line is not None
    holder.line.leave(holder)
    executor.on_cancel(BusJobCancelMessage(source="requester", target="fleet", job_id="j2"))
    await stage.harness.settle()
    assert stage.fleet.begun.empty()
    assert (await second.outcome()).status is OutcomeStatus.CANCELLED
    stage.fleet.land("j1")
    await first.response()
    await stage.end()


async def test_a_deadline_counts_while_a_job_waits_for_its_key(stage: Stage):
    await stage.ask_and_begin("queue", "j1")
    second = await stage.ask("queue", "j2", timeout=0.5)
    with pytest.raises(JobTimeoutError):
        await second.response()
    await stage.harness.settle()
    stage.fleet.land("j1")
    await stage.end()


async def test_the_next_job_begins_once_a_cancelled_one_has_cleaned_up(stage: Stage):
    stage.fleet.cleaned.clear()
    first = await stage.ask_and_begin("queue", "j1")
    await stage.ask("queue", "j2")
    first.task.cancel()
    await stage.harness.settle()
    assert stage.fleet.begun.empty()
    stage.fleet.cleaned.set()
    assert await stage.fleet.next_begun() == "j2"
    stage.fleet.land("j2")
    await stage.end()


async def test_a_handler_that_resists_keeps_its_key_no_longer_than_the_grace(
    job_harness: JobHarness,
):
    class Stubborn(Fleet):
        job_cancel_grace = 0.2

    stage = Stage(job_harness)
    stage.fleet = Stubborn()
    await stage.start()
    stage.fleet.cleaned.clear()
    first = await stage.ask_and_begin("queue", "j1")
    await stage.ask("queue", "j2")
    first.task.cancel()
    assert await stage.fleet.next_begun() == "j2"
    stage.fleet.cleaned.set()
    stage.fleet.land("j2")
    await stage.end()


async def test_a_worker_that_stops_ends_the_jobs_that_wait_for_a_key(stage: Stage):
    asked = [await stage.ask_and_begin("queue", "j1"), await stage.ask("queue", "j2")]
    asked += [await stage.ask_and_begin("join", "j3"), await stage.ask("join", "j4")]
    await stage.harness.end(stage.fleet)
    for each in asked:
        outcome = await each.outcome()
        assert outcome.cancel_reason is CancelReason.WORKER_STOPPED
    await stage.end()


# -- refuse ----------------------------------------------------------------------------------


async def test_a_refusal_says_which_job_holds_the_key(stage: Stage):
    first = await stage.ask_and_begin("refuse", "j1")
    with pytest.raises(JobRefusedError) as caught:
        await (await stage.ask("refuse", "j2")).response()
    outcome = caught.value.outcomes["fleet"]
    assert (outcome.status, outcome.refusal) == (OutcomeStatus.FAILED, JobRefusal.BUSY)
    assert outcome.held_by == "j1"
    assert "busy with job 'j1'" in outcome.cause
    stage.fleet.land("j1")
    await first.response()
    third = await stage.ask_and_begin("refuse", "j3")
    stage.fleet.land("j3")
    await third.response()
    await stage.end()


async def test_a_job_is_not_refused_because_of_one_that_was_cancelled(stage: Stage):
    stage.fleet.cleaned.clear()
    first = await stage.ask_and_begin("refuse", "j1")
    first.task.cancel()
    await stage.harness.settle()
    await stage.ask("refuse", "j2")
    refused = await stage.ask("refuse", "j3")
    assert (await refused.outcome()).held_by == "j2"
    assert stage.fleet.begun.empty()
    stage.fleet.cleaned.set()
    assert await stage.fleet.next_begun() == "j2"
    stage.fleet.land("j2")
    await stage.end()


async def test_a_compound_key_is_one_thing(stage: Stage):
    await stage.ask_and_begin("seat", "j1", payload={"row": 1, "seat": "A"})
    await stage.ask_and_begin("seat", "j2", payload={"row": 1, "seat": "B"})
    third = await stage.ask("seat", "j3", payload={"row": 1, "seat": "A"})
    assert (await third.outcome()).held_by == "j1"
    for job_id in ("j1", "j2"):
        stage.fleet.land(job_id)
    await stage.end()


# -- replace ---------------------------------------------------------------------------------


async def test_the_newest_job_replaces_the_one_that_runs_and_those_that_wait(stage: Stage):
    stage.fleet.cleaned.clear()
    replaced = [await stage.ask_and_begin("replace", "j1"), await stage.ask("replace", "j2")]
    newest = await stage.ask("replace", "j3")
    assert stage.fleet.begun.empty()
    stage.fleet.cleaned.set()
    for each, by in zip(replaced, ("j2", "j3"), strict=True):
        with pytest.raises(JobCancelledError) as caught:
            await each.response()
        outcome = caught.value.outcomes["fleet"]
        assert outcome.cancel_reason is CancelReason.REPLACED
        assert outcome.reason == f"replaced by job '{by}'"
    assert await stage.fleet.next_begun() == "j3"
    stage.fleet.land("j3", at="home")
    assert await newest.response() == {"at": "home"}
    await stage.end()
    assert sorted(message.job_id for message in stage.fleet.cancels) == ["j1", "j2"]


async def test_a_job_replaces_only_the_jobs_of_its_key(stage: Stage):
    other = await stage.ask_and_begin("replace", "j1", payload={"ship": 8})
    await stage.ask_and_begin("replace", "j2")
    await stage.ask_and_begin("replace", "j3")
    stage.fleet.land("j1")
    await other.response()
    stage.fleet.land("j3")
    await stage.end()


# -- join ------------------------------------------------------------------------------------


@pytest.mark.every_bus("slow")
async def test_a_job_that_joins_gets_the_same_response(stage: Stage):
    async def change(_: BaseWorker, message: BusJobResponseMessage) -> None:
        assert message.response is not None
        message.response["stops"].append(message.job_id)

    stage.requester.add_event_handler("on_job_response", change)
    asked = [await stage.ask_and_begin("join", "j1")]
    asked += [await stage.ask("join", job_id) for job_id in ("j2", "j3")]
    stage.fleet.land("j1", stops=["a"])
    responses = [await each.response() for each in asked]
    await stage.end()
    # What one requester does to its response does not show in that of another.
    assert responses == [{"stops": ["a", job_id]} for job_id in ("j1", "j2", "j3")]


async def test_a_job_that_joins_gets_the_same_failure(stage: Stage):
    asked = [await stage.ask_and_begin("join", "j1"), await stage.ask("join", "j2")]
    stage.fleet.crash("j1", ValueError("no fuel"))
    for each in asked:
        outcome = await each.outcome()
        assert (outcome.status, outcome.error.message) == (OutcomeStatus.ERROR, "no fuel")
    await stage.end()


async def test_a_job_that_joins_gets_the_updates_from_then_on(stage: Stage):
    first = await stage.ask_and_begin("join", "j1")
    await stage.fleet.send_job_update("j1", {"at": 1})
    second = await stage.ask("join", "j2")
    await stage.fleet.send_job_update("j1", {"at": 2})
    stage.fleet.land("j1")
    await first.response()
    await second.response()
    assert [event.data for event in first.events] == [{"at": 1}, {"at": 2}]
    assert [event.data for event in second.events] == [{"at": 2}]
    await stage.end()


async def test_updates_of_a_joined_job_that_was_cancelled_go_to_no_other(job_harness: JobHarness):
    class Talkative(Fleet):
        async def on_job_cancelled(self, message: BusJobCancelMessage) -> None:
            if message.job_id == "j1":
                await self.send_job_update("j1", {"landed": True})

    stage = Stage(job_harness)
    stage.fleet = Talkative()
    await stage.start()
    first = await stage.ask_and_begin("join", "j1")
    second = await stage.ask("join", "j2")
    first.task.cancel()
    assert await stage.fleet.next_begun() == "j2"
    stage.fleet.land("j2")
    await second.response()
    assert second.events == []
    await stage.end()


async def test_the_cancel_of_a_job_that_joined_ends_no_other(stage: Stage):
    first = await stage.ask_and_begin("join", "j1")
    second, third = await stage.ask("join", "j2"), await stage.ask("join", "j3")
    second.task.cancel()
    await stage.harness.settle()
    stage.fleet.land("j1", at="home")
    assert await first.response() == await third.response() == {"at": "home"}
    await stage.end()


async def test_a_job_that_joined_and_is_cancelled_as_the_response_comes_is_cancelled(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
):
    first, second = await stage.ask_and_begin("join", "j1"), await stage.ask("join", "j2")
    executor, responses = stage.fleet.executor(), stage.fleet._job_responses
    forget = responses.forget

    def forget_and_cancel(execution: Any) -> None:
        forget(execution)
        if execution.request.job_id == "j1":
            cancel = BusJobCancelMessage(source="requester", target="fleet", job_id="j2")
            executor.on_cancel(cancel)

    monkeypatch.setattr(responses, "forget", forget_and_cancel)
    stage.fleet.land("j1", at="Io")
    assert await first.response() == {"at": "Io"}
    assert (await second.outcome()).status is OutcomeStatus.CANCELLED
    await stage.end()


async def test_the_deadline_of_a_job_that_joined_ends_no_other(stage: Stage):
    first = await stage.ask_and_begin("join", "j1")
    second = await stage.ask("join", "j2", timeout=0.5)
    with pytest.raises(JobTimeoutError):
        await second.response()
    stage.fleet.land("j1", at="home")
    assert await first.response() == {"at": "home"}
    await stage.end()


async def test_the_oldest_that_joined_runs_when_the_joined_job_is_cancelled(stage: Stage):
    stage.fleet.cleaned.clear()
    first = await stage.ask_and_begin("join", "j1")
    others = [await stage.ask("join", job_id) for job_id in ("j2", "j3")]
    first.task.cancel()
    await stage.harness.settle()
    others.append(await stage.ask("join", "j4"))
    assert stage.fleet.begun.empty()
    stage.fleet.cleaned.set()
    assert await stage.fleet.next_begun() == "j2"
    await stage.harness.settle()
    stage.fleet.land("j2", by="j2")
    for each in others:
        assert await each.response() == {"by": "j2"}
    await stage.end()


async def test_a_job_does_not_join_one_that_has_responded(stage: Stage):
    class Lingering(BaseWorker):
        def __init__(self) -> None:
            super().__init__("lingering")
            self.release, self.responded = asyncio.Event(), 0

        @job(name="count", key="ship", on_busy="join")
        async def count(self, message: BusJobRequestMessage) -> None:
            self.responded += 1
            await self.send_job_response(message.job_id, {"count": self.responded})
            await self.release.wait()

    lingering = Lingering()
    await stage.harness.start(lingering)
    payload = {"ship": 7}
    assert await stage.requester.ask("lingering", "count", payload=payload) == {"count": 1}
    asking = asyncio.create_task(stage.requester.ask("lingering", "count", payload=payload))
    await stage.harness.settle()
    lingering.release.set()
    assert await asking == {"count": 2}


async def test_a_stream_cannot_be_joined(stage: Stage):
    class Streaming(BaseWorker):
        @job(name="stream", key="ship", on_busy="join")
        async def stream(self, message: BusJobRequestMessage) -> None:
            await self.send_job_stream_data(message.job_id, {"at": 1})

    await stage.harness.start(Streaming("streaming"))
    with pytest.raises(JobError, match="cannot stream"):
        await stage.requester.ask("streaming", "stream", payload={"ship": 7})


# -- what is refused at the door -------------------------------------------------------------


@pytest.mark.parametrize(
    ("payload", "why"),
    [
        (None, "no field 'ship'"),
        ({"boat": 7}, "no field 'ship'"),
        ({"ship": None}, "'ship' of the payload, which is the job's key, is None"),
        ({"ship": [7]}, r"is \[7\]; give a plain str"),
        ({"ship": float("inf")}, "is inf"),
    ],
)
async def test_a_payload_without_a_key_is_refused_before_a_handler_begins(
    stage: Stage, payload: dict | None, why: str
):
    with pytest.raises(JobError, match=why) as caught:
        await stage.requester.ask("fleet", "queue", payload=payload)
    assert caught.value.outcomes["fleet"].refusal is JobRefusal.INVALID_PAYLOAD
    await stage.end()


@pytest.mark.not_on("pubsub", reason="it carries no headers")
@pytest.mark.parametrize("name", ["queue", "refuse", "replace", "join"])
async def test_a_hedge_does_not_begin_beside_the_open_attempt_of_its_own_job(
    stage: Stage, name: str
):
    asked = await stage.ask_and_begin(name, "j1", hedge_after=0.01)
    group: Any = stage.requester.job_groups["j1"]
    attempts = group.handles["fleet"].attempts
    await until(lambda: len(attempts.made) == 2 and attempts.made[1].outcome)
    refused = attempts.made[1].outcome
    assert (refused.refusal, refused.held_by) == (JobRefusal.BUSY, "j1")
    stage.fleet.land("j1", at="Io")
    assert await asked.response() == {"at": "Io"}
    await stage.end()


class TestOptions:
    """The arguments of ``@job``, which no bus sees."""

    @pytest.mark.parametrize(
        ("options", "error", "match"),
        [
            ({"key": 7}, InvalidJobTypeError, "key is 7; give the name of a field"),
            ({"key": ""}, InvalidJobError, "key is empty"),
            ({"key": ()}, InvalidJobError, "key is empty"),
            ({"key": ("a", 7)}, InvalidJobTypeError, "key is 7"),
            ({"key": ["a"]}, InvalidJobTypeError, r"key is \['a'\]"),
            ({"key": "a", "on_busy": "wait"}, InvalidJobError, "on_busy is 'wait'; give one of"),
            ({"on_busy": "queue"}, InvalidJobError, "give key= as well"),
            ({"key": "a", "sequential": True}, InvalidJobError, "max_concurrency=1 with the key"),
        ],
    )
    def test_a_wrong_option_is_refused(
        self, options: dict[str, Any], error: type[Exception], match: str
    ):
        with pytest.raises(error, match=match):
            job(name="x", **options)

    @pytest.mark.parametrize(
        ("key", "match"),
        [
            ("ship", "'ship' is not a parameter of fly"),
            (("vessel", "ship"), "'ship' is not a parameter of fly"),
            ("speed", "'speed' has a default"),
        ],
    )
    def test_a_key_that_a_payload_of_the_handler_may_lack_is_refused(self, key: Any, match: str):
        with pytest.raises(InvalidJobError, match=match):

            @job(key=key)
            async def fly(self: object, vessel: str, speed: int = 1) -> None: ...

    def test_a_key_with_an_alias_is_refused_by_the_first_worker(self):
        class Fleet(BaseWorker):
            @job(key="ship")
            async def fly(self, ship: Annotated[str, Field(alias="shipId")]) -> None: ...

        with pytest.raises(InvalidJobError, match="key: 'ship' has the alias 'shipId'"):
            Fleet("fleet")

    def test_a_key_may_be_among_the_other_fields(self):
        @job(key="ship")
        async def fly(self: object, speed: int = 1, **others: Any) -> None: ...

        class Fleet(BaseWorker):
            @job(key="ship")
            async def land(self, **fields: Any) -> None: ...

        Fleet("fleet")
        assert fly.request(ship="Argo").payload == {"ship": "Argo"}

    def test_a_handler_that_streams_cannot_be_joined(self):
        with pytest.raises(InvalidJobError, match="the method streams"):

            @job(name="x", key="a", on_busy="join")
            async def stream(self: object, message: BusJobRequestMessage):
                yield {}
