"""What waits to be sent to the server, in order."""

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntEnum
from typing import TypeAlias

from pipecat_jobs.errors import BusFullError

Argument: TypeAlias = bytes | str | int
#: Makes a call's arguments, given the id of this process and the call's number.
Arguments: TypeAlias = Callable[[str, int], tuple[Argument, ...]]


class Lane(IntEnum):
    """What goes before what."""

    CONTROL = 0
    URGENT = 1
    DATA = 2

    @property
    def letter(self) -> str:
        """How the server calls it."""
        return "d" if self is Lane.DATA else "u"


@dataclass(slots=True, eq=False)
class Call:
    """One call of the channel's script.

    Parameters:
        lane: Its place among the others.
        name: The script's command.
        arguments: Makes what the command takes.
        replied: Told what the server says, unless the process was declared dead meanwhile.
        outlives: Whether it still makes sense from a process that was declared dead and is back.
        essential: Whether it may go over the limit, since others wait for it.
        number: Its number among this process's calls; 0 until it has been tried.
    """

    lane: Lane
    name: str
    arguments: Arguments
    replied: Callable[[str], None] = field(default=lambda _: None)
    outlives: bool = False
    essential: bool = True
    number: int = 0


class Outbox:
    """Keeps calls until the server has taken them.

    Args:
        limit: How many that are not essential may wait.
    """

    def __init__(self, limit: int):
        self._limit = limit
        self._lanes: dict[Lane, deque[Call]] = {lane: deque() for lane in Lane}
        self._taken: list[Call] = []
        self._filled = asyncio.Event()
        self._emptied = asyncio.Event()
        self._emptied.set()

    def __len__(self) -> int:
        return sum(map(len, self._lanes.values())) + len(self._taken)

    def put(self, call: Call) -> None:
        """Add a call.

        Args:
            call: The call.

        Raises:
            BusFullError: If too many wait.
        """
        if not call.essential and len(self) >= self._limit:
            raise BusFullError(self._limit)
        self._lanes[call.lane].append(call)
        self._filled.set()
        self._emptied.clear()

    def withdraw(self, call: Call) -> bool:
        """Take a call back that has not been tried.

        Args:
            call: The call.

        Returns:
            Whether it was still there.
        """
        lane = self._lanes[call.lane]
        if call not in lane:
            return False
        lane.remove(call)
        self._note()
        return True

    async def take(self, most: int) -> list[Call]:
        """Wait for calls, and take those that are next. They count as waiting until :meth:`sent`.

        Args:
            most: How many to take at most.

        Returns:
            At least one.
        """
        await self._filled.wait()
        for lane in self._lanes.values():
            while lane and len(self._taken) < most:
                self._taken.append(lane.popleft())
        return list(self._taken)

    def sent(self, calls: list[Call]) -> None:
        """Note that calls have been taken by the server, or mean nothing any more.

        Args:
            calls: Calls that :meth:`take` gave.
        """
        done = set(calls)
        self._taken = [call for call in self._taken if call not in done]
        self._note()

    def tried(self) -> list[Call]:
        """List the calls that :meth:`take` gave and that were not noted as sent.

        Returns:
            The calls, in order.
        """
        return list(self._taken)

    async def empty(self) -> None:
        """Wait until nothing waits."""
        await self._emptied.wait()

    def _note(self) -> None:
        if not len(self):
            self._filled.clear()
            self._emptied.set()
