"""The few lines that need more of Pipecat than its public surface, all of them here.

Each is covered by ``tests/pipecat/test_internals.py`` on every supported release, so that a
release that changes one is noticed by a test and mended in this file alone.
"""

import asyncio
import sys
from collections.abc import Awaitable, Callable
from enum import Enum
from typing import TYPE_CHECKING, Any, cast

from pipecat.processors.aggregators.llm_response_universal import LLMAssistantAggregator
from pipecat.registry import WorkerRegistry
from pipecat.registry.types import WorkerReadyData
from pipecat.services.llm_service import FunctionCallRunnerItem, LLMService
from pipecat.utils.base_object import BaseObject
from pipecat.workers.base_worker import BaseWorker
from pipecat.workers.llm import LLMWorker, llm_worker
from pipecat.workers.runner import WorkerRunner

if TYPE_CHECKING:
    from pipecat.workers.proxy.websocket import WebSocketProxyClient, WebSocketProxyServer

# pyright: reportPrivateUsage=false, reportUnknownMemberType=false


def unwatch(
    registry: WorkerRegistry,
    worker_name: str,
    handler: Callable[[WorkerReadyData], Awaitable[None]],
) -> None:
    """Take back a ``registry.watch()``, which has no public undoing.

    Args:
        registry: The registry that was watched.
        worker_name: The worker that was waited for.
        handler: The handler that was given.
    """
    watches = registry._watches
    # A new list rather than a removal: the registry may be walking the old one right now, and
    # would pass over the watcher that moves into the freed place.
    rest = [other for other in watches.get(worker_name, []) if other != handler]
    if rest:
        watches[worker_name] = rest
    else:
        watches.pop(worker_name, None)


async def call_event_handlers(subject: BaseObject, event: str, *args: object) -> None:
    """Fire an event, as Pipecat's own subclasses do.

    Args:
        subject: The object the handlers were registered on.
        event: The event's name.
        *args: What the handlers get after the object itself.
    """
    await subject._call_event_handler(event, *args)


def start_event_handlers(subject: BaseObject, event: str, *args: object) -> None:
    """Fire an event whose handlers run in tasks of their own, as those of a worker's jobs do."""
    registered = subject._event_handlers.get(event)
    for handler in registered.handlers if registered is not None else ():
        task = asyncio.create_task(subject._run_handler(event, handler, *args))
        subject._event_tasks.add((event, task))
        task.add_done_callback(subject._event_task_finished)


def has_ended(worker: BaseWorker) -> bool:
    """Tell whether ``worker.wait()`` would return at once."""
    return worker._finished_event.is_set()


def has_event_handlers(subject: BaseObject, event: str) -> bool:
    """Tell whether anybody listens to an event.

    Args:
        subject: The object handlers are registered on.
        event: The event's name.

    Returns:
        Whether a handler is registered.
    """
    registered = subject._event_handlers.get(event)
    return registered is not None and bool(registered.handlers)


def proxied_name(worker: BaseWorker) -> str | None:
    """Name the remote worker that a WebSocket proxy stands for.

    Args:
        worker: Any local worker.

    Returns:
        The remote worker's name, or None when the worker is no proxy.
    """
    # A proxy in use has had its module imported; importing it here would make websockets and
    # starlette a requirement.
    for module, proxy in (("client", "WebSocketProxyClient"), ("server", "WebSocketProxyServer")):
        if _is_of_loaded_class(worker, f"pipecat.workers.proxy.websocket.{module}", proxy):
            proxied = cast("WebSocketProxyClient | WebSocketProxyServer", worker)
            return proxied._remote_worker_name
    return None


def proxy_connection(worker: BaseWorker) -> Any | None:
    """The open socket of a WebSocket proxy.

    Args:
        worker: A worker for which :func:`proxied_name` gave a name.

    Returns:
        The client's ``websockets`` connection or the server's Starlette socket, or None when the
        proxy knows that it is not connected.
    """
    return cast("WebSocketProxyClient | WebSocketProxyServer", worker)._ws


async def cancel_function_call(llm: LLMService[Any], tool_call_id: str) -> None:
    """Cancel one function call an LLM has made, whether or not it survives interruptions.

    Args:
        llm: The service that runs it.
        tool_call_id: The call; one that is not running is left alone.
    """
    await llm._cancel_function_calls_by_tool_call_id(tool_call_id)


