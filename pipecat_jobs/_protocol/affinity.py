"""Which jobs of a worker belong in one process, where several processes host the worker."""

from typing import Literal, TypeAlias, get_args

from pipecat_jobs.errors import InvalidJobError

#: How firmly jobs stay in the process that had the jobs of the same requester before.
Affinity: TypeAlias = Literal["requester", "prefer"]


def check_affinity(value: object, worker_class: type) -> Affinity | Literal["auto"] | None:
    """Check a ``job_affinity``."""
    for known in (*get_args(Affinity), "auto", None):
        if value == known:
            return known
    raise InvalidJobError(
        f"{worker_class.__name__}.job_affinity is {value!r}; give 'requester', 'prefer', 'auto' "
        "or None"
    )
