"""``tool_call()``: ends the jobs of a hand-written tool with the tool's call."""

import asyncio
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack, overload

from loguru import logger
from pipecat.frames.frames import FunctionCallResultProperties
from pipecat.services.llm_service import FunctionCallParams

from pipecat_jobs._llm.context_value import to_context_value
from pipecat_jobs._llm.mixin import JobsMixin
from pipecat_jobs._llm.watch import was_interrupted_before_it_began, watch
from pipecat_jobs._pipecat import function_call_timeout
from pipecat_jobs._protocol.deadline import inheriting
from pipecat_jobs._protocol.requests import JobRequest
from pipecat_jobs._protocol.tasks import RunningTask, log_raised
from pipecat_jobs._requester.scopes import JobContext, JobGroupContext
from pipecat_jobs.errors import InvalidJobError, InvalidJobTypeError
from pipecat_jobs.params import JobGroupKeywords, JobKeywords
from pipecat_jobs.tools.results import (
    make_error_result,
    make_interrupted_result,
    make_session_end_result,
    to_tool_result,
)

R = TypeVar("R")
#: Seconds from Pipecat's timeout of a call to the deadline that its jobs inherit, so that Pipecat
#: cancels the call, and its jobs with it, before that.
_AFTER_PIPECAT = 1.0


def check_requester(worker: object, tool_name: str) -> JobsMixin:
    """Refuse a worker that is not one of this package, because it cannot request a tool's jobs."""
    if not isinstance(worker, JobsMixin):
        raise InvalidJobTypeError(
            f"tool {tool_name} runs on {worker}, a plain {type(worker).__name__}; import "
            "PipelineWorker, LLMWorker or LLMContextWorker from pipecat_jobs, or add JobsMixin to "
            "the worker's bases"
        )
    return worker


