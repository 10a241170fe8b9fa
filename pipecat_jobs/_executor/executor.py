"""What others asked of this worker."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Mapping
from contextlib import aclosing
from contextvars import copy_context
from copy import deepcopy
from functools import partial
from types import CoroutineType
from typing import Any, cast

from loguru import logger
from pipecat.bus.messages import (
    BusJobCancelMessage,
    BusJobRequestMessage,
    BusJobStreamDataMessage,
    BusJobStreamStartMessage,
    BusJobUpdateRequestMessage,
)
from pipecat.pipeline.job_context import JobStatus

from pipecat_jobs._executor.exchanges import Exchanges
from pipecat_jobs._executor.execution import Execution, ExecutionState, Slots, enter
from pipecat_jobs._executor.keys import Keys, Line
from pipecat_jobs._executor.open_jobs import list_held
from pipecat_jobs._executor.responses import Responses
from pipecat_jobs._executor.typed import TypedCall
from pipecat_jobs._protocol.deadline import JobDeadline
from pipecat_jobs._protocol.exchange import find_note
from pipecat_jobs._protocol.handlers import ConcurrencyLimit, HandlerSpec
from pipecat_jobs._protocol.headers import find_time_left, job_headers
from pipecat_jobs._protocol.hooks import JobHooks, Steps
from pipecat_jobs._protocol.interception import Interceptors
from pipecat_jobs._protocol.runtime import JobRuntime
from pipecat_jobs._protocol.signatures import InvalidPayloadError
from pipecat_jobs._protocol.statements import Statement, check_response
from pipecat_jobs._protocol.tasks import RunningTask, log_raised
from pipecat_jobs._protocol.text import describe
from pipecat_jobs.errors import (
    InvalidJobTypeError,
    JobRefusedError,
    LLMTurnError,
    LLMTurnInterruptedError,
    NoJobHandlerError,
)
from pipecat_jobs.interceptors import JobLifeEventKind
from pipecat_jobs.open_jobs import OpenJob
from pipecat_jobs.outcomes import CancelReason, ErrorDetails, JobData, JobRefusal

#: What a handler is called with and may give back.
_Call = Callable[[BusJobRequestMessage], Awaitable[object] | AsyncIterator[object]]
# Each job reads it, and reading a member from its enum is slow on Python 3.11.
_COMPLETED = JobStatus.COMPLETED
#: Finds a method of the worker by its name.
FindMethod = Callable[[str], _Call]


class Executor:
    """The executing half of a worker: its handlers and the jobs they run."""

    def __init__(
        self,
        runtime: JobRuntime,
        hooks: JobHooks,
        interceptors: Interceptors,
        responses: Responses,
        handlers: Mapping[str, HandlerSpec],
        find_method: FindMethod,
        *,
        limits: Mapping[str | None, ConcurrencyLimit],
        cancel_grace: float,
        stop_turns: Callable[[Execution], Coroutine[Any, Any, None]] | None,
        exchanges: Exchanges,
    ):
        self._runtime = runtime
        self._hooks = hooks
        self._interceptors = interceptors
        self._responses = responses
        self._exchanges = exchanges
        self._handlers = handlers
        self._find_method = find_method
        self._cancel_grace = cancel_grace
        self._stop_turns = stop_turns
        self._slots: dict[str | None, Slots] = {}
        for name, limit in limits.items():
            # Where several jobs of on_job_request run at once, they share the LLM turn.
            alone = name is None and limit.size == 1
            self._slots[name] = Slots(
                limit.size, until_response=limit.until_response, has_turn=alone
            )
        self._keys = {
            name: Keys(spec.key, self._replace) for name, spec in handlers.items() if spec.key
        }
        self.stopped = False

    # -- a job arrives -----------------------------------------------------------------------

    def on_request(self, message: BusJobRequestMessage, *, inactive: str | None) -> None:
        """Start a job, or refuse it at once."""
        job_id, job = message.job_id, (message.source, message.job_id)
        recent = self._responses.recent
        current = self._responses.requested(job_id)
        known = job in recent
        doubled = known and recent.get(job) == message.id
        if doubled or (current is not None and current.source == message.source):
            logger.warning(f"{self}: ignoring a second request for job '{job_id}'")
        elif self.stopped or self._responses.early_cancels.take(job):
            self._cancelled_before_it_ran(message)
        elif current is not None:
            why = f"job id '{job_id}' is in use by '{current.source}'"
            self._refuse(message, JobRefusal.ID_IN_USE, why)
        elif known:
            why = f"job id '{job_id}' was used before; give a new one"
            self._refuse(message, JobRefusal.ID_USED, why)
        elif inactive is not None:
            self._refuse(message, JobRefusal.INACTIVE, inactive)
        else:
            self._start(message)

    def _start(self, message: BusJobRequestMessage) -> None:
        spec = self._handlers.get(message.job_name) if message.job_name else None
        if spec is not None and spec.run_once and job_headers(message).attempt > 1:
            self._decline_repetition(message)
            return
        clock = self._runtime.clock()
        execution = Execution(message, clock())
        name, call = self._find_handler(spec, message)
        listened = self._hooks.listens("on_job_request")
        if call is None and message.job_name and not listened:
            known = ", ".join(f"'{known}'" for known in self._handlers) or "none"
            why = (
                f"worker '{self._runtime.name}' ({self._runtime.kind}) has no handler for "
                f"job '{message.job_name}'; its handlers: {known}"
            )
            self._refuse(message, JobRefusal.NO_HANDLER, why)
            return
        # An interceptor may replace the payload before the handler is called.
        if isinstance(call, TypedCall) and not self._interceptors.active:
            problem = call.find_problem()
            if problem is not None:
                self._refuse(message, JobRefusal.INVALID_PAYLOAD, problem)
                return
        if name in self._keys and not self._admit(execution, self._keys[name]):
            return
        slots = self._slots.get(name)
        if listened and name is None and slots is not None:
            call, listened = self._call_request_hooks, False
        time_left = find_time_left(message)
        if time_left is not None:
            execution.deadline = JobDeadline(execution.since + time_left, clock)
        self._responses.open(execution)
        if call is not None:
            execution.task = self._runtime.create_task(
                self._run(execution, call, slots), f"job_{name or 'request'}"
            )
        else:
            execution.leave_response()
        if listened:
            # The handlers of the event are handlers of the job: what they start is the job's.
            copy_context().run(self._announce_request, execution)

    def _announce_request(self, execution: Execution) -> None:
        enter(execution)
        self._hooks.announce("on_job_request", execution.request)

    def _admit(self, execution: Execution, keys: Keys) -> bool:
        request = execution.request
        if problem := keys.rule.find_problem(request.payload):
            self._refuse(request, JobRefusal.INVALID_PAYLOAD, problem)
            return False
        holder = keys.admit(execution)
        if holder is not None:
            held_by = holder.request.job_id
            why = f"worker '{self._runtime.name}' is busy with job '{held_by}' of the same key"
            self._refuse(request, JobRefusal.BUSY, why, held_by=held_by)
        return holder is None

    def _find_handler(
        self, spec: HandlerSpec | None, message: BusJobRequestMessage
    ) -> tuple[str | None, _Call | None]:
        if spec is not None:
            method = self._find_method(spec.attribute)
            if spec.signature is not None:
                return spec.job_name, TypedCall(spec.signature, method, message)
            return spec.job_name, method
        if self._hooks.overrides("on_job_request"):
            return None, self._find_method("on_job_request")
        return None, None

    def _call_request_hooks(
        self, message: BusJobRequestMessage
    ) -> Awaitable[object] | AsyncIterator[object]:
        """Call the event handlers and the override: all are handlers of the job in its slot."""
        self._hooks.announce("on_job_request", message)
        return self._find_method("on_job_request")(message)

    def _cancelled_before_it_ran(self, message: BusJobRequestMessage) -> None:
        response = None
        if self.stopped:
            reason = f"worker '{self._runtime.name}' has stopped"
            response = _cancelled(reason, CancelReason.WORKER_STOPPED)
        logger.debug(f"{self}: not running job '{message.job_id}': it was cancelled before")
        self._respond_at_once(message, JobStatus.CANCELLED, response)

    def _refuse(
        self,
        message: BusJobRequestMessage,
        refusal: JobRefusal,
        why: str,
        *,
        held_by: str | None = None,
    ) -> None:
        logger.warning(f"{self}: not running job '{message.job_id}': {why}")
        unknown = refusal is JobRefusal.NO_HANDLER
        status = JobStatus.ERROR if unknown else JobStatus.FAILED
        self._respond_at_once(message, status, _refused(refusal, why, held_by))

    def _decline_repetition(self, message: BusJobRequestMessage) -> None:
        # Not a refusal: the job may have begun, so that another worker must not be asked for it.
        why = (
            f"worker '{self._runtime.name}' does not begin job '{message.job_name}' again: its "
            "handler has run_once=True, and an earlier attempt may have begun"
        )
        logger.warning(f"{self}: not running job '{message.job_id}': {why}")
        response = ErrorDetails("JobError", why).to_response()
        self._respond_at_once(message, JobStatus.FAILED, response)

    def _respond_at_once(
        self, message: BusJobRequestMessage, status: JobStatus, response: JobData | None
    ) -> None:
        self._responses.recent.remember((message.source, message.job_id), message.id)
        # A task: a bus that is slow to take the response must not hold up the worker's messages.
        responding = self._responses.refuse(message, status, response)
        self._runtime.create_task(responding, "job_refused")

    # -- its handler runs --------------------------------------------------------------------

    async def _run(self, execution: Execution, call: _Call, slots: Slots | None) -> None:
        try:
            if execution.line is not None:
                if await self._steers_another(execution, execution.line):
                    return
                leader = await execution.line.wait(execution)
                if leader is not None:
                    await self._responses.share(leader, execution)
                    return
            if slots is not None:
                await execution.take_slot(slots)
            if execution.cancelled:
                # It got its turn before its cancel reached this task.
                return
            execution.begin()
            enter(execution)
            if self._interceptors.active:
                response = await self._call_intercepted(execution, call)
            else:
                response = await self._call_handler(execution, call, execution.request)
            if response is not None:
                check_response(response)
                await self._responses.finish(execution, _COMPLETED, response)
            else:
                execution.leave_response()
                if execution.turn_failure is not None:
                    raise execution.turn_failure
            if execution.line is not None or (slots is not None and slots.until_response):
                await execution.until_ended()
            if execution.turn_failure is not None:
                # The last event of its turn would be taken for one of the next job.
                await self._stop_its_turns(execution)
        except asyncio.CancelledError:
            if not execution.cancelled:
                # The job was not cancelled: the handler, or other code that has the task, did it.
                response = _cancelled("handler cancelled", CancelReason.HANDLER_CANCELLED)
                await self._end(execution, JobStatus.CANCELLED, response)
            raise
        except BaseException as error:
            # The execution's: a coroutine that is being closed is not run by its own task.
            RunningTask(execution.task).survive(error)
            await self._failed(execution, error)
        finally:
            # The task's context knows the job; without this they would keep each other alive.
            execution.task = None
            if not execution.cancelled:
                execution.free_slot()

    async def _steers_another(self, execution: Execution, line: Line) -> bool:
        """Let the payload of a job steer the open job of its key, and end it; False if none is."""
        request = execution.request
        while (steered := line.find_steered(execution)) is not None:
            job_id = steered.request.job_id
            data = deepcopy(request.payload or {})
            state, reason = await self._exchanges.steer(steered, data, request.source)
            if state == "accepted":
                await self._responses.finish(execution, _COMPLETED, {"steered": job_id})
                return True
            if state == "refused":
                response = _refused(JobRefusal.BUSY, f"job '{job_id}': {reason}", job_id)
                await self._responses.finish(execution, JobStatus.FAILED, response)
                return True
            line.steer_next(execution)
        return False

    async def _failed(self, execution: Execution, error: BaseException) -> None:
        job_id = execution.request.job_id
        if isinstance(error, LLMTurnInterruptedError):
            logger.debug(f"{self}: job '{job_id}' is cancelled: {error}")
            response = _cancelled(str(error), CancelReason.INTERRUPTED)
            await self._end(execution, JobStatus.CANCELLED, response)
        elif isinstance(error, InvalidPayloadError):
            logger.warning(f"{self}: not running job '{job_id}': {error}")
            response = _refused(JobRefusal.INVALID_PAYLOAD, str(error))
            await self._end(execution, JobStatus.FAILED, response)
        else:
            details = ErrorDetails.from_exception(error)
            status = JobStatus.ERROR
            if details.for_llm:
                status = JobStatus.FAILED
                logger.info(f"{self}: job '{job_id}' failed: {details}")
            else:
                log_raised(f"{self}: job '{job_id}' failed: {details}", error)
            await self._end(execution, status, details.to_response())
        await self._stop_its_turns(execution)

    async def _end(self, execution: Execution, status: JobStatus, response: JobData | None) -> None:
        task = RunningTask()
        try:
            await self._responses.finish(execution, status, response)
        except BaseException as error:
            task.survive(error)
            log_raised(f"{self}: could not respond to job '{execution.request.job_id}'", error)
            await self._respond_in_short(execution, status, error)

    async def _respond_in_short(
        self, execution: Execution, status: JobStatus, error: BaseException
    ) -> None:
        # The response may be what could not be sent; the requester gets a short one instead.
        reason = f"the response could not be sent: {type(error).__name__}"
        task = RunningTask()
        try:
            await self._responses.finish(execution, status, ErrorDetails("", reason).to_response())
        except BaseException as again:
            task.survive(again)
            # A job that stays open would keep its slot for ever.
            log_raised(f"{self}: job '{execution.request.job_id}' ends without a response", again)
            self._responses.forget(execution)

    def on_turn_failure(self, execution: Execution, failure: LLMTurnError) -> None:
        """End a job whose response was left to an LLM turn that failed."""
        execution.turn_failure = failure
        # A handler that still runs may respond without the turn.
        if execution.state is ExecutionState.RETURNED:
            self._runtime.create_task(self._failed(execution, failure), "job_turn_failed")

    async def _stop_its_turns(self, execution: Execution) -> None:
        if self._stop_turns is None:
            return
        stopping = self._runtime.create_task(self._stop_turns(execution), "job_turn")
        await asyncio.wait({stopping}, timeout=self._cancel_grace)
        if not stopping.done():
            logger.warning(
                f"{self}: the LLM turn of job '{execution.request.job_id}' has not stopped after "
                f"{self._cancel_grace:g} s; the job ends before it"
            )

    async def _call_intercepted(self, execution: Execution, call: _Call) -> JobData | None:
        request = execution.request
        error = None
        self._notify(JobLifeEventKind.BEGUN, request)
        try:
            run = partial(self._call_handler, execution, call)
            return await self._interceptors.handle(request, run)
        except BaseException as raised:
            error = ErrorDetails.from_exception(raised)
            raise
        finally:
            self._notify(JobLifeEventKind.HANDLER_ENDED, request, error)

    def _notify(
        self,
        kind: JobLifeEventKind,
        request: BusJobRequestMessage,
        error: ErrorDetails | None = None,
    ) -> None:
        self._interceptors.notify(
            kind, request.job_id, request.job_name, request.source, self._runtime.name, error=error
        )

    async def _call_handler(
        self, execution: Execution, call: _Call, request: BusJobRequestMessage
    ) -> JobData | None:
        if execution.exchange is not None:
            self._exchanges.begin(execution)
        result = call(request)
        if not isinstance(result, CoroutineType) and isinstance(result, AsyncIterator):
            await self._stream(execution, result)
            return None
        response = await result
        if isinstance(call, TypedCall):
            response = call.write(response)
        if response is not None and not isinstance(response, dict):
            raise InvalidJobTypeError(
                f"the handler returned {response!r}; return a dict, or None and respond with "
                "send_job_response()"
            )
        return cast("JobData | None", response)

    async def _stream(self, execution: Execution, chunks: AsyncIterator[object]) -> None:
        job_id = execution.request.job_id
        async with aclosing(cast(Any, chunks)):
            started = False
            async for chunk in chunks:
                if not started:
                    await self._responses.stream(BusJobStreamStartMessage, job_id, None)
                    started = True
                await self._responses.stream(BusJobStreamDataMessage, job_id, cast(JobData, chunk))
        if not execution.ended:
            if not started:
                await self._responses.stream(BusJobStreamStartMessage, job_id, None)
            await self._responses.stream_end(job_id, None)

    def list_open(self) -> Iterator[OpenJob]:
        """List the jobs that have no response."""
        return list_held(self._runtime.name, self._responses.all(), self._handlers)

    def on_update_request(self, message: BusJobUpdateRequestMessage) -> None:
        """Call the hooks for a requester that asks for an update, or take its note."""
        note = find_note(message)
        if note is not None:
            self._exchanges.on_note(message, note)
            return
        execution = self._asked_by(message)
        if execution is None:
            return
        event = "on_job_update_requested"
        if not self._hooks.overrides(event):
            self._hooks.announce(event, message)
            return
        execution.steps = execution.steps or Steps(self._runtime)
        execution.steps.run(partial(self._hooks.fire, event, message))

    # -- it is cancelled ---------------------------------------------------------------------

    def on_cancel(self, message: BusJobCancelMessage) -> None:
        """Cancel a job, or remember that it must not start."""
        job = (message.source, message.job_id)
        execution = self._asked_by(message)
        if execution is None and job not in self._responses.recent:
            # Cancels overtake requests: this one has arrived before its request.
            self._responses.early_cancels.remember(job, True)
        if execution is None or not execution.cancel():
            return
        # A task of its own: a handler that resists must not hold up the worker's other messages.
        self._runtime.create_task(self._cancel(execution, message), "job_cancelled")

    def _asked_by(
        self, message: BusJobCancelMessage | BusJobUpdateRequestMessage
    ) -> Execution | None:
        execution = self._responses.get(message.job_id)
        if execution is None or execution.request.source == message.source:
            return execution
        logger.warning(
            f"{self}: ignoring {describe(message)}: job '{message.job_id}' is not its sender's"
        )
        return None

    def _replace(self, execution: Execution, newer: Execution) -> None:
        request, reason = execution.request, f"replaced by job '{newer.request.job_id}'"
        message = BusJobCancelMessage(
            source=request.source, target=self._runtime.name, job_id=request.job_id, reason=reason
        )
        execution.cancel()
        response = _cancelled(reason, CancelReason.REPLACED)
        self._runtime.create_task(self._cancel(execution, message, response), "job_cancelled")

    async def _cancel(
        self, execution: Execution, message: BusJobCancelMessage, response: JobData | None = None
    ) -> None:
        self._cancel_handlers([execution])
        await self._wait_for_handlers([execution])
        await self._stop_its_turns(execution)
        if self._hooks.overrides("on_job_cancelled"):
            hook = self._runtime.create_task(
                self._hooks.fire("on_job_cancelled", message), "job_cancelled_hook"
            )
            await asyncio.wait({hook}, timeout=self._cancel_grace)
            if not hook.done():
                logger.warning(f"{self}: on_job_cancelled() of job '{message.job_id}' overruns")
        else:
            self._hooks.announce("on_job_cancelled", message)
        await self._end(execution, JobStatus.CANCELLED, response)
        execution.free_slot()

    def _cancel_handlers(self, executions: list[Execution]) -> None:
        for task in self._handlers_of(executions):
            task.cancel()

    async def _wait_for_handlers(self, executions: list[Execution]) -> None:
        tasks = self._handlers_of(executions)
        if not tasks:
            return
        _, resisting = await asyncio.wait(tasks, timeout=self._cancel_grace)
        for task in resisting:
            execution = tasks[task]
            logger.warning(
                f"{self}: handler of job '{execution.request.job_id}' resists cancellation for "
                f"{self._cancel_grace:g} s; the job ends without it"
            )

    @staticmethod
    def _handlers_of(executions: list[Execution]) -> dict[asyncio.Task[None], Execution]:
        return {
            execution.task: execution
            for execution in executions
            if execution.task is not None and execution.task is not asyncio.current_task()
        }

    async def stop(self) -> None:
        """Respond CANCELLED to every open job and stop its handler: the worker stops."""
        self.stopped = True
        executions = self._responses.all()
        # The handlers of the others have been cancelled, and may be cleaning up.
        newly_cancelled = [execution for execution in executions if execution.cancel()]
        reason = f"worker '{self._runtime.name}' stopped"
        response = _cancelled(reason, CancelReason.WORKER_STOPPED)
        task = RunningTask()
        for execution in executions:
            try:
                await asyncio.wait_for(
                    self._responses.finish(execution, JobStatus.CANCELLED, response),
                    self._cancel_grace,
                )
            except BaseException as error:
                task.survive(error)
                log_raised(f"{self}: could not respond to a job at its end", error)
            self._responses.forget(execution)
        self._cancel_handlers(newly_cancelled)
        await self._wait_for_handlers(executions)
        # A handler that resisted the first cancel may end with the second.
        self._cancel_handlers(executions)
        for execution in executions:
            execution.free_slot()

    def __str__(self) -> str:
        return f"Worker '{self._runtime.name}'"


def _cancelled(reason: str, cancel_reason: CancelReason) -> JobData:
    return Statement(cancel_reason=cancel_reason).add_to({"reason": reason})


def _refused(refusal: JobRefusal, why: str, held_by: str | None = None) -> JobData:
    # The names by which requesters of earlier releases recognize a refusal.
    kind = NoJobHandlerError if refusal is JobRefusal.NO_HANDLER else JobRefusedError
    stated = Statement(refusal=refusal, held_by=held_by)
    return stated.add_to(ErrorDetails(kind.__name__, why).to_response())
