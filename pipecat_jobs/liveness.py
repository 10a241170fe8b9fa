"""Noticing that a worker is gone.

Pipecat keeps a worker that has ended in its registry, and says nothing when a proxied worker's
connection drops. What can be known in this process: a worker of the same runner has a ``wait()``,
and a worker behind a WebSocket proxy is as reachable as the proxy. A worker in another process on
a network bus gives no sign; there the caller's timeout decides, or
:meth:`~pipecat_jobs.JobsMixin.worker_lost` for whoever knows better.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from pipecat.workers.base_worker import BaseWorker

from pipecat_jobs._pipecat import proxied_name, proxy_connection

#: Asks a worker to call back when it has stopped; gives what takes that back, or None when the
#: worker cannot and has to be waited for.
WhenStopped = Callable[[BaseWorker, Callable[[], None]], Callable[[], None] | None]

#: Seconds that an ended worker's last answers get to arrive before it counts as lost.
LAST_WORDS = 0.1


@dataclass(slots=True)
class _Watch:
    """One worker that somebody waits on."""

    jobs: set[str] = field(default_factory=set[str])
    undo: list[Callable[[], object]] = field(default_factory=list[Callable[[], object]])


class Liveness:
    """Watches the workers that have been asked, for as long as they owe an answer.

    Args:
        worker: The requester.
        lost: Called with a worker's name and the reason when it is gone.
        when_stopped: Asks a worker to call back when it has stopped, where it can.
    """

    def __init__(
        self,
        worker: BaseWorker,
        lost: Callable[[str, str], None],
        when_stopped: WhenStopped,
    ):
        self._worker = worker
        self._lost = lost
        self._when_stopped = when_stopped
        self._watches: dict[str, _Watch] = {}

    def gone(self, name: str) -> str | None:
        """Look whether a worker has already gone.

        Args:
            name: The worker about to be asked.

        Returns:
            The reason, or None when it may well answer.
        """
        target = self._worker.worker_runner.get_worker(name)
        if target is not None:
            return f"worker '{name}' has ended" if _has_ended(target) else None
        proxy = self._proxy_of(name)
        if proxy is not None and (_has_ended(proxy) or proxy_connection(proxy) is None):
            return f"proxy '{proxy.name}' is not connected"
        return None

    def watch(self, name: str, job_id: str) -> None:
        """Start noticing the end of a worker that is being asked.

        Args:
            name: The worker.
            job_id: The job it will owe an answer for, until :meth:`unwatch`.
        """
        watch = self._watches.get(name)
        if watch is None:
            watch = self._watches[name] = _Watch()
            target = self._worker.worker_runner.get_worker(name)
            if target is not None:
                self._watch_worker(name, watch, target, f"worker '{name}' has ended")
            elif (proxy := self._proxy_of(name)) is not None:
                self._watch_worker(name, watch, proxy, f"proxy '{proxy.name}' has ended")
                self._watch_connection(name, watch, proxy)
        watch.jobs.add(job_id)

    def unwatch(self, name: str, job_id: str) -> None:
        """Note that a worker owes a job no more; stop noticing when it was the last.

        Args:
            name: The worker.
            job_id: The job.
        """
        watch = self._watches.get(name)
        if watch is None:
            return
        watch.jobs.discard(job_id)
        if not watch.jobs:
            del self._watches[name]
            for undo in watch.undo:
                undo()

    def _watch_worker(self, name: str, watch: _Watch, target: BaseWorker, reason: str) -> None:
        undo = self._when_stopped(target, lambda: self._ended(name, watch, reason))
        if undo is not None:
            watch.undo.append(undo)
        else:
            self._follow(name, watch, reason, target.wait)

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
        watch.undo.append(lambda: proxy.remove_event_handler(event, disconnected))

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

        watch.undo.append(self._worker.create_task(follow(), f"job_watch_{name}").cancel)

    def _ended(self, name: str, watch: _Watch, reason: str) -> None:
        # What it said last may still be on the bus.
        timer = asyncio.get_running_loop().call_later(LAST_WORDS, self._lost, name, reason)
        watch.undo.append(timer.cancel)


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
