"""Slowing a worker that streams faster than it is read."""

import asyncio


class StreamWindow:
    """Limits how many chunks of one worker's stream are sent and not yet read.

    The worker waits for room before it sends a chunk. Where both are in one process they share the
    window, so that it costs no message; responses and cancels do not go through it. Where they are
    not, each process has a window of its own, and the reader's process says when the worker has to
    wait.
    """

    __slots__ = (
        "_is_closed",
        "_is_held",
        "_is_read",
        "_limit",
        "_unhandled",
        "_unread",
        "_waiting",
        "under_way",
    )

    def __init__(self, limit: int):
        self._limit = limit
        self._is_held = False
        self._is_closed = False
        self._is_read = False
        self._unhandled = 0
        self._unread = 0
        self._waiting: list[asyncio.Future[None]] = []
        self.under_way = 0
        """The number of chunks that were sent and have not arrived."""

    @property
    def full(self) -> bool:
        """Whether another chunk has to wait."""
        # Without a reader, unread chunks do not count: the requester may only want the hooks and
        # the response, and the worker would wait for ever.
        unread = self._unread if self._is_read else 0
        backlog = self.under_way + max(unread, self._unhandled)
        return not self._is_closed and (self._is_held or backlog >= self._limit)

    async def wait_for_room(self) -> None:
        """Wait until another chunk may be sent."""
        while self.full:
            await self.make_room_future()

    def make_room_future(self) -> asyncio.Future[None]:
        """Give a future that is done once a chunk may be sent, if that is before the job ends."""
        waiting = asyncio.get_running_loop().create_future()
        self._waiting.append(waiting)
        return waiting

    def set_held(self, is_held: bool) -> None:
        """Note whether a reader in another process wants the worker to wait."""
        self._is_held = is_held
        self._wake()

    def note_arrival(self, *, handled: bool, kept: bool) -> None:
        """Note that a chunk arrived, whether hooks have run for it, and whether it is queued."""
        # A chunk that arrived twice was under way once.
        self.under_way = max(0, self.under_way - 1)
        self._unhandled += not handled
        self._unread += kept
        self._wake()

    def note_handled(self) -> None:
        """Note that the hooks have run for a chunk."""
        self._unhandled -= 1
        self._wake()

    def note_read(self) -> None:
        """Note that a chunk has been read."""
        self._unread -= 1
        self._wake()

    def set_read(self, is_read: bool) -> None:
        """Note whether the requester reads the stream."""
        self._is_read = is_read
        self._wake()

    def close(self) -> None:
        """Let the worker go on without a limit: its job has ended."""
        self._is_closed = True
        self._wake()

    def _wake(self) -> None:
        if self._waiting and not self.full:
            waiting, self._waiting = self._waiting, []
            for each in waiting:
                if not each.done():
                    each.set_result(None)
