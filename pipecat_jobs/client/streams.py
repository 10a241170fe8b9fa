"""The streams of one worker's jobs, as its client sees them: chunks joined into few messages."""

from collections import deque
from itertools import islice

from pipecat_jobs._worker.mixin import WorkerJobs
from pipecat_jobs.client.cards import find_asked
from pipecat_jobs.client.data import MOST_BYTES, find_size, to_client_value, to_milliseconds
from pipecat_jobs.client.messages import make_event
from pipecat_jobs.client.outbox import Send
from pipecat_jobs.client.rules import Rules, decide
from pipecat_jobs.client.throttle import Throttle
from pipecat_jobs.interceptors import (
    JobCall,
    JobInterceptor,
    JobLifeEvent,
    JobLifeEventKind,
    ProceedToAsk,
)
from pipecat_jobs.open_jobs import OpenJob

#: Bytes between two chunks in the JSON of a message.
_SEPARATOR = len(", ")
#: The largest sum of chunks and separators; there is none after the last chunk.
_MOST_BYTES = MOST_BYTES + _SEPARATOR


class _Stream:
    """The stream of one job at one worker: its last chunks, as many as one message carries."""

    def __init__(self, job_id: str, worker: str, interval: float, send: Send):
        self._job_id = job_id
        self._worker = worker
        self._send = send
        self._throttle = Throttle[int](interval, lambda _: self._send_last(self._waiting))
        #: Each chunk with its size. Those at the end wait for the end of the interval.
        self._last: deque[tuple[object, int]] = deque()
        self._bytes = 0
        self._waiting = 0
        self._waiting_bytes = 0
        self._count = 0
        self._at = 0

    def push(self, chunk: object, at: int) -> None:
        """Send a chunk now, or with others at the end of the interval."""
        size = find_size(chunk) + _SEPARATOR
        if self._waiting_bytes + size > _MOST_BYTES:
            self._send_last(self._waiting)
        self._last.append((chunk, size))
        self._bytes += size
        while self._bytes > _MOST_BYTES:
            self._bytes -= self._last.popleft()[1]
        self._waiting += 1
        self._waiting_bytes += size
        self._count += 1
        self._at = at
        self._throttle.push(self._count)

    def flush(self) -> None:
        """Send the chunks that wait, and stop."""
        self._throttle.flush()

    def show(self) -> None:
        """Send the last chunks once more, those that wait among them."""
        self._send_last(len(self._last))

    def _send_last(self, count: int) -> None:
        if not count:
            return
        last = islice(self._last, len(self._last) - count, None)
        self._waiting = self._waiting_bytes = 0
        self._send(
            make_event(
                "stream",
                job_id=self._job_id,
                worker=self._worker,
                first=self._count - count,
                chunks=[chunk for chunk, _ in last],
                at=self._at,
            )
        )


class _ShownJob:
    """A job or a group whose streams the client sees."""

    def __init__(self, jobs: list[OpenJob], interval: float, send: Send):
        self.first = jobs[0]
        self.streams = {job.worker: _Stream(job.id, job.worker, interval, send) for job in jobs}
        self._running = set(self.streams)

    @property
    def has_ended(self) -> bool:
        """Whether every worker has ended."""
        return not self._running

    def end(self, worker: str) -> None:
        """Record that a worker has ended, and send what waits of its stream."""
        self._running.discard(worker)
        self.streams[worker].flush()


class ShownStreams(JobInterceptor):
    """Sends the chunks of what a worker asked of others, joined for each job and worker."""

    def __init__(self, worker: WorkerJobs, rules: Rules, interval: float, send: Send):
        self._worker = worker
        self._rules = rules
        self._interval = interval
        self._send = send
        self._open: dict[str, _ShownJob] = {}

    def show_open(self) -> None:
        """Send the last chunks of the open jobs once more."""
        for job in self._open.values():
            for stream in job.streams.values():
                stream.show()

    async def ask(self, call: JobCall, proceed: ProceedToAsk) -> None:
        """Decide whether the client sees the streams of a call, before its requests are sent."""
        jobs = find_asked(self._worker, call.job_id)
        if jobs and decide(lambda: self._rules.shows_job(jobs[0]), "shows_job", False):
            self._open[call.job_id] = _ShownJob(jobs, self._interval, self._send)
        await proceed(call)

    def on_event(self, event: JobLifeEvent) -> None:
        """Pass a chunk on, and the end of a stream."""
        job = self._open.get(event.job_id)
        if job is None or event.worker not in job.streams:
            return
        if event.kind is JobLifeEventKind.STREAM:
            self._push(job, event)
        elif event.kind is JobLifeEventKind.SETTLED:
            job.end(event.worker)
            if job.has_ended:
                del self._open[event.job_id]

    def _push(self, job: _ShownJob, event: JobLifeEvent) -> None:
        data = event.data
        if data is None:
            return
        chunk = decide(lambda: self._rules.select_data(job.first, data), "select_data", None)
        if chunk is not None:
            written = to_client_value(chunk)
            job.streams[event.worker].push(written, to_milliseconds(event.time))
