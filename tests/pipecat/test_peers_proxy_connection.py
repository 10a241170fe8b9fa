"""Jobs between two runners whose WebSocket closes, or is not connected yet."""

import asyncio

import pytest
from pipecat.bus.messages import BusJobResponseMessage
from support import peers_proxy
from support.peers import OurPeer, PlainPeer
from support.peers_proxy import Direction, Link, calling, send, wire

from pipecat_jobs import JobTimeoutError, OutcomeStatus, WorkerLostError
from pipecat_jobs.testing import JobHarness

direction = peers_proxy.direction
harness = peers_proxy.harness


@pytest.mark.parametrize("answers", [OurPeer, PlainPeer])
@pytest.mark.parametrize("how", ["close_as_server", "close_as_client", "cut"])
async def test_a_connection_that_closes_during_a_job_loses_the_worker(
    harness: JobHarness, direction: Direction, answers: type, how: str
):
    asker, answerer = OurPeer("asker"), answers("answerer")
    async with calling(harness, direction, asker, answerer) as call:
        caller = asyncio.create_task(asker.ask("answerer", "wait"))
        await answerer.started.get()

        await call.lose_connection(how)

        with pytest.raises(WorkerLostError, match="'answerer'") as lost:
            await caller
        assert lost.value.outcomes["answerer"].status is OutcomeStatus.LOST
        assert not asker.job_groups


@pytest.mark.parametrize("how", ["close_as_server", "close_as_client", "cut"])
async def test_a_lost_connection_stops_the_local_rest_of_the_group(
    harness: JobHarness, direction: Direction, how: str
):
    asker, answerer, neighbour = OurPeer("asker"), OurPeer("answerer"), OurPeer("neighbour")
    async with calling(harness, direction, asker, answerer) as call:
        await call.runner.add_workers(neighbour)
        caller = asyncio.create_task(asker.ask_group("answerer", "neighbour", name="wait"))
        await answerer.started.get()
        job_id = await neighbour.started.get()

        await call.lose_connection(how)

        with pytest.raises(WorkerLostError):
            await caller
        assert await neighbour.stopped.get() == job_id


@pytest.mark.parametrize("how", ["close_as_server", "close_as_client", "cut"])
async def test_asking_through_a_closed_connection_is_lost_at_once(
    harness: JobHarness, direction: Direction, how: str
):
    asker = OurPeer("asker")
    async with calling(harness, direction, asker, OurPeer("answerer")) as call:
        caller = asyncio.create_task(asker.ask("answerer", "wait"))
        await call.answerer.started.get()
        await call.lose_connection(how)
        # The end of this first job shows that the requester's side knows the worker.
        with pytest.raises(WorkerLostError):
            await caller

        with pytest.raises(WorkerLostError, match="'answerer'"):
            await asker.ask("answerer", "echo")


@pytest.mark.parametrize("urgent", [False, True])
async def test_a_response_that_arrived_right_before_the_connection_closed_counts(
    harness: JobHarness, direction: Direction, urgent: bool
):
    asker, answerer = OurPeer("asker"), OurPeer("answerer")
    async with calling(harness, direction, asker, answerer) as call:
        caller = asyncio.create_task(asker.ask("answerer", "wait"))
        job_id = await answerer.started.get()

        answer = wire(
            "BusJobResponseUrgentMessage" if urgent else "BusJobResponseMessage",
            source="answerer",
            target="asker",
            job_id=job_id,
            status="completed",
            response={"last": "words"},
        )
        await send(call.answering_socket, answer)
        await (await call.answering_socket).close()
        answerer.release.set()

        assert await caller == {"last": "words"}


async def test_a_response_still_on_the_requesters_bus_when_the_connection_closed_counts(
    harness: JobHarness, direction: Direction
):
    """This happens on a network bus, which is slow between the proxy and the requester."""
    asker, answerer = OurPeer("asker"), OurPeer("answerer")
    async with calling(harness, direction, asker, answerer) as call:
        caller = asyncio.create_task(asker.ask("answerer", "wait"))
        await answerer.started.get()
        call.runner.bus.delay(BusJobResponseMessage, 0.02)
        answerer.release.set()
        await call.runner.bus.wait_for(BusJobResponseMessage)

        await call.link.cut()

        assert await caller == {"from": "answerer"}


async def test_a_worker_is_watched_as_long_as_one_of_its_jobs_is_open(
    harness: JobHarness, direction: Direction
):
    asker, answerer = OurPeer("asker"), OurPeer("answerer")
    async with calling(harness, direction, asker, answerer) as call:
        caller = asyncio.create_task(asker.ask("answerer", "wait"))
        await answerer.started.get()
        await asker.ask("answerer", "echo")

        await call.lose_connection("cut")

        with pytest.raises(WorkerLostError):
            await caller


async def test_a_job_for_a_remote_worker_waits_until_its_proxy_connects(harness: JobHarness):
    asker = OurPeer("asker")
    async with Link(harness, asker, OurPeer("answerer")) as link:
        caller = asyncio.create_task(asker.ask("answerer", "echo", timeout=5))
        await harness.settle()
        assert not caller.done()

        await link.connect()

        assert (await caller)["from"] == "answerer"


async def test_a_remote_worker_whose_proxy_never_connects_is_not_ready(harness: JobHarness):
    asker = OurPeer("asker")
    async with Link(harness, asker, OurPeer("answerer")):
        with pytest.raises(JobTimeoutError, match="not ready"):
            await asker.ask("answerer", "echo", timeout=0.05)
