"""The LLM turn that a job started, which has to end with the job."""

from pipecat.frames.frames import InterruptionFrame
from pipecat.workers.llm import LLMContextWorker


async def stop_turn(worker: LLMContextWorker) -> None:
    """Stop what an LLM worker is generating, and wait until nothing of it is left.

    An ``InterruptionFrame`` closes the provider's stream and drops what waits in the pipeline; the
    flush behind it returns when the interrupted turn has been reported to its event handlers. So
    the text of a cancelled job is never taken for the next one's.

    Only a worker that does not hold the conversation is stopped: its turns are its jobs'. One that
    is active may be talking to the user.

    Args:
        worker: A worker whose job was called off.
    """
    if worker.active or worker.started_at is None or worker.has_finished():
        return
    await worker.queue_frame(InterruptionFrame())
    await worker.flush_pipeline()
