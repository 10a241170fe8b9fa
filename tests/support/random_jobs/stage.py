"""Plays a plan on virtual time, up to its finale."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from typing import Any

from pipecat.bus import (
    BusActivateWorkerMessage,
    BusCancelWorkerMessage,
    BusDeactivateWorkerMessage,
    BusEndWorkerMessage,
    BusJobCancelMessage,
    BusJobRequestMessage,
    BusJobResponseMessage,
    BusJobStreamEndMessage,
    BusJobUpdateMessage,
)
from pipecat.pipeline.job_context import JobStatus

from pipecat_jobs import BaseWorker, JobError, UnknownJobError
from pipecat_jobs.testing import ChaosBus, Faults, JobHarness, LeftBehindError, run_virtual
from support.random_jobs.plan import (
    FINALE_AT,
    LATER,
    LINGER,
    LONG_BODY,
    RESPONDS,
    REST,
    SLOW_HOOK,
    Action,
    Body,
    Call,
    Ending,
    Forge,
    Forgery,
    Form,
    Hooks,
    Lose,
    Moment,
    Plan,
    Request,
    Route,
    Stop,
    Toggle,
)
from support.random_jobs.story import Asked, BodyError, HandlerError, Run, Story, worker_name
from support.random_jobs.workers import make_worker


class _Harness(JobHarness):
    """Ignores what Pipecat's own workers leave behind, which this package cannot change."""

    def __init__(self, bus: ChaosBus, plain: list[str]):
        super().__init__(bus, timeout=REST)
        self._plain = plain

    def left_behind(self) -> list[str]:
        return [
            thing
            for thing in super().left_behind()
            if not any(f"'{name}" in thing for name in self._plain)
        ]


