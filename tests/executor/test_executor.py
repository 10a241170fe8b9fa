"""The executor: handlers, their return values, their concurrency, and refused requests."""

import asyncio

import pytest
from pipecat.bus.messages import (
    BusJobCancelMessage,
    BusJobRequestMessage,
    BusJobResponseMessage,
    BusJobResponseUrgentMessage,
    BusJobUpdateRequestMessage,
)
from pipecat.pipeline.job_context import JobStatus
from support.workers import Requester, Responder, cancelled

from pipecat_jobs import (
    BaseWorker,
    DuplicateJobHandlerError,
    InvalidJobError,
    InvalidJobTypeError,
    JobError,
    JobRefusedError,
    JobToolError,
    OutcomeStatus,
    UnknownJobError,
    job,
)
from pipecat_jobs.testing import ChaosBus, JobHarness

pytestmark = pytest.mark.every_bus


async def test_a_handler_responds_with_the_dict_that_it_returns(job_harness: JobHarness):
    requester, responder = Requester(), Responder()
    await job_harness.start(requester, responder)
    assert await requester.ask("responder", "echo", payload={"n": 1}) == {
        "from": "responder",
        "payload": {"n": 1},
    }
    await job_harness.settle()
    assert not responder.active_jobs


async def test_a_handler_that_responds_and_returns_a_dict_has_responded_once(
    job_harness: JobHarness,
):
    class Twice(BaseWorker):
        @job(name="twice")
        async def twice(self, message: BusJobRequestMessage) -> dict:
            await self.send_job_response(message.job_id, {"n": 1})
            return {"n": 2}

    requester = Requester()
    await job_harness.start(requester, Twice("twice"))
    assert await requester.ask("twice", "twice") == {"n": 1}


async def test_a_handler_that_returns_none_may_respond_later(job_harness: JobHarness):
    requester, responder = Requester(), Responder()
    await job_harness.start(requester, responder)
    call_task = asyncio.create_task(requester.ask("responder", "silent"))
    job_id = await responder.started.get()
    await job_harness.settle()
    assert job_id in responder.active_jobs
    await responder.send_job_response(job_id, {"late": True}, urgent=True)
    assert await call_task == {"late": True}


async def test_an_async_generator_streams_the_values_that_it_yields(job_harness: JobHarness):
    requester = Requester()
    await job_harness.start(requester, Responder())
    async with requester.job("responder", name="count", payload={"to": 2}) as j:
        events = [(event.type, event.data) async for event in j]
    assert events == [
        ("stream_start", None),
        ("stream_data", {"number": 0}),
        ("stream_data", {"number": 1}),
        ("stream_end", None),
    ]


async def test_an_empty_stream_still_starts_and_ends(job_harness: JobHarness):
    requester = Requester()
    await job_harness.start(requester, Responder())
    async with requester.job("responder", name="count", payload={"to": 0}) as j:
        assert [event.type async for event in j] == ["stream_start", "stream_end"]


async def test_a_stream_that_raises_is_an_error_after_its_chunks(job_harness: JobHarness):
    class Breaking(BaseWorker):
        @job(name="break")
        async def break_off(self, message: BusJobRequestMessage):
            yield {"n": 1}
            raise OSError("pipe")

    requester = Requester()
    await job_harness.start(requester, Breaking("breaking"))
    with pytest.raises(JobError, match="OSError: pipe"):
        async with requester.job("breaking", name="break") as j:
            assert [event.type async for event in j] == ["stream_start", "stream_data"]


async def test_a_cancelled_stream_closes_its_generator(job_harness: JobHarness):
    closed = asyncio.Event()

    class Endless(BaseWorker):
        @job(name="endless")
        async def endless(self, message: BusJobRequestMessage):
            try:
                yield {"n": 1}
                await asyncio.Event().wait()
            finally:
                closed.set()

    requester = Requester()
    await job_harness.start(requester, Endless("endless"))

    async def first_chunk() -> None:
        async with requester.job("endless", name="endless") as j:
            async for event in j:
                if event.type == "stream_data":
                    raise KeyError("enough")

    with pytest.raises(KeyError):
        await first_chunk()
    await job_harness.settle()
    assert closed.is_set()


@pytest.mark.parametrize(("value", "shown"), [(7, "7"), ("text", "'text'"), ([1], r"\[1\]")])
async def test_a_handler_that_returns_another_type_is_an_error(job_harness, value, shown):
    class Odd(BaseWorker):
        @job(name="odd")
        async def odd(self, message: BusJobRequestMessage):
            return value

    requester = Requester()
    await job_harness.start(requester, Odd("odd"))
    with pytest.raises(JobError, match=f"returned {shown}; return a dict"):
        await requester.ask("odd", "odd")


