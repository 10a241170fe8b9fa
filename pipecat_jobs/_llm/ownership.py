"""Which worker classes may have job tools: those with a pipeline, where an LLM can be."""

from inspect import getattr_static

from pipecat.pipeline.worker import PipelineWorker

from pipecat_jobs.errors import InvalidJobTypeError


class LLMTool:
    """What only an LLM calls; the base of :class:`~pipecat_jobs.JobTool`."""


def check_tools(worker_class: type) -> None:
    """Refuse job tools of a class whose workers have no LLM, where nothing would ever call them.

    Args:
        worker_class: The class, as it is defined.

    Raises:
        InvalidJobTypeError: If a method has ``@job_tool`` and the class has no pipeline.
    """
    if issubclass(worker_class, PipelineWorker):
        return
    for name in dir(worker_class):
        if isinstance(getattr_static(worker_class, name, None), LLMTool):
            raise InvalidJobTypeError(
                f"{worker_class.__qualname__}.{name}() has @job_tool, but a "
                f"{worker_class.__qualname__} has no LLM that could call it. Write the tool into "
                "the LLMWorker or LLMContextWorker whose LLM is to call it, or as a function for "
                "LLMContext(tools=[...]). To answer jobs here use @job. Tools that several LLM "
                "workers share go into a class that does not derive from a worker"
            )
