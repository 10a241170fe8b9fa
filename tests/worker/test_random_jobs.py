"""On any schedule, every job ends once with the right outcome, and leaves nothing behind.

Hypothesis makes schedules (`random_jobs.plan.Plan`), and this file checks the properties of each
story. A failing schedule is shrunk and printed as a readable plan, which can be pasted into an
``@example`` here. ``pytest --schedules 50`` plays 50 times as many, with new ones in each run.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import pairwise

import pytest
from hypothesis import example, given
from pipecat.pipeline.job_context import JobStatus
from support.random_jobs.plan import (
    LINGER,
    Body,
    Ending,
    Forge,
    Form,
    Hooks,
    Plan,
    Request,
    Route,
    Stop,
    Toggle,
    Work,
)
from support.random_jobs.regressions import ONCE_BROKEN
from support.random_jobs.schedules import plans
from support.random_jobs.stage import run_plan
from support.random_jobs.story import Asked, BodyError, Run, Story, worker_name
from support.schedules import schedules, time_for_schedules

from pipecat_jobs import (
    InvalidJobError,
    JobCancelledError,
    JobError,
    JobGroupError,
    JobOutcome,
    JobTimeoutError,
    OutcomeStatus,
    WorkerLostError,
)
from pipecat_jobs._requester.cancellation import CANCEL_GRACE

# -- properties ------------------------------------------------------------------------------

#: Virtual time is exact; the sums of floats that tests make of it are not.
EXACT = 1e-6


def problems(story: Story) -> Iterator[str]:
    """The problems of a story, as text."""
    yield from nothing_hangs_and_nothing_is_left(story)
    for asked in story.asked:
        yield from (f"{asked}: {problem}" for problem in problems_of(story, asked))
    for run in story.runs:
        yield from (f"{run}: {problem}" for problem in problems_of_run(story, run))
    yield from limits_are_kept(story)
    yield from each_request_runs_once_and_gets_one_response(story)
    yield from hooks_fire_once(story)


def nothing_hangs_and_nothing_is_left(story: Story) -> Iterator[str]:
    yield from (f"{each} never ended" for each in story.never_ended)
    yield from story.left_behind
    yield from story.loop_errors
    for asked in story.asked:
        if not asked.finale or confuses_a_plain_worker(story, asked):
            continue
        if stops(story.plan, asked.requester) or ends_by_itself(story.plan, asked.request):
            yield f"{asked}: would have waited for ever"


def problems_of(story: Story, asked: Asked) -> Iterator[str]:
    if asked.ended is None:
        return
    yield from ends_in_time(asked)
    yield from raises_what_happened(story, asked)
    for outcome in asked.outcomes.values():
        if outcome is not None:
            yield from (f"{outcome}: {each}" for each in is_what_it_says(story, asked, outcome))
    yield from misses_nothing(story, asked)


def ends_in_time(asked: Asked) -> Iterator[str]:
    """Timeout, task cancel and group cancel end the call at once, except for a bounded clean-up."""
    assert asked.ended is not None
    group_cancelled = asked.group_cancelled_at if asked.waits else None
    for what, at in (
        ("its deadline", asked.deadline),
        ("it was cancelled", asked.cancelled_at),
        ("its group was cancelled", group_cancelled),
    ):
        if at is None:
            continue
        since = max(at, asked.body_ended or 0.0)
        if asked.ended > since + CANCEL_GRACE + EXACT:
            yield f"ended at {asked.ended:g}, {what} at {since:g}"


def raises_what_happened(story: Story, asked: Asked) -> Iterator[str]:
    """The call returns or raises as its outcomes say."""
    statuses = {outcome.status for outcome in asked.outcomes.values() if outcome is not None}
    match asked.error:
        case None:
            if asked.waits:
                yield from returned_for_a_reason(asked, statuses)
        case BodyError():
            if asked.request.body is not Body.RAISES:
                yield "raised a BodyError that is not its own"
        case asyncio.CancelledError():
            # A nested call may also be cancelled through its handler, for the same reasons.
            if asked.cancelled_at is None and not asked.finale and asked.parent is None:
                yield "was cancelled without a cause"
        case InvalidJobError():
            if not shares_its_id(story, asked):
                yield f"raised {asked.error!r}"
        case JobError() as error:
            yield from failed_for_a_reason(asked, error, statuses)
        case error:
            yield f"raised {error!r}"


def returned_for_a_reason(asked: Asked, statuses: set[OutcomeStatus]) -> Iterator[str]:
    if set(asked.outcomes) != set(asked.workers) or None in asked.outcomes.values():
        yield f"returned with outcomes {asked.outcomes}"
    if asked.request.cancel_on_error and statuses != {OutcomeStatus.COMPLETED}:
        yield f"returned although it ended as {asked.outcomes}"
    if OutcomeStatus.TIMED_OUT in statuses:
        yield "returned although it timed out"


def failed_for_a_reason(
    asked: Asked, error: JobError, statuses: set[OutcomeStatus]
) -> Iterator[str]:
    if error.job_id != asked.job_id and asked.job_id is not None:
        yield f"raised the error of another job: {error.job_id}"
    if set(error.outcomes) != set(asked.workers):
        yield f"raised with outcomes {error.outcomes}"
    if not error.failures:
        yield "raised although every worker completed"
    if asked.request.form not in (Form.JOB, Form.REQUEST_JOB) and not isinstance(
        error, JobGroupError
    ):
        yield f"a group raised {error!r}"
    match error:
        case JobTimeoutError():
            expected = {OutcomeStatus.TIMED_OUT}
        case JobCancelledError():
            expected = {OutcomeStatus.CANCELLED}
        case WorkerLostError():
            expected = {OutcomeStatus.LOST}
        case _:
            expected = {OutcomeStatus.FAILED, OutcomeStatus.ERROR}
    if not statuses & expected:
        yield f"raised {error!r}, which is not in {asked.outcomes}"


def is_what_it_says(story: Story, asked: Asked, outcome: JobOutcome) -> Iterator[str]:
    """A status has a cause: no false success, no false failure, no response of another job."""
    if confuses_a_plain_worker(story, asked):
        return
    runs = story.runs_of(asked, outcome.worker)
    deadline = asked.request.timeout
    took = outcome.waited + outcome.ran
    if deadline is not None and took > deadline + EXACT:
        yield f"decided after the deadline, at {took:g} s"
    for run in runs:
        if outcome.response and "request" in outcome.response and outcome.response != run.response:
            yield f"got {outcome.response}, which is not this job's response"
    match outcome.status:
        case OutcomeStatus.COMPLETED:
            responded = [run for run in runs if JobStatus.COMPLETED in run.sent_statuses]
            if not responded:
                yield "no worker responded"
            elif not outcome.response and asked.request.route is not Route.STREAM:
                yield "the response is missing"
        case OutcomeStatus.FAILED | OutcomeStatus.ERROR:
            if not any(failed(run) for run in runs) and not may_be_refused(story, asked, outcome):
                yield "nothing failed"
        case OutcomeStatus.CANCELLED:
            if not may_be_cancelled(story, asked, outcome):
                yield "no cancel was requested"
        case OutcomeStatus.TIMED_OUT:
            own = deadline is not None and abs(took - deadline) <= EXACT
            if not own and not has_inherited_a_deadline(asked, asked.started + took):
                yield f"timed out after {took:g} s"
        case OutcomeStatus.LOST:
            reported = (asked.requester, outcome.worker) in story.lost
            if not reported and outcome.worker not in story.stopped:
                yield "the worker runs"


def has_inherited_a_deadline(asked: Asked, at: float) -> bool:
    """Whether the deadline of a job in whose handler a request was made has passed by then."""
    run = asked.parent
    while run is not None:
        if run.asked.deadline is not None and at >= run.asked.deadline - EXACT:
            return True
        run = run.asked.parent
    return False


def failed(run: Run) -> bool:
    return (
        isinstance(run.raised, Exception)
        or run.work.ending is Ending.RETURNS_JUNK
        or JobStatus.FAILED in run.sent_statuses
        or JobStatus.ERROR in run.sent_statuses
    )


def may_be_refused(story: Story, asked: Asked, outcome: JobOutcome) -> bool:
    error = outcome.error.type if outcome.error is not None else None
    if error == "NoJobHandlerError":
        return asked.request.route is Route.UNKNOWN
    plan = story.plan.worker(int(outcome.worker[1:]))
    inactive = plan is not None and not plan.takes_jobs_when_inactive
    return error == "JobRefusedError" and (inactive or shares_its_id(story, asked))


def may_be_cancelled(story: Story, asked: Asked, outcome: JobOutcome) -> bool:
    plan = story.plan.worker(int(outcome.worker[1:]))
    others_failed = asked.request.cancel_on_error and any(
        other is not outcome and not other.completed for other in asked.outcomes.values()
    )
    return (
        asked.cancelled_at is not None
        or asked.group_cancelled_at is not None
        or asked.finale
        or others_failed
        or isinstance(asked.error, BodyError | asyncio.CancelledError)
        or asked.requester in story.stopped
        or outcome.worker in story.stopped
        # Pipecat's own workers accept a cancel from any sender.
        or (plan is not None and plan.plain and Forge in map(type, story.plan.actions))
        or any(
            isinstance(r.raised, asyncio.CancelledError)
            for r in story.runs_of(asked, outcome.worker)
        )
    )


def shares_its_id(story: Story, asked: Asked) -> bool:
    return any(
        other is not asked and asked.request.job_id is not None and other.job_id == asked.job_id
        for other in story.asked
    )


def confuses_a_plain_worker(story: Story, asked: Asked) -> bool:
    """Pipecat's own workers treat two requesters' jobs of one id as one job."""
    workers = [story.plan.worker(work.worker) for work in asked.request.works]
    any_plain = any(worker is not None and worker.plain for worker in workers)
    return any_plain and shares_its_id(story, asked)


def misses_nothing(story: Story, asked: Asked) -> Iterator[str]:
    """Events belong to the job; a bus that keeps the order delivers all of them, in order."""
    if confuses_a_plain_worker(story, asked):
        return
    for event in asked.events:
        if event.data is not None and event.data.get("request") != asked.number:
            yield f"got an event of another job: {event}"
    numbers = [event.data["n"] for event in asked.events if event.data and "n" in event.data]
    if story.plan.faults is None and asked.request.form is Form.JOB and numbers != sorted(numbers):
        yield f"got its events out of order: {asked.events}"
    if asked.late_events:
        yield f"the loop over its events ended before {asked.late_events}"
    listens = asked.request.body in (Body.LISTENS, Body.LISTENS_AGAIN)
    if story.plan.faults is not None or asked.request.form is not Form.JOB or not listens:
        return
    (work,) = asked.request.works
    for run in story.runs_of(asked, worker_name(work.worker)):
        if asked.error is None and work.ending is Ending.RETURNS:
            expected = ["update"] * run.reports
            if asked.request.route is Route.STREAM:
                expected = ["stream_start", *["stream_data"] * run.reports, "stream_end"]
            if [event.type for event in asked.events] != expected:
                yield f"got the events {asked.events} instead of {expected}"


def problems_of_run(story: Story, run: Run) -> Iterator[str]:
    """A handler stops soon after its job has ended."""
    plan, asked = story.plan, run.asked
    if (
        plan.workers[run.work.worker].plain
        or plan.loses_messages
        or not asked.waits
        or run.ended is None
        or asked.ended is None
    ):
        return
    cancel_arrives = asked.ended + (len(asked.workers) + 2) * plan.longest_delay
    own_clean_up = run.work.resists + LINGER + (CANCEL_GRACE if run.work.asks else 0.0)
    # The bus may still delay messages that a handler sends.
    sends = (run.work.reports + 4) * plan.longest_delay if run.work.resists else 0.0
    if run.ended > cancel_arrives + own_clean_up + sends + EXACT:
        yield f"went on until {run.ended:g} for a job that ended at {asked.ended:g}"


def limits_are_kept(story: Story) -> Iterator[str]:
    """Sequential handlers run one at a time, unless one resists its cancellation for too long."""
    for name in {run.worker for run in story.runs}:
        number = int(name[1:])
        for route in Route:
            runs = [r for r in story.runs if r.worker == name and r.asked.request.route is route]
            if story.plan.workers[number].plain or not is_room(story.plan, number, route):
                continue
            if any(run.work.resists > 1.0 for run in runs):
                continue
            for before, after in pairwise(runs):
                if before.ended is None or before.ended > after.started:
                    yield f"{after} began before {before} had ended"


def each_request_runs_once_and_gets_one_response(story: Story) -> Iterator[str]:
    ours = [worker_name(n) for n, each in enumerate(story.plan.workers) if not each.plain]
    for run in story.runs:
        if run.worker in ours and len(story.runs_of(run.asked, run.worker)) > 1:
            yield f"{run}: ran more than once"
    asked = Counter((a.requester, a.job_id) for a in story.asked)
    for (worker, requester, job_id), count in Counter(story.sent_responses).items():
        if worker in ours and count > (asked[requester, job_id] or 1):
            yield f"{worker} responded to job {job_id} of {requester} {count} times"


def hooks_fire_once(story: Story) -> Iterator[str]:
    requests = Counter((asked.requester, asked.job_id) for asked in story.asked)
    ends = Counter(
        (worker, job_id, source)
        for worker, hook, job_id, source in story.hooks
        if hook in ("on_job_response", "on_job_stream_end")
    )
    for (worker, job_id, source), count in ends.items():
        # A requester that is cancelled while sending never learns the id.
        if count > (requests[worker, job_id] or 1):
            yield f"{worker}: {count} ends of job {job_id} at {source} were announced"
    completed = Counter(
        (worker, job_id) for worker, hook, job_id, _ in story.hooks if hook == "on_job_completed"
    )
    for (worker, job_id), count in completed.items():
        of_this_id = [a for a in story.asked if (a.requester, a.job_id) == (worker, job_id)]
        could = [a for a in of_this_id if not isinstance(a.error, JobError)]
        if count > len(could):
            yield f"{worker}: job {job_id} was announced as completed {count} times"
    for asked in story.asked:
        hooks = story.plan.workers[int(asked.requester[1:])].hooks
        quiet = (
            hooks in (Hooks.QUICK, Hooks.RAISE)
            and asked.deadline is None
            and asked.group_cancelled_at is None
            and asked.requester not in story.stopped
        )
        if (
            quiet
            and asked.waits
            and asked.error is None
            and not completed[asked.requester, asked.job_id]
        ):
            yield f"{asked}: its completion was not announced"


# -- which requests end by themselves --------------------------------------------------------


def ends_by_itself(plan: Plan, request: Request) -> bool:
    """Whether a request is sure to end without an action of its requester."""
    return request.timeout is not None or all(
        gets_response(plan, request, work) for work in request.works
    )


def gets_response(plan: Plan, request: Request, work: Work) -> bool:
    """Whether a worker is sure to respond to a request; False in doubt."""
    worker = plan.worker(work.worker)
    if worker is None or plan.loses_messages:
        return False
    if stops(plan, worker_name(work.worker)):
        return True
    if is_room(plan, work.worker, request.route) and not keeps_moving(plan):
        return False
    if worker.plain:
        toggled = any(isinstance(a, Toggle) and a.worker == work.worker for a in plan.actions)
        return (
            worker.active
            and not toggled
            and request.route is not Route.STREAM
            and (worker.takes_unnamed or request.route not in (Route.UNNAMED, Route.UNKNOWN))
            and work.ending in RESPONDING_ENDINGS
        )
    if request.route is Route.UNKNOWN and not worker.takes_unnamed:
        return True
    if request.route is Route.UNNAMED and not worker.takes_unnamed:
        return False
    if work.asks is not None and not ends_by_itself(plan, work.asks):
        return False
    if request.route is Route.STREAM and work.ending is Ending.SAYS_NOTHING:
        return True
    return work.ending not in (Ending.SAYS_NOTHING, Ending.NEVER_ENDS)


def stops(plan: Plan, name: str) -> bool:
    """Whether a worker is stopped before the finale."""
    return any(
        isinstance(action, Stop)
        and worker_name(action.worker) == name
        # A worker that has not started yet does not receive it.
        and plan.workers[action.worker].starts_at == 0.0
        for action in plan.actions
    )


#: The endings after which a plain Pipecat worker sends a response.
RESPONDING_ENDINGS = (
    Ending.RESPONDS,
    Ending.RESPONDS_URGENTLY,
    Ending.RESPONDS_TWICE,
    Ending.RESPONDS_LATER,
    Ending.LINGERS,
    Ending.STREAMS,
    Ending.FAILS,
    Ending.ERRS,
)


def is_room(plan: Plan, worker: int, route: Route) -> bool:
    """Whether requests of a route wait for each other."""
    if route in (Route.UNNAMED, Route.UNKNOWN):
        return plan.workers[worker].one_unnamed_at_a_time
    return route in (Route.SEQUENTIAL, Route.NARROW)


def keeps_moving(plan: Plan) -> bool:
    """Whether no handler blocks a slot for ever: each ends by itself, and requests no job."""
    return all(
        work.asks is None and work.ending not in (Ending.SAYS_NOTHING, Ending.NEVER_ENDS)
        for request in plan.requests
        for work in request.works
    )


def once_broken(test: Callable[..., None]) -> Callable[..., None]:
    """Play the schedules that have failed before, and then the others."""
    for plan in ONCE_BROKEN:
        test = example(plan=plan)(test)
    return test


# -- the tests -------------------------------------------------------------------------------


def check(plan: Plan) -> None:
    story = run_plan(plan)
    found = list(problems(story))
    assert not found, "\n".join(found)


@pytest.mark.schedules
@pytest.mark.timeout(time_for_schedules())
@schedules(250)
@given(plans())
@once_broken
def test_every_job_ends_once_and_leaves_nothing(plan: Plan):
    check(plan)


@pytest.mark.schedules
@pytest.mark.timeout(time_for_schedules())
@schedules(60)
@given(plans(lossy=True))
def test_no_job_waits_for_ever_on_a_bus_that_loses_messages(plan: Plan):
    check(plan)
