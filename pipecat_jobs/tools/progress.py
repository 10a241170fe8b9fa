"""The progress of the jobs of a tool call."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from pipecat_jobs.outcomes import JobData


@dataclass(frozen=True, slots=True)
class JobToolProgress:
    """The progress of the jobs of one tool call, for the ``say`` function of ``@job_tool``.

    Parameters:
        seconds: Seconds since the jobs were requested.
        responses: The responses so far, dicts, by the worker's name.
        updates: The latest update of each worker that has sent one, a dict, by the worker's name.

    Example::

        def how_far(progress: JobToolProgress) -> str:
            return f"{len(progress.responses)} of 2 after {progress.seconds:.0f} seconds."


        class Host(LLMWorker):
            @job_tool("wiki", "news", job="research", say_after=4, say=how_far)
            async def research(self, topic: str):
                '''Look a topic up in an encyclopedia and in the news.'''
                return {"topic": topic}
    """

    seconds: float
    responses: Mapping[str, JobData]
    updates: Mapping[str, JobData]


#: The text that the bot speaks while the jobs run, several texts that it speaks in turn, or a
#: function that makes the text.
Say = str | Sequence[str] | Callable[[JobToolProgress], str | None]
