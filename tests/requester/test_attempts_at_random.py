"""On any schedule, a job with retries or a hedge ends once, and leaves nothing behind.

Workers fail, stall, stream, refuse and are lost; messages are late, doubled and lost on their way
there; requesters cancel, and deadlines pass. Time is virtual.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from loguru import logger
from pipecat.bus.messages import BusJobRequestMessage
from support.schedules import schedules, time_for_schedules

from pipecat_jobs import (
    BaseWorker,
    CancelReason,
    JobError,
    JobInterceptor,
    JobLifeEvent,
    JobLifeEventKind,
    JobOutcome,
    JobToolError,
    OutcomeStatus,
    Retry,
    job,
)
from pipecat_jobs.testing import ChaosBus, Faults, JobHarness, run_virtual

#: Seconds in which a job has ended after its deadline: those that a cancel may take to be sent.
ENDING = 1.5
#: Seconds after which everything has ended, with a margin.
FINALE = 60.0

COMPLETES, ERRS, FAILS, STALLS, SLOW = "completes", "errs", "fails", "stalls", "slow"
ENDS = (COMPLETES, ERRS, FAILS, STALLS, SLOW)
WORKERS = ("a", "b")


@dataclass(frozen=True)
class Call:
    """One job, and how the handler ends at each of its attempts."""

    workers: tuple[str, ...]
    starts: float
    timeout: float
    attempts: int
    on: frozenset[OutcomeStatus]
    wait: float
    hedge_after: float | None
    run_once: bool
    streams: bool
    ends: tuple[str, ...]
    cancelled_after: float | None

    @property
    def most(self) -> int:
        return max(self.attempts, 1 if self.hedge_after is None else 2)


@dataclass(frozen=True)
class Plan:
    calls: tuple[Call, ...]
    #: When which worker is reported as lost.
    losses: tuple[tuple[float, str], ...]
    #: When which worker changes between taking jobs and refusing them.
    toggles: tuple[tuple[float, str], ...]
    seed: int
    delay: float
    duplicate: float
    lost_requests: int


@dataclass
class Story:
    events: Counter[tuple[JobLifeEventKind, str, str]] = field(default_factory=Counter)
    outcomes: dict[int, dict[str, JobOutcome]] = field(default_factory=dict)
    job_ids: dict[int, str] = field(default_factory=dict)
    ended: Counter[int] = field(default_factory=Counter)
    took: dict[int, float] = field(default_factory=dict)
    begun: Counter[tuple[int, str]] = field(default_factory=Counter)
    responses: Counter[tuple[str, str]] = field(default_factory=Counter)
    left: list[str] = field(default_factory=list)


class Actor(BaseWorker):
    takes_jobs_when_inactive = False

    def __init__(self, name: str, plan: Plan, story: Story):
        super().__init__(name)
        self.plan, self.story = plan, story

    async def _end(self, message: BusJobRequestMessage) -> dict[str, Any]:
        number = (message.payload or {})["call"]
        run = self.story.begun[number, self.name]
        self.story.begun[number, self.name] += 1
        ends = self.plan.calls[number].ends
        match ends[min(run, len(ends) - 1)]:
            case "errs":
                raise ValueError("errs")
            case "fails":
                raise JobToolError("fails")
            case "stalls":
                await asyncio.Event().wait()
            case "slow":
                await asyncio.sleep(1.0)
            case _:
                await asyncio.sleep(0.1)
        return {"run": run}

    @job(name="work")
    async def work(self, message: BusJobRequestMessage) -> dict[str, Any]:
        return await self._end(message)

    @job(name="stream")
    async def stream(self, message: BusJobRequestMessage) -> AsyncIterator[dict[str, Any]]:
        yield {"begun": True}
        yield await self._end(message)


class Watch(JobInterceptor):
    def __init__(self, story: Story):
        self.story = story

    def on_event(self, event: JobLifeEvent) -> None:
        self.story.events[event.kind, event.job_id, event.worker] += 1


async def play(plan: Plan) -> Story:
    story = Story()
    faults = Faults(delay=plan.delay, duplicate=plan.duplicate, max_delay=0.3)
    bus = ChaosBus(seed=plan.seed, faults=faults)
    async with JobHarness(bus) as harness:
        requester = BaseWorker("requester")
        requester.add_job_interceptor(Watch(story))

        @requester.event_handler("on_job_response")
        async def on_job_response(_: BaseWorker, message: Any) -> None:
            story.responses[message.job_id, message.source] += 1

        actors = {name: Actor(name, plan, story) for name in WORKERS}
        await harness.start(requester, *actors.values())
        if plan.lost_requests:
            bus.drop(BusJobRequestMessage, count=plan.lost_requests)
        loop = asyncio.get_running_loop()

        async def ask(number: int, call: Call) -> None:
            await asyncio.sleep(call.starts)
            scope = requester.job_group(
                *call.workers,
                name="stream" if call.streams else "work",
                payload={"call": number},
                timeout=call.timeout,
                run_once=call.run_once,
                cancel_on_error=False,
                hedge_after=call.hedge_after,
                retry=Retry(
                    attempts=call.attempts, on=call.on, wait_initial=call.wait, wait_max=call.wait
                ),
            )
            story.job_ids[number] = scope.job_id
            began = loop.time()
            try:
                async with scope:
                    if call.cancelled_after is not None:
                        await asyncio.sleep(call.cancelled_after)
                        await requester.cancel_job_group(scope.job_id)
            except JobError as error:
                story.outcomes[number] = error.outcomes
            else:
                story.outcomes[number] = scope.outcomes
            story.ended[number] += 1
            story.took[number] = loop.time() - began

        async def lose(at: float, name: str) -> None:
            await asyncio.sleep(at)
            await requester.worker_lost(name, reason="the plan says so")

        async def toggle(at: float, name: str) -> None:
            await asyncio.sleep(at)
            actors[name]._active = not actors[name]._active

        async with asyncio.timeout(FINALE), asyncio.TaskGroup() as acts:
            for number, call in enumerate(plan.calls):
                acts.create_task(ask(number, call))
            for at, name in plan.losses:
                acts.create_task(lose(at, name))
            for at, name in plan.toggles:
                acts.create_task(toggle(at, name))
        await asyncio.sleep(ENDING)
        await harness.settle()
        requesting: Any = requester._WorkerJobs__requester
        story.left = [
            *harness.left_behind(),
            *requesting._later_attempts,
            *requesting._liveness._watches,
        ]
    return story


def check(plan: Plan, story: Story) -> None:
    assert story.left == []
    for number, call in enumerate(plan.calls):
        assert story.ended[number] == 1, call
        assert story.took[number] <= call.timeout + ENDING, call
        job_id = story.job_ids[number]
        outcomes = story.outcomes[number]
        assert set(outcomes) == set(call.workers)
        for name, outcome in outcomes.items():
            assert story.events[JobLifeEventKind.ASKED, job_id, name] == 1
            assert story.events[JobLifeEventKind.SETTLED, job_id, name] == 1
            assert story.responses[job_id, name] <= 1
            sent = story.events[JobLifeEventKind.SENT, job_id, name]
            assert sent <= call.most, (call, outcome)
            # All of them, but the one that the outcome is of; after a cancel between two attempts
            # there is none.
            assert sent - 1 <= len(outcome.attempts) <= sent, (call, outcome)
            assert story.begun[number, name] <= sent
            if call.run_once:
                assert story.begun[number, name] <= 1, (call, outcome)
            for earlier in outcome.attempts:
                check_earlier(call, outcome, earlier)
            if outcome.completed and not call.streams:
                assert outcome.response is not None


def check_earlier(call: Call, outcome: JobOutcome, earlier: JobOutcome) -> None:
    assert earlier.attempts == ()
    assert earlier.waited + earlier.ran <= outcome.waited + outcome.ran + 1e-6
    if earlier.status is OutcomeStatus.CANCELLED and outcome.status is not earlier.status:
        assert call.hedge_after is not None
        assert earlier.cancel_reason is CancelReason.NOT_NEEDED
        assert outcome.completed or call.streams
    if earlier.status in (OutcomeStatus.ERROR, OutcomeStatus.FAILED) and call.hedge_after is None:
        assert earlier.refusal is not None or earlier.status in call.on
        assert earlier.refusal is not None or not call.run_once


times = st.floats(0, 4).map(lambda time: round(time, 1))


@st.composite
def calls(draw: st.DrawFn) -> Call:
    workers = draw(st.sampled_from([("a",), ("b",), ("a", "b")]))
    run_once = draw(st.booleans())
    hedged = len(workers) == 1 and not run_once and draw(st.booleans())
    return Call(
        workers=workers,
        starts=draw(times),
        timeout=draw(st.sampled_from([0.5, 2.0, 5.0])),
        attempts=draw(st.integers(1, 4)),
        on=draw(
            st.frozensets(
                st.sampled_from([OutcomeStatus.ERROR, OutcomeStatus.FAILED, OutcomeStatus.LOST])
            )
        ),
        wait=draw(st.sampled_from([0.0, 0.1, 1.0])),
        hedge_after=draw(st.sampled_from([0.05, 0.5])) if hedged else None,
        run_once=run_once,
        streams=draw(st.booleans()),
        ends=tuple(draw(st.lists(st.sampled_from(ENDS), min_size=1, max_size=4))),
        cancelled_after=draw(st.none() | st.sampled_from([0.0, 0.1, 0.6, 1.5])),
    )


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    moments = st.lists(st.tuples(times, st.sampled_from(WORKERS)), max_size=3).map(tuple)
    return Plan(
        calls=tuple(draw(st.lists(calls(), min_size=1, max_size=4))),
        losses=draw(moments),
        toggles=draw(moments),
        seed=draw(st.integers(0, 2**16)),
        delay=draw(st.sampled_from([0.0, 0.5])),
        duplicate=draw(st.sampled_from([0.0, 0.3])),
        lost_requests=draw(st.integers(0, 2)),
    )


@pytest.fixture(autouse=True)
def quiet():
    logger.disable("pipecat_jobs")
    logger.disable("pipecat")
    yield
    logger.enable("pipecat_jobs")
    logger.enable("pipecat")


@pytest.mark.schedules
@pytest.mark.timeout(time_for_schedules())
@given(plans())
@schedules(150)
def test_jobs_with_attempts_end_once_and_leave_nothing(plan: Plan):
    check(plan, run_virtual(play(plan)))
