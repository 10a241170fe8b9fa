"""Where the mixin stands among the bases of a worker class."""

from abc import ABCMeta

from pipecat.workers.base_worker import BaseWorker


class UnderWorkers(ABCMeta):
    """Puts the mixin right above ``BaseWorker``, in whatever order the bases are written.

    Pipecat's workers extend the job methods they inherit: ``UIWorker`` announces a group around
    ``super().create_job_group_and_request_job()``. Those extensions have to wrap ours.
    """

    def mro(cls) -> list[type]:
        """Order the bases of a class.

        Returns:
            Python's order, with the mixin further back.
        """
        order = super().mro()
        mixins = [base for base in order if base.__dict__.get("_is_jobs_mixin")]
        rest = [base for base in order if base not in mixins]
        at = rest.index(BaseWorker)
        return [*rest[:at], *mixins, *rest[at:]]
