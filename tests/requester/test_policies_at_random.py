"""Groups at random: whatever order their outcomes come in, they end as a plain function says."""

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pipecat.bus.messages import BusJobRequestMessage
from support.schedules import schedules, time_for_schedules

from pipecat_jobs import (
    BaseWorker,
    CancelReason,
    JobError,
    JobGroupError,
    JobOutcome,
    job,
)
from pipecat_jobs.params import Need
from pipecat_jobs.testing import ChaosBus, Faults, JobHarness, run_virtual

#: No sum of delays in a plan equals one of these, so that no two events of a rule coincide.
PARTIAL_AFTER, READY_WITHIN, TIMEOUT = 0.377, 0.253, 2.0311


@dataclass(frozen=True)
class Part:
    """One worker of a group: when it starts, how long it works, and whether it completes."""

    starts_after: float | None
    takes: float | None
    completes: bool


@dataclass(frozen=True)
class Plan:
    parts: tuple[Part, ...]
    need: Need
    cancel_on_error: bool
    partial_after: float | None
    ready_within: float | None
    faults: Faults | None
    seed: int

    @property
    def options(self) -> dict[str, object]:
        options: dict[str, object] = {
            "need": self.need,
            "partial_after": self.partial_after,
            "ready_within": self.ready_within,
        }
        if self.need == "all":
            options["cancel_on_error"] = self.cancel_on_error
        return options


PARTS = st.builds(
    Part,
    st.sampled_from([0.0, 0.0, 0.0, 0.1, 0.5, None]),
    st.sampled_from([0.0, 0.0, 0.1, 0.2, 0.5, 1.0, None]),
    st.sampled_from([True, True, False]),
)


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    parts = tuple(draw(st.lists(PARTS, min_size=1, max_size=4)))
    return Plan(
        parts=parts,
        need=draw(st.sampled_from(["all", "first", *range(1, len(parts) + 1)])),
        cancel_on_error=draw(st.booleans()),
        partial_after=draw(st.sampled_from([None, PARTIAL_AFTER])),
        ready_within=draw(st.sampled_from([None, READY_WITHIN])),
        faults=draw(
            st.none()
            | st.builds(
                Faults,
                delay=st.sampled_from([0.0, 0.5]),
                duplicate=st.sampled_from([0.0, 0.3]),
                slow_publish=st.sampled_from([0.0, 0.3]),
                max_delay=st.just(0.3),
            )
        ),
        seed=draw(st.integers(0, 1000)),
    )


class Worker(BaseWorker):
    def __init__(self, name: str, part: Part, running: set[str]):
        super().__init__(name)
        self.part = part
        self.running = running

    @job(name="work")
    async def work(self, message: BusJobRequestMessage) -> dict:
        self.running.add(self.name)
        try:
            if self.part.takes is None:
                await asyncio.Event().wait()
            else:
                await asyncio.sleep(self.part.takes)
        finally:
            self.running.discard(self.name)
        if not self.part.completes:
            raise ValueError(f"{self.name} cannot")
        return {"from": self.name}


@dataclass
class Ended:
    outcomes: dict[str, JobOutcome]
    error: JobError | None
    running: set[str]
    left: list[str]


async def play(plan: Plan) -> Ended:
    running: set[str] = set()
    seed = None if plan.faults is None else plan.seed
    async with JobHarness(ChaosBus(seed=seed, faults=plan.faults)) as harness:
        requester = BaseWorker("requester")
        await harness.start(requester)
        workers = [Worker(f"w{n}", part, running) for n, part in enumerate(plan.parts)]
        at_once = [worker for worker in workers if worker.part.starts_after == 0.0]
        if at_once:
            await harness.start(*at_once)

        async def start_later(worker: Worker, seconds: float) -> None:
            await asyncio.sleep(seconds)
            await harness.start(worker)

        starting = [
            asyncio.create_task(start_later(worker, worker.part.starts_after))
            for worker in workers
            if worker.part.starts_after
        ]
        names = [worker.name for worker in workers]
        group = requester.job_group(*names, name="work", timeout=TIMEOUT, **plan.options)
        error = None
        try:
            await group
        except JobError as raised:
            error = raised
        await asyncio.gather(*starting)
        await asyncio.sleep(5)
        await harness.settle()
        # A call that raises when it is entered has its outcomes in the error alone.
        outcomes = group.outcomes if error is None else error.outcomes
        return Ended(outcomes, error, set(running), harness.left_behind())


def is_consequence(outcome: JobOutcome) -> bool:
    """Whether a job ended because its group had ended or its deadline had passed."""
    return (
        outcome.cancel_reason in (CancelReason.NOT_NEEDED, CancelReason.GROUP_FAILED)
        or outcome.reason == "timeout"
    )


def succeeds(plan: Plan, outcomes: list[JobOutcome]) -> tuple[bool, int]:
    """Tell whether a group succeeds, and how many of the outcomes decide that."""
    done, left = 0, len(plan.parts)
    needed = {"all": left, "first": 1}.get(str(plan.need)) or int(plan.need)
    for number, outcome in enumerate(outcomes):
        late = plan.partial_after is not None and outcome.waited + outcome.ran > plan.partial_after
        if late and done:
            return True, number
        done, left = done + outcome.completed, left - 1
        if late and done:
            return True, number + 1
        if plan.need == "all":
            if plan.cancel_on_error and not outcome.completed:
                return False, number + 1
            if not left:
                return True, number + 1
        elif done >= (1 if late else needed):
            return True, number + 1
        elif done + left < (1 if late else needed):
            return False, number + 1
    return plan.partial_after is not None and done > 0, len(outcomes)


def problems(plan: Plan, ended: Ended) -> Iterator[str]:
    names = {f"w{n}" for n in range(len(plan.parts))}
    if set(ended.outcomes) != names:
        yield f"has the outcomes {ended.outcomes}"
    own = [outcome for outcome in ended.outcomes.values() if not is_consequence(outcome)]
    others = [outcome for outcome in ended.outcomes.values() if is_consequence(outcome)]
    if list(ended.outcomes.values()) != own + others:
        yield f"went on after its end: {ended.outcomes}"
    success, decided_by = succeeds(plan, own)
    # A failure is announced to the hooks before the other jobs are cancelled; they may end first.
    if success and own[decided_by:]:
        yield f"is decided by {decided_by} of {own}"
    if success == (ended.error is not None):
        yield f"has to {'succeed' if success else 'fail'} with {own}, and gave {ended.error!r}"
    if ended.error is not None:
        if not isinstance(ended.error, JobGroupError):
            yield f"raised {ended.error!r}"
        if any(outcome.cancel_reason is CancelReason.NOT_NEEDED for outcome in others):
            yield f"failed, and jobs are not needed: {others}"
    elif any(outcome.cancel_reason is not CancelReason.NOT_NEEDED for outcome in others):
        yield f"succeeded, and jobs ended as {others}"
    if ended.running:
        yield f"left the handlers of {ended.running} running"
    if ended.left:
        yield f"left {ended.left}"


@pytest.mark.schedules
@pytest.mark.timeout(time_for_schedules())
@schedules(100)
@given(plans())
def test_a_group_ends_as_its_need_says_and_leaves_nothing(plan: Plan):
    found = list(problems(plan, run_virtual(play(plan))))
    assert not found, "\n".join(found)
