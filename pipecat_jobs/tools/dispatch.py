"""The jobs of one call of a tool: asked, followed, and made a result of."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping

from pipecat.pipeline.job_context import JobGroupEvent

from pipecat_jobs._llm.mixin import JobsMixin
from pipecat_jobs._requester.scopes import JobGroupContext
from pipecat_jobs.errors import JobError
from pipecat_jobs.outcomes import JobData, JobOutcome
from pipecat_jobs.tools.options import JobToolOptions
from pipecat_jobs.tools.progress import JobToolProgress
from pipecat_jobs.tools.results import has_stopped, rendered, report, report_failure

#: Hears a worker's update.
OnUpdate = Callable[[str, JobData], Awaitable[None]]


class Dispatch:
    """The jobs of one call.

    Args:
        tool_name: The tool.
        requester: The worker that asks.
        options: The tool's options.
    """

    def __init__(self, tool_name: str, requester: JobsMixin, options: JobToolOptions):
        self._tool_name = tool_name
        self._requester = requester
        self._options = options
        self._clock = asyncio.get_running_loop().time
        self._began = self._clock()
        self._group: JobGroupContext | None = None
        self._updates: dict[str, JobData] = {}

    def progress(self) -> JobToolProgress:
        """Tell how far the jobs are.

        Returns:
            A picture of this moment.
        """
        outcomes = self._group.outcomes if self._group else {}
        answers = {name: o.response or {} for name, o in outcomes.items() if o.completed}
        return JobToolProgress(self._clock() - self._began, answers, dict(self._updates))

    async def run(
        self, payload: JobData, *, timeout: float | None, on_update: OnUpdate | None
    ) -> object:
        """Ask the workers, and wait until each has ended.

        Args:
            payload: What the jobs are about.
            timeout: Seconds they have, or None.
            on_update: Hears every update, if anybody does.

        Returns:
            What the LLM is told.

        Raises:
            JobError: If the requester stopped.
        """
        options = self._options
        partial = options.on_failure == "partial"
        self._group = group = self._requester.job_group(
            *options.workers,
            name=options.job,
            payload=payload,
            timeout=timeout,
            label=options.label,
            run_once=options.run_once,
            cancel_on_error=not partial,
        )
        outcomes: Mapping[str, JobOutcome]
        try:
            async with group:
                async for event in group:
                    if event.type == JobGroupEvent.UPDATE and event.data:
                        self._updates[event.worker_name] = event.data
                        if on_update is not None:
                            await on_update(event.worker_name, event.data)
            outcomes = group.outcomes
        except JobError as error:
            if has_stopped(error):
                raise
            if not partial:
                return report_failure(self._tool_name, error.outcomes)
            outcomes = error.outcomes
        asked = {name: outcomes[name] for name in options.workers}
        if options.render is not None:
            return await rendered(self._tool_name, options.render, asked)
        return report(self._tool_name, asked)
