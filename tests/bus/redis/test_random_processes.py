"""Jobs end once and with the right outcome, whatever fails: processes, connections, the server.

Hypothesis makes schedules (`random_processes.plan.Plan`), several processes around a real server
play each of them, and this file checks the properties of its story. Most of a schedule is waiting,
so several are played at once. ``pytest --schedules 50`` plays 50 times as many, with new ones in
each run.
"""

import asyncio
from collections.abc import Iterator

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from support.random_processes.plan import Kind, Plan, plans
from support.random_processes.stage import ATTEMPTS, Stage
from support.random_processes.story import Asked, Run, Story
from support.schedules import schedules, time_for_schedules

from pipecat_jobs import JobOutcome, OutcomeStatus
from pipecat_jobs.bus.redis import EmbeddedRedis

# -- properties ------------------------------------------------------------------------------


def problems(story: Story) -> Iterator[str]:
    """The problems of a story, as text."""
    yield from story.problems
    for asked in story.asked:
        for worker in asked.workers:
            yield from (f"{asked}: {each}" for each in begins_as_promised(story, asked, worker))
        if asked.actor.killed_at is None and asked.ended is not None:
            yield from (f"{asked}: {each}" for each in ends_as_promised(story, asked))


def begins_as_promised(story: Story, asked: Asked, worker: str) -> Iterator[str]:
    runs = story.runs_of(asked, worker)
    attempts = [run.attempt for run in runs]
    doubts = asked.actor.expulsions
    if len(runs) > 1 and asked.runs_once:
        yield f"must not run twice, and was begun as {attempts}"
    if doubts:
        # A process that was declared dead requests its open jobs again, as the next attempt.
        most = sum(max(1, ATTEMPTS - doubt) for doubt in range(doubts + 1))
        if len(runs) > most:
            yield f"was begun as {attempts}, requested up to {doubts + 1} times"
    elif attempts != sorted(set(attempts)) or len(attempts) > ATTEMPTS:
        yield f"was begun as {attempts}"
    if attempts not in ([], [1]) and not is_disturbed(story, asked, worker):
        yield f"was begun as {attempts}, and no process died"


def ends_as_promised(story: Story, asked: Asked) -> Iterator[str]:
    if asked.cancelled or asked.finale or isinstance(asked.error, asyncio.CancelledError):
        return
    if set(asked.outcomes) != set(asked.workers):
        yield f"ended with outcomes for {set(asked.outcomes)}: {asked.error!r}"
    completed = all(each.completed for each in asked.outcomes.values())
    raises = len(asked.workers) == 1 or asked.ask.cancel_on_error
    if completed if asked.error is not None else raises and not completed:
        yield f"ended with {asked.error!r} for {asked.outcomes}"
    for outcome in asked.outcomes.values():
        yield from (f"{outcome}: {each}" for each in is_what_it_says(story, asked, outcome))


def is_what_it_says(story: Story, asked: Asked, outcome: JobOutcome) -> Iterator[str]:
    runs, kind = story.runs_of(asked, outcome.worker), asked.ask.kind
    disturbed = is_disturbed(story, asked, outcome.worker)
    match outcome.status:
        case OutcomeStatus.COMPLETED:
            if kind is Kind.RAISE or not kind.gets_response:
                yield "no worker sent that response"
            run = find_responding_run(asked, outcome, runs)
            if run is None or run.end != "returned":
                yield f"is not the response of any of {[str(run) for run in runs]}"
                return
            if not asked.actor.expulsions and run.attempt != max(each.attempt for each in runs):
                yield "is the response of a process that no longer had the job"
            yield from misses_nothing(asked, run)
        case OutcomeStatus.ERROR:
            failed = [run for run in runs if "HandlerError" in run.end]
            nested = kind is Kind.DELEGATE and disturbed
            if not nested and not failed:
                yield "nothing failed"
        case OutcomeStatus.FAILED:
            yield "no handler responds so"
        case OutcomeStatus.TIMED_OUT:
            if asked.ask.timeout is None:
                yield "there was no timeout"
        case OutcomeStatus.CANCELLED:
            others = [each for each in asked.outcomes.values() if each is not outcome]
            group_cancelled = asked.ask.cancel_on_error and any(
                not each.completed for each in others
            )
            timed_out = any(each.status is OutcomeStatus.TIMED_OUT for each in others)
            stops = [asked.actor, *story.hosts_of(outcome.worker)]
            stopped = any(actor.left_at is not None for actor in stops)
            if not group_cancelled and not timed_out and not stopped:
                yield "no cancel was requested"
        case OutcomeStatus.LOST:
            if not disturbed:
                yield "no process died"


