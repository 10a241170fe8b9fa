"""The reports of one worker, as its client sees them."""

from pipecat_jobs._llm.conversing import Conversing
from pipecat_jobs.client.data import to_client_value, to_milliseconds
from pipecat_jobs.client.messages import make_event
from pipecat_jobs.client.outbox import Send
from pipecat_jobs.client.rules import Rules, decide
from pipecat_jobs.conversation import ReportChange


class ShownReports:
    """Sends each change of a worker's reports to the client."""

    def __init__(self, worker: Conversing, rules: Rules, send: Send):
        self._rules = rules
        self._send = send
        #: The latest change of each report that has not settled, by id.
        self._open: dict[str, ReportChange] = {}
        worker.add_event_handler("on_report_changed", self._on_report_changed)

    def show_open(self) -> None:
        """Send the reports that have not settled once more."""
        for change in self._open.values():
            self._show(change)

    def _on_report_changed(self, _: Conversing, change: ReportChange) -> None:
        # Pipecat starts the handlers in the order of the changes; one that waits would mix them up.
        if not decide(lambda: self._rules.shows_report(change), "shows_report", False):
            return
        if change.state.settled:
            self._open.pop(change.report_id, None)
        else:
            self._open[change.report_id] = change
        self._show(change)

    def _show(self, change: ReportChange) -> None:
        self._send(
            make_event(
                "report",
                id=change.report_id,
                worker=change.worker,
                state=str(change.state),
                at=to_milliseconds(change.time),
                reason=change.reason,
                key=change.key,
                content=to_client_value(change.content),
                heard=change.heard,
            )
        )
