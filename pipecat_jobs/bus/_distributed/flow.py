"""Flow control of streams between processes."""

from pipecat_jobs.bus._distributed.engine import Argument, Call, Command, Entry, EntryKind, Lane
from pipecat_jobs.bus._distributed.open_jobs import OpenJobs, RequestedJob
from pipecat_jobs.bus._distributed.outbox import Outbox
from pipecat_jobs.bus.envelope import Envelopes

#: The purpose that these messages are signed for.
_PURPOSE = "flow"
_WAIT, _CONTINUE = b"wait", b"go on"


class Flow:
    """Makes a worker in another process wait while its stream is not read in this process."""

    def __init__(self, open_jobs: OpenJobs, outbox: Outbox, envelopes: Envelopes):
        self._open_jobs = open_jobs
        self._outbox = outbox
        self._envelopes = envelopes

    def pause_if_full(self, job: RequestedJob, attempt: int) -> None:
        """Make a stream wait if its window is full; called when a chunk of it has arrived."""
        window = job.window()
        if window is None or not window.full or job.paused_attempt == attempt:
            return
        job.paused_attempt = attempt
        self._send(job, _WAIT)

        def resume(_: object) -> None:
            if job.paused_attempt == attempt and self._open_jobs.find_requested(job.key) is job:
                job.paused_attempt = 0
                self._send(job, _CONTINUE)

        window.make_room_future().add_done_callback(resume)

    def _send(self, job: RequestedJob, instruction: bytes) -> None:
        def arguments(process: str, number: int) -> tuple[Argument, ...]:
            sealed = self._envelopes.seal(_PURPOSE, process, number, instruction)
            return job.request.number, Lane.URGENT.stream, EntryKind.FLOW, "0", sealed

        self._outbox.put(Call(Lane.URGENT, Command.NOTIFY_WORKER, arguments))

    def read(self, entry: Entry) -> None:
        """Pause or resume a stream of this process, as the entry from its reader instructs."""
        opened = self._envelopes.open(_PURPOSE, entry.body)
        held = self._open_jobs.find_held_by_ref(entry.ref)
        if held is not None:
            held.window.set_held(opened.body == _WAIT)
