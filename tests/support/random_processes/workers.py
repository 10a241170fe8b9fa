"""The workers of the processes in a plan."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any, Protocol

from pipecat.bus.messages import BusJobRequestMessage

from pipecat_jobs import BaseWorker, JobError, job
from support.random_processes.plan import NAMES, Ask, Kind
from support.random_processes.story import Actor, Asked, Run, worker_name


class Stage(Protocol):
    """The part of a stage that a handler needs."""

    def begin(self, worker: "PoolWorker", message: BusJobRequestMessage) -> Run: ...

    async def until_released(self, asked: Asked) -> None: ...

    async def ask_on_behalf(self, run: Run, worker: BaseWorker, ask: Ask) -> Asked: ...


class HandlerError(Exception):
    """The exception that a handler raises."""


class PoolWorker(BaseWorker):
    """A worker with a handler of every kind."""

    #: Seconds that a handler goes on for after it was cancelled, if it resists.
    RESISTS = 0.05
    REPORTS = 2

    def __init__(self, number: int, stage: Stage):
        super().__init__(worker_name(number))
        self._number = number
        self._stage = stage
        self.actor: Actor

    async def _work(self, message: BusJobRequestMessage, kind: Kind) -> dict[str, Any] | None:
        run = self._stage.begin(self, message)
        try:
            result = await self._do(run, kind)
        except BaseException as error:
            run.end = repr(error)
            raise
        run.end = "returned"
        return result

    async def _do(self, run: Run, kind: Kind) -> dict[str, Any] | None:
        match kind:
            case Kind.ECHO:
                return run.response
            case Kind.SILENT:
                return None
            case Kind.ENDLESS:
                await asyncio.Event().wait()
            case Kind.REPORT:
                await self._report(run)
                await self._stage.until_released(run.asked)
                await self._report(run)
            case Kind.RAISE:
                await self._stage.until_released(run.asked)
                raise HandlerError(str(run.number))
            case Kind.STUBBORN:
                try:
                    await self._stage.until_released(run.asked)
                except asyncio.CancelledError:
                    await asyncio.sleep(self.RESISTS)
            case Kind.DELEGATE:
                ask = Ask(run.actor.number, ((self._number + 1) % NAMES,), once=run.asked.ask.once)
                asked = await self._stage.ask_on_behalf(run, self, ask)
                if asked.error is not None:
                    raise asked.error
            case _:
                await self._stage.until_released(run.asked)
        return run.response

    async def _report(self, run: Run) -> None:
        for _ in range(self.REPORTS):
            run.reports += 1
            await self.send_job_update(run.message.job_id, {**run.response, "n": run.reports})

    @job(name=Kind.ECHO)
    async def echo(self, message: BusJobRequestMessage) -> object:
        return await self._work(message, Kind.ECHO)

    @job(name=Kind.HOLD)
    async def hold(self, message: BusJobRequestMessage) -> object:
        return await self._work(message, Kind.HOLD)

    @job(name=Kind.NARROW, max_concurrency=1)
    async def narrow(self, message: BusJobRequestMessage) -> object:
        return await self._work(message, Kind.NARROW)

    @job(name=Kind.PAY, run_once=True)
    async def pay(self, message: BusJobRequestMessage) -> object:
        return await self._work(message, Kind.PAY)

    @job(name=Kind.REPORT)
    async def report(self, message: BusJobRequestMessage) -> object:
        return await self._work(message, Kind.REPORT)

    @job(name=Kind.RAISE)
    async def fail(self, message: BusJobRequestMessage) -> object:
        return await self._work(message, Kind.RAISE)

    @job(name=Kind.STUBBORN)
    async def resist(self, message: BusJobRequestMessage) -> object:
        return await self._work(message, Kind.STUBBORN)

    @job(name=Kind.DELEGATE)
    async def delegate(self, message: BusJobRequestMessage) -> object:
        return await self._work(message, Kind.DELEGATE)

    @job(name=Kind.SILENT)
    async def say_nothing(self, message: BusJobRequestMessage) -> object:
        return await self._work(message, Kind.SILENT)

    @job(name=Kind.ENDLESS)
    async def never_end(self, message: BusJobRequestMessage) -> object:
        return await self._work(message, Kind.ENDLESS)

    @job(name=Kind.STREAM)
    async def stream(self, message: BusJobRequestMessage) -> AsyncIterator[dict[str, Any]]:
        run = self._stage.begin(self, message)
        try:
            for half in range(2):
                for _ in range(self.REPORTS):
                    run.reports += 1
                    yield {**run.response, "n": run.reports}
                if half == 0:
                    await self._stage.until_released(run.asked)
        except BaseException as error:
            run.end = repr(error)
            raise
        run.end = "returned"


async def see_through(requester: BaseWorker, asked: Asked) -> None:
    """Make a request and wait for its end; its exception is recorded, not raised."""
    ask = asked.ask
    keywords: dict[str, Any] = {
        "name": str(ask.kind),
        "payload": {"job": asked.number},
        "timeout": ask.timeout,
        "run_once": ask.once,
    }
    try:
        if len(asked.workers) == 1:
            async with requester.job(asked.workers[0], **keywords) as single:
                async for event in single:
                    asked.events.append((asked.workers[0], event.type, event.data))
            assert single.outcome is not None
            asked.outcomes = {asked.workers[0]: single.outcome}
        else:
            keywords["cancel_on_error"] = ask.cancel_on_error
            async with requester.job_group(*asked.workers, **keywords) as group:
                async for event in group:
                    asked.events.append((event.worker_name, event.type, event.data))
            asked.outcomes = dict(group.outcomes)
    except asyncio.CancelledError as error:
        asked.error = error
        if asked.parent is not None:
            raise
    except JobError as error:
        asked.error = error
        asked.outcomes = error.outcomes
    finally:
        asked.ended = asyncio.get_running_loop().time()
