"""The tools by which an LLM lists and cancels the open jobs of its worker."""

import time
from collections.abc import Iterable
from itertools import groupby
from operator import attrgetter
from typing import Any

from pipecat.services.llm_service import FunctionCallParams
from pipecat.workers.llm import tool

from pipecat_jobs._llm.mixin import JobsMixin
from pipecat_jobs.open_jobs import OpenJob
from pipecat_jobs.tools.call import check_requester, tool_call

#: Characters of a job's id that the LLM reads.
_SHORT_ID = 8
_BY_LLM = "cancelled by the LLM"


@tool
async def list_jobs(params: FunctionCallParams) -> None:
    """List the jobs that are running for the user, and how far each of them is.

    It is a tool to offer to the LLM of a worker of this package, whose open jobs it lists. The LLM
    reads the label or the name of each job, the beginning of its id, its workers, its seconds so
    far and until its deadline, and the latest update.

    Args:
        params: Pipecat's parameters of the call.

    Example::

        class Waiter(LLMContextWorker):
            def build_tools(self):
                return [*super().build_tools(), list_jobs, cancel_job]
    """
    async with tool_call(params) as call:
        jobs = _asked_by(check_requester(params.pipeline_worker, params.function_name))
        await call.finish({"jobs": _describe_all(jobs)})


@tool
async def cancel_job(params: FunctionCallParams, job: str) -> None:
    """Cancel a job that is running for the user.

    It is a tool to offer to the LLM of a worker of this package, whose jobs it cancels. A job that
    was asked with ``cancellable=False`` is left alone, and the LLM is told so.

    Args:
        params: Pipecat's parameters of the call.
        job: The title of the job, or its id, as list_jobs gives them.
    """
    async with tool_call(params) as call:
        worker = check_requester(params.pipeline_worker, params.function_name)
        found = [item for item in worker.open_jobs.find(job) if item.role == "asked"]
        ids = {item.id for item in found}
        if len(ids) != 1:
            problem = "Several jobs match" if ids else "No running job matches"
            jobs = _describe_all(found or _asked_by(worker))
            await call.finish({"error": f"{problem} {job!r}.", "jobs": jobs})
        elif not found[0].cancellable:
            await call.finish({"error": f"{found[0].title} cannot be cancelled."})
        else:
            await worker.cancel_job_group(found[0].id, reason=_BY_LLM)
            await call.finish({"cancelled": found[0].title})


def _asked_by(worker: JobsMixin) -> list[OpenJob]:
    return [job for job in worker.open_jobs if job.role == "asked"]


def _describe_all(jobs: Iterable[OpenJob]) -> list[dict[str, Any]]:
    by_id = groupby(sorted(jobs, key=attrgetter("since", "id")), key=attrgetter("id"))
    return [_describe(list(same_id)) for _, same_id in by_id]


def _describe(jobs: list[OpenJob]) -> dict[str, Any]:
    first, now = jobs[0], time.time()
    updates = {job.worker: job.last_update for job in jobs if job.last_update}
    described: dict[str, Any] = {
        "job": first.title,
        "id": first.id[:_SHORT_ID],
        "workers": {job.worker: str(job.state) for job in jobs},
        "seconds_so_far": round(now - first.since),
    }
    if first.deadline is not None:
        described["seconds_left"] = max(0, round(first.deadline - now))
    if updates:
        described["updates"] = updates
    return described
