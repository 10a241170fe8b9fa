"""What a process offers to a channel: the names it has, and how much each of its workers takes."""

import json
from collections.abc import Iterator
from dataclasses import dataclass

from pipecat.bus.subscriber import BusSubscriber
from pipecat.workers import llm
from pipecat.workers.base_worker import BaseWorker

from pipecat_jobs._pipecat import proxied_name
from pipecat_jobs._protocol.affinity import Affinity, check_affinity
from pipecat_jobs._protocol.handlers import collect_handlers, find_limits

# Not in every supported release of Pipecat.
_BACKEND: type | None = getattr(llm, "BackendLLMWorker", None)
#: The job of such a worker that is a conversation for as long as it is open.
_SESSION_JOB = "attach"


@dataclass(frozen=True, slots=True)
class Offer:
    """A name, and the requests that are taken for it.

    Parameters:
        name: The subscriber's name.
        rooms: How many jobs may be open at once, by job name; under "" for all other names. None
            when it takes no requests.
        once: Names of the jobs that are never run twice.
        affinity: How firmly the jobs of one requester stay in one process.
    """

    name: str
    rooms: dict[str, int] | None = None
    once: tuple[str, ...] = ()
    affinity: Affinity | None = None

    def as_text(self, uid: str) -> str:
        """Say it as the channel's script reads it.

        Args:
            uid: What tells this process from others for as long as it lives.

        Returns:
            JSON, or nothing when no requests are taken.
        """
        if self.rooms is None:
            return ""
        spec = {"uid": uid, "rooms": self.rooms, "once": dict.fromkeys(self.once, True)}
        if self.affinity is not None:
            spec["affinity"] = self.affinity
        return json.dumps(spec, ensure_ascii=False)


def offers_of(subscriber: BusSubscriber, room: int) -> Iterator[Offer]:
    """Read off a subscriber what it offers.

    Args:
        subscriber: Whoever is on the bus.
        room: How many jobs without a bound of their own it takes at once.

    Yields:
        Its name, and that of the remote worker it stands for, if it does.

    Raises:
        InvalidJobError: If its ``job_affinity`` is not one of those there are.
    """
    if not isinstance(subscriber, BaseWorker):
        yield Offer(subscriber.name)
        return
    handlers, limits = collect_handlers(type(subscriber)), find_limits(subscriber)
    rooms = {
        name or "": limits[name].size if name in limits else room for name in (None, *handlers)
    }
    once = tuple(
        name
        for name, spec in handlers.items()
        if spec.run_once or (_is_backend(subscriber) and name == _SESSION_JOB)
    )
    yield Offer(subscriber.name, rooms, once, _affinity(subscriber))
    proxied = proxied_name(subscriber)
    if proxied is not None:
        yield Offer(proxied, {"": room})


def _affinity(worker: BaseWorker) -> Affinity | None:
    affinity = check_affinity(getattr(worker, "job_affinity", "auto"), type(worker))
    if affinity != "auto":
        return affinity
    if _is_backend(worker):
        return "requester"
    return "prefer" if isinstance(worker, llm.LLMContextWorker) else None


def _is_backend(worker: BaseWorker) -> bool:
    return _BACKEND is not None and isinstance(worker, _BACKEND)
