"""The internals of Pipecat that this package relies on."""

import asyncio
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pipecat
import pytest
from openai import AsyncOpenAI
from pipecat.bus import WorkerBus
from pipecat.bus.messages import (
    BusJobRequestMessage,
    BusJobResponseMessage,
    BusMessage,
    BusWorkerRegistryMessage,
)
from pipecat.frames.frames import (
    BotStartedSpeakingFrame,
    BotStoppedSpeakingFrame,
    Frame,
    FunctionCallResultFrame,
    LLMMessagesAppendFrame,
    UserStartedSpeakingFrame,
    UserStoppedSpeakingFrame,
)
from pipecat.pipeline.job_context import JobParams
from pipecat.processors.frame_processor import FrameDirection
from pipecat.registry import WorkerRegistry
from pipecat.registry.types import WorkerReadyData, WorkerRegistryEntry
from pipecat.services.llm_service import FunctionCallParams, LLMService
from pipecat.services.openai.llm import OpenAILLMService
from pipecat.workers.base_worker import BaseWorker as PlainWorker
from pipecat.workers.llm import LLMWorker as PlainLLMWorker
from pipecat.workers.proxy.websocket.client import WebSocketProxyClient
from pipecat.workers.proxy.websocket.server import WebSocketProxyServer
from starlette.websockets import WebSocket
from support.buses import BusHarness
from support.llm_workers import NewLLM, new_llm
from support.peers import PlainPeer

from pipecat_jobs import LLMContextWorker, tool
from pipecat_jobs._pipecat import (
    ProviderKind,
    cancel_function_call,
    find_provider,
    forget_runner,
    forgo_owed_run,
    function_call_timeout,
    has_ended,
    has_event_handlers,
    is_speech_to_speech,
    owes_run,
    proxied_name,
    proxy_connection,
    start_event_handlers,
    take_queued_function_calls,
    takes_messages,
    unwatch,
)
from pipecat_jobs._pipecat.llm import (
    TAKES_MESSAGES,
    WITHOUT_MESSAGES,
    WITHOUT_MESSAGES_AT_FIRST,
)
from pipecat_jobs.testing import JobHarness, ScriptedLLMServer, ToolCall, ToolCalls

__all__ = ["new_llm"]

# -- unwatch -------------------------------------------------------------------------------------


class Watcher:
    def __init__(self) -> None:
        self.notified: list[str] = []

    async def __call__(self, data: WorkerReadyData) -> None:
        self.notified.append(data.worker_name)


@pytest.fixture
def registry() -> WorkerRegistry:
    return WorkerRegistry(runner_name="runner")


async def ready(registry: WorkerRegistry, name: str) -> None:
    assert await registry.register(WorkerReadyData(worker_name=name, runner="runner"))


async def test_unwatch_removes_a_watch(registry: WorkerRegistry):
    watcher = Watcher()
    await registry.watch("late", watcher)

    unwatch(registry, "late", watcher)
    await ready(registry, "late")

    assert watcher.notified == []


async def test_unwatch_leaves_the_other_watchers(registry: WorkerRegistry):
    removed, stays, elsewhere = Watcher(), Watcher(), Watcher()
    await registry.watch("late", removed)
    await registry.watch("late", stays)
    await registry.watch("other", elsewhere)

    unwatch(registry, "late", removed)
    await ready(registry, "late")
    await ready(registry, "other")

    assert (removed.notified, stays.notified, elsewhere.notified) == ([], ["late"], ["other"])


async def test_unwatch_leaves_no_trace_of_the_worker(registry: WorkerRegistry):
    watcher = Watcher()
    await registry.watch("late", watcher)

    unwatch(registry, "late", watcher)

    assert registry._watches == {}


async def test_a_worker_that_is_unwatched_can_be_watched_again(registry: WorkerRegistry):
    watcher = Watcher()
    await registry.watch("late", watcher)
    unwatch(registry, "late", watcher)

    await registry.watch("late", watcher)
    await ready(registry, "late")

    assert watcher.notified == ["late"]


