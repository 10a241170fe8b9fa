"""The calls ``self.job(...)`` and ``self.job_group(...)``, to be awaited or entered."""

import asyncio
import warnings
from collections.abc import AsyncIterator, Awaitable, Generator
from types import TracebackType
from typing import Any, ClassVar, Generic, Self, cast

from pipecat.pipeline.job_context import JobContext as PipecatJobContext
from pipecat.pipeline.job_context import JobEvent, JobGroupEvent
from pipecat.pipeline.job_context import JobGroup as PipecatJobGroup
from pipecat.pipeline.job_context import JobGroupContext as PipecatJobGroupContext
from pydantic import ValidationError
from typing_extensions import TypeVar

from pipecat_jobs._protocol.requests import JobRequest, list_problems
from pipecat_jobs._requester.call import Call
from pipecat_jobs._requester.group import RESPONSE, JobGroup
from pipecat_jobs._requester.requester import Requester
from pipecat_jobs.errors import InvalidJobError, InvalidJobResponseError, JobNotEndedError
from pipecat_jobs.outcomes import JobData, JobOutcome
from pipecat_jobs.params import CheckedParams

R = TypeVar("R", default=JobData)


class _JobScope(Generic[R]):
    """The life of one call: sent on entry, awaited on exit, cancelled on any other way out."""

    _single: bool

    def __init__(
        self,
        requester: Requester,
        worker_names: list[str],
        params: CheckedParams,
        request: JobRequest[R] | None = None,
    ):
        self._requester = requester
        self._request = request
        self._worker_names = worker_names
        self._params = params
        self._group: PipecatJobGroup | None = None
        self._entered = False
        # The typed responses that have been read, by worker.
        self._read: dict[str, R] = {}

    def __del__(self) -> None:
        if not self._entered:
            # As Python warns of a coroutine: the call looks like one that asks.
            names = ", ".join(map(repr, self._worker_names))
            message = (
                f"the job for {names} was never requested; await job() or job_group(), or enter it "
                "with 'async with'"
            )
            warnings.warn(message, RuntimeWarning, stacklevel=2, source=self)

    @property
    def job_id(self) -> str:
        """The job's id, known before it is sent."""
        return self._params.job_id

    def _outcomes(self) -> dict[str, JobOutcome]:
        return self._group.outcomes if isinstance(self._group, JobGroup) else {}

    def _read_responses(self) -> dict[str, R]:
        """Read the responses of the workers that have completed, each of them once."""
        assert self._request is not None
        for name, outcome in self._outcomes().items():
            if outcome.completed and name not in self._read:
                try:
                    self._read[name] = self._request.read(outcome.response or {})
                except ValidationError as error:
                    # Without the cause: its text has the values.
                    raise InvalidJobResponseError(
                        name,
                        list_problems(error),
                        job_id=self.job_id,
                        job_name=self._request.name,
                        outcomes=self._outcomes(),
                    ) from None
        return self._read

    async def __aenter__(self) -> Self:
        self._group = await self._dispatch(keeps_events=True)
        return self

    async def _complete(self) -> None:
        """Run the whole call, as ``async with`` does around an empty block."""
        self._group = await self._dispatch(keeps_events=False)
        await self.__aexit__(None, None, None)

    def _dispatch(self, *, keeps_events: bool) -> Awaitable[PipecatJobGroup]:
        if self._entered:
            raise InvalidJobError(
                "a job's context is entered or awaited once; call job() again for another"
            )
        self._entered = True
        call = Call(self._params, single=self._single, keeps_events=keeps_events)
        return self._requester.dispatch(self._worker_names, call)

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_val: BaseException | None,
        exc_tb: TracebackType | None,
    ) -> bool:
        assert self._group is not None
        if exc_type is not None:
            await self._requester.end(self._group, "context exited with error")
            return False
        if isinstance(self._group, JobGroup):
            # Nothing reads the events from here on; the worker must not wait for a reader.
            self._group.events.set_read(False)
        try:
            await self._until_ended(self._group)
        except asyncio.CancelledError:
            await self._requester.end(self._group, "context exited with error")
            raise
        if self._request is not None:
            self._read_responses()
        return False

    def _until_ended(self, group: PipecatJobGroup) -> Awaitable[None]:
        return group.wait()

    async def _next_event(self) -> JobGroupEvent:
        event = None
        if isinstance(self._group, JobGroup):
            event = await self._group.events.next()
        if event is None:
            raise StopAsyncIteration
        return event


class _Outcomes:
    """The outcomes of a group's jobs, each once it is known."""

    def __init__(self, group: JobGroup):
        self._group = group
        self._asked = 0
        #: Whether a loop over it has begun, and has not come to its end.
        self.is_open = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> JobOutcome:
        self.is_open = True
        outcome = await self._group.find_outcome(self._asked)
        if outcome is None:
            self.is_open = False
            raise StopAsyncIteration
        self._asked += 1
        return outcome


