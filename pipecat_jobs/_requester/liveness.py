"""Noticing that a worker is gone.

Pipecat keeps a worker that has ended in its registry, and says nothing when a proxied worker's
connection drops. What can be known in this process: a worker of the same runner has a ``wait()``,
and a worker behind a WebSocket proxy is as reachable as the proxy. Of a worker in another process
the bus has to tell, by :meth:`~pipecat_jobs.JobsMixin.worker_lost`: ``RedisStreamsBus`` does, on
Pipecat's network buses the job's timeout decides.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial

from pipecat.workers.base_worker import BaseWorker

from pipecat_jobs._pipecat import proxied_name, proxy_connection
from pipecat_jobs._protocol.tasks import start_task

#: Seconds for the last responses of an ended worker to arrive before it counts as lost.
LAST_RESPONSES = 0.1


class Departure:
    """Calls back when a worker has stopped, without a task that waits for it."""

    __slots__ = ("_calls", "stopped")

    def __init__(self) -> None:
        self.stopped = False
        """Whether it has."""
        # In the order they came, and each is taken back in one step however many there are.
        self._calls: dict[object, Callable[[], None]] = {}

    def call(self, key: object, call: Callable[[], None]) -> None:
        """Register a call for when the worker stops; ``key`` is for :meth:`forget`."""
        self._calls[key] = call

    def forget(self, key: object) -> None:
        """Take a :meth:`call` back. Does nothing when it has been called."""
        self._calls.pop(key, None)

    def happen(self) -> None:
        """Make the calls: the worker has stopped. Does nothing the second time."""
        self.stopped = True
        calls, self._calls = self._calls, {}
        for call in calls.values():
            call()


#: Finds where a worker tells that it has stopped; None when it cannot and has to be waited for.
DepartureOf = Callable[[BaseWorker], Departure | None]


@dataclass(slots=True, eq=False)
class _Watch:
    """One worker that owes responses."""

    jobs: set[str]
    departure: Departure | None = None
    undo: list[Callable[[], object]] | None = None

    def undone_by(self, undo: Callable[[], object]) -> None:
        """Keep what takes a part of it back."""
        self.undo = [*(self.undo or ()), undo]


class Liveness:
    """Watches the workers that have been asked, for as long as they owe an answer."""

    def __init__(
        self,
        worker: BaseWorker,
        lost: Callable[[str, str], None],
        departure_of: DepartureOf,
    ):
        self._worker = worker
        self._lost = lost
        self._departure_of = departure_of
        self._watches: dict[str, _Watch] = {}

    def watch(self, name: str, job_id: str) -> str | None:
        """Start noticing the end of a worker that is about to be asked.

        Returns:
            Why it cannot answer, when it has already gone and nothing is watched; None otherwise.
        """
        watch = self._watches.get(name)
        if watch is None:
            watch = _Watch({job_id})
            if (reason := self._begin(name, watch)) is not None:
                return reason
            self._watches[name] = watch
            return None
        watch.jobs.add(job_id)
        return None

    def _begin(self, name: str, watch: _Watch) -> str | None:
        target = self._worker.worker_runner.get_worker(name)
        if target is not None:
            return self._watch_worker(name, watch, target, f"worker '{name}' has ended")
        proxy = self._proxy_of(name)
        if proxy is None:
            return None
        ended = f"proxy '{proxy.name}' has ended"
        if proxy_connection(proxy) is None or self._watch_worker(name, watch, proxy, ended):
            return f"proxy '{proxy.name}' is not connected"
        self._watch_connection(name, watch, proxy)
        return None

    def unwatch(self, name: str, job_id: str) -> None:
        """Note that a worker owes a job no more; stop noticing when it was the last."""
        watch = self._watches.get(name)
        if watch is None:
            return
        watch.jobs.discard(job_id)
        if not watch.jobs:
            del self._watches[name]
            if watch.departure is not None:
                watch.departure.forget(watch)
            for undo in watch.undo or ():
                undo()

    def _watch_worker(
        self, name: str, watch: _Watch, target: BaseWorker, reason: str
    ) -> str | None:
        departure = self._departure_of(target)
        if departure is None:
            if _has_ended(target):
                return reason
            self._follow(name, watch, reason, target.wait)
            return None
        if departure.stopped:
            return reason
        watch.departure = departure
        departure.call(watch, partial(self._ended, name, watch, reason))
        return None

    def _watch_connection(self, name: str, watch: _Watch, proxy: BaseWorker) -> None:
        reason = f"proxy '{proxy.name}' lost its connection"
        connection = proxy_connection(proxy)
        if connection is not None and hasattr(connection, "wait_closed"):
            # The client proxy is silent when the server closes in good order, its socket is not.
            self._follow(name, watch, reason, connection.wait_closed)
            return

        def disconnected(_: BaseWorker, __: object) -> None:
            self._ended(name, watch, reason)

        event = "on_client_disconnected"
        proxy.add_event_handler(event, disconnected)
        watch.undone_by(lambda: proxy.remove_event_handler(event, disconnected))

    def _proxy_of(self, name: str) -> BaseWorker | None:
        runner = self._worker.worker_runner
        for local_name in self._worker.registry.local_workers:
            local = runner.get_worker(local_name)
            if local is not None and proxied_name(local) == name:
                return local
        return None

    def _follow(
        self, name: str, watch: _Watch, reason: str, ended: Callable[[], Awaitable[object]]
    ) -> None:
        async def follow() -> None:
            await ended()
            self._ended(name, watch, reason)

        watch.undone_by(start_task(self._worker, follow(), f"job_watch_{name}").cancel)

    def _ended(self, name: str, watch: _Watch, reason: str) -> None:
        # Its last responses may still be on the bus.
        timer = asyncio.get_running_loop().call_later(LAST_RESPONSES, self._lost, name, reason)
        watch.undone_by(timer.cancel)


def _has_ended(worker: BaseWorker) -> bool:
    # ``wait()`` is the one public way to ask, and it suspends only while the worker lives.
    waiting = worker.wait()
    try:
        waiting.send(None)
    except StopIteration:
        return True
    else:
        return False
    finally:
        waiting.close()