@pytest.mark.parametrize("name", ["late", "never seen"])
async def test_unwatch_without_a_watch_does_nothing(registry: WorkerRegistry, name: str):
    other = Watcher()
    await registry.watch("late", other)

    unwatch(registry, name, Watcher())
    await ready(registry, "late")

    assert other.notified == ["late"]


async def test_unwatch_from_within_a_notification_skips_no_other_watcher(registry: WorkerRegistry):
    after = Watcher()

    async def once(_: WorkerReadyData) -> None:
        unwatch(registry, "late", once)

    await registry.watch("late", once)
    await registry.watch("late", after)
    await ready(registry, "late")

    assert after.notified == ["late"]


async def test_unwatch_from_elsewhere_during_a_notification_skips_no_other_watcher(
    registry: WorkerRegistry,
):
    slow_began, go_on, after = asyncio.Event(), asyncio.Event(), Watcher()

    async def slow(_: WorkerReadyData) -> None:
        slow_began.set()
        await go_on.wait()

    await registry.watch("late", slow)
    await registry.watch("late", after)
    registering = asyncio.create_task(ready(registry, "late"))
    await slow_began.wait()

    unwatch(registry, "late", slow)
    go_on.set()
    await registering

    assert after.notified == ["late"]


async def test_watching_a_worker_that_is_ready_notifies_at_once(registry: WorkerRegistry):
    watcher = Watcher()
    await ready(registry, "early")

    await registry.watch("early", watcher)

    assert watcher.notified == ["early"]


# -- event handlers ------------------------------------------------------------------------------


async def test_the_clean_up_of_an_object_waits_for_its_started_event_handlers():
    worker, began, go_on, ended = PlainWorker("worker"), asyncio.Event(), asyncio.Event(), []

    async def slow(subject: PlainWorker, message: object) -> None:
        began.set()
        await go_on.wait()
        ended.append((subject, message))

    worker.add_event_handler("on_job_update", slow)
    start_event_handlers(worker, "on_job_update", "message")
    cleaning_up = asyncio.create_task(worker.cleanup())
    await began.wait()
    assert not cleaning_up.done()
    go_on.set()
    await cleaning_up

    assert ended == [(worker, "message")]
    assert worker._event_tasks == set()


async def test_a_handler_that_raises_is_logged_and_the_next_one_runs():
    worker, ran = PlainWorker("worker"), asyncio.Event()

    def broken(*_: object) -> None:
        raise ValueError("no")

    def whole(*_: object) -> None:
        ran.set()

    worker.add_event_handler("on_job_update", broken)
    worker.add_event_handler("on_job_update", whole)
    start_event_handlers(worker, "on_job_update", "message")

    await ran.wait()


def test_an_event_that_is_not_registered_starts_no_handler():
    start_event_handlers(PlainWorker("worker"), "on_holiday", "message")


# -- has_ended -----------------------------------------------------------------------------------


async def _end_and_ask_before_and_after(worker: PlainWorker) -> None:
    assert has_ended(worker) is False
    # Pipecat 1.8 loads NLTK for the first pipeline of a process, which takes seconds.
    async with JobHarness(timeout=60) as harness:
        await harness.start(worker)
        assert has_ended(worker) is False

        await harness.end(worker)
        await worker.wait()

        assert has_ended(worker) is True


async def test_a_worker_has_ended_once_its_wait_returns():
    await _end_and_ask_before_and_after(PlainWorker("worker"))


async def test_a_worker_with_a_pipeline_has_ended_once_its_wait_returns(new_llm: NewLLM):
    await _end_and_ask_before_and_after(PlainLLMWorker("worker", llm=new_llm("You wait.")))


# -- proxies -------------------------------------------------------------------------------------


def _client() -> WebSocketProxyClient:
    return WebSocketProxyClient(
        "proxy", url="ws://127.0.0.1:1", remote_worker_name="remote", local_worker_name="local"
    )


async def _handle(*_: object) -> None:
    return None


async def _never(*_: Any) -> Any:
    await asyncio.Event().wait()


def _socket() -> WebSocket:
    return WebSocket({"type": "websocket", "headers": []}, receive=_never, send=_never)


def _server(websocket: WebSocket) -> WebSocketProxyServer:
    return WebSocketProxyServer(
        "proxy", websocket=websocket, worker_name="local", remote_worker_name="remote"
    )


