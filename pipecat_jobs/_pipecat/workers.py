"""A runner, its registry and its workers."""

from collections.abc import Awaitable, Callable

from pipecat.registry import WorkerRegistry
from pipecat.registry.types import WorkerReadyData
from pipecat.workers.base_worker import BaseWorker
from pipecat.workers.runner import WorkerRunner

# pyright: reportPrivateUsage=false, reportUnknownMemberType=false


def unwatch(
    registry: WorkerRegistry,
    worker_name: str,
    handler: Callable[[WorkerReadyData], Awaitable[None]],
) -> None:
    """Undo a ``registry.watch()``, for which the registry has no public method."""
    watches = registry._watches
    # A new list rather than a removal: the registry may be iterating over the old one, and would
    # skip the watcher that moves into the freed place.
    rest = [other for other in watches.get(worker_name, []) if other != handler]
    if rest:
        watches[worker_name] = rest
    else:
        watches.pop(worker_name, None)


def has_ended(worker: BaseWorker) -> bool:
    """Return whether a worker has ended: whether its ``wait()`` would return at once."""
    return worker._finished_event.is_set()


def forget_runner(runner: WorkerRunner, gone: str) -> None:
    """Remove a runner that is gone, and its workers, and be ready for its return."""
    runner.registry._remote_workers.pop(gone, None)
    # Otherwise a process that comes back under its name would get no reply to its announcement.
    runner._known_runners.discard(gone)
