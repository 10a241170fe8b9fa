"""Flow control of a process that reads a stream more slowly than it arrives, without a server."""

import asyncio

import pytest
from pipecat.bus.messages import BusJobStreamDataMessage
from support.redis.router_without_server import RouterHarness, job_response, request

from pipecat_jobs import JobHeaders
from pipecat_jobs._protocol.flow import StreamWindow
from pipecat_jobs._protocol.headers import set_headers


async def streaming() -> tuple[RouterHarness, StreamWindow]:
    """A process with a window of two chunks, and its reader."""
    harness, window, message = RouterHarness(), StreamWindow(2), request()
    window.set_read(True)
    set_headers(message, JobHeaders(find_window=lambda _: window))
    harness.router.publish(message)
    await harness.send_all()
    return harness, window


def chunk(harness: RouterHarness, window: StreamWindow, number: int, attempt: int = 1) -> None:
    window.note_arrival(handled=True, kept=True)
    message = BusJobStreamDataMessage(source="there", target="here", job_id="1", data={})
    harness.deliver("m", harness.seal(message, number), "me:1", attempt)


async def sent_to_worker(harness: RouterHarness) -> list[bytes]:
    return await harness.sent_to_worker("f", "flow")


async def read(window: StreamWindow, chunks: int) -> None:
    for _ in range(chunks):
        window.note_read()
    # The message that resumes the worker is sent in the next turn of the loop.
    await asyncio.sleep(0)


async def test_a_stream_receives_each_pause_and_resume_once():
    harness, window = await streaming()
    chunk(harness, window, 1)
    assert await sent_to_worker(harness) == []
    for number in (2, 3, 4):
        chunk(harness, window, number)
    assert await sent_to_worker(harness) == [b"wait"]
    await read(window, 2)
    assert await sent_to_worker(harness) == []
    await read(window, 2)
    assert await sent_to_worker(harness) == [b"go on"]
    for number in (5, 6):
        chunk(harness, window, number)
    assert await sent_to_worker(harness) == [b"wait"]


async def test_each_attempt_receives_its_own_pause():
    harness, window = await streaming()
    for number in (1, 2):
        chunk(harness, window, number)
    for number in (3, 4):
        chunk(harness, window, number, attempt=2)
    assert await sent_to_worker(harness) == [b"wait", b"wait"]
    await read(window, 4)
    assert await sent_to_worker(harness) == [b"go on"]


@pytest.mark.parametrize("again", [False, True])
async def test_a_stream_that_has_ended_receives_no_pause(again: bool):
    harness, window = await streaming()
    for number in (1, 2):
        chunk(harness, window, number)
    assert await sent_to_worker(harness) == [b"wait"]
    harness.deliver("m", harness.seal(job_response(source="there", target="here"), 3), "me:1", 1)
    if again:
        harness.router.publish(request())
        await harness.send_all()
    await read(window, 2)
    assert await harness.next_calls() == []
