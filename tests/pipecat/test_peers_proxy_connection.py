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


@pytest.mark.parametrize("responds", [OurPeer, PlainPeer])
@pytest.mark.parametrize("how", ["close_as_server", "close_as_client", "cut"])
async def test_a_connection_that_closes_during_a_job_loses_the_worker(
    harness: JobHarness, direction: Direction, responds: type, how: str
):
    requester, responder = OurPeer("requester"), responds("responder")
    async with calling(harness, direction, requester, responder) as call:
        call_task = asyncio.create_task(requester.ask("responder", "wait"))
        await responder.started.get()

        await call.lose_connection(how)

        with pytest.raises(WorkerLostError, match="'responder'") as lost:
            await call_task
        assert lost.value.outcomes["responder"].status is OutcomeStatus.LOST
        assert not requester.job_groups


@pytest.mark.parametrize("how", ["close_as_server", "close_as_client", "cut"])
async def test_a_lost_connection_stops_the_local_rest_of_the_group(
    harness: JobHarness, direction: Direction, how: str
):
    requester, responder, neighbour = (
        OurPeer("requester"),
        OurPeer("responder"),
        OurPeer("neighbour"),
    )
    async with calling(harness, direction, requester, responder) as call:
        await call.runner.add_workers(neighbour)
        call_task = asyncio.create_task(requester.ask_group("responder", "neighbour", name="wait"))
        await responder.started.get()
        job_id = await neighbour.started.get()

        await call.lose_connection(how)

        with pytest.raises(WorkerLostError):
            await call_task
        assert await neighbour.stopped.get() == job_id


@pytest.mark.parametrize("how", ["close_as_server", "close_as_client", "cut"])
async def test_asking_through_a_closed_connection_is_lost_at_once(
    harness: JobHarness, direction: Direction, how: str
):
    requester = OurPeer("requester")
    async with calling(harness, direction, requester, OurPeer("responder")) as call:
        call_task = asyncio.create_task(requester.ask("responder", "wait"))
        await call.responder.started.get()
        await call.lose_connection(how)
        # The end of this first job shows that the requester's side knows the worker.
        with pytest.raises(WorkerLostError):
            await call_task

        with pytest.raises(WorkerLostError, match="'responder'"):
            await requester.ask("responder", "echo")


@pytest.mark.parametrize("urgent", [False, True])
async def test_a_response_that_arrived_right_before_the_connection_closed_counts(
    harness: JobHarness, direction: Direction, urgent: bool
):
    requester, responder = OurPeer("requester"), OurPeer("responder")
    async with calling(harness, direction, requester, responder) as call:
        call_task = asyncio.create_task(requester.ask("responder", "wait"))
        job_id = await responder.started.get()

        response = wire(
            "BusJobResponseUrgentMessage" if urgent else "BusJobResponseMessage",
            source="responder",
            target="requester",
            job_id=job_id,
            status="completed",
            response={"last": "words"},
        )
        await send(call.responding_socket, response)
        await (await call.responding_socket).close()
        responder.release.set()

        assert await call_task == {"last": "words"}


async def test_a_response_still_on_the_requesters_bus_when_the_connection_closed_counts(
    harness: JobHarness, direction: Direction
):
    """This happens on a network bus, which is slow between the proxy and the requester."""
    requester, responder = OurPeer("requester"), OurPeer("responder")
    async with calling(harness, direction, requester, responder) as call:
        call_task = asyncio.create_task(requester.ask("responder", "wait"))
        await responder.started.get()
        call.runner.bus.delay(BusJobResponseMessage, 0.02)
        responder.release.set()
        await call.runner.bus.wait_for(BusJobResponseMessage)

        await call.link.cut()

        assert await call_task == {"from": "responder"}


async def test_a_worker_is_watched_as_long_as_one_of_its_jobs_is_open(
    harness: JobHarness, direction: Direction
):
    requester, responder = OurPeer("requester"), OurPeer("responder")
    async with calling(harness, direction, requester, responder) as call:
        call_task = asyncio.create_task(requester.ask("responder", "wait"))
        await responder.started.get()
        await requester.ask("responder", "echo")

        await call.lose_connection("cut")

        with pytest.raises(WorkerLostError):
            await call_task


async def test_a_job_for_a_remote_worker_waits_until_its_proxy_connects(harness: JobHarness):
    requester = OurPeer("requester")
    async with Link(harness, requester, OurPeer("responder")) as link:
        call_task = asyncio.create_task(requester.ask("responder", "echo", timeout=5))
        await harness.settle()
        assert not call_task.done()

        await link.connect()

        assert (await call_task)["from"] == "responder"


async def test_a_remote_worker_whose_proxy_never_connects_is_not_ready(harness: JobHarness):
    requester = OurPeer("requester")
    async with Link(harness, requester, OurPeer("responder")):
        with pytest.raises(JobTimeoutError, match="not ready"):
            await requester.ask("responder", "echo", timeout=0.05)
