"""The rule for a call while another call with the same arguments runs."""

import asyncio
from collections.abc import Awaitable, Callable, Hashable

from pipecat_jobs.tools.options import OnRepeat
from pipecat_jobs.tools.results import ToolResult


class _Run:
    """A running call, which later calls with the same arguments may join or replace."""

    def __init__(self) -> None:
        self.result: ToolResult | None = None
        self.ended = asyncio.Event()
        self._scope = asyncio.timeout(None)

    def replace(self) -> None:
        """Cancel the call."""
        self._scope.reschedule(asyncio.get_running_loop().time())

    async def do(self, work: Callable[[], Awaitable[ToolResult]]) -> ToolResult | None:
        """Do the work of the call; return None if it was replaced."""
        try:
            async with self._scope:
                self.result = await work()
        except TimeoutError:
            if not self._scope.expired():
                raise
            return None
        finally:
            self.ended.set()
        return self.result


class Repeats:
    """The running calls of one tool; two calls with the same arguments never run at once."""

    def __init__(self, tool_name: str, on_repeat: OnRepeat):
        self._tool_name = tool_name
        self._on_repeat: OnRepeat = on_repeat
        self._running: dict[Hashable, _Run] = {}

    async def run(
        self, identity: Hashable, work: Callable[[], Awaitable[ToolResult]]
    ) -> ToolResult:
        """Do the work of a call, or apply ``on_repeat`` if a call with the same identity runs."""
        while (first := self._running.get(identity)) is not None:
            if self._on_repeat == "refuse":
                return ToolResult(
                    {
                        "error": f"{self._tool_name} is already running with these arguments. "
                        "Do not call it again, wait for its result."
                    }
                )
            if self._on_repeat == "replace":
                first.replace()
                break
            await first.ended.wait()
            if first.result is not None:
                return first.result
        mine = self._running[identity] = _Run()
        try:
            result = await mine.do(work)
        finally:
            if self._running.get(identity) is mine:
                del self._running[identity]
        return result or self._replaced()

    def _replaced(self) -> ToolResult:
        value = {"stopped": f"A newer call of {self._tool_name} took the place of this one."}
        return ToolResult(value, run_llm=False)
