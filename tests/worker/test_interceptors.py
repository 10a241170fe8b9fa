"""Interceptors: they observe and wrap every job of a worker."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest
from pipecat.bus.messages import BusJobRequestMessage
from support.workers import Requester, cancelled

from pipecat_jobs import (
    BaseWorker,
    InvalidJobError,
    InvalidJobTypeError,
    JobCall,
    JobCancelledError,
    JobError,
    JobGroupError,
    JobHeaders,
    JobInterceptor,
    JobLifeEvent,
    JobLifeEventKind,
    JobQuestion,
    JobTimeoutError,
    JobToolError,
    OutcomeStatus,
    WorkerLostError,
    job,
    job_attempt,
    job_headers,
)
from pipecat_jobs.interceptors import ProceedToAnswer, ProceedToAsk, ProceedToHandle
from pipecat_jobs.testing import JobHarness
from pipecat_jobs.testing.fixtures import LogRecord

pytestmark = pytest.mark.every_bus

ASKED, SENT, SETTLED = (
    JobLifeEventKind.ASKED,
    JobLifeEventKind.SENT,
    JobLifeEventKind.SETTLED,
)
BEGUN, HANDLER_ENDED = JobLifeEventKind.BEGUN, JobLifeEventKind.HANDLER_ENDED
UPDATE, STREAM = JobLifeEventKind.UPDATE, JobLifeEventKind.STREAM


class Recorder(JobInterceptor):
    """Keeps every event."""

    def __init__(self) -> None:
        self.events: list[JobLifeEvent] = []

    def on_event(self, event: JobLifeEvent) -> None:
        self.events.append(event)

    @property
    def kinds(self) -> list[JobLifeEventKind]:
        return [event.kind for event in self.events]

    @property
    def settled(self) -> list[tuple[str, OutcomeStatus | None]]:
        return [
            (event.worker, event.outcome.status if event.outcome else None)
            for event in self.events
            if event.kind is SETTLED
        ]


class Worker(BaseWorker):
    """A worker with a handler for each way a job can end."""

    def __init__(self, name: str = "worker"):
        super().__init__(name)
        self.started = asyncio.Event()

    @job(name="echo")
    async def echo(self, message: BusJobRequestMessage) -> dict[str, Any]:
        return {
            "payload": message.payload,
            "trace": job_headers(message).trace_context,
            "attempt": job_attempt(message),
        }

    @job(name="stream")
    async def stream(self, message: BusJobRequestMessage) -> AsyncIterator[dict[str, Any]]:
        await self.send_job_update(message.job_id, {"percent": 50})
        yield {"text": "a"}

    @job(name="fail")
    async def fail(self, message: BusJobRequestMessage) -> None:
        raise ValueError("no")

    @job(name="wait", max_concurrency=1)
    async def wait_for_ever(self, message: BusJobRequestMessage) -> None:
        self.started.set()
        await asyncio.Event().wait()

    @job(name="responds")
    async def responds(self, message: BusJobRequestMessage) -> None:
        await self.send_job_response(message.job_id, {"from": "the handler"})


async def start(job_harness: JobHarness, *interceptors: JobInterceptor) -> tuple[Requester, Worker]:
    """Start a requester and a worker with the same interceptors."""
    requester, worker = Requester(), Worker()
    for interceptor in interceptors:
        requester.add_job_interceptor(interceptor)
        worker.add_job_interceptor(interceptor)
    await job_harness.start(requester, worker)
    return requester, worker


# -- events ----------------------------------------------------------------------------------------


async def test_a_job_that_completes_has_every_event_once_and_in_order(job_harness: JobHarness):
    recorder = Recorder()
    requester, _ = await start(job_harness, recorder)
    async with requester.job("worker", name="echo", payload={"n": 1}) as j:
        pass
    await job_harness.settle()
    assert [kind for kind in recorder.kinds if kind is not HANDLER_ENDED] == [
        ASKED,
        SENT,
        BEGUN,
        SETTLED,
    ]
    assert recorder.kinds.count(HANDLER_ENDED) == 1
    for event in recorder.events:
        assert (event.job_id, event.job_name) == (j.job_id, "echo")
        assert (event.requester, event.worker) == (requester.name, "worker")
    times = [event.time for event in recorder.events]
    assert times == sorted(times)
    outcomes = [event.outcome for event in recorder.events if event.outcome is not None]
    assert outcomes == [j.outcome]


async def test_updates_and_streams_are_events_with_their_data(job_harness: JobHarness):
    recorder = Recorder()
    requester, _ = await start(job_harness, recorder)
    async with requester.job("worker", name="stream"):
        pass
    data = [(event.kind, event.data) for event in recorder.events if event.kind in (UPDATE, STREAM)]
    assert data == [(UPDATE, {"percent": 50}), (STREAM, None), (STREAM, {"text": "a"})]
    assert recorder.kinds.index(SETTLED) > recorder.kinds.index(STREAM)


async def test_a_handler_that_raises_has_ended_with_its_error(job_harness: JobHarness):
    recorder = Recorder()
    requester, _ = await start(job_harness, recorder)
    with pytest.raises(JobError):
        await requester.ask("worker", "fail")
    [ended] = [event for event in recorder.events if event.kind is HANDLER_ENDED]
    assert ended.error is not None
    assert (ended.error.type, ended.error.message) == ("ValueError", "no")
    assert recorder.settled == [("worker", OutcomeStatus.ERROR)]


async def test_a_job_that_ends_by_its_deadline_is_settled(job_harness: JobHarness):
    recorder = Recorder()
    requester, _ = await start(job_harness, recorder)
    with pytest.raises(JobTimeoutError):
        await requester.ask("worker", "wait", timeout=0.05)
    await job_harness.settle()
    assert recorder.settled == [("worker", OutcomeStatus.TIMED_OUT)]
    assert recorder.kinds[-1] is HANDLER_ENDED


async def test_a_job_whose_worker_never_starts_is_asked_and_settled(job_harness: JobHarness):
    recorder = Recorder()
    requester, _ = await start(job_harness, recorder)
    with pytest.raises(JobTimeoutError):
        await requester.ask("nowhere", "echo", timeout=0.05)
    assert recorder.kinds == [ASKED, SETTLED]


async def test_a_job_that_is_cancelled_is_settled_and_its_handler_ends(job_harness: JobHarness):
    recorder = Recorder()
    requester, worker = await start(job_harness, recorder)
    call_task = asyncio.create_task(requester.ask("worker", "wait"))
    await worker.started.wait()
    await cancelled(call_task)
    await job_harness.settle()
    assert recorder.kinds == [ASKED, SENT, BEGUN, SETTLED, HANDLER_ENDED]
    assert recorder.settled == [("worker", OutcomeStatus.CANCELLED)]


async def test_a_job_that_waits_for_its_slot_has_not_begun(job_harness: JobHarness):
    recorder = Recorder()
    requester, worker = await start(job_harness, recorder)
    first = asyncio.create_task(requester.ask("worker", "wait"))
    await worker.started.wait()
    recorder.events.clear()
    with pytest.raises(JobTimeoutError):
        await requester.ask("worker", "wait", timeout=0.05)
    assert recorder.kinds == [ASKED, SENT, SETTLED]
    await cancelled(first)


async def test_a_job_whose_worker_is_lost_is_settled(job_harness: JobHarness):
    recorder = Recorder()
    requester, worker = await start(job_harness, recorder)
    call_task = asyncio.create_task(requester.ask("worker", "wait"))
    await worker.started.wait()
    await requester.worker_lost("worker", reason="unplugged")
    with pytest.raises(WorkerLostError):
        await call_task
    assert recorder.settled == [("worker", OutcomeStatus.LOST)]


async def test_a_group_has_the_events_of_each_worker(job_harness: JobHarness):
    recorder = Recorder()
    requester, _ = await start(job_harness, recorder)
    await job_harness.start(Worker("second"))
    with pytest.raises(JobGroupError):
        async with requester.job_group("worker", "second", name="fail"):
            pass
    asked = [(e.kind, e.worker) for e in recorder.events if e.kind in (ASKED, SENT)]
    names = ("worker", "second")
    assert asked == [(kind, name) for kind in (ASKED, SENT) for name in names]
    assert sorted(name for name, _ in recorder.settled) == ["second", "worker"]


async def test_a_job_of_a_stopped_requester_is_settled(job_harness: JobHarness):
    recorder, requester = Recorder(), Requester()
    requester.add_job_interceptor(recorder)
    await job_harness.start(requester, Worker())
    await job_harness.end(requester)
    with pytest.raises(JobCancelledError):
        await requester.ask("worker", "echo")
    assert recorder.kinds == [ASKED, SETTLED]


@pytest.mark.parametrize("raised", [ValueError, SystemExit, asyncio.CancelledError])
async def test_an_exception_in_on_event_is_logged_and_changes_nothing(
    job_harness: JobHarness, job_log: list[LogRecord], raised: type[BaseException]
):
    class Broken(JobInterceptor):
        def on_event(self, event: JobLifeEvent) -> None:
            raise raised("broken")

    recorder = Recorder()
    requester, _ = await start(job_harness, Broken(), recorder)
    assert (await requester.ask("worker", "echo", payload={}))["payload"] == {}
    await job_harness.settle()
    assert set(recorder.kinds) == {ASKED, SENT, BEGUN, HANDLER_ENDED, SETTLED}
    records = [record for record in job_log if "Broken.on_event() raised" in record.message]
    assert len(records) == 5


# -- ask -------------------------------------------------------------------------------------------


class Trace(JobInterceptor):
    """Puts its name around the payload, and into the trace context."""

    def __init__(self, name: str):
        self.name = name

    async def ask(self, call: JobCall, proceed: ProceedToAsk) -> None:
        trace = {**(call.headers.trace_context or {}), self.name: "asked"}
        path = [*(call.payload or {}).get("path", []), self.name]
        headers = replace(call.headers, trace_context=trace)
        await proceed(replace(call, payload={"path": path}, headers=headers))


@pytest.mark.not_on("pubsub", reason="headers are dropped, since a plain peer could not read them")
async def test_ask_may_replace_payload_and_headers_and_the_class_goes_first(
    job_harness: JobHarness,
):
    class Host(Requester):
        job_interceptors = (Trace("a"), Trace("b"))

    host = Host("host")
    host.add_job_interceptor(Trace("c"))
    await job_harness.start(host, Worker())
    assert await host.ask("worker", "echo") == {
        "payload": {"path": ["a", "b", "c"]},
        "trace": {"a": "asked", "b": "asked", "c": "asked"},
        "attempt": 1,
    }


class Refuse(JobInterceptor):
    def __init__(self, error: BaseException, *, after: bool = False):
        self.error, self.after = error, after

    async def ask(self, call: JobCall, proceed: ProceedToAsk) -> None:
        if self.after:
            await proceed(call)
        raise self.error


@pytest.mark.parametrize("after", [False, True], ids=["before sending", "after sending"])
@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ValueError("no"), OutcomeStatus.ERROR),
        (JobToolError("not today"), OutcomeStatus.FAILED),
        (SystemExit("no"), OutcomeStatus.ERROR),
    ],
)
async def test_an_exception_in_ask_fails_the_job(
    job_harness: JobHarness, error: BaseException, status: OutcomeStatus, after: bool
):
    recorder = Recorder()
    requester, _ = await start(job_harness, Refuse(error, after=after), recorder)
    with pytest.raises(JobError) as raised:
        await requester.ask("worker", "wait")
    assert raised.value.__cause__ is error
    assert recorder.settled == [("worker", status)]
    await job_harness.settle()
    assert not requester.job_groups


class Misbehave(JobInterceptor):
    """An interceptor that uses a call in forbidden ways."""

    def __init__(self, how: str):
        self.how = how

    async def ask(self, call: JobCall, proceed: ProceedToAsk) -> None:
        match self.how:
            case "twice":
                await proceed(call)
                await proceed(call)
            case "other workers":
                await proceed(replace(call, worker_names=("other",)))
            case "a payload that is not a dict":
                await proceed(replace(call, payload="text"))  # pyright: ignore
            case "headers of another type":
                await proceed(replace(call, headers={}))  # pyright: ignore
            case "swallows":
                try:
                    await proceed(replace(call, job_id="other"))
                except InvalidJobError:
                    return


@pytest.mark.parametrize(
    ("how", "why"),
    [
        ("never", "were not sent"),
        ("twice", "once, not again"),
        ("other workers", "payload, payloads and headers, no other"),
        ("a payload that is not a dict", "payload is 'text'"),
        ("headers of another type", "headers is {}"),
        ("swallows", "were not sent"),
    ],
)
async def test_an_ask_that_misbehaves_fails_the_job(job_harness: JobHarness, how: str, why: str):
    requester, _ = await start(job_harness, Misbehave(how))
    with pytest.raises(JobError, match=why):
        await requester.ask("worker", "wait")


async def test_the_deadline_passes_while_ask_waits(job_harness: JobHarness):
    class Slow(JobInterceptor):
        async def ask(self, call: JobCall, proceed: ProceedToAsk) -> None:
            await asyncio.Event().wait()

    recorder = Recorder()
    requester, _ = await start(job_harness, Slow(), recorder)
    with pytest.raises(JobTimeoutError):
        await requester.ask("worker", "echo", timeout=0.05)
    assert recorder.kinds == [ASKED, SETTLED]


async def test_a_deadline_that_ask_swallows_does_not_leave_the_requesters_task_cancelled(
    job_harness: JobHarness,
):
    class Swallows(JobInterceptor):
        async def ask(self, call: JobCall, proceed: ProceedToAsk) -> None:
            with contextlib.suppress(asyncio.CancelledError):
                await proceed(call)

    requester, _ = await start(job_harness, Swallows())
    with pytest.raises(JobTimeoutError):
        await requester.ask("nowhere", "echo", timeout=0.05)
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0


@pytest.mark.not_on("pubsub", reason="headers are dropped, since a plain peer could not read them")
@pytest.mark.not_on("redis", reason="the server holds more than the window")
async def test_the_window_of_a_stream_survives_other_headers(job_harness: JobHarness):
    class Plain(JobInterceptor):
        async def ask(self, call: JobCall, proceed: ProceedToAsk) -> None:
            await proceed(replace(call, headers=JobHeaders()))

    class Endless(BaseWorker):
        sent = 0

        @job(name="stream")
        async def stream(self, message: BusJobRequestMessage) -> AsyncIterator[dict[str, Any]]:
            while True:
                self.sent += 1
                yield {}
                await asyncio.sleep(0)

    requester, endless = Requester(), Endless("endless")
    requester.add_job_interceptor(Plain())
    await job_harness.start(requester, endless)
    with pytest.raises(ZeroDivisionError):
        async with requester.job("endless", name="stream", unread_limit=2) as j:
            async for _ in j:
                break
            await job_harness.settle()
            sent = endless.sent
            raise ZeroDivisionError
    assert sent <= 4


# -- handle ----------------------------------------------------------------------------------------


async def test_handle_wraps_request_and_response(job_harness: JobHarness):
    class Wrap(JobInterceptor):
        async def handle(
            self, request: BusJobRequestMessage, proceed: ProceedToHandle
        ) -> dict[str, Any] | None:
            assert request.payload is not None
            response = await proceed(replace(request, payload={"n": request.payload["n"] + 1}))
            return {"wrapped": response}

    requester, worker = Requester(), Worker()
    worker.add_job_interceptor(Wrap())
    requester.add_job_interceptor(Trace("a"))
    await job_harness.start(requester, worker)
    worker.add_job_interceptor(JobInterceptor())
    with pytest.raises(JobError, match="KeyError"):
        await requester.ask("worker", "echo")
    requester = Requester("second")
    await job_harness.start(requester)
    response = await requester.ask("worker", "echo", payload={"n": 1})
    assert response == {"wrapped": {"payload": {"n": 2}, "trace": None, "attempt": 1}}


async def test_handle_may_respond_without_the_handler_and_replace_its_failure(
    job_harness: JobHarness,
):
    class Fallback(JobInterceptor):
        async def handle(
            self, request: BusJobRequestMessage, proceed: ProceedToHandle
        ) -> dict[str, Any] | None:
            if request.job_name == "wait":
                return {"from": "the cache"}
            try:
                return await proceed(request)
            except ValueError:
                return {"from": "the fallback"}

    requester, worker = await start(job_harness, Fallback())
    assert await requester.ask("worker", "wait") == {"from": "the cache"}
    assert await requester.ask("worker", "fail") == {"from": "the fallback"}
    assert await requester.ask("worker", "responds") == {"from": "the handler"}
    async with requester.job("worker", name="stream") as j:
        pass
    assert j.outcome is not None
    assert j.outcome.completed
    assert not worker.started.is_set()


@pytest.mark.parametrize(
    ("returned", "why"), [(None, "the handler has not run"), ("text", "handle\\(\\) is 'text'")]
)
async def test_a_handle_without_a_response_fails_the_job(
    job_harness: JobHarness, returned: Any, why: str
):
    class Silent(JobInterceptor):
        async def handle(self, request: BusJobRequestMessage, proceed: ProceedToHandle) -> Any:
            return returned

    requester, _ = await start(job_harness, Silent())
    with pytest.raises(JobError, match=why):
        await requester.ask("worker", "echo")


async def test_a_handle_may_not_send_the_handler_to_another_job(job_harness: JobHarness):
    class Elsewhere(JobInterceptor):
        async def handle(self, request: BusJobRequestMessage, proceed: ProceedToHandle) -> Any:
            return await proceed(replace(request, job_id="other"))

    requester, _ = await start(job_harness, Elsewhere())
    with pytest.raises(JobError, match="job_id or source"):
        await requester.ask("worker", "echo")


@pytest.mark.parametrize(
    ("error", "status"),
    [(ValueError("no"), OutcomeStatus.ERROR), (JobToolError("no"), OutcomeStatus.FAILED)],
)
async def test_an_exception_in_handle_fails_the_job(
    job_harness: JobHarness, error: Exception, status: OutcomeStatus
):
    class Guard(JobInterceptor):
        async def handle(self, request: BusJobRequestMessage, proceed: ProceedToHandle) -> Any:
            raise error

    recorder = Recorder()
    requester, _ = await start(job_harness, Guard(), recorder)
    with pytest.raises(JobError, match="no"):
        await requester.ask("worker", "echo")
    assert recorder.settled == [("worker", status)]


# -- adding one ------------------------------------------------------------------------------------


class Waits(JobInterceptor):
    async def on_event(self, event: JobLifeEvent) -> None:  # pyright: ignore
        """Is never awaited."""


@pytest.mark.parametrize(
    ("given", "why"),
    [(object(), "give a JobInterceptor"), (Recorder, "give a JobInterceptor"), (Waits(), "async")],
)
def test_an_object_that_is_not_an_interceptor_is_refused(given: Any, why: str):
    with pytest.raises(InvalidJobTypeError, match=why):
        Requester().add_job_interceptor(given)


@pytest.mark.parametrize("given", [None, Recorder(), (object(),)])
def test_a_class_with_wrong_interceptors_is_refused(given: Any):
    wrong = type("Wrong", (BaseWorker,), {"job_interceptors": given})
    with pytest.raises(InvalidJobTypeError, match=r"Wrong\.job_interceptors"):
        wrong("wrong")


async def test_an_interceptor_may_be_added_while_jobs_run(job_harness: JobHarness):
    recorder = Recorder()
    requester, worker = await start(job_harness)
    call_task = asyncio.create_task(requester.ask("worker", "wait"))
    await worker.started.wait()
    requester.add_job_interceptor(recorder)
    worker.add_job_interceptor(recorder)
    await cancelled(call_task)
    await requester.ask("worker", "echo")
    await job_harness.settle()
    assert set(recorder.kinds) == {ASKED, SENT, BEGUN, HANDLER_ENDED, SETTLED}


class Asking(BaseWorker):
    @job(name="book")
    async def book(self, message: BusJobRequestMessage) -> dict[str, Any]:
        return {"seat": await self.ask_requester("Aisle or window?")}


class Answering(BaseWorker):
    async def on_job_question(self, question: JobQuestion) -> object:
        return "window"


class Answerer(JobInterceptor):
    def __init__(self, name: str, calls: list[str], answer: object = None):
        self.name, self.calls, self.given = name, calls, answer

    async def answer(self, question: JobQuestion, proceed: ProceedToAnswer) -> object:
        self.calls.append(f"{self.name}: {question.text}")
        if isinstance(self.given, Exception):
            raise self.given
        return self.given if self.given is not None else await proceed(question)


@pytest.mark.not_on("pubsub", reason="Pipecat's network buses carry no questions")
async def test_a_question_passes_through_the_interceptors_to_the_hook(job_harness: JobHarness):
    host, calls = Answering("host"), []
    host.add_job_interceptor(Answerer("outer", calls))
    host.add_job_interceptor(Answerer("inner", calls))
    await job_harness.start(host, Asking("desk"))

    assert await host.job("desk", name="book") == {"seat": "window"}
    assert calls == ["outer: Aisle or window?", "inner: Aisle or window?"]


@pytest.mark.not_on("pubsub", reason="Pipecat's network buses carry no questions")
async def test_an_interceptor_answers_a_question_in_place_of_the_hook(job_harness: JobHarness):
    host, calls = Answering("host"), []
    host.add_job_interceptor(Answerer("outer", calls, "aisle"))
    host.add_job_interceptor(Answerer("inner", calls))
    await job_harness.start(host, Asking("desk"))

    assert await host.job("desk", name="book") == {"seat": "aisle"}
    assert calls == ["outer: Aisle or window?"]


@pytest.mark.not_on("pubsub", reason="Pipecat's network buses carry no questions")
async def test_an_interceptor_that_raises_refuses_a_question(job_harness: JobHarness):
    host = Answering("host")
    host.add_job_interceptor(Answerer("outer", [], ValueError("a bug")))
    await job_harness.start(host, Asking("desk"))

    with pytest.raises(JobError, match="ValueError"):
        await host.job("desk", name="book")