async def test_a_handler_that_yields_another_type_than_dict_is_an_error(job_harness: JobHarness):
    class Odd(BaseWorker):
        @job(name="odd")
        async def odd(self, message: BusJobRequestMessage):
            yield "text"

    requester = Requester()
    await job_harness.start(requester, Odd("odd"))
    with pytest.raises(JobError, match="stream data is 'text'; give a dict"):
        await requester.ask("odd", "odd")


async def test_a_handler_that_raises_cancelled_error_still_gives_a_response(
    job_harness: JobHarness,
):
    class CancelsItself(BaseWorker):
        @job(name="cancels")
        async def cancel_itself(self, message: BusJobRequestMessage):
            raise asyncio.CancelledError

    requester = Requester()
    await job_harness.start(requester, CancelsItself("cancels"))
    with pytest.raises(JobError, match="handler cancelled"):
        await requester.ask("cancels", "cancels")


class Counting(BaseWorker):
    """Tracks how many of its handlers run at once."""

    def __init__(self) -> None:
        super().__init__("counting")
        self.running: list[str] = []
        self.arrived: asyncio.Queue[str] = asyncio.Queue()
        self.gates: dict[str, asyncio.Event] = {}

    def open(self, job_id: str) -> None:
        self.gates.setdefault(job_id, asyncio.Event()).set()

    async def _work(self, message: BusJobRequestMessage) -> None:
        self.running.append(message.job_id)
        self.arrived.put_nowait(message.job_id)
        await self.gates.setdefault(message.job_id, asyncio.Event()).wait()
        self.running.remove(message.job_id)

    @job(name="sequential", sequential=True)
    async def sequential(self, message: BusJobRequestMessage) -> dict:
        await self._work(message)
        return {}

    @job(name="two", max_concurrency=2)
    async def two(self, message: BusJobRequestMessage) -> dict:
        await self._work(message)
        return {}

    @job(name="later", max_concurrency=1)
    async def later(self, message: BusJobRequestMessage) -> None:
        self.arrived.put_nowait(message.job_id)

    @job(name="any")
    async def any(self, message: BusJobRequestMessage) -> dict:
        await self._work(message)
        return {}


@pytest.mark.not_on("pubsub", reason="requests that are sent at once arrive in any order")
@pytest.mark.parametrize(("name", "at_once"), [("sequential", 1), ("two", 2), ("any", 4)])
async def test_handlers_run_in_order_and_up_to_the_limit(
    job_harness: JobHarness, name: str, at_once: int
):
    requester, counting = Requester(), Counting()
    await job_harness.start(requester, counting)
    ids = [f"{name}-{n}" for n in range(4)]
    calls = [asyncio.create_task(requester.ask("counting", name, job_id=job_id)) for job_id in ids]
    for position, job_id in enumerate(ids):
        await job_harness.settle()
        assert counting.running == ids[position : position + at_once]
        counting.open(job_id)
    await asyncio.gather(*calls)


async def test_max_concurrency_counts_a_job_until_its_response(job_harness: JobHarness):
    requester, counting = Requester(), Counting()
    await job_harness.start(requester, counting)
    calls = [asyncio.create_task(requester.ask("counting", "later", job_id=i)) for i in ("a", "b")]
    await job_harness.settle()
    assert counting.arrived.qsize() == 1
    await counting.send_job_response(counting.arrived.get_nowait(), {})
    assert await counting.arrived.get() == "b"
    await counting.send_job_response("b", {})
    await asyncio.gather(*calls)


async def test_a_cancelled_job_in_the_queue_never_runs_and_frees_no_slot_of_another(
    job_harness: JobHarness,
):
    requester, counting = Requester(), Counting()
    await job_harness.start(requester, counting)
    first = asyncio.create_task(requester.ask("counting", "sequential", job_id="first"))
    await counting.arrived.get()
    second = asyncio.create_task(requester.ask("counting", "sequential", job_id="second"))
    third = asyncio.create_task(requester.ask("counting", "sequential", job_id="third"))
    await job_harness.settle()

    await cancelled(second)
    await job_harness.settle()
    assert counting.running == ["first"]
    counting.open("first")
    assert await counting.arrived.get() == "third"
    counting.open("third")
    await asyncio.gather(first, third)


