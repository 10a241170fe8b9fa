"""What a bot says of its jobs, and when: the floor, and reports with receipts."""

from pipecat_jobs.conversation.floor import Floor, FloorHolder
from pipecat_jobs.conversation.receipt import Receipt
from pipecat_jobs.conversation.states import ReportChange, ReportState

__all__ = ["Floor", "FloorHolder", "Receipt", "ReportChange", "ReportState"]
