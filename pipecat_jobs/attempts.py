"""How often a job has been begun, and whether it may be begun again.

Both travel beside Pipecat's request message, which has no field for them.
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
