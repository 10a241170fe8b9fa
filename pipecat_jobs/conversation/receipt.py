"""The receipt of a report: what became of it."""

import asyncio
from collections.abc import AsyncIterator

from pipecat_jobs.conversation.states import ReportChange, ReportState


class Receipt:
    """What became of one report. :meth:`report` of a worker returns it.

    ``async for change in receipt`` gives every change of the state, the earlier ones too, and ends
    with the last one.

    Example::

        class Host(LLMWorker):
            async def tell(self, order: int):
                receipt = await self.report({"order": order, "status": "ready"})
                async for change in receipt:
                    print(change.state, change.reason)
    """

    def __init__(self, report_id: str):
        self._report_id = report_id
        self._history: list[ReportChange] = []
        self._changed = asyncio.Event()

    @property
    def report_id(self) -> str:
        """The id of the report, unique within its worker."""
        return self._report_id

    @property
    def state(self) -> ReportState:
        """The present state."""
        return self._history[-1].state if self._history else ReportState.WAITING

    @property
    def settled(self) -> bool:
        """Whether the state is the last one."""
        return self.state.settled

    @property
    def history(self) -> tuple[ReportChange, ...]:
        """The changes so far, the oldest first."""
        return tuple(self._history)

    async def until_settled(self) -> ReportState:
        """Wait until the report has its last state; every report gets one.

        Returns:
            The last state: SAID, COVERED, SUPERSEDED, EXPIRED or DROPPED.

        Example::

            class Host(LLMWorker):
                async def tell(self, order: int):
                    receipt = await self.report({"order": order, "status": "ready"})
                    print(await receipt.until_settled())
        """
        async for _ in self:
            pass
        return self.state

    def note(self, change: ReportChange) -> None:
        """Add a change. This package calls it."""
        self._history.append(change)
        self._changed.set()
        self._changed = asyncio.Event()

    async def __aiter__(self) -> AsyncIterator[ReportChange]:
        given = 0
        while True:
            changed = self._changed
            while given < len(self._history):
                change = self._history[given]
                given += 1
                yield change
                if change.state.settled:
                    return
            await changed.wait()

    def __repr__(self) -> str:
        return f"<Receipt of report {self.report_id}: {self.state}>"
