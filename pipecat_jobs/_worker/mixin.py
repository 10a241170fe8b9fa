"""The one place that knows Pipecat's worker: its methods in front, our two halves behind."""

from collections.abc import Callable, Sequence
from functools import cached_property, partial
from typing import Any, ClassVar, Literal, Protocol, TypeAlias, TypeVar, Unpack, overload

from loguru import logger
from pipecat.bus.messages import (
    BusCancelWorkerMessage,
    BusJobCancelMessage,
    BusJobRequestMessage,
    BusJobResponseMessage,
    BusJobResponseUrgentMessage,
    BusJobStreamDataMessage,
    BusJobStreamEndMessage,
    BusJobStreamStartMessage,
    BusJobUpdateMessage,
    BusJobUpdateRequestMessage,
    BusJobUpdateUrgentMessage,
    BusMessage,
)
from pipecat.pipeline.job_context import JobGroup as PipecatJobGroup
from pipecat.pipeline.job_context import JobGroupParams as PipecatJobGroupParams
from pipecat.pipeline.job_context import JobParams as PipecatJobParams
from pipecat.workers.base_worker import BaseWorker

from pipecat_jobs._executor.exchanges import Exchanges
from pipecat_jobs._executor.execution import Execution, find_current_job
from pipecat_jobs._executor.executor import Executor
from pipecat_jobs._executor.questions import Questions
from pipecat_jobs._executor.responses import Responses
from pipecat_jobs._pipecat import call_event_handlers
from pipecat_jobs._protocol.affinity import Affinity, check_affinity
from pipecat_jobs._protocol.checks import check_delay
from pipecat_jobs._protocol.delivery import IgnoresOthers
from pipecat_jobs._protocol.handlers import collect_handlers, find_limits, prepare_handlers
from pipecat_jobs._protocol.hooks import guarded
from pipecat_jobs._protocol.interception import Interceptors
from pipecat_jobs._protocol.messages import JobMessage, find_problem, is_job_message
from pipecat_jobs._protocol.requests import JobRequest, add_request
from pipecat_jobs._protocol.text import describe
from pipecat_jobs._requester.call import Call
from pipecat_jobs._requester.requester import CreateGroup, Requester
from pipecat_jobs._requester.scopes import JobContext, JobGroupContext
from pipecat_jobs._worker.bases import check_order
from pipecat_jobs._worker.exchanging import Exchanging
from pipecat_jobs._worker.hooks import WorkerHooks
from pipecat_jobs._worker.others import Departure
from pipecat_jobs._worker.responding import Responding
from pipecat_jobs._worker.runtime import WorkerRuntime
from pipecat_jobs.errors import DuplicateWorkerError, LLMTurnError
from pipecat_jobs.interceptors import JobInterceptor
from pipecat_jobs.open_jobs import OpenJobs
from pipecat_jobs.params import (
    JobGroupKeywords,
    JobKeywords,
    check_workers,
    group_params,
)

R = TypeVar("R")

#: Is told of a job whose LLM turn failed.
TurnFailed: TypeAlias = Callable[[Execution, LLMTurnError], None]


class Turns(Protocol):
    """What the door asks of the LLM turns of a worker."""

    async def stop_job(self, job: Execution) -> None:
        """Stop the turns that a job has started."""
        ...

    def end(self) -> None:
        """End every turn: the worker stops."""
        ...


