"""What the router needs to know of this process."""

from collections.abc import Iterable
from typing import Protocol, runtime_checkable

from pipecat.bus.messages import BusMessage
from pipecat.bus.subscriber import BusSubscriber

from pipecat_jobs.bus._distributed.open_jobs import JobKey


class LocalSide(Protocol):
    """The subscribers of this process."""

    def subscriber(self, name: str) -> BusSubscriber | None:
        """Look up a subscriber."""
        ...

    def has(self, name: str) -> bool:
        """Return whether a message for a name is delivered in this process."""
        ...

    def takes_requests(self, worker: str) -> bool:
        """Return whether requests for a worker are taken now."""
        ...

    def on_message_received(self, message: BusMessage) -> None:
        """Deliver a message to subscribers of this process."""
        ...

    def introduced(self, runner: str, process: str) -> None:
        """Record in which process a runner is."""
        ...

    def process_gone(self, process: str, runners: Iterable[str]) -> None:
        """Remove the workers of a process that has left or is dead."""
        ...

    def report_lost(self, requester: "HearsOfLoss", key: JobKey, reason: str) -> None:
        """Tell a requester that one of its jobs is lost."""
        ...


@runtime_checkable
class HearsOfLoss(Protocol):
    """A requester that can be told that a worker is gone."""

    async def worker_lost(
        self, worker_name: str, *, reason: str, job_id: str | None = None
    ) -> None:
        """End the jobs at a worker, or one of them, as lost."""
        ...
