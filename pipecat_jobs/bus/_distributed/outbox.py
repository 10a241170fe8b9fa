"""Calls that wait for the server to take them."""

import asyncio
from collections import deque

from pipecat_jobs.bus._distributed.engine import Call, Lane
from pipecat_jobs.errors import BusFullError


class Outbox:
    """Keeps calls, in order and by priority, until the server has taken them."""

    def __init__(self, limit: int):
        #: How many calls may wait before a call that is not essential is refused.
        self._limit = limit
        self._lanes: dict[Lane, deque[Call]] = {lane: deque() for lane in Lane}
        self._taken: list[Call] = []
        self._filled = asyncio.Event()
        self._emptied = asyncio.Event()
        self._emptied.set()

    def __len__(self) -> int:
        return sum(map(len, self._lanes.values())) + len(self._taken)

    def put(self, call: Call) -> None:
        """Add a call, or raise :class:`BusFullError`."""
        if not call.essential and len(self) >= self._limit:
            raise BusFullError(self._limit)
        self._lanes[call.lane].append(call)
        self._filled.set()
        self._emptied.clear()

    def withdraw(self, call: Call) -> bool:
        """Remove a call that was not tried, and return whether it was still there."""
        lane = self._lanes[call.lane]
        if call not in lane:
            return False
        lane.remove(call)
        self._note()
        return True

    async def take(self, most: int) -> list[Call]:
        """Wait for calls and return the next ones, which stay until :meth:`remove_sent`."""
        await self._filled.wait()
        for lane in self._lanes.values():
            while lane and len(self._taken) < most:
                self._taken.append(lane.popleft())
        return list(self._taken)

    def remove_sent(self, calls: list[Call]) -> None:
        """Remove calls that the server has taken."""
        done = set(calls)
        self._taken = [call for call in self._taken if call not in done]
        self._note()

    def list_tried(self) -> list[Call]:
        """List the calls that :meth:`take` returned and the server has not taken, in order."""
        return list(self._taken)

    async def wait_until_empty(self) -> None:
        """Wait until the server has taken all calls."""
        await self._emptied.wait()

    def _note(self) -> None:
        if not len(self):
            self._filled.clear()
            self._emptied.set()