class WorkerJobs(Responding, Exchanging, IgnoresOthers):
    """Jobs for any worker; :class:`~pipecat_jobs.JobsMixin` adds what an LLM makes of them."""

    # Made on first use: a constructor that runs before the mixin's may add event handlers.
    __hooks = cached_property(WorkerHooks)

    takes_jobs_when_inactive: ClassVar[bool] = True
    job_request_concurrency: ClassVar[int | Literal["auto"] | None] = "auto"
    job_affinity: ClassVar[Affinity | Literal["auto"] | None] = "auto"
    job_cancel_grace: ClassVar[float] = 1.0
    job_interceptors: ClassVar[Sequence[JobInterceptor]] = ()

    def __init_subclass__(cls, **kwargs: Any):
        super().__init_subclass__(**kwargs)
        check_order(cls, WorkerJobs)
        collect_handlers(cls)
        check_affinity(cls.job_affinity, cls)

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        limits = find_limits(self)
        grace = check_delay(f"{type(self).__name__}.job_cancel_grace", self.job_cancel_grace)
        hooks = self.__hooks
        where = f"{type(self).__name__}.job_interceptors"
        self.__interceptors = interceptors = Interceptors(self.job_interceptors, where)
        self._job_departure = Departure()
        runtime = WorkerRuntime(self)
        self._job_requester = self.__requester = Requester(
            runtime,
            hooks,
            interceptors,
            # Pipecat's own, where its workers look their groups up.
            self.job_groups,
            cancel_group=lambda job_id, reason: self.cancel_job_group(job_id, reason=reason),
            create_group=self.__find_own_create_group(),
            find_current_job=find_current_job,
            on_question=lambda question: self.on_job_question(question),
        )
        self._job_responses = Responses(runtime, self.active_jobs)
        exchanges = Exchanges(
            runtime, self._job_responses, lambda steer: self.on_job_steered(steer)
        )
        self._job_questions = Questions(self._job_responses, exchanges)
        self.__turns = turns = self._make_turns(
            lambda job, failure: executor.on_turn_failure(job, failure)
        )
        self.__executor = executor = Executor(
            runtime,
            hooks,
            interceptors,
            self._job_responses,
            prepare_handlers(type(self)),
            partial(getattr, self),
            limits=limits,
            cancel_grace=grace,
            stop_turns=turns.stop_job if turns is not None else None,
            exchanges=exchanges,
        )

    def __find_own_create_group(self) -> CreateGroup | None:
        """Find what extends ``create_job_group_and_request_job()``, as ``UIWorker`` does."""
        name = "create_job_group_and_request_job"
        if getattr(type(self), name) is getattr(WorkerJobs, name):
            return None
        return lambda names, params: self.create_job_group_and_request_job(names, params=params)

    # -- asking ------------------------------------------------------------------------------

    @overload
    def job(
        self,
        worker_name: str,
        request: JobRequest[R],
        *,
        params: PipecatJobParams | None = None,
        **keywords: Unpack[JobKeywords],
    ) -> JobContext[R]: ...

    @overload
    def job(
        self,
        worker_name: str,
        request: None = None,
        *,
        params: PipecatJobParams | None = None,
        **keywords: Unpack[JobKeywords],
    ) -> JobContext: ...

    def job(
        self,
        worker_name: str,
        request: JobRequest[Any] | None = None,
        *,
        params: PipecatJobParams | None = None,
        **keywords: Unpack[JobKeywords],
    ) -> JobContext[Any]:
        """Ask one worker and wait for its response.

        Args:
            worker_name: The name of the worker to ask.
            request: What to ask, from ``request()`` of a typed handler; it has the name and the
                payload of the job.
            params: The same arguments as one object; not together with ``keywords``.
            **keywords: What to ask and for how long; see :class:`~pipecat_jobs.params.JobKeywords`.

        Returns:
            The job, to be awaited for the worker's response, or to be entered with ``async with``.
            Awaiting it and leaving its block raise ``JobError`` if the job did not complete.

        Raises:
            InvalidJobError: If an argument cannot be used.
            TypeError: If ``params`` and keywords are mixed, or a keyword is unknown.

        Example::

            response = await self.job("worker", payload={"question": "Why?"}, timeout=30)
            print(response)

            async with self.job("worker", payload={"question": "Why?"}, timeout=30) as j:
                async for event in j:
                    print(event.type, event.data)

            print(j.response)
        """
        checked = group_params(params, keywords, JobKeywords)
        add_request(checked, request)
        names = check_workers([worker_name], checked)
        return JobContext(self.__requester, names, checked, request)

    @overload
    def job_group(
        self,
        *worker_names: str,
        request: JobRequest[R],
        params: PipecatJobGroupParams | None = None,
        **keywords: Unpack[JobGroupKeywords],
    ) -> JobGroupContext[R]: ...

    @overload
    def job_group(
        self,
        *worker_names: str,
        request: None = None,
        params: PipecatJobGroupParams | None = None,
        **keywords: Unpack[JobGroupKeywords],
    ) -> JobGroupContext: ...

    def job_group(
        self,
        *worker_names: str,
        request: JobRequest[Any] | None = None,
        params: PipecatJobGroupParams | None = None,
        **keywords: Unpack[JobGroupKeywords],
    ) -> JobGroupContext[Any]:
        """Ask several workers at once and wait for all their responses.

        Args:
            *worker_names: The names of the workers to ask.
            request: What to ask, from ``request()`` of a typed handler; it has the name and the
                payload of the job.
            params: The same arguments as one object; not together with ``keywords``.
            **keywords: What to ask and for how long; see
                :class:`~pipecat_jobs.params.JobGroupKeywords`.

        Returns:
            The group, to be awaited for the responses of the workers that completed, by worker, or
            to be entered with ``async with``. Awaiting it and leaving its block raise
            ``JobGroupError`` if the group did not complete.

        Raises:
            InvalidJobError: If an argument cannot be used.
            TypeError: If ``params`` and keywords are mixed, or a keyword is unknown.

        Example::

            responses = await self.job_group("advocate", "critic", payload={"topic": "AI"})
            print(responses["critic"])

            async with self.job_group("wiki", "news", payload={"topic": "AI"}) as group:
                async for outcome in group.as_completed():
                    print(outcome.worker, outcome.response)
        """
        checked = group_params(params, keywords, JobGroupKeywords)
        add_request(checked, request)
        names = check_workers(worker_names, checked)
        return JobGroupContext(self.__requester, names, checked, request)

    async def request_job(
        self,
        worker_name: str,
        request: JobRequest[Any] | None = None,
        *,
        params: PipecatJobParams | None = None,
        **keywords: Unpack[JobKeywords],
    ) -> str:
        """Ask one worker and go on; its response comes to ``on_job_response``.

        Args:
            worker_name: The name of the worker to ask.
            request: What to ask, from ``request()`` of a typed handler; it has the name and the
                payload of the job.
            params: The same arguments as one object; not together with ``keywords``.
            **keywords: What to ask and for how long; see :class:`~pipecat_jobs.params.JobKeywords`.

        Returns:
            The job's id, once the request has been sent.

        Raises:
            JobError: If the worker was not ready in time.
            InvalidJobError: If an argument cannot be used.
            TypeError: If ``params`` and keywords are mixed, or a keyword is unknown.

        Example::

            class Host(BaseWorker):
                async def look_up(self, topic):
                    return await self.request_job("researcher", payload={"topic": topic})

                async def on_job_response(self, message):
                    print(message.source, message.status, message.response)
        """
        checked = group_params(params, keywords, JobKeywords)
        add_request(checked, request)
        names = check_workers([worker_name], checked)
        return (await self.__requester.dispatch(names, Call(checked))).job_id

    async def request_job_group(
        self,
        *worker_names: str,
        request: JobRequest[Any] | None = None,
        params: PipecatJobGroupParams | None = None,
        **keywords: Unpack[JobGroupKeywords],
    ) -> str:
        """Ask several workers and go on; ``on_job_completed`` gets their responses.

        Args:
            *worker_names: The names of the workers to ask.
            request: What to ask, from ``request()`` of a typed handler; it has the name and the
                payload of the job.
            params: The same arguments as one object; not together with ``keywords``.
            **keywords: What to ask and for how long; see
                :class:`~pipecat_jobs.params.JobGroupKeywords`.

        Returns:
            The group's id, once every request has been sent.

        Raises:
            JobGroupError: If a worker was not ready in time.
            InvalidJobError: If an argument cannot be used.
            TypeError: If ``params`` and keywords are mixed, or a keyword is unknown.

        Example::

            class Host(BaseWorker):
                async def look_up(self, topic):
                    return await self.request_job_group("wiki", "news", payload={"topic": topic})

                async def on_job_completed(self, result):
                    print(result.job_id, result.responses["wiki"])
        """
        checked = group_params(params, keywords, JobGroupKeywords)
        add_request(checked, request)
        names = check_workers(worker_names, checked)
        return (await self.__requester.dispatch(names, Call(checked))).job_id

    async def create_job_group_and_request_job(
        self,
        worker_names: list[str],
        *,
        params: PipecatJobGroupParams | None = None,
        **keywords: Unpack[JobGroupKeywords],
    ) -> PipecatJobGroup:
        """Ask several workers and return the group to wait on.

        A class that extends this method, as Pipecat's ``UIWorker`` does, extends every way to ask.

        Args:
            worker_names: The names of the workers to ask.
            params: The same arguments as one object; not together with ``keywords``.
            **keywords: What to ask and for how long; see
                :class:`~pipecat_jobs.params.JobGroupKeywords`.

        Returns:
            The :class:`~pipecat_jobs.JobGroup`, once every request has been sent; with another
            ``need`` than "all", once every worker that is ready has its request.

        Raises:
            JobGroupError: If a worker was not ready in time.
            InvalidJobError: If an argument cannot be used.
            TypeError: If ``params`` and keywords are mixed, or a keyword is unknown.

        Example::

            group = await self.create_job_group_and_request_job(["wiki", "news"], timeout=30)
            await group.wait()
            print(group.responses["wiki"])
        """
        return await self.__requester.ask(worker_names, params, keywords)

    async def cancel_job_group(self, job_id: str, *, reason: str | None = None) -> None:
        """Cancel a job or a group: its workers stop, its requester gets ``JobCancelledError``.

        Args:
            job_id: The job's id; one that is not open is left alone.
            reason: Why, for the workers and for the error.

        Example::

            job_id = await self.request_job("researcher", payload={"topic": topic})
            await self.cancel_job_group(job_id, reason="the user changed the topic")
        """
        if self.__requester.leaves_to_pipecat(job_id):
            await super().cancel_job_group(job_id, reason=reason)
        else:
            await self.__requester.cancel(job_id, reason)

    async def request_job_update(self, job_id: str, worker_name: str) -> None:
        """Ask a worker for an update, which it may send.

        Args:
            job_id: A job of this worker that is open.
            worker_name: A worker of it that has not ended.

        Raises:
            UnknownJobError: If the job is not open, or the worker's part in it has ended.

        Example::

            async with self.job("researcher", name="research", timeout=30) as j:
                await self.request_job_update(j.job_id, "researcher")
        """
        if self.__requester.leaves_to_pipecat(job_id):
            await super().request_job_update(job_id, worker_name)
        else:
            await self.__requester.request_update(job_id, worker_name)

    @property
    def open_jobs(self) -> OpenJobs:
        """The open jobs that this worker asked of others or does for others, the oldest first.

        A job at several workers is listed once for each worker that has not ended. Groups of
        Pipecat's own class that a bot has put into ``job_groups`` are not listed.

        Example::

            class Waiter(BaseWorker):
                async def look_around(self):
                    for open_job in self.open_jobs.find("table 4"):
                        print(f"{open_job.title} at {open_job.worker}: {open_job.state}")
        """
        jobs = [*self.__requester.list_open(), *self.__executor.list_open()]
        return OpenJobs(sorted(jobs, key=lambda job: job.since))

    def add_job_interceptor(self, interceptor: JobInterceptor) -> None:
        """Add an interceptor that watches or wraps this worker's jobs, from the next event on.

        It goes inside those that were added before, and inside those of ``job_interceptors``.

        Args:
            interceptor: The interceptor; it may serve other workers too.

        Raises:
            InvalidJobTypeError: If it is not a :class:`~pipecat_jobs.JobInterceptor`, or its
                ``on_event()`` is ``async def``.

        Example::

            class Log(JobInterceptor):
                def on_event(self, event):
                    print(event.kind, event.job_id, event.worker)


            self.add_job_interceptor(Log())
        """
        self.__interceptors.add(interceptor, "interceptor")

    async def worker_lost(
        self, worker_name: str, *, reason: str, job_id: str | None = None
    ) -> None:
        """Settle the open jobs of a worker as lost, when it is gone and Pipecat cannot notice.

        Waiting for such a job raises ``WorkerLostError``. It is for a bus, or for code that starts
        processes: they know when one has died.

        Args:
            worker_name: The worker that is gone.
            reason: How that is known, for the error's message.
            job_id: The one job that is lost, where others of that worker are not; None for all.

        Example::

            await self.worker_lost("researcher", reason="its process was killed")
        """
        self.__requester.lost(worker_name, reason, job_id)

    async def add_workers(self, *workers: BaseWorker, watch: bool = True) -> None:
        """Add workers as children of this one, each under a name of its own.

        Args:
            *workers: The workers.
            watch: Whether ``on_worker_ready`` is called when each of them starts.

        Raises:
            DuplicateWorkerError: If another worker has the name of one; Pipecat's runner logs that,
                and never starts it.
        """
        named = {child.name: child for child in self.children}
        for worker in workers:
            others = (named.setdefault(worker.name, worker), self.__local_worker(worker.name))
            if any(isinstance(other, BaseWorker) and other is not worker for other in others):
                raise DuplicateWorkerError(worker.name)
        await super().add_workers(*workers, watch=watch)

    def __local_worker(self, name: str) -> BaseWorker | None:
        try:
            return self.worker_runner.get_worker(name)
        except RuntimeError:
            # No runner has this worker yet.
            return None

    # -- between the bus and the halves ------------------------------------------------------

    def accepts_bus_message(self, message: BusMessage) -> bool:
        """Take this worker's job messages always, the others while it is active.

        Args:
            message: The message about to be delivered.

        Returns:
            Whether to deliver it.
        """
        if message.target == self.name and is_job_message(message):
            return True
        return super().accepts_bus_message(message)

    async def on_bus_message(self, message: BusMessage) -> None:
        """Hand job messages to the half they are for, everything else to Pipecat.

        Args:
            message: The message that was delivered.
        """
        if isinstance(message, BusCancelWorkerMessage) and message.target == self.name:
            # Before the pipeline is torn down: an LLM turn cut short there would complete its job
            # with the fragment, as if it were complete.
            await self.__executor.stop()
        if not is_job_message(message) or message.target not in (None, self.name):
            await super().on_bus_message(message)
            return
        if not self.__handle(message):
            hearing = partial(super().on_bus_message, message)
            await guarded(f"on_bus_message() of worker '{self.name}'", hearing)
            return
        await call_event_handlers(self, "on_bus_message", message)

    def take_bus_message(self, message: BusMessage) -> bool:
        """Handle a job message for this worker at once, as :class:`~pipecat_jobs.RoutedBus` asks.

        It does not wait: handlers and hooks run in tasks of their own.

        Args:
            message: A message that is about to be delivered.

        Returns:
            Whether it has been handled; otherwise it goes to :meth:`on_bus_message`.
        """
        if (
            not is_job_message(message)
            or message.target != self.name
            or self.__hooks.listens("on_bus_message")
        ):
            return False
        return self.__handle(message)

    def __handle(self, message: JobMessage) -> bool:
        """Hand a message to the half it is for; False when it is for neither."""
        problem = find_problem(message)
        if problem is not None:
            logger.warning(f"Worker '{self.name}': dropping {describe(message)}: {problem}")
            return True
        match message:
            case BusJobRequestMessage():
                self.__executor.on_request(message, inactive=self.__why_inactive())
            case BusJobUpdateRequestMessage():
                self.__executor.on_update_request(message)
            case BusJobCancelMessage():
                self.__executor.on_cancel(message)
            case _ if self.__requester.leaves_to_pipecat(message.job_id):
                return False
            case BusJobResponseMessage() | BusJobResponseUrgentMessage():
                self.__requester.on_response(message)
            case BusJobStreamStartMessage() | BusJobStreamDataMessage():
                self.__requester.on_stream(message)
            case BusJobStreamEndMessage():
                self.__requester.on_stream_end(message)
            case BusJobUpdateMessage() | BusJobUpdateUrgentMessage():
                self.__requester.on_update(message)
        return True

    def __why_inactive(self) -> str | None:
        if self.takes_jobs_when_inactive or self.active:
            return None
        return f"worker '{self.name}' is inactive and takes no jobs meanwhile"

    def _make_turns(self, on_failure: TurnFailed) -> Turns | None:
        """Follow the turns of the worker's LLM, if it has one."""
        return None

    async def stop(self) -> None:
        """End every job this worker holds or waits for, then stop."""
        try:
            try:
                await self.__executor.stop()
            finally:
                await self.__requester.stop()
        finally:
            if self.__turns is not None:
                self.__turns.end()
            await super().stop()
            self._job_departure.happen()

    def add_event_handler(self, event_name: str, handler: Callable[..., Any]) -> None:
        """Add a handler, whose exceptions are logged with their traceback for job events.

        Args:
            event_name: The event.
            handler: The function to call.
        """
        super().add_event_handler(event_name, self.__hooks.wrapped(event_name, handler))
        self.__hooks.note_listeners(event_name)

    def remove_event_handler(self, event_name: str, handler: Callable[..., Any]) -> None:
        """Remove a handler that was added.

        Args:
            event_name: The event.
            handler: The function that was given.
        """
        super().remove_event_handler(event_name, self.__hooks.unwrapped(event_name, handler))
        self.__hooks.note_listeners(event_name)