def test_proxied_name_of_a_client_is_its_remote_worker():
    assert proxied_name(_client()) == "remote"


def test_proxied_name_of_a_server_is_its_remote_worker():
    assert proxied_name(_server(_socket())) == "remote"


def test_proxied_name_of_any_other_worker_is_none():
    assert proxied_name(PlainWorker("worker")) is None


def test_proxied_name_imports_no_proxy(monkeypatch: pytest.MonkeyPatch):
    """A bot without proxies needs neither websockets nor starlette."""
    modules = [f"pipecat.workers.proxy.websocket.{side}" for side in ("client", "server")]
    for module in modules:
        monkeypatch.delitem(sys.modules, module)

    assert proxied_name(PlainWorker("worker")) is None
    assert not [module for module in modules if module in sys.modules]


def test_proxy_connection_of_a_client_that_has_not_connected_is_none():
    assert proxy_connection(_client()) is None


def test_proxy_connection_of_a_server_is_its_socket():
    websocket = _socket()

    assert proxy_connection(_server(websocket)) is websocket


@pytest.mark.parametrize(
    ("make", "event"),
    [
        (_client, "on_disconnected"),
        (lambda: _server(_socket()), "on_client_disconnected"),
    ],
)
def test_proxies_have_the_event_of_a_lost_connection(make: Callable[[], PlainWorker], event: str):
    proxy = make()

    proxy.add_event_handler(event, _handle)

    assert has_event_handlers(proxy, event)
    proxy.remove_event_handler(event, _handle)
    assert not has_event_handlers(proxy, event)


# -- public names whose behaviour this package relies on -----------------------------------------


async def test_job_groups_and_active_jobs_are_the_live_dicts():
    worker = PlainWorker("worker")
    groups, jobs = worker.job_groups, worker.active_jobs

    groups["g"] = jobs["j"] = object()

    assert worker.job_groups is groups
    assert worker.active_jobs is jobs
    assert worker._job_groups is groups
    assert worker._active_jobs is jobs


async def test_pipecat_enters_its_own_jobs_in_the_dicts_it_shows(bus: WorkerBus):
    requester, responder = PlainPeer("requester"), PlainPeer("responder")
    groups, jobs = requester.job_groups, responder.active_jobs
    async with BusHarness(bus, check_watches=False) as harness:
        await harness.start(requester, responder)
        job_id = await requester.request_job("responder", params=JobParams(name="wait"))
        await responder.started.get()

        assert list(groups) == [job_id]
        assert list(jobs) == [job_id]
        responder.release.set()
        await harness.settle()
        assert groups == jobs == {}


@pytest.mark.not_on("redis", reason="a response that no requester waits for is not sent")
async def test_a_worker_that_has_stopped_stays_subscribed(job_harness: JobHarness):
    """The worker can then still respond to late requests."""
    worker, messages = PlainWorker("worker"), []

    async def keep(_: PlainWorker, message: Any) -> None:
        messages.append(message)

    worker.add_event_handler("on_bus_message", keep)
    await job_harness.start(worker)
    await job_harness.end(worker)
    await job_harness.settle()
    messages.clear()

    late = BusJobResponseMessage(source="x", target="worker", job_id="j", status="completed")
    await job_harness.bus.send(late)
    await job_harness.settle()

    assert messages == [late]


async def test_a_worker_that_has_stopped_stays_in_the_registry_and_with_its_runner(
    job_harness: JobHarness,
):
    worker = PlainWorker("worker")
    await job_harness.start(worker)
    await job_harness.end(worker)

    assert "worker" in job_harness.registry
    assert job_harness.runner.get_worker("worker") is worker


async def test_wait_returns_at_once_only_after_the_end(job_harness: JobHarness):
    worker = PlainWorker("worker")
    await job_harness.start(worker)
    waiting = worker.wait()
    assert asyncio.isfuture(waiting.send(None))
    waiting.close()

    await job_harness.end(worker)

    with pytest.raises(StopIteration):
        worker.wait().send(None)


