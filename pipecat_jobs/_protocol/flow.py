"""Slowing a worker that streams faster than it is read."""

import asyncio


class StreamWindow:
    """Limits how many chunks of one worker's stream are sent and not yet read.

    The worker waits for room before it sends a chunk. Where both are in one process they share the
    window, so that it costs no message; answers and cancels do not go through it. Where they are
    not, each process has a window of its own, and the reader's says when the other has to wait.
    """

    __slots__ = (
        "_held",
        "_limit",
        "_open",
        "_reading",
        "_unheard",
        "_unread",
        "_waiting",
        "under_way",
    )

    def __init__(self, limit: int):
        self._limit = limit
        self._held = False
        self._open = True
        self._reading = False
        self._unheard = 0
        self._unread = 0
        self._waiting: list[asyncio.Future[None]] = []
        self.under_way = 0
        """The number of chunks that were sent and have not arrived."""

    @property
    def full(self) -> bool:
        """Whether another chunk has to wait."""
        # Without a reader, unread chunks do not count: the requester may only want the hooks and
        # the response, and the worker would wait for ever.
        unread = self._unread if self._reading else 0
        backlog = self.under_way + max(unread, self._unheard)
        return self._open and (self._held or backlog >= self._limit)

    async def room(self) -> None:
        """Wait until another chunk may be sent."""
        while self.full:
            await self.next_room()

    def next_room(self) -> asyncio.Future[None]:
        """Give a future that is done once a chunk may be sent, if that is before the job ends."""
        waiting = asyncio.get_running_loop().create_future()
        self._waiting.append(waiting)
        return waiting

    def hold(self, held: bool) -> None:
        """Note whether a reader in another process wants the worker to wait."""
        self._held = held
        self._let_on()

    def arrived(self, *, heard: bool, kept: bool) -> None:
        """Note that a chunk has arrived."""
        # One that came twice was under way once.
        self.under_way = max(0, self.under_way - 1)
        self._unheard += not heard
        self._unread += kept
        self._let_on()

    def heard(self) -> None:
        """Note that the hooks have heard a chunk."""
        self._unheard -= 1
        self._let_on()

    def read(self) -> None:
        """Note that a chunk has been read."""
        self._unread -= 1
        self._let_on()

    def reading(self, reading: bool) -> None:
        """Note whether the requester reads the stream."""
        self._reading = reading
        self._let_on()

    def close(self) -> None:
        """Let the worker go on without a limit: its job has ended."""
        self._open = False
        self._let_on()

    def _let_on(self) -> None:
        if self._waiting and not self.full:
            waiting, self._waiting = self._waiting, []
            for each in waiting:
                if not each.done():
                    each.set_result(None)
