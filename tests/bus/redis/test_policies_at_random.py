"""On any schedule, calls of a pool of processes end as their ``need`` says, and leave nothing.

Their jobs have retries, hedges and keys; workers fail, stall and are slow; requesters cancel, and
deadlines pass. Time is real, so that a call is checked by its own outcomes.
"""

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from pipecat.bus.messages import BusJobRequestMessage
from redis.asyncio import Redis
from support.redis.processes import Member, assert_nothing_remains
from support.schedules import schedules, time_for_schedules
from support.workers import until

from pipecat_jobs import (
    BaseWorker,
    CancelReason,
    JobError,
    JobGroupError,
    JobOutcome,
    OutcomeStatus,
    Retry,
    job,
)
from pipecat_jobs.bus.redis import EmbeddedRedis
from pipecat_jobs.params import Need

WORKERS = ("w0", "w1", "w2")
#: Seconds for a job that nothing is to keep from ending, on a busy machine too.
LONG = 60.0
#: The end of a group with the responses of some, beside the ends that a handler decides.
COMPLETES, FAILS, STALLS = "completes", "fails", "stalls"
NOT_NEEDED = CancelReason.NOT_NEEDED


@dataclass(frozen=True)
class Call:
    """One call, and how the handlers of each worker end, attempt by attempt."""

    starts: float
    workers: tuple[str, ...]
    name: str
    ship: int
    need: Need
    cancel_on_error: bool
    partial_after: float | None
    timeout: float
    attempts: int
    hedge_after: float | None
    cancelled_after: float | None
    ends: dict[str, tuple[str, ...]]

    @property
    def options(self) -> dict[str, Any]:
        options: dict[str, Any] = {
            "name": self.name,
            "need": self.need,
            "partial_after": self.partial_after,
            "timeout": self.timeout,
            "hedge_after": self.hedge_after,
            "retry": Retry(
                attempts=self.attempts, on={OutcomeStatus.ERROR}, wait_initial=0.02, wait_max=0.05
            ),
        }
        if self.need == "all":
            options["cancel_on_error"] = self.cancel_on_error
        return options


@st.composite
def calls(draw: st.DrawFn) -> Call:
    workers = tuple(draw(st.permutations(WORKERS)))[: draw(st.integers(1, 3))]
    need = draw(st.sampled_from(["all", "first", *range(1, len(workers) + 1)]))
    may_hedge = len(workers) == 1 or need == "first"
    ends = st.lists(st.sampled_from([COMPLETES, COMPLETES, FAILS, STALLS]), min_size=1, max_size=3)
    return Call(
        starts=draw(st.sampled_from([0.0, 0.05, 0.2])),
        workers=workers,
        name=draw(st.sampled_from(["work", "work", "queue", "refuse", "replace", "join"])),
        ship=draw(st.integers(0, 2)),
        need=need,
        cancel_on_error=draw(st.booleans()),
        partial_after=draw(st.sampled_from([None, 0.1])),
        timeout=draw(st.sampled_from([0.3, 1.0, 1.0])),
        attempts=draw(st.integers(1, 3)),
        hedge_after=draw(st.sampled_from([None, 0.03])) if may_hedge else None,
        cancelled_after=draw(st.sampled_from([None, None, None, 0.0, 0.15])),
        ends={name: tuple(draw(ends)) for name in workers},
    )


@dataclass
class Story:
    """What the processes of a schedule have in common."""

    calls: list[Call]
    running: set[tuple[int, str]] = field(default_factory=set)
    keys: dict[tuple[str, str, int], int] = field(default_factory=dict)
    begun: dict[tuple[int, str], int] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


class Worker(BaseWorker):
    def __init__(self, name: str, story: Story):
        super().__init__(name)
        self.story = story

    async def _work(self, message: BusJobRequestMessage) -> dict[str, Any]:
        story, number = self.story, (message.payload or {})["call"]
        ends = story.calls[number].ends[self.name]
        run = story.begun[number, self.name] = story.begun.get((number, self.name), 0) + 1
        try:
            await asyncio.sleep(0.02)
            match ends[min(run, len(ends)) - 1]:
                case "fails":
                    raise ValueError("fails")
                case "stalls":
                    await asyncio.Event().wait()
            return {"from": self.name}
        finally:
            story.begun[number, self.name] = run

    async def _work_alone(self, message: BusJobRequestMessage) -> dict[str, Any]:
        payload, story = message.payload or {}, self.story
        key = (self.name, message.job_name or "", payload["ship"])
        if key in story.keys:
            story.problems.append(f"call {payload['call']} runs beside {story.keys[key]} of {key}")
        story.keys[key] = payload["call"]
        try:
            return await self._work(message)
        finally:
            del story.keys[key]

    @job(name="work")
    async def work(self, message: BusJobRequestMessage) -> dict[str, Any]:
        this = (message.payload or {})["call"], message.job_id + self.name
        self.story.running.add(this)
        try:
            return await self._work(message)
        finally:
            self.story.running.discard(this)

    @job(name="queue", key="ship")
    async def queue(self, message: BusJobRequestMessage) -> dict[str, Any]:
        return await self._work_alone(message)

    @job(name="refuse", key="ship", on_busy="refuse")
    async def refuse(self, message: BusJobRequestMessage) -> dict[str, Any]:
        return await self._work_alone(message)

    @job(name="replace", key="ship", on_busy="replace")
    async def replace(self, message: BusJobRequestMessage) -> dict[str, Any]:
        return await self._work_alone(message)

    @job(name="join", key="ship", on_busy="join")
    async def join(self, message: BusJobRequestMessage) -> dict[str, Any]:
        return await self._work_alone(message)