class Stage:
    """Plays a plan."""

    def __init__(self, plan: Plan):
        self.plan = plan
        self.story = Story(plan)
        self.bus = ChaosBus(seed=plan.seed, faults=plan.faults or Faults())
        self.clock = asyncio.get_running_loop().time
        self.workers = [make_worker(n, each, self) for n, each in enumerate(plan.workers)]
        self.callers: list[asyncio.Task[None]] = []

    async def play(self) -> Story:
        plain = [worker_name(n) for n, each in enumerate(self.plan.workers) if each.plain]
        asyncio.get_running_loop().set_exception_handler(
            lambda _, context: self.story.loop_errors.append(repr(context))
        )
        try:
            async with _Harness(self.bus, plain) as self.harness:
                early = [n for n, each in enumerate(self.plan.workers) if not each.starts_at]
                late = [n for n in range(len(self.workers)) if n not in early]
                await self.harness.start(*(self.workers[n] for n in early))
                acts = [
                    *(asyncio.create_task(self._start_late(n)) for n in late),
                    *(asyncio.create_task(self._act(action)) for action in self.plan.actions),
                ]
                await asyncio.sleep(FINALE_AT)
                await self._finale()
                self._note_the_end(acts)
        except LeftBehindError as error:
            self.story.left_behind = error.things
        return self.story

    async def _start_late(self, number: int) -> None:
        await asyncio.sleep(self.plan.workers[number].starts_at)
        await self.harness.start(self.workers[number])

    async def _until(self, moment: Moment) -> None:
        await asyncio.sleep(moment.seconds)
        for _ in range(moment.turns):
            await asyncio.sleep(0)

    # -- the actions

    async def _act(self, action: Action) -> None:
        await self._until(action.at)
        match action:
            case Call():
                await self._call(action)
            case Stop():
                await self._stop(worker_name(action.worker), gracefully=action.gracefully)
            case Lose():
                requester: Any = self.workers[action.requester]
                name = worker_name(action.worker)
                self.story.lost.setdefault((requester.name, name), self.clock())
                await requester.worker_lost(name, reason="said so")
            case Toggle():
                name = worker_name(action.worker)
                await self.bus.send(
                    BusActivateWorkerMessage(source="director", target=name)
                    if action.active
                    else BusDeactivateWorkerMessage(source="director", target=name)
                )
            case Forge():
                await self._forge(action.what)

    async def _stop(self, name: str, *, gracefully: bool = True) -> None:
        message_class = BusEndWorkerMessage if gracefully else BusCancelWorkerMessage
        self.story.stopped.setdefault(name, self.clock())
        await self.bus.send(message_class(source="director", target=name))

    async def _forge(self, what: Forgery) -> None:
        if not self.story.asked or self.story.asked[-1].job_id is None:
            return
        asked = self.story.asked[-1]
        forged = {"forged": True}
        about: dict[str, Any] = {"source": "unrelated", "job_id": asked.job_id}
        match what:
            case Forgery.RESPONSE:
                message = BusJobResponseMessage(
                    **about, target=asked.requester, status=JobStatus.COMPLETED, response=forged
                )
            case Forgery.STREAM_END:
                message = BusJobStreamEndMessage(**about, target=asked.requester, data=forged)
            case Forgery.UPDATE:
                message = BusJobUpdateMessage(**about, target=asked.requester, update=forged)
            case Forgery.CANCEL:
                message = BusJobCancelMessage(**about, target=asked.workers[0], reason="forged")
        await self.bus.send(message)

    async def _call(self, call: Call) -> None:
        requester: Any = self.workers[call.requester]
        asked = self._begin(requester, call.request, None)
        call_task = asyncio.create_task(self._ask(requester, asked))
        self.callers.append(call_task)
        extras: list[asyncio.Task[None]] = []

        async def cancel(moment: Moment) -> None:
            await self._until(moment)
            if not call_task.done():
                asked.cancelled_at = self.clock()
                call_task.cancel()

        async def cancel_group(moment: Moment) -> None:
            await self._until(moment)
            if asked.job_id is not None:
                if asked.job_id in requester.job_groups:
                    self._note_group_cancelled(requester.name, asked.job_id)
                await requester.cancel_job_group(asked.job_id, reason="group cancelled")

        async def nudge(moment: Moment) -> None:
            await self._until(moment)
            if asked.job_id is not None:
                with contextlib.suppress(UnknownJobError):
                    await requester.request_job_update(asked.job_id, asked.workers[0])

        for moment, act in (
            (call.cancelled, cancel),
            (call.group_cancelled, cancel_group),
            (call.nudged, nudge),
        ):
            if moment is not None:
                extras.append(asyncio.create_task(act(moment)))
        await asyncio.wait({call_task, *extras})
        for extra in extras:
            extra.result()

    def _note_group_cancelled(self, requester: str, job_id: str) -> None:
        for asked in self.story.asked:
            is_meant = asked.requester == requester and asked.job_id == job_id
            if is_meant and asked.ended is None and asked.group_cancelled_at is None:
                asked.group_cancelled_at = self.clock()

    # -- the side of the requester

    def _begin(self, requester: Any, request: Request, parent: Run | None) -> Asked:
        asked = Asked(
            number=len(self.story.asked),
            request=request,
            requester=requester.name,
            job_id=request.job_id,
            started=self.clock(),
            parent=parent,
        )
        self.story.asked.append(asked)
        return asked

    async def _ask(self, requester: Any, asked: Asked) -> None:
        """Make a request and wait for its end; its exception is recorded, not raised."""
        asked.started = self.clock()
        try:
            await self._in_its_form(requester, asked)
        except BaseException as error:
            asked.error = error
            if isinstance(error, JobError):
                asked.job_id = asked.job_id or error.job_id
                asked.outcomes = error.outcomes
        finally:
            asked.ended = self.clock()

    async def _in_its_form(self, requester: Any, asked: Asked) -> None:
        request = asked.request
        keywords: dict[str, Any] = {
            "name": None if request.route is Route.UNNAMED else str(request.route),
            "payload": {"request": asked.number},
            "timeout": request.timeout,
            "job_id": request.job_id,
        }
        if request.form not in (Form.JOB, Form.REQUEST_JOB):
            keywords["cancel_on_error"] = request.cancel_on_error
        match request.form:
            case Form.JOB:
                context = requester.job(asked.workers[0], **keywords)
                asked.job_id = context.job_id
                await self._inside(asked, context)
                asked.outcomes = {asked.workers[0]: context.outcome}
                asked.responses = {asked.workers[0]: context.response}
            case Form.JOB_GROUP:
                context = requester.job_group(*asked.workers, **keywords)
                asked.job_id = context.job_id
                await self._inside(asked, context)
                asked.outcomes, asked.responses = dict(context.outcomes), dict(context.responses)
            case Form.REQUEST_JOB:
                asked.job_id = await requester.request_job(asked.workers[0], **keywords)
                asked.group = requester.job_groups.get(asked.job_id)
            case Form.REQUEST_JOB_GROUP:
                asked.job_id = await requester.request_job_group(*asked.workers, **keywords)
                asked.group = requester.job_groups.get(asked.job_id)
            case Form.CREATE_AND_WAIT:
                group = await requester.create_job_group_and_request_job(asked.workers, **keywords)
                asked.job_id, asked.group = group.job_id, group
                try:
                    await group.wait()
                except asyncio.CancelledError:
                    # As after request_job(): without a context the requester has to cancel the job.
                    await requester.cancel_job_group(group.job_id, reason="caller cancelled")
                    raise
                asked.outcomes, asked.responses = dict(group.outcomes), dict(group.responses)

    async def _inside(self, asked: Asked, context: Any) -> None:
        async with context as events:
            asked.entered = True
            try:
                await self._body(asked, events)
            finally:
                asked.body_ended = self.clock()

    async def _body(self, asked: Asked, events: Any) -> None:
        match asked.request.body:
            case Body.PASSES:
                pass
            case Body.LISTENS:
                asked.events.extend([event async for event in events])
            case Body.LISTENS_ONCE:
                async for event in events:
                    asked.events.append(event)
                    break
            case Body.LISTENS_AGAIN:
                asked.events.extend([event async for event in events])
                asked.late_events.extend([event async for event in events])
            case Body.TAKES_LONG:
                await asyncio.sleep(LONG_BODY)
            case Body.RAISES:
                await asyncio.sleep(LONG_BODY)
                raise BodyError

    # -- the side of the handler

    @contextlib.contextmanager
    def _running(self, worker: Any, message: BusJobRequestMessage) -> Iterator[Run]:
        assert message.payload is not None
        asked = self.story.asked[message.payload["request"]]
        work = asked.request.works[asked.workers.index(worker.name)]
        run = Run(worker.name, message, asked, work, self.clock(), asyncio.current_task())
        self.story.runs.append(run)
        try:
            yield run
        except GeneratorExit:
            raise
        except BaseException as error:
            run.raised = error
            raise
        finally:
            run.ended = self.clock()

    async def work(self, worker: Any, message: BusJobRequestMessage) -> object:
        """Do what the `Work` of the request says, as an ordinary handler."""
        with self._running(worker, message) as run:
            for _ in range(run.work.reports):
                run.reports += 1
                await worker.send_job_update(message.job_id, {**run.response, "n": run.reports})
            await self._labour(worker, run)
            return await self._end(worker, run)

    async def stream(
        self, worker: Any, message: BusJobRequestMessage
    ) -> AsyncIterator[dict[str, Any]]:
        """Do what the `Work` of the request says, as an async generator."""
        with self._running(worker, message) as run:
            for _ in range(run.work.reports):
                run.reports += 1
                yield {**run.response, "n": run.reports}
            await self._labour(worker, run)
            result = await self._end(worker, run)
            if result is not None:
                run.reports += 1
                yield {**run.response, "n": run.reports} if isinstance(result, dict) else result
            run.sent_statuses.append(JobStatus.COMPLETED)

    async def _labour(self, worker: Any, run: Run) -> None:
        try:
            await asyncio.sleep(run.work.takes)
            if run.work.asks is not None and not isinstance(worker, BaseWorker):
                return  # Pipecat's own requesters are not tested here
            if run.work.asks is not None:
                asked = self._begin(worker, run.work.asks, run)
                await self._ask(worker, asked)
                if asked.error is not None:
                    raise asked.error
        except asyncio.CancelledError:
            if not run.work.resists:
                raise
            run.resisted = True
            await asyncio.sleep(run.work.resists)

    async def _end(self, worker: Any, run: Run) -> object:
        job_id = run.message.job_id

        async def respond(status: JobStatus = JobStatus.COMPLETED, urgent: bool = False) -> None:
            run.sent_statuses.append(status)
            await worker.send_job_response(job_id, run.response, status=status, urgent=urgent)

        match run.work.ending:
            case Ending.RETURNS:
                run.sent_statuses.append(JobStatus.COMPLETED)
                return run.response
            case Ending.RESPONDS:
                await respond()
            case Ending.RESPONDS_URGENTLY:
                await respond(urgent=True)
            case Ending.RESPONDS_TWICE:
                await respond()
                await respond()
            case Ending.LINGERS:
                await respond()
                await asyncio.sleep(LINGER)
            case Ending.RESPONDS_LATER:

                async def later() -> None:
                    await asyncio.sleep(LATER)
                    with contextlib.suppress(RuntimeError):
                        await respond()

                worker.create_task(later(), "responding_later")
            case Ending.STREAMS:
                await worker.send_job_stream_start(job_id, run.response)
                await worker.send_job_stream_data(job_id, run.response)
                run.sent_statuses.append(JobStatus.COMPLETED)
                await worker.send_job_stream_end(job_id, run.response)
            case Ending.FAILS:
                await respond(JobStatus.FAILED)
            case Ending.ERRS:
                await respond(JobStatus.ERROR)
            case Ending.RAISES:
                raise HandlerError(str(run))
            case Ending.GIVES_UP:
                raise asyncio.CancelledError
            case Ending.RETURNS_JUNK:
                return 42
            case Ending.SAYS_NOTHING:
                pass
            case Ending.NEVER_ENDS:
                # A handler that ignores one cancellation still ends in bounded time.
                if not run.resisted:
                    await asyncio.Event().wait()
        return None

    async def hook(self, worker: Any, name: str, job_id: str, source: str) -> None:
        """An ``on_job_*`` override."""
        self.story.hooks.append((worker.name, name, job_id, source))
        match self.plan.workers[self.workers.index(worker)].hooks:
            case Hooks.RAISE:
                raise HandlerError(name)
            case Hooks.SLOW:
                await asyncio.sleep(SLOW_HOOK)
            case _:
                pass

    # -- the end

    async def _finale(self) -> None:
        for asked in self.story.asked:
            group = asked.group
            if asked.ended is None:
                asked.finale = True
            elif group is not None and not group.is_done:
                asked.finale = True
                requester: Any = self.harness.runner.get_worker(asked.requester)
                await requester.cancel_job_group(asked.job_id, reason="finale")
        for call_task in self.callers:
            call_task.cancel()
        # Pipecat's own workers do not always stop their handlers, and may keep jobs for ever.
        for run in self.story.runs:
            if self._is_plain(run.worker) and run.task is not None:
                run.task.cancel()
        for worker in self.workers:
            if self._is_plain(worker.name) or self.plan.loses_messages:
                # If a cancel may have been lost, only the end of the worker surely ends its jobs.
                await self._stop(worker.name)
        await asyncio.sleep(REST)

    def _is_plain(self, name: str) -> bool:
        return any(w.name == name and not isinstance(w, BaseWorker) for w in self.workers)

    def _note_the_end(self, acts: list[asyncio.Task[None]]) -> None:
        story = self.story
        story.never_ended = [
            *(str(asked) for asked in story.asked if asked.ended is None),
            *(str(run) for run in story.runs if run.ended is None),
        ]
        for act in acts:
            if act.done() and not act.cancelled() and (error := act.exception()) is not None:
                story.loop_errors.append(f"{act.get_coro()}: {error!r}")
        delivered = {id(message) for message in self.bus.delivered}
        for message in self.bus.sent:
            is_response = isinstance(message, RESPONDS)
            if is_response and id(message) in delivered and message.source != "unrelated":
                story.sent_responses.append((message.source, str(message.target), message.job_id))


def run_plan(plan: Plan) -> Story:
    """Play a plan from beginning to end on virtual time."""

    async def main() -> Story:
        return await Stage(plan).play()

    return run_virtual(main())
