"""The headers of a request, and which buses carry them."""

import copy

import pytest
from pipecat.bus.messages import BusJobRequestMessage
from pipecat.bus.serializers import JSONMessageSerializer
from support.redis.processes import Member, redis, redis_server
from support.redis.router_without_server import CODEC, RouterHarness
from support.workers import Requester

from pipecat_jobs import BaseWorker, JobHeaders, job, job_attempt, job_headers, job_moved
from pipecat_jobs._protocol.flow import StreamWindow
from pipecat_jobs._protocol.headers import (
    PlannedHeaders,
    decode_headers,
    encode_headers,
    find_time_left,
    find_window,
    set_headers,
)
from pipecat_jobs.bus._distributed.engine import Command, EntryKind
from pipecat_jobs.bus.redis import EmbeddedRedis
from pipecat_jobs.testing import JobHarness

__all__ = ["redis", "redis_server"]

TRACE = {"traceparent": "00-1-2-01"}


class Reader(BaseWorker):
    """Keeps the headers of its jobs."""

    def __init__(self) -> None:
        super().__init__("reader")
        self.seen: list[JobHeaders] = []

    @job(name="read")
    async def read(self, message: BusJobRequestMessage) -> dict:
        self.seen.append(job_headers(message))
        return {}


class Windows:
    """Has one window, whatever the worker."""

    def __init__(self, window: StreamWindow) -> None:
        self.window = window

    def find(self, worker_name: str) -> StreamWindow:
        return self.window


def request() -> BusJobRequestMessage:
    return BusJobRequestMessage(source="requester", target="reader", job_id="1", job_name="read")


@pytest.mark.every_bus("slow")
@pytest.mark.not_on("pubsub", reason="headers are dropped, since a plain peer could not read them")
async def test_a_bus_carries_the_headers_whole(job_harness: JobHarness):
    requester, reader = Requester(), Reader()
    await job_harness.start(requester, reader)
    await requester.ask("reader", "read", affinity="a", run_once=True)
    await requester.ask("reader", "read")
    assert reader.seen == [JobHeaders(affinity="a", run_once=True), JobHeaders()]


async def test_the_redis_bus_carries_the_headers_that_the_requester_set(
    redis_server: EmbeddedRedis,
):
    requester, reader = Requester(), Reader()
    async with Member(redis_server.url, requester) as member, Member(redis_server.url, reader):
        await member.wait_until_known("reader")
        await requester.ask("reader", "read", affinity="a", run_once=True)
        await requester.ask("reader", "read")
    assert reader.seen == [JobHeaders(affinity="a", run_once=True), JobHeaders()]


@pytest.mark.every_bus
@pytest.mark.not_on("pubsub", reason="headers are dropped, since a plain peer could not read them")
async def test_the_headers_say_how_much_time_is_left_of_the_timeout(job_harness: JobHarness):
    requester, reader = Requester(), Reader()
    await job_harness.start(requester, reader)
    await requester.ask("reader", "read", timeout=1000)
    await requester.ask("reader", "read")
    assert reader.seen[0].time_left is not None
    assert 0 < reader.seen[0].time_left <= 1000
    assert reader.seen[1].time_left is None


def test_the_time_left_is_carried_over_the_wire():
    assert decode_headers(encode_headers(JobHeaders(time_left=1.5))).time_left == 1.5


def test_a_request_without_headers_has_the_defaults():
    assert job_headers(request()) == JobHeaders()
    assert (job_attempt(request()), job_moved(request())) == (1, False)


def test_values_that_are_not_headers_are_not_read():
    message = request()
    set_headers(message, "made up")  # pyright: ignore[reportArgumentType]
    assert job_headers(message) == JobHeaders()


def test_a_copy_of_a_request_has_its_headers_and_its_window():
    message, window = request(), StreamWindow(1)
    set_headers(message, JobHeaders(attempt=2, moved=True, find_window=lambda _: window))
    copied = copy.deepcopy(message)
    assert (job_attempt(copied), job_moved(copied)) == (2, True)
    assert find_window(copied) is window


def test_a_copy_of_a_request_whose_headers_were_not_read_has_them_and_its_window():
    # A requester gives a method of the group, which must not be copied with the request.
    message, window = request(), StreamWindow(1)
    set_headers(message, PlannedHeaders(True, "a", 2.5, Windows(window).find))
    copied = copy.deepcopy(message)
    assert find_window(copied) is window
    assert find_time_left(copied) == 2.5
    assert job_headers(copied) == JobHeaders(run_once=True, affinity="a")
    assert job_headers(copied) is job_headers(copied)
    assert find_window(copied) is window
    assert find_time_left(copied) == 2.5


def test_the_window_is_not_part_of_the_headers_value():
    headers = JobHeaders(attempt=2, find_window=lambda _: None)
    assert headers == JobHeaders(attempt=2)
    assert "window" not in repr(headers)
    assert len({headers, JobHeaders(attempt=2, trace_context=TRACE)}) == 2


def test_pipecats_serializer_writes_only_its_own_fields():
    message, serializer = request(), JSONMessageSerializer()
    plain = serializer.serialize(message)
    set_headers(message, JobHeaders(attempt=2, affinity="a"))
    assert serializer.serialize(message) == plain


@pytest.mark.parametrize(
    "headers",
    [
        JobHeaders(),
        JobHeaders(run_once=True, attempt=3),
        JobHeaders(affinity="a\n\u2028b", trace_context=TRACE),
    ],
)
def test_encoded_headers_are_one_line_and_decode_to_themselves(headers: JobHeaders):
    line = encode_headers(headers)
    assert line.index(b"\n") == len(line) - 1
    assert decode_headers(line) == headers


def test_headers_set_by_the_process_of_the_worker_are_not_encoded():
    headers = JobHeaders(moved=True, find_window=lambda _: None)
    assert decode_headers(encode_headers(headers)) == JobHeaders()


def test_the_attempt_beside_a_hedge_is_carried_over_the_wire():
    assert decode_headers(encode_headers(JobHeaders(beside="job"))).beside == "job"


def test_headers_of_a_later_release_are_ignored():
    assert decode_headers(b'{"run_once":true,"priority":3}') == JobHeaders(run_once=True)


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"0",
        b"\xff",
        b"[]",
        b'{"affinity":1}',
        b'{"beside":1}',
        b'{"time_left":"1"}',
        b'{"time_left":true}',
        b'{"attempt":0}',
        b'{"attempt":"2"}',
        b'{"attempt":true}',
        b'{"trace_context":[]}',
        b'{"trace_context":{"a":1}}',
    ],
)
def test_malformed_headers_are_refused(line: bytes):
    with pytest.raises(ValueError):  # noqa: PT011
        decode_headers(line)


async def test_a_request_whose_headers_cannot_be_read_is_refused():
    harness = RouterHarness()
    body = b"[]\n" + CODEC.encode(request())
    harness.deliver(EntryKind.REQUEST, harness.others.seal("job", "other", 1, body), "other:1")
    assert (harness.local.delivered, harness.stats.garbage) == ([], 1)
    assert [call.name for call in await harness.calls()] == [Command.REJECT]
