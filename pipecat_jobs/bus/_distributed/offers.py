"""The offers of a process to a channel: its names, and the requests that each worker takes."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field

from pipecat.bus.subscriber import BusSubscriber
from pipecat.workers import llm
from pipecat.workers.base_worker import BaseWorker

from pipecat_jobs._pipecat import proxied_name
from pipecat_jobs._protocol.affinity import Affinity, check_affinity
from pipecat_jobs._protocol.handlers import collect_handlers, find_limits

# Not in every supported release of Pipecat.
_BACKEND: type | None = getattr(llm, "BackendLLMWorker", None)
#: The job of a backend worker that lasts as long as a conversation, and so must not run twice.
_SESSION_JOB = "attach"


@dataclass(frozen=True, slots=True)
class Offer:
    """A name, and the requests that this process takes for it."""

    #: The name of the subscriber.
    name: str
    #: How many jobs may be open at once, by job name, with "" for all other names. None: it takes
    #: no requests.
    slots: dict[str, int] | None = None
    #: Names of the jobs that are never run twice.
    once: tuple[str, ...] = ()
    #: How firmly the jobs of one requester stay in one process.
    affinity: Affinity | None = None
    #: The fields of the payload that are the key of a job, by job name. While a process has a job
    #: of a key, it gets all others of that key.
    keys: dict[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])

    def to_json(self, uid: str) -> str:
        """Write it as the server reads it; ``uid`` identifies this process as long as it lives."""
        if self.slots is None:
            return ""
        spec: dict[str, object] = {
            "uid": uid,
            "slots": self.slots,
            "once": dict.fromkeys(self.once, True),
        }
        if self.affinity is not None:
            spec["affinity"] = self.affinity
        if self.keys:
            spec["keys"] = self.keys
        return json.dumps(spec, ensure_ascii=False)


def find_offers(subscriber: BusSubscriber, room: int) -> Iterator[Offer]:
    """Yield the offer of a subscriber and, if it is a proxy, the offer of its worker.

    ``room`` is the number of slots for jobs without a ``max_concurrency``. A wrong ``job_affinity``
    raises :class:`InvalidJobError`.
    """
    if not isinstance(subscriber, BaseWorker):
        yield Offer(subscriber.name)
        return
    handlers, limits = collect_handlers(type(subscriber)), find_limits(subscriber)
    keys = {name: spec.key.fields for name, spec in handlers.items() if spec.key is not None}
    # The worker itself must decide about a job with a key, e.g. that it replaces another one, so
    # such a job does not wait here for a slot under the worker's limit.
    slots = {
        name or "": limits[name].size if name in limits and name not in keys else room
        for name in (None, *handlers)
    }
    once = tuple(
        name
        for name, spec in handlers.items()
        if spec.run_once or (_is_backend(subscriber) and name == _SESSION_JOB)
    )
    yield Offer(subscriber.name, slots, once, _find_affinity(subscriber), keys)
    proxied = proxied_name(subscriber)
    if proxied is not None:
        yield Offer(proxied, {"": room})


def _find_affinity(worker: BaseWorker) -> Affinity | None:
    affinity = check_affinity(getattr(worker, "job_affinity", "auto"), type(worker))
    if affinity != "auto":
        return affinity
    if _is_backend(worker):
        return "requester"
    return "prefer" if isinstance(worker, llm.LLMContextWorker) else None


def _is_backend(worker: BaseWorker) -> bool:
    return _BACKEND is not None and isinstance(worker, _BACKEND)
