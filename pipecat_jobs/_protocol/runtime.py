"""What the two halves need of the worker they serve, so that they run without Pipecat's."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, Protocol, TypeVar, runtime_checkable

from pipecat.bus.messages import BusMessage

Result = TypeVar("Result")


@runtime_checkable
class StartableBus(Protocol):
    """A bus that says whether messages can be sent, and if not, why."""

    async def until_started(self) -> None:
        """Wait until the bus has started, or raise what kept it from starting."""
        ...

    def find_problem(self) -> str | None:
        """Say why no message can be sent now, or None."""
        ...


class WorkerHasEnded(Exception):
    """The worker to watch has ended; the message says how that is known."""


class EndWatch(Protocol):
    """Watches for the end of a worker."""

    def stop(self) -> None:
        """Stop watching."""
        ...


class WorkersView(Protocol):
    """The workers that a worker can ask."""

    def find_missing(self, names: Sequence[str]) -> list[str]:
        """Find the workers that have not registered."""
        ...

    def list_known(self) -> Sequence[str]:
        """List the workers that have registered, here and in other processes."""
        ...

    def shares_loop(self, name: str) -> bool:
        """Return whether a worker runs in the requester's event loop."""
        ...

    def find_note_problem(self, name: str) -> str | None:
        """Say why a worker cannot get a note about its job, or return None."""
        ...

    async def wait_until_known(self, names: Sequence[str]) -> None:
        """Wait until workers have registered, and leave no watch behind."""
        ...

    def watch_end(self, name: str, on_end: Callable[[str], None]) -> EndWatch | None:
        """Have ``on_end`` called with a sentence once a worker has ended.

        Returns:
            What stops watching; None for a worker whose end cannot be noticed here.

        Raises:
            WorkerHasEnded: If it has ended already.
        """
        ...


class JobRuntime(Protocol):
    """The worker that a half serves.

    :class:`~pipecat_jobs._worker.runtime.WorkerRuntime` is Pipecat's worker. A test, or a bridge to
    another system, brings its own.
    """

    @property
    def name(self) -> str:
        """The worker's name, which its messages carry."""
        ...

    @property
    def kind(self) -> str:
        """The name of its class, for errors."""
        ...

    @property
    def workers(self) -> WorkersView:
        """The workers it can ask.

        Raises:
            WorkerNotAddedError: If no runner has the worker yet.
        """
        ...

    @property
    def bus(self) -> StartableBus | None:
        """Its bus, if that says whether messages can be sent."""
        ...

    def clock(self) -> Callable[[], float]:
        """Give the clock, in seconds, that never steps: that of the running event loop, say."""
        ...

    def create_task(
        self, coroutine: Coroutine[Any, Any, Result], name: str
    ) -> asyncio.Task[Result]:
        """Start a task of the worker, which begins after this call has returned."""
        ...

    def send(self, message: BusMessage) -> Awaitable[None]:
        """Send a message."""
        ...