def find_responding_run(asked: Asked, outcome: JobOutcome, runs: list[Run]) -> Run | None:
    """The run that gave a response, according to the response or to the last streamed chunk."""
    last = outcome.response
    if asked.ask.kind is Kind.STREAM:
        chunks = [data for worker, _, data in asked.events if worker == outcome.worker and data]
        last = chunks[-1] if chunks else None
    return next((run for run in runs if last and run.number == last["run"]), None)


def misses_nothing(asked: Asked, run: Run) -> Iterator[str]:
    """All messages of an attempt arrive once and in order, after those of earlier attempts."""
    if asked.ask.kind not in (Kind.STREAM, Kind.REPORT):
        return
    events = [(kind, data) for worker, kind, data in asked.events if worker == run.worker]
    numbers = [data["n"] for _, data in events if data and data["run"] == run.number]
    if numbers != list(range(1, run.reports + 1)):
        yield f"of {run.reports} events of {run} arrived {numbers}"
    if asked.ask.kind is Kind.STREAM:
        starts = [kind for kind, _ in events].count("stream_start")
        if starts != len({data["run"] for _, data in events if data}):
            yield f"a stream began {starts} times: {events}"


def is_disturbed(story: Story, asked: Asked, worker: str) -> bool:
    """Whether any process that had a part in a job failed at any time."""
    ended = float("inf") if asked.ended is None else asked.ended
    if any(at <= ended for at in story.flushed_at):
        return True
    involved = {asked.actor, *story.hosts_of(worker)}
    if asked.ask.kind is Kind.DELEGATE:
        involved = set(story.actors)
    return any(
        actor.expulsions or actor.was_expelled or actor.has_ended_by(ended) for actor in involved
    )


# -- the test --------------------------------------------------------------------------------

#: How many schedules are played at once.
AT_ONCE = 8


@pytest.fixture(scope="module")
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as runner:
        yield runner


@pytest.fixture(scope="module")
def server_url(runner: asyncio.Runner) -> Iterator[str]:
    """One server for all schedules; each schedule has its own database."""
    server = EmbeddedRedis(start_timeout=100.0)
    runner.run(server.start())
    yield server.url
    runner.run(server.stop())


async def play(batch: list[Plan], url: str) -> list[str]:
    """Play plans at the same time. Returns the problems of each plan."""
    found: list[str] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: found.append(f"the loop reported {context}"))
    before = asyncio.all_tasks()
    stages = [Stage(plan, url, database) for database, plan in enumerate(batch)]
    for story in await asyncio.gather(*(stage.play() for stage in stages)):
        wrong = list(problems(story))
        if wrong:
            found.append("\n  ".join([f"{story.plan!r}:", *wrong]))
    left = asyncio.all_tasks() - before
    if left:
        await asyncio.wait(left, timeout=5.0)
    found.extend(f"a task is left: {task}" for task in left if not task.done())
    return found


@pytest.mark.schedules
@pytest.mark.timeout(time_for_schedules())
# Shrinking a schedule in real time would take longer than reading the large one.
@settings(schedules(4), phases=[Phase.generate])
@given(batch=st.lists(plans(), min_size=AT_ONCE, max_size=AT_ONCE))
def test_every_job_ends_once_on_random_failures(
    batch: list[Plan], runner: asyncio.Runner, server_url: str
):
    found = runner.run(play(batch, server_url))
    assert not found, "\n".join(found)