class JobContext(_JobScope[R], PipecatJobContext):
    """A job at one worker, to be awaited or entered.

    It is generic in the type of the response: a :class:`~pipecat_jobs.JobRequest` gives that of its
    handler, and a job that is asked for by name gives a dict.

    Awaiting it gives the worker's response, and cancelling the task that awaits it cancels the job.

    With ``async with``, entering waits for the worker to be ready and sends the request. Leaving
    waits for the response. Leaving with an exception, a cancellation included, cancels the job. In
    between, ``async for`` gives the worker's updates and stream events until the job has ended.

    Example::

        response = await self.job("researcher", name="research", timeout=30)

        async with self.job("researcher", name="research", timeout=30) as j:
            async for event in j:
                print(event.type, event.data)

        print(j.response)
    """

    _single = True

    def __await__(self) -> Generator[Any, Any, R]:
        return self._find_response().__await__()

    async def _find_response(self) -> R:
        await self._complete()
        return self.response

    @property
    def response(self) -> R:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The worker's response, once the job has ended; empty when it ended without one.

        Raises:
            JobNotEndedError: If the job has not ended.
            InvalidJobResponseError: If it does not fit the type of the request.
            JobError: If the job of a :class:`~pipecat_jobs.JobRequest` did not complete.
        """
        (worker_name,) = self._worker_names
        if self._group is None or not (self._group.is_done or self.outcome):
            raise JobNotEndedError(self.job_id, worker_name)
        if self._request is None:
            return cast(R, self._group.responses.get(worker_name, {}))
        responses = self._read or self._read_responses()
        if worker_name not in responses:
            assert isinstance(self._group, JobGroup)
            raise self._group.failure()
        return responses[worker_name]

    @property
    def outcome(self) -> JobOutcome | None:
        """How the job ended, or None while it has not."""
        return self._outcomes().get(self._worker_names[0])

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> JobEvent:
        event = await self._next_event()
        return JobEvent(type=event.type, data=event.data)


class JobGroupContext(_JobScope[R], PipecatJobGroupContext):
    """A job at several workers, to be awaited or entered.

    Like :class:`JobContext`, for all of them at once; awaiting it gives the responses of the
    workers that completed, by worker. The first worker that fails ends the group, unless
    ``cancel_on_error=False`` was given; then ``outcomes`` tells who did what.

    Example::

        responses = await self.job_group("advocate", "critic", payload={"topic": topic})

        async with self.job_group("advocate", "critic", payload={"topic": topic}) as jg:
            async for event in jg:
                print(event.worker_name, event.data)

        for name, response in jg.responses.items():
            print(name, response)
    """

    #: The type of the event of a worker that has completed, which has its response as ``data``.
    RESPONSE: ClassVar[str] = RESPONSE

    _single = False
    # What `as_completed()` gave last: a loop that is left by `break` does not close it.
    _given: _Outcomes | None = None

    def __await__(self) -> Generator[Any, Any, dict[str, R]]:
        return self._find_responses().__await__()

    async def _find_responses(self) -> dict[str, R]:
        await self._complete()
        responses, outcomes = self.responses, self.outcomes
        return {
            name: responses[name]
            for name in self._worker_names
            if name in outcomes and outcomes[name].completed
        }

    @property
    def responses(self) -> dict[str, R]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The responses, by worker; workers that have not responded are missing.

        Those of a :class:`~pipecat_jobs.JobRequest` have the type of its handler, and workers that
        did not complete are missing.

        Raises:
            InvalidJobResponseError: If one does not fit the type of the request.
        """
        if self._request is not None:
            return dict(self._read_responses())
        return cast("dict[str, R]", self._group.responses if self._group else {})

    def as_completed(self) -> AsyncIterator[JobOutcome]:
        """Give the outcome of each worker as soon as it has one, for ``async for`` in the block.

        Failures are among them, and the jobs that are cancelled when the group ends. Leave the loop
        by ``break`` when the rest is not needed: then the end of the block cancels the other jobs
        as not needed, waits for none of them, and raises nothing.

        Returns:
            The outcomes, in the order in which the jobs end.

        Raises:
            InvalidJobError: If the block of the group has not been entered.

        Example::

            async with self.job_group("wiki", "news", cancel_on_error=False) as group:
                async for outcome in group.as_completed():
                    if outcome.completed:
                        print(outcome.worker, outcome.response)
                        break
        """
        if not isinstance(self._group, JobGroup):
            raise InvalidJobError(
                "as_completed() was called outside of the group's block; write it into 'async with "
                "self.job_group(...) as group:'"
            )
        self._given = _Outcomes(self._group)
        return self._given

    async def _until_ended(self, group: PipecatJobGroup) -> None:
        if not isinstance(group, JobGroup) or self._given is None or not self._given.is_open:
            await super()._until_ended(group)
            return
        self._requester.accept(group)
        await group.until_done()

    @property
    def outcomes(self) -> dict[str, JobOutcome]:
        """How it ended, by worker; those for whom it has not are missing."""
        return self._outcomes()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> JobGroupEvent:
        return await self._next_event()
