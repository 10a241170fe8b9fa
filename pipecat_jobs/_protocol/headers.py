"""How often a job has been begun, whether it may be begun again, and which jobs it belongs to.

All of it travels beside Pipecat's request message, which has no field for it.
"""

from pipecat.bus.messages import BusJobRequestMessage


def job_attempt(message: BusJobRequestMessage) -> int:
    """Tell how often a job has been begun, this time included.

    Args:
        message: The request that a handler was called with.

    Returns:
        1, or more when a process was lost while it did the job, and this one has taken it up.

    Example::

        class Importer(BaseWorker):
            @job(name="import")
            async def import_file(self, message):
                if job_attempt(message) > 1:
                    ...  # what an earlier attempt has left
                return {"imported": message.payload["file"]}
    """
    attempt: object = vars(message).get("attempt", 1)
    return attempt if isinstance(attempt, int) else 1


def set_attempt(message: BusJobRequestMessage, attempt: int) -> None:
    """Say how often a job has been begun.

    Args:
        message: The request.
        attempt: The number, from 1.
    """
    vars(message)["attempt"] = attempt


def runs_once(message: BusJobRequestMessage) -> bool:
    """Tell whether the one who asks wants a job never to be begun twice.

    Args:
        message: The request.

    Returns:
        Whether it is lost with the process that does it.
    """
    return vars(message).get("run_once") is True


def set_run_once(message: BusJobRequestMessage) -> None:
    """Say that a job must never be begun twice.

    Args:
        message: The request.
    """
    vars(message)["run_once"] = True


def job_moved(message: BusJobRequestMessage) -> bool:
    """Tell whether a job runs in another process than the jobs it belongs to.

    Where several processes host a worker with a ``job_affinity``, the jobs of one requester, or
    those asked with the same ``affinity``, stay in one process. When that process is gone, or has
    no free slot and the affinity is ``"prefer"``, a job runs elsewhere: what the worker keeps in
    memory of the jobs before is not there.

    Args:
        message: The request that a handler was called with.

    Returns:
        Whether earlier jobs that it belongs to ran in another process. False for the first one, for
        every later one in the new process, and on a bus within one process.

    Example::

        class Tutor(BaseWorker):
            job_affinity = "requester"

            @job(name="explain")
            async def explain(self, message):
                if job_moved(message):
                    ...  # ask for what the lesson was about
                return {"text": "As I said before ..."}
    """
    return vars(message).get("moved") is True


def set_moved(message: BusJobRequestMessage) -> None:
    """Say that a job runs in another process than the jobs it belongs to.

    Args:
        message: The request.
    """
    vars(message)["moved"] = True


def affinity_of(message: BusJobRequestMessage) -> str | None:
    """Give what the jobs that belong together share, if the requester has said so.

    Args:
        message: The request.

    Returns:
        The key, or None.
    """
    affinity: object = vars(message).get("affinity")
    return affinity if isinstance(affinity, str) else None


def set_affinity(message: BusJobRequestMessage, affinity: str) -> None:
    """Say what the jobs that belong together share.

    Args:
        message: The request.
        affinity: The key.
    """
    vars(message)["affinity"] = affinity