@pytest.mark.parametrize("accepts", [True, False])
async def test_accepts_bus_message_decides_what_a_bus_delivers(
    job_harness: JobHarness, accepts: bool
):
    class Choosy(PlainWorker):
        def accepts_bus_message(self, message: Any) -> bool:
            if isinstance(message, BusJobRequestMessage):
                return accepts
            return super().accepts_bus_message(message)

        async def on_job_request(self, message: BusJobRequestMessage) -> None:
            requests.append(message.job_id)
            await self.send_job_response(message.job_id)

    requests: list[str] = []
    # The worker is inactive: only then does a job worker accept more than Pipecat's.
    worker = Choosy("worker", active=False)
    await job_harness.start(worker)

    await job_harness.bus.send(BusJobRequestMessage(source="x", target="worker", job_id="j"))
    await job_harness.settle()

    assert requests == (["j"] if accepts else [])


# -- cancel_function_call ------------------------------------------------------------------------


class ToolCaller(LLMContextWorker):
    """Calls tools that wait."""

    def __init__(self, llm: OpenAILLMService):
        super().__init__("caller", llm=llm)
        self.context.set_tools(self.build_tools())
        self.waiting: asyncio.Queue[str] = asyncio.Queue()
        self.cancelled: asyncio.Queue[str] = asyncio.Queue()

    @tool(cancel_on_interruption=False)
    async def wait(self, params: FunctionCallParams):
        """Wait."""
        self.waiting.put_nowait(params.tool_call_id)
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled.put_nowait(params.tool_call_id)
            raise


async def test_cancel_function_call_cancels_that_call_and_no_other(
    job_harness: JobHarness, scripted_llm: ScriptedLLMServer, new_llm: NewLLM
):
    scripted_llm.reply(ToolCalls(ToolCall("wait", call_id="a"), ToolCall("wait", call_id="b")))
    worker = ToolCaller(new_llm("You wait."))
    await job_harness.start(worker)
    await worker.queue_frame(LLMMessagesAppendFrame([{"role": "user", "content": "go"}], True))
    assert {await worker.waiting.get(), await worker.waiting.get()} == {"a", "b"}

    await cancel_function_call(worker.llm, "unknown")
    await cancel_function_call(worker.llm, "a")

    assert worker.cancelled.get_nowait() == "a"
    assert worker.cancelled.empty()
    await cancel_function_call(worker.llm, "b")


async def test_take_queued_function_calls_takes_calls_that_have_not_begun(
    job_harness: JobHarness, scripted_llm: ScriptedLLMServer, new_llm: NewLLM
):
    calls = [ToolCall("wait", {}, call_id) for call_id in ("a", "b", "c")]
    scripted_llm.reply(ToolCalls(*calls))
    worker = ToolCaller(new_llm("You wait.", run_in_parallel=False))
    await job_harness.start(worker)
    await worker.queue_frame(LLMMessagesAppendFrame([{"role": "user", "content": "go"}], True))
    assert await worker.waiting.get() == "a"

    (taken,) = take_queued_function_calls(worker.llm, lambda call: call.tool_call_id != "c")

    assert (taken.tool_call_id, taken.function_name, taken.arguments) == ("b", "wait", {})
    assert taken.registry_item.cancel_on_interruption is False
    assert taken.group_id is not None
    await cancel_function_call(worker.llm, "a")
    assert await worker.waiting.get() == "c"
    await cancel_function_call(worker.llm, "c")


def test_take_queued_function_calls_of_a_service_that_runs_them_at_once(new_llm: NewLLM):
    assert take_queued_function_calls(new_llm("You wait."), lambda _: True) == []


