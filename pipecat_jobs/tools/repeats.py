"""The rule for a call of a tool while an earlier one runs."""

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from typing import TypeAlias

from pipecat_jobs.tools.dispatch import Dispatch
from pipecat_jobs.tools.options import OnRepeat, RepeatBy
from pipecat_jobs.tools.results import ToolResult

#: The parameter of a tool with ``on_repeat="confirm"`` by which the LLM repeats a call knowingly.
CONFIRMED = "confirmed"


class Run:
    """A running call, which later calls may join, replace or steer."""

    def __init__(self) -> None:
        self.result: ToolResult | None = None
        self.ended = asyncio.Event()
        #: Its jobs, once they are requested; None when it has ended without any.
        self.jobs: asyncio.Future[Dispatch | None] = asyncio.get_running_loop().create_future()
        self._scope = asyncio.timeout(None)

    def replace(self) -> None:
        """Cancel the call."""
        self._scope.reschedule(asyncio.get_running_loop().time())

    async def do(self, work: "Work") -> ToolResult | None:
        """Do the work of the call; return None if it was replaced."""
        try:
            async with self._scope:
                self.result = await work(self)
        except TimeoutError:
            if not self._scope.expired():
                raise
            return None
        finally:
            self.ended.set()
            if not self.jobs.done():
                self.jobs.set_result(None)
        return self.result


#: Does the work of a call, and sets the jobs of its run.
Work: TypeAlias = Callable[[Run], Awaitable[ToolResult]]
#: Steers the jobs of another call; None if they have ended.
Steer: TypeAlias = Callable[[Dispatch], Awaitable[ToolResult | None]]


class Repeats:
    """The running calls of one tool, by the identity that tells which calls repeat one another."""

    def __init__(self, tool_name: str, on_repeat: OnRepeat, repeat_by: RepeatBy = "arguments"):
        self._tool_name = tool_name
        self._on_repeat: OnRepeat = on_repeat
        self._same = " with these arguments" if repeat_by == "arguments" else ""
        self._running: dict[Hashable, Run] = {}

    async def run(self, identity: Hashable, work: Work, steer: Steer) -> ToolResult:
        """Do the work of a call, or apply ``on_repeat`` if a call with the same identity runs."""
        while (first := self._running.get(identity)) is not None:
            if self._on_repeat == "refuse":
                return ToolResult(
                    {"error": f"{self._running_now} Do not call it again, wait for its result."}
                )
            if self._on_repeat == "confirm":
                question = (
                    f"{self._running_now} Ask the user whether to run it a second time. Only if "
                    f"the user agrees, call it again with {CONFIRMED}=true."
                )
                return ToolResult({"needs_confirmation": question})
            if self._on_repeat == "replace":
                first.replace()
                break
            if self._on_repeat == "steer":
                jobs = await asyncio.shield(first.jobs)
                result = None if jobs is None else await steer(jobs)
                if result is not None:
                    return result
                await first.ended.wait()
                continue
            await first.ended.wait()
            if first.result is not None:
                return first.result
        return await self.run_beside(identity, work)

    async def run_beside(self, identity: Hashable, work: Work) -> ToolResult:
        """Do the work of a call, whether or not a call with the same identity runs."""
        mine = self._running[identity] = Run()
        try:
            result = await mine.do(work)
        finally:
            if self._running.get(identity) is mine:
                del self._running[identity]
        return result or self._replaced()

    @property
    def _running_now(self) -> str:
        return f"{self._tool_name} is already running{self._same}."

    def _replaced(self) -> ToolResult:
        value = {"stopped": f"A newer call of {self._tool_name} took the place of this one."}
        return ToolResult(value, run_llm=False)
