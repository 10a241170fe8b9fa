"""What the client of a bot may see, as the bot decides."""

from collections.abc import Callable
from typing import Protocol, TypeVar

from pipecat_jobs._protocol.hooks import call_guarded
from pipecat_jobs.conversation import ReportChange
from pipecat_jobs.open_jobs import OpenJob
from pipecat_jobs.outcomes import JobData
from pipecat_jobs.questions import JobQuestion

Decision = TypeVar("Decision")


class Rules(Protocol):
    """The methods of ``ClientJobs`` that a bot may override."""

    def shows_job(self, job: OpenJob) -> bool:
        """Return whether the client sees a job."""
        ...

    def select_data(self, job: OpenJob, data: JobData) -> object:
        """Return what the client gets of an update or a response."""
        ...

    def shows_report(self, change: ReportChange) -> bool:
        """Return whether the client sees a change of a report."""
        ...

    def shows_question(self, question: JobQuestion) -> bool:
        """Return whether the client sees a question and may answer it."""
        ...


def decide(rule: Callable[[], Decision], name: str, otherwise: Decision) -> Decision:
    """Call a rule; log an exception of it, and decide ``otherwise``."""
    decisions: list[Decision] = []
    call_guarded(f"{name}()", lambda: decisions.append(rule()))
    return decisions[0] if decisions else otherwise
