"""``@job_tool``: a job as an LLM tool."""

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, Protocol, Unpack, overload

from pipecat_jobs.outcomes import JobData
from pipecat_jobs.tools.options import JobToolKeywords, check_options
from pipecat_jobs.tools.spec import ToolSpec
from pipecat_jobs.tools.tool import JobTool

if TYPE_CHECKING:
    from pipecat.flows import FlowManager, FlowsFunctionSchema

P = ParamSpec("P")


class JobToolDecorator(Protocol):
    """Makes a tool of a function that returns the payload of its jobs."""

    # A function whose first parameter is of any type matches both.
    @overload
    def __call__(  # pyright: ignore[reportOverlappingOverload]
        self,
        function: "Callable[Concatenate[FlowManager, P], Awaitable[JobData | tuple[JobData, Any]]]",
        /,
    ) -> "FlowsFunctionSchema": ...

    @overload
    def __call__(self, function: Callable[P, Awaitable[JobData]], /) -> JobTool: ...


def job_tool(*workers: str, **options: Unpack[JobToolKeywords]) -> JobToolDecorator:
    """Offer a job to an LLM as a tool.

    The decorated function gets the LLM's arguments and returns the payload of the jobs, a dict. The
    decorator derives the schema from the signature and the docstring, validates the arguments, runs
    the jobs, and ends them however the call ends. It can decorate

    - a method of an ``LLMWorker``, which offers it to its LLM;
    - a function, for ``LLMContext(tools=[...])`` of any worker of this package;
    - a function whose first parameter is ``flow_manager``, for the functions of a Pipecat Flows
      node; it returns the payload, or the payload and the next node.

    The first parameter of a method or function may be ``params``, Pipecat's ``FunctionCallParams``.
    An exception of the function is logged. The LLM gets the exception's type, or the text of a
    :class:`~pipecat_jobs.JobToolError`.

    Args:
        *workers: Names of the workers that do the job.
        **options: The tool's options; see :class:`~pipecat_jobs.tools.options.JobToolKeywords`.

    Returns:
        The decorator. It returns a :class:`~pipecat_jobs.JobTool`, or for a flow Pipecat's
        ``FlowsFunctionSchema``.

    Raises:
        InvalidJobError: If an option or the function cannot be used; the message says what to write
            instead.
        TypeError: If an option is unknown.

    Example::

        class Moderator(LLMWorker):
            @job_tool("advocate", "critic", job="argue", timeout=30)
            async def debate(self, topic: str):
                '''Analyze a topic from multiple perspectives.'''
                return {"topic": topic}
    """
    checked = check_options(workers, options)

    def decorate(function: Callable[..., Any], /) -> Any:
        spec = ToolSpec.of(function, checked)
        if spec.arguments.special == "flow_manager":
            from pipecat_jobs.tools.flows import flow_tool

            return flow_tool(spec, options)
        return JobTool(spec)

    return decorate
