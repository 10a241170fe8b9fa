"""A router without a server; the test decides which of its calls are sent."""

from collections.abc import Iterable
from typing import Any

from pipecat.bus.messages import (
    BusActivateWorkerMessage,
    BusJobCancelMessage,
    BusJobRequestMessage,
    BusJobResponseMessage,
    BusMessage,
)
from pipecat.bus.subscriber import BusSubscriber
from pipecat.pipeline.job_context import JobStatus

from pipecat_jobs._protocol.headers import JobHeaders, encode_headers
from pipecat_jobs.bus._distributed.engine import BusStats, Call, Entry, EntryKind, Lane
from pipecat_jobs.bus._distributed.open_jobs import JobKey
from pipecat_jobs.bus._distributed.outbox import Outbox
from pipecat_jobs.bus._distributed.router import LossListener, Router
from pipecat_jobs.bus.envelope import Envelopes
from pipecat_jobs.bus.wire import WireCodec

CODEC = WireCodec()


class LocalProcess:
    """A process with one worker, ``here``."""

    def __init__(self) -> None:
        self.accepts = True
        self.subscriber: BusSubscriber | None = None
        self.delivered: list[BusMessage] = []
        self.removed: list[str] = []
        self.lost: list[tuple[JobKey, str]] = []

    def find_subscriber(self, name: str) -> Any:
        return self.subscriber

    def has_subscriber(self, name: str) -> bool:
        return name == "here"

    def has_keys(self, worker: str, job_name: str) -> bool:
        return job_name == "keyed"

    def takes_requests(self, worker: str) -> bool:
        return self.accepts

    def on_message_received(self, message: BusMessage) -> None:
        self.delivered.append(message)

    def remove_process(self, process: str, runners: Iterable[str]) -> None:
        self.removed += [process, *runners]

    def report_lost(self, requester: LossListener, key: JobKey, reason: str) -> None:
        self.lost.append((key, reason))


class NotifiableRequester:
    async def worker_lost(
        self, worker_name: str, *, reason: str, job_id: str | None = None
    ) -> None: ...


class RouterHarness:
    """A router, its process and its outbox; the test plays the server."""

    def __init__(
        self, *, limit: int = 100, through_server: bool = False, secret: str | None = None
    ):
        self.local = LocalProcess()
        self.stats = BusStats()
        self.outbox = Outbox(limit)
        self.router = Router(
            self.local,
            self.outbox,
            CODEC,
            Envelopes("channel", secret=secret),
            takeover=1.0,
            through_server=through_server,
            stats=self.stats,
        )
        self.others = Envelopes("channel", secret=secret)
        self._number = 0

    async def calls(self) -> list[Call]:
        return await self.outbox.take(100) if len(self.outbox) else []

    async def next_calls(self) -> list[tuple[Any, ...]]:
        """Number the next calls, as before sending, and return them as they are sent."""
        for call in await self.calls():
            self._number += 1
            call.number = call.number or self._number
        return [(call.name, *call.arguments("me", call.number)) for call in await self.calls()]

    async def send_all(self, reply: str = "ok") -> list[str]:
        """Send all calls; the server gives the same reply to each."""
        await self.next_calls()
        calls = await self.calls()
        self.outbox.remove_sent(calls)
        for call in calls:
            call.replied(reply)
        return [call.name for call in calls]

    def deliver(
        self, kind: str, body: bytes = b"", ref: str = "", attempt: int = 0, lane=Lane.DATA
    ):
        self.router.read(Entry(lane, EntryKind(kind), ref, attempt, body))

    def seal(self, message: BusMessage, number: int = 1) -> bytes:
        return self.others.seal("d", "other", number, CODEC.encode(message))

    def seal_request(self, message: BusMessage, number: int = 1, *, once: bool = False) -> bytes:
        body = encode_headers(JobHeaders(run_once=once)) + CODEC.encode(message)
        return self.others.seal("job", "other", number, body)

    def deliver_request(
        self, ref: str = "other:1", attempt: int = 1, *, once: bool = False, **fields: Any
    ) -> None:
        message = request(source="there", target="here", **fields)
        sealed = self.seal_request(message, int(ref.split(":")[1]), once=once)
        self.deliver("j", sealed, ref, attempt)

    def deliver_cancel(self, ref: str = "other:1", attempt: int = 1, number: int = 2) -> None:
        body = CODEC.encode(cancel(source="there", target="here"))
        self.deliver(
            "m", self.others.seal("u", "other", number, body), ref, attempt, lane=Lane.URGENT
        )

    async def sent_to_worker(self, kind: str, purpose: str) -> list[bytes]:
        """Send the calls that notify the worker of the first job. Returns their bodies."""
        calls = await self.next_calls()
        await self.send_all()
        for call in calls:
            assert call[:5] == ("notify_worker", 1, "u", kind, "0")
        return [self.others.open(purpose, call[5]).body for call in calls]

    def responses(self) -> list[tuple[JobStatus, Any]]:
        return [
            (message.status, message.response)
            for message in self.local.delivered
            if isinstance(message, BusJobResponseMessage)
        ]


def request(job_id: Any = "1", source: str = "here", target: str | None = "there", **fields: Any):
    return BusJobRequestMessage(source=source, target=target, job_id=job_id, **fields)


def job_response(**fields: Any) -> BusJobResponseMessage:
    about = {"source": "here", "target": "there", "job_id": "1", **fields}
    return BusJobResponseMessage(**about, status=JobStatus.COMPLETED)


def cancel(**fields: Any) -> BusJobCancelMessage:
    return BusJobCancelMessage(**{"source": "here", "target": "there", "job_id": "1", **fields})


def activate(target: str | None) -> BusActivateWorkerMessage:
    return BusActivateWorkerMessage(source="x", target=target)