async def make(call: Call, number: int, requester: BaseWorker, story: Story) -> None:
    await asyncio.sleep(call.starts)
    payload = {"call": number, "ship": call.ship}
    group = requester.job_group(*call.workers, payload=payload, **call.options)

    async def cancel(seconds: float) -> None:
        await asyncio.sleep(seconds)
        await requester.cancel_job_group(group.job_id)

    cancelling = None
    if call.cancelled_after is not None:
        cancelling = asyncio.create_task(cancel(call.cancelled_after))
    error, outcomes = None, group.outcomes
    try:
        async with asyncio.timeout(LONG):
            await group
        outcomes = group.outcomes
    except JobError as raised:
        error, outcomes = raised, raised.outcomes
    if cancelling is not None:
        await cancelling
    found = find_problems(call, outcomes, error)
    story.problems += [f"{call} {problem}" for problem in found]


def find_problems(
    call: Call, outcomes: dict[str, JobOutcome], error: JobError | None
) -> Iterator[str]:
    if set(outcomes) != set(call.workers):
        yield f"has the outcomes {outcomes}"
    completed = [outcome for outcome in outcomes.values() if outcome.completed]
    needless = [outcome for outcome in outcomes.values() if outcome.cancel_reason is NOT_NEEDED]
    if error is not None:
        if not isinstance(error, JobGroupError):
            yield f"raised {error!r}"
        if needless:
            yield f"failed, and jobs are not needed: {needless}"
    elif call.need == "all":
        others = [o for o in outcomes.values() if not o.completed and o not in needless]
        if others and call.cancel_on_error:
            yield f"succeeded with {others}"
        if needless and (call.partial_after is None or not completed):
            yield f"needs all, and jobs are not needed: {needless}"
    else:
        needed = 1 if call.need == "first" or call.partial_after is not None else int(call.need)
        if len(completed) < needed:
            yield f"succeeded with {outcomes}"
    most = max(call.attempts, 1 if call.hedge_after is None or len(call.workers) > 1 else 2)
    for outcome in outcomes.values():
        if len(outcome.attempts) > most:
            yield f"has more than {most} attempts: {outcome.attempts}"
        if any(attempt.completed for attempt in outcome.attempts):
            yield f"has a completed attempt beside {outcome}"


def find_left(requester: BaseWorker) -> list[object]:
    requesting: Any = vars(requester)["_WorkerJobs__requester"]
    return [*requester.open_jobs, *requesting._later_attempts, *requesting._liveness._watches]


async def play(planned: list[Call]) -> list[str]:
    story = Story(planned)
    requesters = [BaseWorker(f"r{number}") for number in range(3)]
    async with EmbeddedRedis(start_timeout=LONG) as server:
        pools = [[Worker(name, story) for name in WORKERS] for _ in range(2)]
        async with (
            Member(server.url, *pools[0], requesters[0]),
            Member(server.url, *pools[1], requesters[1]),
            Member(server.url, requesters[2]) as alone,
        ):
            await alone.wait_until_known(*WORKERS)
            async with asyncio.TaskGroup() as making:
                for number, call in enumerate(planned):
                    making.create_task(make(call, number, requesters[number % 3], story))
            held = [worker for pool in pools for worker in pool]
            await until(lambda: not any(worker.open_jobs for worker in held), timeout=LONG)
            await until(lambda: not (story.running or story.keys), timeout=LONG)
            story.problems += [f"{left} is left" for r in requesters for left in find_left(r)]
            async with Redis.from_url(server.url, decode_responses=True) as redis:
                async with asyncio.timeout(LONG):
                    while await redis.exists("pipecat-jobs:{pipecat}:keys"):  # noqa: ASYNC110
                        await asyncio.sleep(0.01)
        async with Redis.from_url(server.url, decode_responses=True) as redis:
            await assert_nothing_remains(redis)
    return story.problems


@pytest.mark.schedules
@pytest.mark.timeout(time_for_schedules())
@settings(schedules(4), phases=[Phase.generate])
@given(st.lists(calls(), min_size=12, max_size=24))
def test_calls_to_a_pool_end_as_their_need_says_and_leave_nothing(planned: list[Call]):
    problems = asyncio.run(play(planned))
    assert not problems, "\n".join(problems)
