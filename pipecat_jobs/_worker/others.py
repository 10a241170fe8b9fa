"""The other workers, as one worker of Pipecat's runner sees them.

Pipecat keeps a worker that has ended in its registry, and is silent when a proxied worker's
connection drops. What can be noticed in this process: a worker of the same runner has a ``wait()``,
and a worker behind a WebSocket proxy is as reachable as the proxy. The end of a worker in another
process has to be reported by the bus, with :meth:`~pipecat_jobs.JobsMixin.worker_lost`:
``RedisStreamsBus`` does; on Pipecat's network buses the job's timeout decides.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from pipecat.registry import WorkerRegistry
from pipecat.registry.types import WorkerReadyData
from pipecat.workers.base_worker import BaseWorker

from pipecat_jobs._pipecat import has_ended, proxied_name, proxy_connection, unwatch
from pipecat_jobs._protocol.delivery import IgnoresOthers
from pipecat_jobs._protocol.exchange import describe_plain_worker, find_bus_problem
from pipecat_jobs._protocol.runtime import EndWatch, WorkerHasEnded
from pipecat_jobs._worker.tasks import start_task

#: Is called with a sentence when a worker has ended.
OnEnd = Callable[[str], None]


class Departure:
    """Calls back when its worker has stopped, without a task that waits for it."""

    __slots__ = ("stopped", "watches")

    def __init__(self) -> None:
        self.stopped = False
        """Whether it has."""
        # In the order they came, and each is removed in one step however many there are.
        self.watches: dict[_DepartureWatch, None] = {}
        """The watches to notify, as the keys."""

    def happen(self) -> None:
        """Notify the watches that the worker has stopped. Does nothing the second time."""
        self.stopped = True
        watches, self.watches = self.watches, {}
        for watch in watches:
            watch.end()


class _DepartureWatch:
    __slots__ = ("_departure", "_on_end", "_reason")

    def __init__(self, departure: Departure, reason: str, on_end: OnEnd):
        self._departure, self._reason, self._on_end = departure, reason, on_end
        departure.watches[self] = None

    def end(self) -> None:
        self._on_end(self._reason)

    def stop(self) -> None:
        self._departure.watches.pop(self, None)


class _TaskWatch:
    """Watches by a task, for what has to be waited for."""

    def __init__(
        self,
        worker: BaseWorker,
        name: str,
        wait: Callable[[], Awaitable[object]],
        reason: str,
        on_end: OnEnd,
    ):
        async def follow() -> None:
            await wait()
            on_end(reason)

        self._task = start_task(worker, follow(), f"job_watch_{name}")

    def stop(self) -> None:
        self._task.cancel()


class _EventWatch:
    """Watches by an event of a proxy that serves the other side."""

    def __init__(self, proxy: BaseWorker, reason: str, on_end: OnEnd):
        def on_disconnected(_: BaseWorker, __: object) -> None:
            on_end(reason)

        self._proxy, self._handler = proxy, on_disconnected
        proxy.add_event_handler("on_client_disconnected", on_disconnected)

    def stop(self) -> None:
        self._proxy.remove_event_handler("on_client_disconnected", self._handler)


class _BothWatches:
    def __init__(self, first: EndWatch, second: EndWatch):
        self._first, self._second = first, second

    def stop(self) -> None:
        self._first.stop()
        self._second.stop()


class OtherWorkers:
    """The registry and the runner of one worker."""

    def __init__(self, worker: BaseWorker, registry: WorkerRegistry):
        self._worker = worker
        self.registry = registry

    def find_missing(self, names: Sequence[str]) -> list[str]:
        """Find the workers that have not registered."""
        return [name for name in names if name not in self.registry]

    def list_known(self) -> Sequence[str]:
        """List the workers that have registered, here and in other processes."""
        return [*self.registry.local_workers, *self.registry.remote_workers]

    def shares_loop(self, name: str) -> bool:
        """Return whether a worker runs in the event loop of this one."""
        return self._worker.worker_runner.get_worker(name) is not None

    def find_note_problem(self, name: str) -> str | None:
        """Say why a worker cannot get a note about its job, or return None."""
        problem = find_bus_problem(self._worker.bus)
        if problem is not None:
            return problem
        target = self._worker.worker_runner.get_worker(name)
        if target is not None:
            takes_notes = isinstance(target, IgnoresOthers)
            return None if takes_notes else describe_plain_worker(name, type(target).__name__)
        if (proxy := self._find_proxy(name)) is not None:
            return (
                f"worker '{name}' is behind the WebSocket proxy '{proxy.name}', which drops what "
                "pipecat-jobs attaches to a message; connect the processes by RedisStreamsBus"
            )
        return None

    async def wait_until_known(self, names: Sequence[str]) -> None:
        """Wait until workers have registered, and leave no watch behind."""
        missing = set(names)
        everyone = asyncio.Event()

        async def note_ready(data: WorkerReadyData) -> None:
            missing.discard(data.worker_name)
            if not missing:
                everyone.set()

        try:
            for name in names:
                await self.registry.watch(name, note_ready)
            await everyone.wait()
        finally:
            for name in names:
                unwatch(self.registry, name, note_ready)

    def watch_end(self, name: str, on_end: OnEnd) -> EndWatch | None:
        """Have ``on_end`` called once a worker has ended; see ``WorkersView``."""
        target = self._worker.worker_runner.get_worker(name)
        if target is not None:
            return self._watch_worker(name, target, f"worker '{name}' has ended", on_end)
        proxy = self._find_proxy(name)
        if proxy is None:
            return None
        if proxy_connection(proxy) is None or has_ended(proxy):
            raise WorkerHasEnded(f"proxy '{proxy.name}' is not connected")
        ended = f"proxy '{proxy.name}' has ended"
        return _BothWatches(
            self._watch_worker(name, proxy, ended, on_end),
            self._watch_connection(name, proxy, on_end),
        )

    def _watch_worker(self, name: str, target: BaseWorker, reason: str, on_end: OnEnd) -> EndWatch:
        # Only a worker of this package has one; any other has to be waited for.
        departure: Departure | None = getattr(target, "_job_departure", None)
        if departure.stopped if departure is not None else has_ended(target):
            raise WorkerHasEnded(reason)
        if departure is None:
            return _TaskWatch(self._worker, name, target.wait, reason, on_end)
        return _DepartureWatch(departure, reason, on_end)

    def _watch_connection(self, name: str, proxy: BaseWorker, on_end: OnEnd) -> EndWatch:
        reason = f"proxy '{proxy.name}' lost its connection"
        connection = proxy_connection(proxy)
        if connection is not None and hasattr(connection, "wait_closed"):
            # The client proxy is silent when the server closes in good order, its socket is not.
            return _TaskWatch(self._worker, name, connection.wait_closed, reason, on_end)
        return _EventWatch(proxy, reason, on_end)

    def _find_proxy(self, name: str) -> BaseWorker | None:
        runner = self._worker.worker_runner
        for local_name in self.registry.local_workers:
            local = runner.get_worker(local_name)
            if local is not None and proxied_name(local) == name:
                return local
        return None
