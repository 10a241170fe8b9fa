"""The floor of a conversation: who holds it, and since when it is free."""

import asyncio
from collections.abc import AsyncGenerator, Collection
from contextlib import asynccontextmanager
from enum import StrEnum

from pipecat_jobs._protocol.checks import check_delay


class FloorHolder(StrEnum):
    """Who holds the floor.

    Attributes:
        USER: The user speaks.
        BOT: The bot speaks.
        LLM: The LLM generates an answer, or its answer is on its way to the speakers.
        REPORT: A report was given to the LLM, which has not begun to answer it.
        TOOL: A function call runs for which the conversation waits.
        CODE: The bot's own code holds it, with :meth:`Floor.hold`.
    """

    USER = "user"
    BOT = "bot"
    LLM = "llm"
    REPORT = "report"
    TOOL = "tool"
    CODE = "code"


class Floor:
    """Who may speak now. ``worker.floor`` is the floor of a worker's conversation.

    Example::

        class Host(LLMWorker):
            async def ask_for_the_pin(self):
                async with self.floor.hold():
                    ...  # no report is spoken meanwhile
    """

    def __init__(self) -> None:
        self._since: dict[FloorHolder, float] = {}
        self._released: dict[FloorHolder, float] = {}
        self._holds = 0
        self._changed = asyncio.Event()

    @property
    def holder(self) -> FloorHolder | None:
        """Who holds the floor, the first of :class:`FloorHolder` if several do; None if it is free.

        Example::

            class Host(LLMWorker):
                def is_listening(self) -> bool:
                    return self.floor.holder is FloorHolder.USER
        """
        return next((holder for holder in FloorHolder if holder in self._since), None)

    @property
    def since(self) -> float | None:
        """Since when :attr:`holder` holds the floor, or since when the floor is free.

        In seconds on the event loop's clock (``loop.time()``); None if it was never held.
        """
        holder = self.holder
        return self._since[holder] if holder else max(self._released.values(), default=None)

    def is_held_by(self, *holders: FloorHolder) -> bool:
        """Return whether one of these holds the floor, beside others or not."""
        return not self._since.keys().isdisjoint(holders)

    async def until_free(self, quiet: float = 0.0) -> None:
        """Wait until the floor is free, and has been for a number of seconds.

        Args:
            quiet: The seconds for which it has to have been free.

        Raises:
            InvalidJobError: If ``quiet`` is negative or too large.

        Example::

            class Host(LLMWorker):
                async def play_music(self):
                    await self.floor.until_free(2)
        """
        await self.until_free_but_for((), check_delay("quiet", quiet))

    async def until_free_but_for(
        self, others: Collection[FloorHolder], quiet: float, since: float = float("-inf")
    ) -> None:
        """Wait as :meth:`until_free`, whether or not some hold it. This package calls it.

        The time before ``since``, on the event loop's clock, does not count.
        """
        clock = asyncio.get_running_loop().time
        counted = [holder for holder in FloorHolder if holder not in others]
        while True:
            changed = self._changed
            if self.is_held_by(*counted):
                await changed.wait()
                continue
            free = max(since, *(self._released.get(holder, since) for holder in counted))
            left = free + quiet - clock()
            if left <= 0:
                return
            try:
                async with asyncio.timeout(left):
                    await changed.wait()
            except TimeoutError:
                pass

    @asynccontextmanager
    async def hold(self) -> AsyncGenerator[None]:
        """Hold the floor while the block runs, so that no report is spoken.

        It takes the floor at once, also while others hold it, and stops nobody's speech.

        Example::

            class Host(LLMWorker):
                async def confirm(self, question: str):
                    async with self.floor.hold():
                        await self.queue_frame(TTSSpeakFrame(question))
                        ...  # wait for the user's words
        """
        self._holds += 1
        self.take(FloorHolder.CODE)
        try:
            yield
        finally:
            self._holds -= 1
            if not self._holds:
                self.release(FloorHolder.CODE)

    def take(self, holder: FloorHolder) -> None:
        """Note that one holds it from now on. This package calls it."""
        if holder not in self._since:
            self._since[holder] = asyncio.get_running_loop().time()
            self._notify()

    def release(self, holder: FloorHolder) -> None:
        """Note that one no longer holds it. This package calls it."""
        if self._since.pop(holder, None) is not None:
            self._released[holder] = asyncio.get_running_loop().time()
            self._notify()

    def reset(self) -> None:
        """Note that it is free, but for the bot's own code. This package calls it."""
        now = asyncio.get_running_loop().time()
        for holder in FloorHolder:
            if holder is not FloorHolder.CODE:
                self._since.pop(holder, None)
                self._released[holder] = now
        self._notify()

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