@pytest.mark.parametrize("speaks", [BotStartedSpeakingFrame, UserStartedSpeakingFrame])
async def test_an_aggregator_keeps_the_run_that_speech_postpones_until_it_is_dropped(
    job_harness: JobHarness,
    scripted_llm: ScriptedLLMServer,
    new_llm: NewLLM,
    speaks: type[Frame],
):
    class Caller(ToolCaller):
        @tool
        async def look(self, params: FunctionCallParams):
            """Look."""
            await params.result_callback({"found": True})

    scripted_llm.reply(ToolCall("look"))
    worker = Caller(new_llm("You look."))
    aggregator = worker.assistant_aggregator
    owed: asyncio.Queue[bool] = asyncio.Queue()

    @aggregator.event_handler("on_after_process_frame")
    async def on_after_process_frame(_: object, frame: Frame) -> None:
        if isinstance(frame, FunctionCallResultFrame):
            owed.put_nowait(owes_run(aggregator))
            forgo_owed_run(aggregator)
            await aggregator.process_frame(BotStoppedSpeakingFrame(), FrameDirection.UPSTREAM)
            await aggregator.process_frame(UserStoppedSpeakingFrame(), FrameDirection.DOWNSTREAM)

    await job_harness.start(worker)
    assert owes_run(aggregator) is False
    await aggregator.queue_frame(speaks())
    await worker.queue_frame(LLMMessagesAppendFrame([{"role": "user", "content": "go"}], True))

    assert await owed.get() is True
    await job_harness.settle()
    assert owes_run(aggregator) is False
    assert len(scripted_llm.requests) == 1


async def test_find_provider_of_a_service_that_is_known(new_llm: NewLLM):
    found = find_provider(new_llm("You wait."))
    assert found is not None
    kind, client = found
    assert kind is ProviderKind.OPENAI_CHAT
    assert isinstance(client, AsyncOpenAI)


def test_find_provider_of_a_service_that_is_not_known():
    assert find_provider(LLMService()) is None


async def test_a_service_that_generates_text_is_not_speech_to_speech(new_llm: NewLLM):
    assert is_speech_to_speech(new_llm("You wait.")) is False


def test_a_service_that_generates_text_takes_messages(new_llm: NewLLM):
    assert takes_messages(new_llm("You wait."))


@pytest.mark.parametrize(("module", "name"), [*WITHOUT_MESSAGES, *WITHOUT_MESSAGES_AT_FIRST])
def test_the_realtime_services_take_messages_as_their_source_says(module: str, name: str):
    # Most of them need packages that are not installed.
    source = Path(pipecat.__file__).parent / "services" / f"{module.replace('.', '/')}.py"
    if not source.exists():
        pytest.skip("this Pipecat does not have the service")
    text = source.read_text()
    takes = (module, name) in WITHOUT_MESSAGES_AT_FIRST and TAKES_MESSAGES

    assert f"\nclass {name}(" in text
    assert ("standard_message_text(" in text) is takes


@pytest.mark.parametrize(
    ("own", "of_all", "expected"), [(3.0, 5.0, 3.0), (None, 5.0, 5.0), (None, None, None)]
)
def test_function_call_timeout_is_the_functions_own_or_that_of_all(
    new_llm: NewLLM, own: float | None, of_all: float | None, expected: float | None
):
    async def wait(params: FunctionCallParams) -> None: ...

    llm = new_llm("You wait.", function_call_timeout_secs=of_all)
    llm.register_function("wait", wait, timeout_secs=own)
    assert function_call_timeout(llm, "wait") == expected
    assert function_call_timeout(llm, "unknown") == of_all
    llm.register_function(None, wait, timeout_secs=7.0)
    assert function_call_timeout(llm, "unknown") == 7.0


# -- forget_runner -------------------------------------------------------------------------------


async def test_a_forgotten_runner_leaves_the_registry_and_is_introduced_when_it_returns(
    job_harness: JobHarness,
):
    await job_harness.start(PlainWorker("local"))
    sent: list[BusWorkerRegistryMessage] = []
    publish = job_harness.bus.publish

    async def keep(message: BusMessage) -> None:
        if isinstance(message, BusWorkerRegistryMessage) and message.runner != "other":
            sent.append(message)
        await publish(message)

    job_harness.bus.publish = keep
    entry = WorkerRegistryEntry("remote")
    announcement = BusWorkerRegistryMessage(source="other", runner="other", workers=[entry])
    for replies in (1, 2):
        await job_harness.bus.send(announcement)
        await job_harness.settle()
        assert "remote" in job_harness.registry
        assert len(sent) == replies
        forget_runner(job_harness.runner, "other")
        assert "remote" not in job_harness.registry
        assert "local" in job_harness.registry
