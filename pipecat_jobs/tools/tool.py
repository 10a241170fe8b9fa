"""A job tool, for the class of an LLM worker or for a list of tools."""

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from pipecat.services.llm_service import FunctionCallParams
from pipecat.workers.llm import LLMWorker, tool

from pipecat_jobs._llm.ownership import LLMTool
from pipecat_jobs._llm.watch import watch
from pipecat_jobs._pipecat.schemas import FunctionSchema, tool_options
from pipecat_jobs.outcomes import JobData
from pipecat_jobs.tools.arguments import ValidArguments
from pipecat_jobs.tools.call import check_requester, tool_call
from pipecat_jobs.tools.dispatch import Dispatch
from pipecat_jobs.tools.repeats import Run
from pipecat_jobs.tools.reporting import make_reporting
from pipecat_jobs.tools.results import ToolResult
from pipecat_jobs.tools.spec import TimeLeft, ToolSpec
from pipecat_jobs.tools.speech import speak_meanwhile


class JobTool(FunctionSchema, LLMTool):
    """A tool with its schema, which ``@job_tool`` makes from a function.

    It is a Pipecat :class:`FunctionSchema`. A function goes into ``LLMContext(tools=[...])`` or an
    ``LLMSetToolsFrame``. A method of an ``LLMWorker`` is offered by the worker, as a method with
    Pipecat's ``@tool`` is.

    Example::

        @job_tool("wiki", job="research")
        async def look_up(topic: str):
            '''Look a topic up in an encyclopedia.'''
            return {"topic": topic}


        assert isinstance(look_up, JobTool)
        context = LLMContext(tools=[look_up])
    """

    def __init__(self, spec: ToolSpec, owner: object | None = None):
        # A worker registers its own tools; with a handler here, Pipecat would register them twice.
        registered = isinstance(owner, LLMWorker)
        super().__init__(
            name=spec.name,
            description=spec.description,
            properties=spec.properties,
            required=spec.arguments.required,
            handler=None if registered else self,
        )
        self._spec = spec
        self._owner = owner
        # The attributes that Pipecat reads from a tool that is a function.
        self.__name__ = spec.name
        self.__doc__ = spec.function.__doc__
        self.__annotations__ = {}
        self.__signature__ = spec.arguments.signature
        options = spec.options
        tool(self)
        tool_options(
            cancel_on_interruption=options.cancel_on_interruption,
            timeout_secs=options.tool_timeout,
            cancellable_by_llm=options.cancellable_by_llm,
        )(self)

    def __get__(self, instance: object | None, owner: type | None = None) -> "JobTool":
        return self if instance is None else JobTool(self._spec, instance)

    async def __call__(self, params: FunctionCallParams, **arguments: Any) -> None:
        """Run one call of the tool. Pipecat calls this.

        Args:
            params: Pipecat's parameters of the call.
            **arguments: The LLM's arguments; ``params`` has them too.
        """

        async def ask(valid: ValidArguments, time_left: TimeLeft, run: Run) -> ToolResult:
            reporting = make_reporting(call, params, self._spec.options)
            asked = partial(self._ask, params, valid, time_left, run, reporting.update)
            return reporting.finish(await self._spec.settle(asked))

        async def prepare(valid: ValidArguments) -> tuple[JobData, object]:
            return await self._prepare(params, valid)

        async with tool_call(params) as call:
            result = await self._spec.run(params.pipeline_worker, params.arguments, ask, prepare)
            await call.finish(result.value, run_llm=result.run_llm)
            if result.then is not None:
                result.then()

    async def _prepare(
        self, params: FunctionCallParams, arguments: ValidArguments
    ) -> tuple[JobData, object]:
        spec = self._spec
        given: list[object] = [self._owner] if spec.arguments.is_method else []
        if spec.arguments.special is not None:
            given.append(params)
        return await spec.prepare(given, arguments)

    async def _ask(
        self,
        params: FunctionCallParams,
        arguments: ValidArguments,
        time_left: TimeLeft,
        run: Run,
        show: Callable[[JobData], Awaitable[None]],
    ) -> ToolResult:
        spec, options = self._spec, self._spec.options
        payload, _ = await self._prepare(params, arguments)
        dispatch = Dispatch(spec.name, check_requester(params.pipeline_worker, spec.name), options)

        async def on_update(worker_name: str, update: JobData) -> None:
            await show({"worker": worker_name, "update": update})

        async with speak_meanwhile(params, options, dispatch.progress):
            run.jobs.set_result(dispatch)
            value = await dispatch.run(
                payload,
                timeout=time_left(),
                on_update=on_update if options.progress else None,
                awaited=watch(params.llm).awaited_jobs if options.cancel_on_interruption else set(),
            )
        return ToolResult(value)
