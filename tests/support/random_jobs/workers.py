"""The workers of a plan: ours or plain Pipecat's, with or without hooks."""

import contextlib
from collections.abc import AsyncIterator
from functools import cache
from typing import TYPE_CHECKING, Any

from pipecat.bus import (
    BusJobCancelMessage,
    BusJobRequestMessage,
    BusJobResponseMessage,
    BusJobStreamEndMessage,
    BusJobUpdateMessage,
    BusMessage,
)
from pipecat.pipeline.job_context import JobGroupResponse
from pipecat.workers.base_worker import BaseWorker as PipecatWorker

from pipecat_jobs import BaseWorker, job
from support.random_jobs.plan import (
    Hooks,
    Route,
    WorkerPlan,
)
from support.random_jobs.story import worker_name

if TYPE_CHECKING:
    from support.random_jobs.stage import Stage


class _Handlers:
    """The handlers of every worker; the `Work` of the request says what they do."""

    stage: "Stage"

    @job(name=Route.FREE)
    async def free(self, message: BusJobRequestMessage) -> object:
        return await self.stage.work(self, message)

    @job(name=Route.SEQUENTIAL, sequential=True)
    async def one_at_a_time(self, message: BusJobRequestMessage) -> object:
        return await self.stage.work(self, message)

    @job(name=Route.NARROW, max_concurrency=1)
    async def one_open_at_a_time(self, message: BusJobRequestMessage) -> object:
        return await self.stage.work(self, message)

    @job(name=Route.STREAM)
    async def streaming(self, message: BusJobRequestMessage) -> AsyncIterator[dict[str, Any]]:
        async with contextlib.aclosing(self.stage.stream(self, message)) as chunks:
            async for chunk in chunks:
                yield chunk


class _TakesUnnamed:
    stage: "Stage"

    async def on_job_request(self, message: BusJobRequestMessage) -> object:
        return await self.stage.work(self, message)


class _Hooked:
    """Overrides every hook of a requester and of a worker."""

    stage: "Stage"

    async def on_job_response(self, message: BusJobResponseMessage) -> None:
        await self.stage.hook(self, "on_job_response", message.job_id, message.source)

    async def on_job_stream_end(self, message: BusJobStreamEndMessage) -> None:
        await self.stage.hook(self, "on_job_stream_end", message.job_id, message.source)

    async def on_job_update(self, message: BusJobUpdateMessage) -> None:
        await self.stage.hook(self, "on_job_update", message.job_id, message.source)

    async def on_job_error(self, message: BusJobResponseMessage) -> None:
        await self.stage.hook(self, "on_job_error", message.job_id, message.source)

    async def on_job_completed(self, result: JobGroupResponse) -> None:
        await self.stage.hook(self, "on_job_completed", result.job_id, "")

    async def on_job_cancelled(self, message: BusJobCancelMessage) -> None:
        await self.stage.hook(self, "on_job_cancelled", message.job_id, message.source)

    async def on_job_update_requested(self, message: BusMessage) -> None:
        await self.stage.hook(self, "on_job_update_requested", "", message.source)


@cache
def _worker_class(
    plain: bool,
    hooked: bool,
    takes_unnamed: bool,
    one_unnamed_at_a_time: bool,
    takes_jobs_when_inactive: bool,
) -> type[PipecatWorker]:
    bases: list[type] = [_Handlers]
    if hooked:
        bases.append(_Hooked)
    if takes_unnamed:
        bases.append(_TakesUnnamed)
    bases.append(PipecatWorker if plain else BaseWorker)
    settings = {
        "job_request_concurrency": 1 if one_unnamed_at_a_time else None,
        "takes_jobs_when_inactive": takes_jobs_when_inactive,
    }
    return type("Actor", tuple(bases), settings)


def make_worker(number: int, plan: WorkerPlan, stage: "Stage") -> PipecatWorker:
    worker_class = _worker_class(
        plan.plain,
        plan.hooks is not Hooks.NONE and not plan.plain,
        plan.takes_unnamed,
        plan.one_unnamed_at_a_time,
        plan.takes_jobs_when_inactive,
    )
    worker: Any = worker_class(worker_name(number), active=plan.active)
    worker.stage = stage
    return worker