async def test_an_override_of_on_job_request_takes_names_without_a_handler(job_harness: JobHarness):
    class Routing(BaseWorker):
        async def on_job_request(self, message: BusJobRequestMessage) -> None:
            await super().on_job_request(message)
            await self.send_job_response(message.job_id, {"routed": message.job_name})

        @job(name="known")
        async def known(self, message: BusJobRequestMessage) -> dict:
            return {"handler": "known"}

    requester = Requester()
    await job_harness.start(requester, Routing("routing"))
    assert await requester.ask("routing") == {"routed": None}
    assert await requester.ask("routing", "other") == {"routed": "other"}
    assert await requester.ask("routing", "known") == {"handler": "known"}


async def test_an_event_handler_of_on_job_request_may_respond(job_harness: JobHarness):
    requester, worker = Requester(), BaseWorker("plain")
    await job_harness.start(requester, worker)

    @worker.event_handler("on_job_request")
    async def on_job_request(worker: BaseWorker, message: BusJobRequestMessage) -> None:
        await worker.send_job_response(message.job_id, {"name": message.job_name})

    assert await requester.ask("plain", "anything") == {"name": "anything"}


async def test_a_nameless_request_without_a_handler_stays_open_for_a_late_response(
    job_harness: JobHarness,
):
    requester, worker = Requester(), BaseWorker("plain")
    await job_harness.start(requester, worker)
    call_task = asyncio.create_task(requester.ask("plain"))
    await job_harness.settle()
    (job_id,) = worker.active_jobs
    await worker.send_job_response(job_id, {"late": True})
    assert await call_task == {"late": True}


async def test_a_worker_may_opt_out_of_jobs_while_inactive(job_harness: JobHarness):
    class OptedOut(Responder):
        takes_jobs_when_inactive = False

    requester = Requester()
    await job_harness.start(requester, OptedOut("opted-out", active=False))
    with pytest.raises(JobRefusedError, match="'opted-out' is inactive") as caught:
        await requester.ask("opted-out", "echo")
    assert caught.value.outcomes["opted-out"].status is OutcomeStatus.FAILED


async def test_a_job_id_open_for_another_requester_is_refused(job_harness: JobHarness):
    one, other, responder = Requester("one"), Requester("other"), Responder()
    await job_harness.start(one, other, responder)
    first = asyncio.create_task(one.ask("responder", "wait", job_id="same"))
    await responder.started.get()
    with pytest.raises(JobRefusedError, match="'same' is in use by 'one'"):
        await other.ask("responder", "echo", job_id="same")
    responder.release.set()
    await first


async def test_a_refused_request_that_is_delivered_again_is_not_run(
    chaos_harness: JobHarness, chaos_bus: ChaosBus
):
    class OptedOut(Responder):
        takes_jobs_when_inactive = False

    requester, opted_out = Requester(), OptedOut("opted-out", active=False)
    await chaos_harness.start(requester, opted_out)
    with pytest.raises(JobRefusedError):
        await requester.ask("opted-out", "echo", job_id="j")
    await requester.activate_worker("opted-out")
    await chaos_harness.settle()
    await chaos_bus.send(await chaos_bus.wait_for(BusJobRequestMessage))
    await chaos_harness.settle()
    assert opted_out.active
    assert opted_out.ran == []


async def test_another_worker_can_neither_cancel_a_job_nor_request_its_updates(
    job_harness: JobHarness,
):
    requester, responder = Requester(), Responder()
    await job_harness.start(requester, responder)
    call_task = asyncio.create_task(requester.ask("responder", "wait"))
    job_id = await responder.started.get()
    asked: list[object] = []
    responder.add_event_handler("on_job_update_requested", lambda worker, m: asked.append(m))
    for message_class in (BusJobCancelMessage, BusJobUpdateRequestMessage):
        await job_harness.bus.send(
            message_class(source="unrelated", target="responder", job_id=job_id)
        )
    await job_harness.settle()
    assert (responder.cancelled, asked) == ([], [])
    responder.release.set()
    await call_task


async def test_a_response_to_an_unknown_or_ended_job_is_an_error_that_names_the_open_jobs(
    job_harness: JobHarness,
):
    requester, responder = Requester(), Responder()
    await job_harness.start(requester, responder)
    await requester.ask("responder", "echo", job_id="done")
    await job_harness.settle()
    for send in (
        responder.send_job_response,
        responder.send_job_update,
        responder.send_job_stream_start,
        responder.send_job_stream_data,
        responder.send_job_stream_end,
    ):
        with pytest.raises(UnknownJobError, match="'nope' is not known"):
            await send("nope", {})
        with pytest.raises(UnknownJobError, match="'done' has already ended; open: none"):
            await send("done", {})
    assert issubclass(UnknownJobError, RuntimeError)


