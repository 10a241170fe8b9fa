"""What waits to be read by ``async for`` over a job: updates and stream events."""

import asyncio
from collections import deque

from pipecat.pipeline.job_context import JobGroupEvent

#: The unread events of a job, and None after the last.
EventQueue = asyncio.Queue[JobGroupEvent | None]


class LatestUpdateQueue(asyncio.Queue[JobGroupEvent | None]):
    """Events of which an update takes the place of an older one from the same worker.

    What is not an update is never dropped, and the order of what remains is that of arrival.
    """

    def _init(self, maxsize: int) -> None:
        self._queue: deque[JobGroupEvent | None] = deque()

    def _put(self, item: JobGroupEvent | None) -> None:
        if item is not None and item.type == JobGroupEvent.UPDATE:
            for older in self._queue:
                if older and older.type == item.type and older.worker_name == item.worker_name:
                    self._queue.remove(older)
                    break
        self._queue.append(item)