class ToolCallContext:
    """One call of a tool, and the jobs of the call. ``async with tool_call(params)`` enters it.

    Example::

        class Host(LLMWorker):
            @tool
            async def compare(self, params, topic: str):
                '''Look a topic up in an encyclopedia and in the news.'''
                async with tool_call(params) as call:
                    found = await call.job_group("wiki", "news", payload={"topic": topic})
                    await call.finish(found)
    """

    def __init__(self, params: FunctionCallParams):
        self._params = params
        self._finished = False
        self._scope = asyncio.timeout(None)
        self._exits = AsyncExitStack()

    @overload
    def job(
        self, worker_name: str, request: JobRequest[R], **keywords: Unpack[JobKeywords]
    ) -> JobContext[R]: ...

    @overload
    def job(
        self, worker_name: str, request: None = None, **keywords: Unpack[JobKeywords]
    ) -> JobContext: ...

    def job(
        self,
        worker_name: str,
        request: JobRequest[Any] | None = None,
        **keywords: Unpack[JobKeywords],
    ) -> JobContext[Any]:
        """Ask one worker to do a job. The requester is the worker of the tool.

        Args:
            worker_name: Name of the worker.
            request: What to ask, from ``request()`` of a typed handler; it has the name and the
                payload of the job.
            **keywords: The arguments of the job; see :class:`~pipecat_jobs.params.JobKeywords`.

        Returns:
            The job, to be awaited for the worker's response, or to be entered with ``async with``.
            Awaiting it and leaving its block raise ``JobError`` if the job did not complete.

        Raises:
            InvalidJobError: If an argument cannot be used, or the worker of the tool is not one of
                this package.

        Example::

            class Host(LLMWorker):
                @tool
                async def find_book(self, params, title: str):
                    '''Find out where a book stands.'''
                    async with tool_call(params) as call:
                        asked = {"title": title}
                        await call.finish(await call.job("library", payload=asked, timeout=10))
        """
        return self._requester.job(worker_name, request, **keywords)

    @overload
    def job_group(
        self,
        *worker_names: str,
        request: JobRequest[R],
        **keywords: Unpack[JobGroupKeywords],
    ) -> JobGroupContext[R]: ...

    @overload
    def job_group(
        self,
        *worker_names: str,
        request: None = None,
        **keywords: Unpack[JobGroupKeywords],
    ) -> JobGroupContext: ...

    def job_group(
        self,
        *worker_names: str,
        request: JobRequest[Any] | None = None,
        **keywords: Unpack[JobGroupKeywords],
    ) -> JobGroupContext[Any]:
        """Ask several workers at once to do a job. The requester is the worker of the tool.

        Args:
            *worker_names: Names of the workers.
            request: What to ask, from ``request()`` of a typed handler; it has the name and the
                payload of the job.
            **keywords: The arguments of the group; see
                :class:`~pipecat_jobs.params.JobGroupKeywords`.

        Returns:
            The group, to be awaited for the responses of the workers that completed, by worker, or
            to be entered with ``async with``. Awaiting it and leaving its block raise
            ``JobGroupError`` if the group did not complete.

        Raises:
            InvalidJobError: If an argument cannot be used, or the worker of the tool is not one of
                this package.

        Example::

            class Host(LLMWorker):
                @tool
                async def debate(self, params, topic: str):
                    '''Have two workers argue about a topic.'''
                    async with tool_call(params) as call:
                        asked = {"topic": topic}
                        responses = await call.job_group("advocate", "critic", payload=asked)
                        await call.finish(responses)
        """
        return self._requester.job_group(*worker_names, request=request, **keywords)

    @property
    def _requester(self) -> JobsMixin:
        return check_requester(self._params.pipeline_worker, self._params.function_name)

    async def report(self, progress: object) -> None:
        """Put the call's progress into the LLM's context, without running the LLM.

        It works in tools with ``cancel_on_interruption=False``. In other tools Pipecat drops the
        progress, with a warning.

        Args:
            progress: The progress, of any type. Values that JSON cannot express are written as
                text; an empty value is not reported.

        Raises:
            InvalidJobError: If the call already has its result.

        Example::

            class Host(LLMWorker):
                @tool(cancel_on_interruption=False)
                async def look_up(self, params, topic: str):
                    '''Look a topic up in an encyclopedia, then in the news.'''
                    asked = {"topic": topic}
                    async with tool_call(params) as call:
                        wiki = await call.job("wiki", name="research", payload=asked)
                        await call.report({"wiki": wiki})
                        news = await call.job("news", name="research", payload=asked)
                        await call.finish({"wiki": wiki, "news": news})
        """
        self._check_open("report()")
        await self._params.result_callback(
            to_context_value(progress),
            properties=FunctionCallResultProperties(run_llm=False, is_final=False),
        )

    async def finish(self, result: object, *, run_llm: bool | None = None) -> None:
        """Give the call its result.

        Args:
            result: The result, of any type. Values that JSON cannot express are written as text.
                Pipecat does not run the LLM on an empty or false result. An empty result therefore
                becomes ``{"status": ...}``, and 0 becomes ``{"result": 0}``.
            run_llm: Whether the LLM runs on the result. None for Pipecat's rule: the LLM runs once
                all calls of one answer have their results.

        Raises:
            InvalidJobError: If the call already has its result.

        Example::

            class Host(LLMWorker):
                @tool
                async def remember(self, params, fact: str):
                    '''Remember a fact, without a comment.'''
                    async with tool_call(params) as call:
                        kept = await call.job("worker", payload={"fact": fact})
                        await call.finish(kept, run_llm=False)
        """
        self._check_open("finish()")
        # Before the call is marked as finished: it runs code of the result's type, which may raise.
        written = to_tool_result(self._params.function_name, result)
        self._finished = True
        properties = None if run_llm is None else FunctionCallResultProperties(run_llm=run_llm)
        await self._params.result_callback(written, properties=properties)

    def _check_open(self, method: str) -> None:
        if self._finished:
            raise InvalidJobError(
                f"{method} was called after the result of {self._params.function_name}; a "
                "call has one result, so call finish() last"
            )

    async def _end_of_session(self) -> None:
        if self._finished:
            return
        result = make_session_end_result(self._params.function_name)
        await self.finish(result.value, run_llm=result.run_llm)
        self._scope.reschedule(asyncio.get_running_loop().time())

    async def _fail(self, error: BaseException) -> None:
        result = make_error_result(self._params.function_name, error)
        await self.finish(result.value, run_llm=result.run_llm)

    async def _refuse(self) -> None:
        result = make_interrupted_result(self._params.function_name)
        await self.finish(result.value, run_llm=result.run_llm)
        # An interruption cancels a call that runs in the same way. __aenter__ cannot skip the block
        # otherwise.
        self._task.cancel()
        await asyncio.sleep(0)

    async def __aenter__(self) -> Self:
        self._task = RunningTask()
        if was_interrupted_before_it_began():
            await self._refuse()
        self._exits.push(self._leave)
        await self._exits.enter_async_context(self._scope)
        self._exits.push_async_exit(self._settle)
        timeout = function_call_timeout(self._params.llm, self._params.function_name)
        if timeout is not None:
            self._exits.enter_context(inheriting(timeout + _AFTER_PIPECAT))
        self._endings = watch(self._params.llm).endings
        self._endings.add(self._end_of_session)
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_val: BaseException | None,
        exc_tb: TracebackType | None,
    ) -> bool | None:
        return await self._exits.__aexit__(exc_type, exc_val, exc_tb)

    async def _settle(
        self, _: type[BaseException] | None, error: BaseException | None, __: TracebackType | None
    ) -> bool:
        if error is None:
            if not self._finished:
                logger.warning(f"tool {self._params.function_name} ended without finish()")
                await self.finish(None)
            return False
        # Raises if the task itself is cancelled; Pipecat has then settled the call.
        self._task.survive(error)
        if not self._finished:
            await self._fail(error)
            return not isinstance(error, asyncio.CancelledError)
        if isinstance(error, Exception | asyncio.CancelledError):
            return False
        # Pipecat catches and logs only Exceptions.
        name, kind = self._params.function_name, type(error).__name__
        log_raised(f"tool {name} raised {kind} after its result", error)
        return True

    def _leave(
        self, _: type[BaseException] | None, error: BaseException | None, __: TracebackType | None
    ) -> bool:
        self._endings.discard(self._end_of_session)
        return isinstance(error, TimeoutError) and self._scope.expired()


def tool_call(params: FunctionCallParams) -> ToolCallContext:
    """End the jobs of a hand-written tool with the tool's call.

    The call gets exactly one result, however the block ends:

    - When the call is cancelled (by the user's speech, Pipecat's timeout or the LLM), the open jobs
      of the block are cancelled, and Pipecat settles the call.
    - An exception is logged, and the result is ``{"error": ...}``.
    - When the block ends without :meth:`ToolCallContext.finish`, the result is ``{"status": ...}``.
    - When the session ends, the call is settled without running the LLM, and the block is
      cancelled.
    - When the user interrupts while the call waits in the queue of an LLM with
      ``run_in_parallel=False``, the call is settled, and its task is cancelled before the block
      begins.

    Args:
        params: The ``FunctionCallParams`` with which Pipecat calls the tool.

    Returns:
        The context to enter with ``async with``.

    Example::

        class Moderator(LLMWorker):
            @tool
            async def debate(self, params, topic: str):
                '''Have a topic debated.'''
                async with tool_call(params) as call:
                    said = await call.job("advocate", payload={"topic": topic}, timeout=30)
                    await call.finish(said)
    """
    return ToolCallContext(params)
