"""Pipecat's WebSocket proxies, which stand for workers in other processes."""

from typing import TYPE_CHECKING, Any, cast

from pipecat.workers.base_worker import BaseWorker

from pipecat_jobs._pipecat.loaded import is_of_loaded_class

if TYPE_CHECKING:
    from pipecat.workers.proxy.websocket import WebSocketProxyClient, WebSocketProxyServer

# pyright: reportPrivateUsage=false


def proxied_name(worker: BaseWorker) -> str | None:
    """Name the remote worker that a proxy stands for; None for a worker that is not a proxy."""
    # The module of a proxy that exists has been imported. Importing it here would make websockets
    # and starlette a requirement.
    for module, proxy in (("client", "WebSocketProxyClient"), ("server", "WebSocketProxyServer")):
        if is_of_loaded_class(worker, f"pipecat.workers.proxy.websocket.{module}", proxy):
            proxied = cast("WebSocketProxyClient | WebSocketProxyServer", worker)
            return proxied._remote_worker_name
    return None


def proxy_connection(proxy: BaseWorker) -> Any | None:
    """Find the open socket of a proxy; None when the proxy knows that it is not connected.

    A client has a connection of ``websockets``, a server has a socket of Starlette.
    """
    return cast("WebSocketProxyClient | WebSocketProxyServer", proxy)._ws
