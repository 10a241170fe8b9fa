"""The interceptors of one worker, as both halves call them."""

import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from inspect import iscoroutinefunction

from pipecat.bus.messages import BusJobRequestMessage

from pipecat_jobs._protocol.checks import check_instance
from pipecat_jobs._protocol.headers import JobHeaders, job_headers, set_headers
from pipecat_jobs._protocol.hooks import call_guarded
from pipecat_jobs.errors import InvalidJobError, InvalidJobTypeError
from pipecat_jobs.interceptors import (
    JobCall,
    JobInterceptor,
    JobLifeEvent,
    JobLifeEventKind,
    ProceedToAnswer,
    ProceedToAsk,
    ProceedToHandle,
)
from pipecat_jobs.outcomes import ErrorDetails, JobData, JobOutcome
from pipecat_jobs.params import check_data, check_payload_names, check_payloads
from pipecat_jobs.questions import JobQuestion
from pipecat_jobs.steering import SteerOutcome


def _check_replaced_payloads(call: JobCall) -> None:
    if call.payload is not None:
        raise InvalidJobError(
            "an interceptor's ask() gave the call payload and payloads; replace 'payloads' of a "
            "call that has them, and 'payload' of any other"
        )
    payloads = check_payloads("payloads", call.payloads)
    check_payload_names("payloads", payloads, call.worker_names)


class Interceptors:
    """The interceptors of a worker, the outermost first."""

    __slots__ = ("_all", "active")

    def __init__(self, interceptors: object, where: str):
        #: Whether there is one.
        self.active = False
        self._all: tuple[JobInterceptor, ...] = ()
        wanted = "a sequence of JobInterceptor objects"
        for interceptor in check_instance(where, interceptors, Sequence, wanted):
            self.add(interceptor, where)

    def add(self, interceptor: object, where: str) -> None:
        """Add the innermost interceptor; refuse what is not one."""
        checked = check_instance(where, interceptor, JobInterceptor, "a JobInterceptor")
        if iscoroutinefunction(checked.on_event):
            raise InvalidJobTypeError(
                f"{type(checked).__name__}.on_event() is 'async def'; make it 'def', and start a "
                "task in it for what has to wait"
            )
        self._all = (*self._all, checked)
        self.active = True

    def notify(
        self,
        kind: JobLifeEventKind,
        job_id: str,
        job_name: str | None,
        requester: str,
        worker: str,
        *,
        data: JobData | None = None,
        outcome: JobOutcome | None = None,
        error: ErrorDetails | None = None,
        steered: SteerOutcome | None = None,
    ) -> None:
        """Pass an event to every interceptor."""
        event = JobLifeEvent(
            kind=kind,
            job_id=job_id,
            job_name=job_name,
            requester=requester,
            worker=worker,
            time=time.time(),
            data=data,
            outcome=outcome,
            error=error,
            steered=steered,
        )
        for interceptor in self._all:
            where = f"{type(interceptor).__name__}.on_event()"
            call_guarded(where, partial(interceptor.on_event, event))

    async def ask(self, call: JobCall, send: ProceedToAsk) -> None:
        """Send a call's requests through every ``ask()``; raise where that leaves them unsent."""
        begun = sent = False

        async def proceed(given: JobCall) -> None:
            nonlocal begun, sent
            if begun:
                raise InvalidJobError("an interceptor's ask() awaits proceed() once, not again")
            begun = True
            kept = replace(
                given, payload=call.payload, payloads=call.payloads, headers=call.headers
            )
            if kept != call:
                raise InvalidJobError(
                    "an interceptor's ask() may replace the call's payload, payloads and headers, "
                    "no other field"
                )
            check_data("payload", given.payload)
            if given.payloads is not None:
                _check_replaced_payloads(given)
            check_instance("headers", given.headers, JobHeaders, "a JobHeaders")
            await send(given)
            sent = True

        wrapped: ProceedToAsk = proceed
        for interceptor in reversed(self._all):
            wrapped = partial(interceptor.ask, proceed=wrapped)
        await wrapped(call)
        if not sent:
            raise InvalidJobError(
                "an interceptor's ask() returned and the requests were not sent; await "
                "proceed(call), or raise an exception to refuse the call"
            )

    async def handle(self, request: BusJobRequestMessage, run: ProceedToHandle) -> JobData | None:
        """Run a handler through every ``handle()``; give what is to be the response."""
        proceeded = False

        async def proceed(given: BusJobRequestMessage) -> JobData | None:
            nonlocal proceeded
            proceeded = True
            if given is not request:
                if (given.job_id, given.source) != (request.job_id, request.source):
                    raise InvalidJobError(
                        "an interceptor's handle() may replace the request's payload, not its "
                        "job_id or source"
                    )
                # A copy made by dataclasses.replace() has none.
                set_headers(given, job_headers(request))
            return await run(given)

        wrapped: ProceedToHandle = proceed
        for interceptor in reversed(self._all):
            wrapped = partial(interceptor.handle, proceed=wrapped)
        response = check_data("the response of handle()", await wrapped(request))
        if response is None and not proceeded:
            raise InvalidJobError(
                "an interceptor's handle() returned None and the handler has not run; await "
                "proceed(request), or return a dict as the response"
            )
        return response

    async def answer(self, question: JobQuestion, run_hook: ProceedToAnswer) -> object:
        """Pass a question through every ``answer()``; give the answer, None if it comes later."""
        wrapped = run_hook
        for interceptor in reversed(self._all):
            wrapped = partial(interceptor.answer, proceed=wrapped)
        return await wrapped(question)