def take_queued_function_calls(
    llm: LLMService[Any], taken: Callable[[FunctionCallRunnerItem], bool]
) -> list[FunctionCallRunnerItem]:
    """Take function calls out of the queue of a service that runs one at a time.

    Args:
        llm: The service, whether or not it has ``run_in_parallel=False``.
        taken: Tells which of the calls that have not begun are taken.

    Returns:
        The calls that were taken. They are never run, and no frame tells of their end.
    """
    queue: asyncio.Queue[FunctionCallRunnerItem] | None
    queue = getattr(llm, "_sequential_runner_queue", None)
    if queue is None:
        return []
    waiting = [queue.get_nowait() for _ in range(queue.qsize())]
    for call in waiting:
        if not taken(call):
            queue.put_nowait(call)
    return [call for call in waiting if taken(call)]


def owes_run(aggregator: LLMAssistantAggregator) -> bool:
    """Tell whether an aggregator has put off a run of the LLM that a function's result asks for.

    Args:
        aggregator: The assistant's aggregator, which waits for the bot's silence, or for results
            that are about to come.

    Returns:
        Whether it is to run the LLM later.
    """
    # 1.8 has no such attribute, and forgets the run that a user who speaks puts off.
    owed: bool = getattr(aggregator, "_context_push_owed", aggregator._user_speaking)
    return owed or aggregator._push_context_on_bot_stopped_speaking


def forgo_owed_run(aggregator: LLMAssistantAggregator) -> None:
    """Have an aggregator not make the run of the LLM that it has put off.

    Args:
        aggregator: The assistant's aggregator.
    """
    aggregator._push_context_on_bot_stopped_speaking = False
    if hasattr(aggregator, "_context_push_owed"):
        aggregator._context_push_owed = False


class ProviderKind(Enum):
    """The SDKs of Pipecat's services whose streams this package can read."""

    OPENAI_CHAT = ("pipecat.services.openai.base_llm", "BaseOpenAILLMService")
    OPENAI_RESPONSES = ("pipecat.services.openai.responses.llm", "_BaseOpenAIResponsesLLMService")
    ANTHROPIC = ("pipecat.services.anthropic.llm", "AnthropicLLMService")
    GOOGLE = ("pipecat.services.google.llm", "GoogleLLMService")


def find_provider(llm: LLMService[Any]) -> tuple[ProviderKind, Any] | None:
    """Find the SDK's client by which a service talks to its provider.

    Args:
        llm: The service.

    Returns:
        What kind of SDK it is, and the client; None for a service of another kind.
    """
    for kind in ProviderKind:
        if _is_of_loaded_class(llm, *kind.value):
            client: object = getattr(llm, "_client", None)
            return None if client is None else (kind, client)
    return None


def is_speech_to_speech(llm: LLMService[Any]) -> bool:
    """Tell whether a service is a realtime one, which speaks when it decides to.

    Args:
        llm: The service.

    Returns:
        Whether a message that is put into its context does not make it answer.
    """
    # The only one that keeps the aggregators out of realtime mode.
    if _is_of_loaded_class(llm, "pipecat.services.openai.live.llm", "OpenAILiveLLMService"):
        return True
    return llm.service_metadata_frame().is_realtime_service


def _is_of_loaded_class(subject: object, module: str, name: str) -> bool:
    """Tell whether an object is of a class, without importing the class's module."""
    loaded = sys.modules.get(module)
    return loaded is not None and isinstance(subject, getattr(loaded, name))


def in_tool_call_of(worker: LLMWorker) -> bool:
    """Tell whether the running code was called, however indirectly, by a tool of a worker.

    Args:
        worker: The worker whose tool it may be.

    Returns:
        Whether the worker holds back the frames that this code queues.
    """
    return llm_worker._IN_TOOL_CALL.get() is worker


def forget_runner(runner: WorkerRunner, gone: str) -> None:
    """Take the workers of another runner out of a runner's registry, and be ready for its return.

    Args:
        runner: The runner that knew them.
        gone: Name of the runner that is gone.
    """
    runner.registry._remote_workers.pop(gone, None)
    # Otherwise a process that comes back under its name would get no answer to its announcement.
    runner._known_runners.discard(gone)
