"""The result of a call in the background, as a report to the user."""

from typing import Any

from pipecat.services.llm_service import FunctionCallParams

from pipecat_jobs._llm.context_value import to_context_value
from pipecat_jobs._llm.conversing import EXPIRES_AFTER, converse, find_turns
from pipecat_jobs._pipecat import takes_messages
from pipecat_jobs.outcomes import JobData
from pipecat_jobs.tools.call import ToolCallContext
from pipecat_jobs.tools.options import JobToolOptions
from pipecat_jobs.tools.results import ToolResult, to_tool_result


class DirectReporting:
    """Gives the LLM the updates and the result of a call as Pipecat does."""

    def __init__(self, call: ToolCallContext):
        self._call = call

    async def update(self, update: JobData) -> None:
        """Put the update of a worker into the LLM's context."""
        await self._call.report(update)

    def finish(self, result: ToolResult) -> ToolResult:
        """Return what settles the call for the LLM."""
        return result


class SilenceReporting(DirectReporting):
    """Reports the updates and the result of a call in the background.

    Where a turn of the LLM waits for the result, as in a job, the LLM gets it at once.
    """

    def __init__(self, call: ToolCallContext, params: FunctionCallParams):
        super().__init__(call)
        self._params = params
        self._what: JobData = {"tool": params.function_name, "arguments": dict(params.arguments)}
        self._reports = converse(params.pipeline_worker, params.llm).reports
        self._result: Any = None
        """What is to be reported."""
        self._updated: set[str] = set()
        """The keys of the updates."""

    async def update(self, update: JobData) -> None:
        """Have the LLM know the latest update of a worker, with its next run."""
        if self._is_awaited():
            await super().update(update)
            return
        key = f"{self._params.tool_call_id} {update['worker']}"
        self._updated.add(key)
        self._reports.add(to_context_value({**self._what, **update}), key=key, silent=True)

    def finish(self, result: ToolResult) -> ToolResult:
        """Report the result; return what settles the call for the LLM."""
        for key in self._updated:
            self._reports.supersede(key, "the call has its result")
        if result.run_llm is False or self._is_awaited():
            return result
        name = self._params.function_name
        self._result = to_context_value(
            {**self._what, "result": to_tool_result(name, result.value)}
        )
        status = f"{name} has ended. Say nothing of it yet: its result comes in a report."
        # Pipecat's message about the end of the call comes first in the context.
        return ToolResult({"status": status}, run_llm=False, then=self._report)

    def _report(self) -> None:
        """Report the result, once: a call that joins this one has the same result."""
        result, self._result = self._result, None
        if result is not None:
            self._reports.add(result, expires_after=EXPIRES_AFTER)

    def _is_awaited(self) -> bool:
        turns = find_turns(self._params.pipeline_worker)
        return turns is not None and turns.awaits(self._params.tool_call_id)


def make_reporting(
    call: ToolCallContext, params: FunctionCallParams, options: JobToolOptions
) -> DirectReporting:
    """Make the reporting of a call."""
    at_once = options.report == "at_once" or not takes_messages(params.llm)
    if options.cancel_on_interruption or at_once:
        return DirectReporting(call)
    return SilenceReporting(call, params)
