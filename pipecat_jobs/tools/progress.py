"""How far the jobs of a tool call are."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from pipecat_jobs.outcomes import JobData


@dataclass(frozen=True, slots=True)
class JobToolProgress:
    """How far the jobs of one tool call are, for what the bot says meanwhile.

    Parameters:
        seconds: Seconds since the jobs were asked for.
        answers: What has been answered so far, by worker.
        updates: The last update of each worker that sent one.
    """

    seconds: float
    answers: Mapping[str, JobData]
    updates: Mapping[str, JobData]


#: What the bot says while the jobs run.
Say = str | Callable[[JobToolProgress], str | None]
