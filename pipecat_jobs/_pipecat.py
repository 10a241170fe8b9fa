"""The few lines that need more of Pipecat than its public surface, all of them here.

Each is covered by ``tests/test_pipecat_internals.py`` on every supported release, so that a
release that changes one is noticed by a test and mended in this file alone.
"""

import sys
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, cast

from pipecat.registry import WorkerRegistry
from pipecat.registry.types import WorkerReadyData
from pipecat.utils.base_object import BaseObject
from pipecat.workers.base_worker import BaseWorker

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
        loaded = sys.modules.get(f"pipecat.workers.proxy.websocket.{module}")
        if loaded is not None and isinstance(worker, getattr(loaded, proxy)):
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
