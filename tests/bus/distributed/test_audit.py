"""Audits: when the open jobs of a process and those that the server knows differ."""

import asyncio
from collections.abc import Iterable

import pytest
from pipecat.bus.messages import BusJobRequestMessage, BusJobResponseMessage, BusMessage
from pipecat.bus.subscriber import BusSubscriber
from pipecat.pipeline.job_context import JobStatus

from pipecat_jobs.bus._distributed.engine import BusStats, Call, Entry, EntryKind, Lane
from pipecat_jobs.bus._distributed.open_jobs import HeldJob, JobKey
from pipecat_jobs.bus._distributed.outbox import Outbox
from pipecat_jobs.bus._distributed.router import LossListener, Router
from pipecat_jobs.bus.envelope import Envelopes
from pipecat_jobs.bus.wire import WireCodec

HELD = HeldJob(JobKey("requester", "responder", "1"), "process:7", 1)


class EmptyProcess:
    """A process without subscribers."""

    drained = False

    def find_subscriber(self, name: str) -> BusSubscriber | None:
        return None

    def has_subscriber(self, name: str) -> bool:
        return False

    def takes_requests(self, worker: str) -> bool:
        return not self.drained

    def on_message_received(self, message: BusMessage) -> None: ...

    def record_runner(self, runner: str, process: str) -> None: ...

    def remove_process(self, process: str, runners: Iterable[str]) -> None: ...

    def report_lost(self, requester: LossListener, key: JobKey, reason: str) -> None: ...


class RouterHarness:
    """A router without a server; the test takes the calls from its outbox."""

    def __init__(self) -> None:
        self.outbox, self.local = Outbox(100), EmptyProcess()
        self.router = Router(
            self.local,
            self.outbox,
            WireCodec(),
            Envelopes("channel"),
            takeover=1.0,
            through_server=False,
            stats=BusStats(),
        )
        self.router.open_jobs.hold(HELD)

    def respond(self) -> None:
        self.router.publish(
            BusJobResponseMessage(
                source="responder", target="requester", job_id="1", status=JobStatus.COMPLETED
            )
        )

    def server_says_it_is_held(self) -> None:
        self.router.read(Entry(Lane.DATA, EntryKind.AUDIT, "", 0, f"|{HELD.ref}".encode()))

    async def calls(self) -> list[Call]:
        return await self.outbox.take(10) if len(self.outbox) else []


async def names(harness: RouterHarness) -> list[str]:
    return [call.name for call in await harness.calls()]


async def test_a_job_whose_response_is_on_its_way_is_not_given_back():
    """The server is audited before it has the response, as after a cut connection."""
    harness = RouterHarness()
    harness.respond()
    harness.server_says_it_is_held()
    assert await names(harness) == ["notify_requester"]


async def test_a_job_that_is_being_given_back_is_not_given_back_twice():
    harness = RouterHarness()
    harness.router.open_jobs.release(HELD)
    harness.router.reassign(HELD.ref, HELD.attempt, started=True)
    harness.server_says_it_is_held()
    assert await names(harness) == ["reassign"]


async def test_a_job_that_this_process_runs_is_not_given_back():
    harness = RouterHarness()
    harness.server_says_it_is_held()
    assert await names(harness) == []


@pytest.mark.parametrize(
    "way", ["its response was sent", "it was given back", "the process was declared dead"]
)
async def test_a_job_whose_end_the_server_has_forgotten_is_given_back(way: str):
    harness = RouterHarness()
    if way == "it was given back":
        harness.router.open_jobs.release(HELD)
        harness.router.reassign(HELD.ref, HELD.attempt, started=True)
    else:
        harness.respond()
    (call,) = await harness.calls()
    harness.outbox.remove_sent([call])
    if way != "the process was declared dead":
        call.replied("ok")
    else:
        harness.router.on_evicted()
    harness.server_says_it_is_held()
    harness.server_says_it_is_held()
    assert await names(harness) == ["disown"]


def request() -> Entry:
    message = BusJobRequestMessage(source="requester", target="responder", job_id="1")
    body = Envelopes("channel").seal("job", "process", 8, b"{}\n" + WireCodec().encode(message))
    return Entry(Lane.DATA, EntryKind.REQUEST, "process:8", 1, body)


@pytest.mark.parametrize("meanwhile", ["its response was sent", "the process is drained"])
async def test_a_request_that_comes_again_changes_nothing(meanwhile: str):
    """Held twice, the job would get no response; given back, it would run twice."""
    harness = RouterHarness()
    harness.router.open_jobs.release(HELD)
    harness.router.read(request())
    if meanwhile == "its response was sent":
        harness.respond()
    else:
        harness.local.drained = True
    before, held = await names(harness), harness.router.open_jobs.list_held()
    harness.router.read(request())
    assert await names(harness) == before
    assert harness.router.open_jobs.list_held() == held


async def test_a_requesters_death_that_overtakes_its_request_wins():
    harness = RouterHarness()
    harness.router.open_jobs.release(HELD)
    harness.router.read(Entry(Lane.URGENT, EntryKind.ABANDONED, "process:8", 1, b""))
    harness.router.read(request())
    assert harness.router.open_jobs.list_held() == []


async def test_a_wait_for_messages_on_their_way_ends_when_they_are_dropped():
    """An evicted process loses its inbox; a drain would otherwise wait for ever."""
    harness = RouterHarness()
    waiting = asyncio.create_task(harness.router.wait_until_caught_up())
    await asyncio.sleep(0)
    harness.router.on_evicted()
    await asyncio.wait_for(waiting, timeout=100)
