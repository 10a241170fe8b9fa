"""Which jobs are lost when a worker ends."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from pipecat_jobs._protocol.runtime import EndWatch, WorkersView

#: Seconds for the last responses of an ended worker to arrive before its jobs count as lost.
LAST_RESPONSES = 0.1


@dataclass(slots=True, eq=False)
class _Watch:
    """One worker that owes responses."""

    jobs: set[str]
    end: EndWatch | None
    timer: asyncio.TimerHandle | None = None


class Liveness:
    """Watches the workers that have been asked, for as long as they owe a response."""

    def __init__(self, lost: Callable[[str, str], None]):
        self._lost = lost
        self._watches: dict[str, _Watch] = {}

    def watch(self, workers: WorkersView, name: str, job_id: str) -> None:
        """Watch a worker that is about to be asked; raise ``WorkerHasEnded`` if it has ended."""
        watch = self._watches.get(name)
        if watch is not None:
            watch.jobs.add(job_id)
            return
        end = workers.watch_end(name, partial(self._ended, name))
        self._watches[name] = _Watch({job_id}, end)

    def unwatch(self, name: str, job_id: str) -> None:
        """Note that a worker does not owe a job any more; stop watching after the last."""
        watch = self._watches.get(name)
        if watch is None:
            return
        watch.jobs.discard(job_id)
        if watch.jobs:
            return
        del self._watches[name]
        if watch.end is not None:
            watch.end.stop()
        if watch.timer is not None:
            watch.timer.cancel()

    def _ended(self, name: str, reason: str) -> None:
        watch = self._watches.get(name)
        if watch is None:
            return
        # Its last responses may still be on the bus.
        loop = asyncio.get_running_loop()
        watch.timer = loop.call_later(LAST_RESPONSES, self._lost, name, reason)
