"""``@job_tool``: a job as an LLM tool."""

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, Protocol, Unpack, overload

from pipecat_jobs._protocol.requests import JobHandler
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


@overload
def job_tool(
    *workers: str, job: JobHandler[..., Any], **options: Unpack[JobToolKeywords]
) -> JobTool: ...


@overload
def job_tool(
    *workers: str, job: str | None = None, **options: Unpack[JobToolKeywords]
) -> JobToolDecorator: ...


def job_tool(
    *workers: str,
    job: JobHandler[..., Any] | str | None = None,
    **options: Unpack[JobToolKeywords],
) -> JobTool | JobToolDecorator:
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

    With a typed handler as ``job``, it makes a tool without a function: the name, the arguments and
    the docstring are those of the handler. The tool is for ``LLMContext(tools=[...])``, or an
    attribute of an ``LLMWorker``'s class.

    Args:
        *workers: Names of the workers that do the job.
        job: Name of the ``@job`` handler to run, None for ``on_job_request``; or a typed handler,
            as ``Worker.method``.
        **options: The tool's options; see :class:`~pipecat_jobs.tools.options.JobToolKeywords`.

    Returns:
        The decorator. It returns a :class:`~pipecat_jobs.JobTool`, or for a flow Pipecat's
        ``FlowsFunctionSchema``. With a typed handler, the :class:`~pipecat_jobs.JobTool` itself.

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


        class Library(BaseWorker):
            @job
            async def find_book(self, title: str) -> str:
                '''Find out where a book stands.'''
                return "on shelf 7"


        class Librarian(LLMWorker):
            find_book = job_tool("library", job=Library.find_book)
    """
    if callable(job):
        return JobTool(ToolSpec.of_handler(job, workers, options))
    checked = check_options(workers, job, options)

    def decorate(function: Callable[..., Any], /) -> Any:
        spec = ToolSpec.of(function, checked)
        if spec.arguments.special == "flow_manager":
            from pipecat_jobs.tools.flows import flow_tool

            return flow_tool(spec, options)
        return JobTool(spec)

    return decorate
