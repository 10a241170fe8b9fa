"""What is in this process, as far as its messages need to know."""

from collections.abc import Iterable
from typing import Protocol, runtime_checkable

from pipecat.bus.messages import BusMessage
from pipecat.bus.subscriber import BusSubscriber

from pipecat_jobs.bus._distributed.open_jobs import Parties


class LocalSide(Protocol):
    """The part of the bus that is in this process."""

    def subscriber(self, name: str) -> BusSubscriber | None:
        """Look a subscriber up."""
        ...

    def has(self, name: str) -> bool:
        """Tell whether a name is a subscriber here, or stands behind one."""
        ...

    def takes_requests(self, worker: str) -> bool:
        """Tell whether requests for a worker are taken now."""
        ...

    def on_message_received(self, message: BusMessage) -> None:
        """Deliver a message to subscribers of this process."""
        ...

    def introduced(self, runner: str, process: str) -> None:
        """Hear in which process of the channel a runner is."""
        ...

    def process_gone(self, process: str, runners: Iterable[str]) -> None:
        """Hear that a process of the channel is gone."""
        ...

    def tell_lost(self, subscriber: "HearsOfLoss", parties: Parties, reason: str) -> None:
        """Tell a requester that one of its jobs is lost."""
        ...


@runtime_checkable
class HearsOfLoss(Protocol):
    """A requester that can be told that a worker is gone."""

    async def worker_lost(
        self, worker_name: str, *, reason: str, job_id: str | None = None
    ) -> None:
        """Hear it."""
        ...
