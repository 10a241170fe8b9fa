"""Checks that only worker classes with a pipeline, which can have an LLM, have job tools."""

from pipecat.pipeline.worker import PipelineWorker

from pipecat_jobs.errors import InvalidJobTypeError


class LLMTool:
    """Base of :class:`~pipecat_jobs.JobTool`, so that this layer can find tools in a class."""


def check_tools(worker_class: type) -> None:
    """Refuse a job tool in a class whose workers have no pipeline, and so no LLM."""
    if issubclass(worker_class, PipelineWorker):
        return
    attributes: dict[str, object] = {}
    for base in reversed(worker_class.__mro__):
        attributes.update(vars(base))
    for name, value in attributes.items():
        if isinstance(value, LLMTool):
            raise InvalidJobTypeError(
                f"{worker_class.__qualname__}.{name}() has @job_tool, but a "
                f"{worker_class.__qualname__} has no LLM that could call it. Write the tool into "
                "the LLMWorker or LLMContextWorker whose LLM is to call it, or as a function for "
                "LLMContext(tools=[...]). To handle jobs here use @job. Tools that several LLM "
                "workers share go into a class that does not derive from a worker"
            )
