"""Runs the jobs of one call of a tool, and makes the result from their outcomes."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from copy import deepcopy

from pipecat.pipeline.job_context import JobGroupEvent

from pipecat_jobs._llm.mixin import JobsMixin
from pipecat_jobs._requester.scopes import JobGroupContext
from pipecat_jobs.errors import JobError
from pipecat_jobs.outcomes import JobData, JobOutcome
from pipecat_jobs.steering import SteerOutcome
from pipecat_jobs.tools.options import JobToolOptions
from pipecat_jobs.tools.progress import JobToolProgress
from pipecat_jobs.tools.results import has_stopped, render_result, report, report_failure

#: Called with a worker's name and its update.
OnUpdate = Callable[[str, JobData], Awaitable[None]]


class Dispatch:
    """The jobs of one call."""

    def __init__(self, tool_name: str, requester: JobsMixin, options: JobToolOptions):
        self._tool_name = tool_name
        self._requester = requester
        self._options = options
        self._clock = asyncio.get_running_loop().time
        self._began = self._clock()
        self._group: JobGroupContext | None = None
        self._updates: dict[str, JobData] = {}

    def progress(self) -> JobToolProgress:
        """Return the progress of the jobs at this moment."""
        outcomes = self._group.outcomes if self._group else {}
        responses = {name: o.response or {} for name, o in outcomes.items() if o.completed}
        return JobToolProgress(self._clock() - self._began, responses, dict(self._updates))

    async def steer(self, data: JobData) -> Mapping[str, SteerOutcome]:
        """Steer the jobs that have not ended; give what became of it, by worker."""
        group, names = self._group, self._options.workers
        if group is None:
            return {}
        open_names = [name for name in names if name not in group.outcomes]
        outcomes = await asyncio.gather(
            *(
                self._requester.steer(group.job_id, deepcopy(data), worker_name=name)
                for name in open_names
            )
        )
        return dict(zip(open_names, outcomes, strict=True))

    async def run(
        self,
        payload: JobData,
        *,
        timeout: float | None,
        on_update: OnUpdate | None,
        awaited: set[str],
    ) -> object:
        """Run the jobs and return the tool's result; raise JobError if the requester stopped.

        ``awaited`` has the id of the jobs meanwhile.
        """
        options = self._options
        partial = options.on_failure == "partial"
        partial_after = options.partial_after
        if partial_after is not None and timeout is not None and partial_after >= timeout:
            # The tool's function took the time before the jobs, so the deadline comes first.
            partial_after = None
        self._group = group = self._requester.job_group(
            *options.workers,
            name=options.job,
            payload=payload,
            timeout=timeout,
            label=options.label,
            run_once=options.run_once,
            retry=options.retry,
            need=options.need,
            partial_after=partial_after,
            hedge_after=options.hedge_after,
            # Another need says itself how many may fail.
            cancel_on_error=not partial if options.need == "all" else None,
        )
        outcomes: Mapping[str, JobOutcome]
        try:
            async with group:
                awaited.add(group.job_id)
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
        finally:
            awaited.discard(group.job_id)
        asked = {name: outcomes[name] for name in options.workers}
        if options.render is not None:
            return await render_result(self._tool_name, options.render, asked)
        return report(self._tool_name, asked)
