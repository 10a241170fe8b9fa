"""The unread events of a call, and how far its streams may run ahead of the reader."""

import asyncio
from collections import deque

from pipecat.pipeline.job_context import JobGroupEvent

from pipecat_jobs._protocol.flow import StreamWindow

#: The unread events of a call, and None after the last.
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


class JobEvents:
    """The updates and stream events of one call's jobs, in order of arrival."""

    __slots__ = ("_early", "_is_read", "_latest_only", "_windows", "closed", "kept", "queue")

    def __init__(self, *, kept: bool, latest_only: bool, queue: EventQueue | None = None):
        #: Whether events are queued before a reader asks for them.
        self.kept = kept
        #: Whether a queue that is set from now on gets the end of the events at once.
        self.closed = False
        #: Where the events go; None until there is one to queue.
        self.queue = queue
        self._latest_only = latest_only
        self._is_read = False
        self._early: list[JobGroupEvent] | None = None
        self._windows: dict[str, StreamWindow] | None = None

    def hold(self, event: JobGroupEvent) -> None:
        """Keep an event that arrives before the bot can have set a queue."""
        if self._early is None:
            self._early = []
        self._early.append(event)

    def use(self, queue: EventQueue) -> None:
        """Queue the events there from now on, beginning with those that were held."""
        self.queue = queue
        for event in self._early or ():
            queue.put_nowait(event)
        self._early = None
        if self.closed:
            queue.put_nowait(None)

    def push(self, event: JobGroupEvent, *, handled: bool) -> None:
        """Queue an event, if it is to be read.

        A chunk that is not ``handled`` counts as unread until :meth:`note_handled`.
        """
        if self.kept:
            self._own_queue().put_nowait(event)
        elif self.queue is not None:
            self.queue.put_nowait(event)
        if (window := self._window_of(event)) is not None:
            window.note_arrival(handled=handled, kept=self.kept)

    def note_handled(self, event: JobGroupEvent) -> None:
        """Note that the hooks have run for an event that was pushed before they had."""
        if (window := self._window_of(event)) is not None:
            window.note_handled()

    async def next(self) -> JobGroupEvent | None:
        """Wait for the next event; give None after the last, however often it is asked for."""
        if not self._is_read:
            self.set_read(True)
        queue = self._own_queue()
        event = await queue.get()
        if event is None:
            # Left for the next loop over the same job, which has to end as well.
            queue.put_nowait(None)
        elif (window := self._window_of(event)) is not None:
            window.note_read()
        return event

    def set_read(self, is_read: bool) -> None:
        """Say whether a reader takes the events, so that streams have to wait for it."""
        self._is_read = is_read
        if self._windows is not None:
            for window in self._windows.values():
                window.set_read(is_read)

    def window(self, worker_name: str, limit: int) -> StreamWindow:
        """Give the window of one worker's stream."""
        if self._windows is None:
            self._windows = {}
        window = self._windows.get(worker_name)
        if window is None:
            window = self._windows[worker_name] = StreamWindow(limit)
            window.set_read(self._is_read)
        return window

    def forget_window(self, worker_name: str) -> None:
        """Let a worker's next stream have a window of its own."""
        if self._windows is not None and (window := self._windows.pop(worker_name, None)):
            window.close()

    def _own_queue(self) -> EventQueue:
        if self.queue is None:
            self.use(LatestUpdateQueue() if self._latest_only else asyncio.Queue())
            assert self.queue is not None
        return self.queue

    def _window_of(self, event: JobGroupEvent) -> StreamWindow | None:
        if self._windows is None or event.type != JobGroupEvent.STREAM_DATA:
            return None
        return self._windows.get(event.worker_name)
