"""On any schedule, at most one job of each key runs, and every job ends once."""

import asyncio
import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pipecat.bus.messages import BusEndWorkerMessage, BusJobCancelMessage, BusJobRequestMessage
from support.schedules import schedules, time_for_schedules

from pipecat_jobs import (
    BaseWorker,
    CancelReason,
    JobError,
    JobOutcome,
    JobRefusal,
    OutcomeStatus,
    UnknownJobError,
    job,
)
from pipecat_jobs._executor.executor import Executor
from pipecat_jobs.testing import ChaosBus, Faults, JobHarness, run_virtual

GRACE = 1.0
RULES = ("queue", "refuse", "replace", "join")
#: Only a few values, so that events often coincide.
SECONDS = st.sampled_from([0.0, 0.1, 0.2, 0.3, 0.5, 1.0])


@dataclass(frozen=True)
class Ask:
    """A job to ask for, and what happens to it."""

    rule: str
    ship: int
    at: float
    takes: float
    #: Seconds that its handler cleans up after a cancel.
    cleans: float
    ending: str
    updates: bool
    cancel_after: float | None
    timeout: float | None


@dataclass(frozen=True)
class Plan:
    asks: list[Ask]
    stop_at: float | None
    faults: Faults
    seed: int


@dataclass
class Run:
    """A call of a handler."""

    ask: Ask
    job_id: str
    started: float
    ended: float | None = None
    cancelled: float | None = None


@dataclass
class Story:
    """What happened."""

    plan: Plan
    runs: list[Run] = field(default_factory=list)
    arrived: list[str] = field(default_factory=list)
    responses: dict[str, dict] = field(default_factory=dict)
    outcomes: dict[str, JobOutcome] = field(default_factory=dict)
    cancelled: set[str] = field(default_factory=set)
    left: int = 0


class Fleet(BaseWorker):
    job_cancel_grace = GRACE

    def __init__(self, story: Story):
        super().__init__("fleet")
        self._story = story

    async def on_job_cancelled(self, message: BusJobCancelMessage) -> None:
        # A job that waits for its response has no handler that would note it.
        for run in self._story.runs:
            if run.job_id == message.job_id and run.ended is None:
                run.ended = asyncio.get_running_loop().time()

    async def _fly(self, message: BusJobRequestMessage) -> dict | None:
        clock, number = asyncio.get_running_loop().time, int(message.job_id)
        ask = self._story.plan.asks[number]
        run = Run(ask, message.job_id, clock())
        self._story.runs.append(run)
        later = False
        try:
            if ask.updates:
                await self.send_job_update(message.job_id, {"of": message.job_id})
            await asyncio.sleep(ask.takes)
            later = ask.ending == "responds later"
            if ask.ending == "raises":
                raise ValueError(message.job_id)
        except asyncio.CancelledError:
            run.cancelled = clock()
            await asyncio.sleep(ask.cleans)
            raise
        finally:
            if not later:
                run.ended = clock()
        if later:
            self.create_task(self._respond(run), "later")
            return None
        return {"by": message.job_id}

    async def _respond(self, run: Run) -> None:
        await asyncio.sleep(0.2)
        # The job may have been cancelled or replaced meanwhile.
        with contextlib.suppress(UnknownJobError):
            await self.send_job_response(run.job_id, {"by": run.job_id})
            run.ended = asyncio.get_running_loop().time()

    @job(name="queue", key="ship")
    async def queue(self, message: BusJobRequestMessage) -> dict | None:
        return await self._fly(message)

    @job(name="refuse", key="ship", on_busy="refuse")
    async def refuse(self, message: BusJobRequestMessage) -> dict | None:
        return await self._fly(message)

    @job(name="replace", key="ship", on_busy="replace", max_concurrency=1)
    async def replace(self, message: BusJobRequestMessage) -> dict | None:
        return await self._fly(message)

    @job(name="join", key="ship", on_busy="join", max_concurrency=1)
    async def join(self, message: BusJobRequestMessage) -> dict | None:
        return await self._fly(message)

    def count_keys(self) -> int:
        executor: Executor = vars(self)["_WorkerJobs__executor"]
        return sum(len(keys) for keys in executor._keys.values())


async def play(plan: Plan) -> Story:
    story = Story(plan)
    bus = ChaosBus(seed=plan.seed, faults=plan.faults)
    fleet, requester = Fleet(story), BaseWorker("requester")

    async def request(number: int, ask: Ask) -> None:
        job_id, payload = str(number), {"ship": ask.ship}
        options: dict[str, Any] = {"timeout": ask.timeout, "job_id": job_id, "payload": payload}
        try:
            async with requester.job("fleet", name=ask.rule, **options) as j:
                pass
        except JobError as error:
            story.outcomes[job_id] = error.outcomes["fleet"]
        except asyncio.CancelledError:
            story.cancelled.add(job_id)
        else:
            story.outcomes[job_id], story.responses[job_id] = j.outcome, j.response

    async def act(number: int, ask: Ask) -> None:
        await asyncio.sleep(ask.at)
        asking = asyncio.create_task(request(number, ask))
        await asyncio.wait({asking}, timeout=ask.cancel_after)
        if ask.cancel_after is not None:
            asking.cancel()
        await asking

    async with JobHarness(bus, timeout=60) as harness:
        await harness.start(requester, fleet)
        acts = [asyncio.create_task(act(*each)) for each in enumerate(plan.asks)]
        if plan.stop_at is not None:
            await asyncio.sleep(plan.stop_at)
            await bus.send(BusEndWorkerMessage(source="director", target="fleet"))
        async with asyncio.timeout(1000):
            await asyncio.gather(*acts)
        # Handlers that resist their cancel outlive their jobs.
        await asyncio.sleep(10)
        story.left = fleet.count_keys()
        requests = [each for each in bus.delivered if isinstance(each, BusJobRequestMessage)]
        story.arrived = list(dict.fromkeys(request.job_id for request in requests))
    return story


