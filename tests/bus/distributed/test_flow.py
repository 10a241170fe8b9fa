"""What a process says of a stream that it does not read as fast as it comes, without a server."""

import asyncio

import pytest
from pipecat.bus.messages import BusJobStreamDataMessage
from support.redis.router_without_server import Desk, answer, request

from pipecat_jobs import JobHeaders
from pipecat_jobs._protocol.flow import StreamWindow
from pipecat_jobs._protocol.headers import set_headers


async def streaming() -> tuple[Desk, StreamWindow]:
    """A process with room for two chunks, whose reader reads."""
    desk, window, message = Desk(), StreamWindow(2), request()
    window.set_read(True)
    set_headers(message, JobHeaders(find_window=lambda _: window))
    desk.router.publish(message)
    await desk.sent()
    return desk, window


def chunk(desk: Desk, window: StreamWindow, number: int, attempt: int = 1) -> None:
    window.note_arrival(handled=True, kept=True)
    message = BusJobStreamDataMessage(source="there", target="here", job_id="1", data={})
    desk.get("m", desk.seal(message, number), "me:1", attempt)


async def said(desk: Desk) -> list[bytes]:
    return await desk.orders("f", "flow")


async def read(window: StreamWindow, chunks: int) -> None:
    for _ in range(chunks):
        window.note_read()
    # Whoever waits for room is told in a turn of the loop.
    await asyncio.sleep(0)


async def test_a_stream_receives_each_pause_and_resume_once():
    desk, window = await streaming()
    chunk(desk, window, 1)
    assert await said(desk) == []
    for number in (2, 3, 4):
        chunk(desk, window, number)
    assert await said(desk) == [b"wait"]
    await read(window, 2)
    assert await said(desk) == []
    await read(window, 2)
    assert await said(desk) == [b"go on"]
    for number in (5, 6):
        chunk(desk, window, number)
    assert await said(desk) == [b"wait"]


async def test_each_attempt_receives_its_own_pause():
    desk, window = await streaming()
    for number in (1, 2):
        chunk(desk, window, number)
    for number in (3, 4):
        chunk(desk, window, number, attempt=2)
    assert await said(desk) == [b"wait", b"wait"]
    await read(window, 4)
    assert await said(desk) == [b"go on"]


@pytest.mark.parametrize("again", [False, True])
async def test_a_stream_that_has_ended_receives_no_pause(again: bool):
    desk, window = await streaming()
    for number in (1, 2):
        chunk(desk, window, number)
    assert await said(desk) == [b"wait"]
    desk.get("m", desk.seal(answer(source="there", target="here"), 3), "me:1", 1)
    if again:
        desk.router.publish(request())
        await desk.sent()
    await read(window, 2)
    assert await desk.tried() == []