@pytest.mark.parametrize("data", ["text", 7, [1]])
async def test_a_payload_has_to_be_a_dict(job_harness: JobHarness, data: object):
    requester, responder = Requester(), Responder()
    await job_harness.start(requester, responder)
    call_task = asyncio.create_task(requester.ask("responder", "wait"))
    job_id = await responder.started.get()
    for send in (
        responder.send_job_response,
        responder.send_job_update,
        responder.send_job_stream_start,
        responder.send_job_stream_data,
        responder.send_job_stream_end,
    ):
        with pytest.raises(InvalidJobTypeError, match="give a dict"):
            await send(job_id, data)
    with pytest.raises(InvalidJobTypeError, match="give a JobStatus"):
        await responder.send_job_response(job_id, {}, status="great")  # type: ignore[arg-type]
    responder.release.set()
    await call_task


async def test_urgent_responses_and_updates_have_system_priority(
    chaos_harness, chaos_bus: ChaosBus
):
    class Urgent(BaseWorker):
        async def on_job_request(self, message: BusJobRequestMessage) -> None:
            await self.send_job_response(message.job_id, {"n": 1}, urgent=True)

    requester = Requester()
    await chaos_harness.start(requester, Urgent("urgent"))
    assert await requester.ask("urgent") == {"n": 1}
    assert isinstance(await chaos_bus.wait_for(BusJobResponseUrgentMessage), object)


async def test_stopping_gives_every_open_job_a_response_and_cancels_its_handler(
    chaos_harness: JobHarness, chaos_bus: ChaosBus
):
    requester, responder = Requester(), Responder()
    await chaos_harness.start(requester, responder)
    calls = [asyncio.create_task(requester.ask("responder", n)) for n in ("wait", "wait", "silent")]
    for _ in calls:
        await responder.started.get()
    await chaos_harness.end(responder)
    for call in calls:
        with pytest.raises(JobError, match="worker 'responder' stopped"):
            await call
    responses = await chaos_bus.wait_for(BusJobResponseMessage, 3)
    assert {response.status for response in responses} == {JobStatus.CANCELLED}
    assert len(responder.cancelled) == 2


async def test_an_exception_after_the_response_changes_nothing(job_harness: JobHarness, job_log):
    class Late(BaseWorker):
        @job(name="late")
        async def late(self, message: BusJobRequestMessage) -> None:
            await self.send_job_response(message.job_id, {"fine": True})
            raise ValueError("too late")

    requester = Requester()
    await job_harness.start(requester, Late("late"))
    assert await requester.ask("late", "late") == {"fine": True}
    await job_harness.settle()
    assert "ValueError" in {type(r.exception).__name__ for r in job_log if r.exception}


async def test_a_failure_written_for_the_llm_is_a_response_and_is_not_logged_as_an_error(
    job_harness: JobHarness, job_log
):
    class Catalog(BaseWorker):
        @job(name="find")
        async def find(self, message: BusJobRequestMessage) -> None:
            raise JobToolError("no such booking")

    requester = Requester()
    await job_harness.start(requester, Catalog("catalog"))
    with pytest.raises(JobError, match="no such booking") as raised:
        await requester.ask("catalog", "find")
    outcome = raised.value.outcomes["catalog"]
    assert outcome.status is OutcomeStatus.FAILED
    assert outcome.error is not None
    assert outcome.error.for_llm
    assert not [record for record in job_log if record.level == "ERROR"]


def test_two_handlers_of_one_name_are_refused_when_the_class_is_defined():
    with pytest.raises(DuplicateJobHandlerError, match=r"'same': first\(\) and second\(\)"):

        class Twice(BaseWorker):
            @job(name="same")
            async def first(self, message: BusJobRequestMessage) -> None: ...

            @job(name="same")
            async def second(self, message: BusJobRequestMessage) -> None: ...

    assert issubclass(DuplicateJobHandlerError, ValueError)


def test_a_subclass_overrides_a_handler_by_its_python_name():
    class Base(BaseWorker):
        @job(name="same")
        async def handler(self, message: BusJobRequestMessage) -> None: ...

    class Derived(Base):
        @job(name="same")
        async def handler(self, message: BusJobRequestMessage) -> None: ...

    assert Derived("derived")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"name": ""}, "name is empty"),
        ({"name": 7}, "as a str"),
        ({"name": "x", "max_concurrency": 0}, "one or more"),
        ({"name": "x", "max_concurrency": True}, "one or more"),
    ],
)
def test_the_decorator_refuses_bad_arguments(arguments: dict, says: str):
    with pytest.raises(InvalidJobError, match=says):
        job(**arguments)


def test_the_decorator_refuses_a_plain_function():
    with pytest.raises(InvalidJobTypeError, match="async def"):

        @job(name="x")
        def handler(self, message): ...