# -- what has to hold ------------------------------------------------------------------------


def find_problems(story: Story) -> Iterator[str]:
    if story.left:
        yield f"{story.left} keys are left"
    plan = story.plan
    for number, ask in enumerate(plan.asks):
        job_id = str(number)
        if (job_id in story.outcomes) + (job_id in story.cancelled) != 1:
            yield f"{ask} has not ended once"
        if sum(run.job_id == job_id for run in story.runs) > 1:
            yield f"{ask} ran more than once"
        if job_id in story.outcomes:
            yield from find_wrong_outcome(story, job_id, ask, story.outcomes[job_id])
    for rule in RULES:
        for ship in {ask.ship for ask in plan.asks}:
            runs = [run for run in story.runs if (run.ask.rule, run.ask.ship) == (rule, ship)]
            yield from find_overlaps(runs)
            order = [story.arrived.index(run.job_id) for run in runs]
            if rule in ("queue", "replace") and order != sorted(order):
                yield f"{rule}: ran in another order than that of arrival: {runs}"


def find_overlaps(runs: list[Run]) -> Iterator[str]:
    for number, before in enumerate(runs):
        for after in runs[number + 1 :]:
            ended = before.ended if before.ended is not None else float("inf")
            if before.cancelled is not None:
                # It may resist its cancel for longer than the grace.
                ended = min(ended, before.cancelled + GRACE)
            if after.started < ended - 1e-6:
                yield f"{after} began before {before} had ended"


def find_wrong_outcome(story: Story, job_id: str, ask: Ask, outcome: JobOutcome) -> Iterator[str]:
    same = [
        str(number)
        for number, other in enumerate(story.plan.asks)
        if (other.rule, other.ship) == (ask.rule, ask.ship)
    ]
    others = [other for other in same if other != job_id]
    own_end = "raises" if ask.ending == "raises" else "returns"
    match outcome.status:
        case OutcomeStatus.COMPLETED:
            by = story.responses[job_id]["by"]
            if by != job_id and (ask.rule != "join" or by not in others):
                yield f"{job_id} got the response of {by}"
            if by == job_id and own_end == "raises":
                yield f"{job_id} completed, but raises"
        case OutcomeStatus.ERROR:
            by = outcome.error.message if outcome.error is not None else ""
            if by != job_id and (ask.rule != "join" or by not in others):
                yield f"{job_id} failed with the error of {by}"
        case OutcomeStatus.FAILED:
            busy = (outcome.refusal, ask.rule) == (JobRefusal.BUSY, "refuse")
            if not busy or outcome.held_by not in others:
                yield f"{job_id} failed: {outcome}"
        case OutcomeStatus.CANCELLED:
            stopped = outcome.cancel_reason is CancelReason.WORKER_STOPPED
            replaced = outcome.cancel_reason is CancelReason.REPLACED
            if replaced and (ask.rule != "replace" or not others):
                yield f"{job_id} was replaced: {outcome}"
            if not replaced and (not stopped or story.plan.stop_at is None):
                yield f"{job_id} was cancelled: {outcome}"
        case OutcomeStatus.TIMED_OUT:
            if ask.timeout is None:
                yield f"{job_id} timed out"
        case OutcomeStatus.LOST:
            if story.plan.stop_at is None:
                yield f"{job_id} was lost"


ASKS = st.builds(
    Ask,
    rule=st.sampled_from(RULES),
    ship=st.sampled_from([1, 1, 1, 2]),
    at=SECONDS,
    takes=SECONDS,
    cleans=st.sampled_from([0.0, 0.0, 0.3, 2.0]),
    ending=st.sampled_from(["returns", "returns", "raises", "responds later"]),
    updates=st.booleans(),
    cancel_after=st.none() | st.none() | SECONDS,
    timeout=st.none() | st.none() | SECONDS,
)
#: Jobs of one rule, so that they meet.
ALIKE = st.tuples(st.sampled_from(RULES), st.lists(ASKS, min_size=2, max_size=8)).map(
    lambda drawn: [replace(ask, rule=drawn[0]) for ask in drawn[1]]
)
PLANS = st.builds(
    Plan,
    asks=ALIKE | st.lists(ASKS, min_size=1, max_size=8),
    stop_at=st.none() | st.none() | SECONDS,
    faults=st.sampled_from(
        [Faults(), Faults(delay=0.5, duplicate=0.2, slow_publish=0.3, max_delay=0.4)]
    ),
    seed=st.integers(0, 1000),
)


@pytest.mark.schedules
@pytest.mark.timeout(time_for_schedules())
@schedules(150)
@given(PLANS)
def test_one_job_of_each_key_runs_and_every_job_ends_once(plan: Plan):
    story = run_virtual(play(plan))
    found = list(find_problems(story))
    assert not found, "\n".join(found)
