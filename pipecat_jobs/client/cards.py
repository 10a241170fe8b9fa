"""The cards of one worker's jobs: Pipecat's ``ui-job-group`` envelopes."""

from collections.abc import Sequence

from pipecat.processors.frameworks.rtvi.models import (
    UIJobCompletedData,
    UIJobGroupCompletedData,
    UIJobGroupData,
    UIJobGroupMessage,
    UIJobGroupStartedData,
    UIJobUpdateData,
)

from pipecat_jobs._worker.mixin import WorkerJobs
from pipecat_jobs.client.data import to_client_value, to_milliseconds
from pipecat_jobs.client.outbox import Send
from pipecat_jobs.client.rules import Rules, decide
from pipecat_jobs.client.throttle import Throttle
from pipecat_jobs.interceptors import (
    JobCall,
    JobInterceptor,
    JobLifeEvent,
    JobLifeEventKind,
    ProceedToAsk,
)
from pipecat_jobs.open_jobs import OpenJob
from pipecat_jobs.outcomes import CancelReason, JobData, JobOutcome, OutcomeStatus
from pipecat_jobs.tools.results import report_failure

#: The states that the cards of Pipecat's clients do not know, as they show those of a `UIWorker`.
_STATUS_OF_CARDS = {OutcomeStatus.TIMED_OUT: "cancelled", OutcomeStatus.LOST: "error"}


class _Card:
    """A job or a group that the client sees."""

    def __init__(self, jobs: Sequence[OpenJob], rules: Rules, interval: float, send: Send):
        self._job = job = jobs[0]
        self._rules = rules
        self._send = send
        self._started = UIJobGroupStartedData(
            job_id=job.id,
            workers=[job.worker for job in jobs],
            label=job.label or job.name,
            cancellable=job.cancellable,
            at=to_milliseconds(job.since),
        )
        self._updates = {
            job.worker: Throttle[JobLifeEvent](interval, self._send_update) for job in jobs
        }
        self._ended: dict[str, UIJobCompletedData] = {}

    @property
    def has_ended(self) -> bool:
        """Whether every worker has ended."""
        return len(self._ended) == len(self._updates)

    def show(self) -> None:
        """Send all that is known of it, which a client that has just connected needs."""
        self._send_data(self._started)
        for worker, updates in self._updates.items():
            if updates.latest is not None:
                self._send_update(updates.latest)
            if worker in self._ended:
                self._send_data(self._ended[worker])

    def on_event(self, event: JobLifeEvent) -> None:
        """Send an update now or later, and an end at once."""
        updates = self._updates.get(event.worker)
        if updates is None or event.worker in self._ended:
            # The first: its job had ended before the card was opened.
            return
        if event.kind is JobLifeEventKind.UPDATE:
            updates.push(event)
        elif event.outcome is not None:
            updates.flush()
            self._settle(event.outcome, to_milliseconds(event.time))

    def _send_update(self, event: JobLifeEvent) -> None:
        self._send_data(
            UIJobUpdateData(
                job_id=event.job_id,
                worker_name=event.worker,
                data=self._select(event.data),
                at=to_milliseconds(event.time),
            )
        )

    def _settle(self, outcome: JobOutcome, at: int) -> None:
        self._ended[outcome.worker] = ended = UIJobCompletedData(
            job_id=self._job.id,
            worker_name=outcome.worker,
            status=_STATUS_OF_CARDS.get(outcome.status, str(outcome.status)),
            response=self._find_response(outcome),
            at=at,
        )
        self._send_data(ended)
        if self.has_ended:
            self._send_data(UIJobGroupCompletedData(job_id=self._job.id, at=at))

    def _find_response(self, outcome: JobOutcome) -> object:
        if outcome.completed:
            return self._select(outcome.response)
        if outcome.cancel_reason is CancelReason.NOT_NEEDED:
            return None
        # It leaves out the text of exceptions, which may have private data.
        return report_failure(self._job.title, {outcome.worker: outcome})

    def _select(self, data: JobData | None) -> object:
        if data is None:
            return None
        selected = decide(lambda: self._rules.select_data(self._job, data), "select_data", None)
        return to_client_value(selected)

    def _send_data(self, data: UIJobGroupData) -> None:
        self._send(UIJobGroupMessage(data=data))


class Cards(JobInterceptor):
    """Watches what a worker asks of others, and sends a card for each job or group."""

    def __init__(self, worker: WorkerJobs, rules: Rules, interval: float, send: Send):
        self.worker = worker
        self._rules = rules
        self._interval = interval
        self._send = send
        self._open: dict[str, _Card] = {}

    def show_open(self) -> None:
        """Send the open cards once more."""
        for card in self._open.values():
            card.show()

    async def ask(self, call: JobCall, proceed: ProceedToAsk) -> None:
        """Open the card of a call, before its requests are sent."""
        self._open_card(call.job_id)
        await proceed(call)

    def on_event(self, event: JobLifeEvent) -> None:
        """Pass an event to the card of its job, if the client sees the job."""
        card = self._open.get(event.job_id)
        if card is None:
            return
        card.on_event(event)
        if card.has_ended:
            del self._open[event.job_id]

    def _open_card(self, job_id: str) -> None:
        jobs = find_asked(self.worker, job_id)
        if jobs and decide(lambda: self._rules.shows_job(jobs[0]), "shows_job", False):
            self._open[job_id] = card = _Card(jobs, self._rules, self._interval, self._send)
            card.show()


def find_asked(worker: WorkerJobs, job_id: str) -> list[OpenJob]:
    """List the open jobs of one id that a worker asked of others, one for each worker."""
    return [job for job in worker.open_jobs if job.role == "asked" and job.id == job_id]
