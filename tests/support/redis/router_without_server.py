"""A post without a server, whose calls a test takes there or does not."""

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


class Ours:
    """A process with one worker, ``here``."""

    def __init__(self) -> None:
        self.takes = True
        self.hearing: BusSubscriber | None = None
        self.delivered: list[BusMessage] = []
        self.gone: list[str] = []
        self.lost: list[tuple[JobKey, str]] = []

    def find_subscriber(self, name: str) -> Any:
        return self.hearing

    def has_subscriber(self, name: str) -> bool:
        return name == "here"

    def takes_requests(self, worker: str) -> bool:
        return self.takes

    def on_message_received(self, message: BusMessage) -> None:
        self.delivered.append(message)

    def remove_process(self, process: str, runners: Iterable[str]) -> None:
        self.gone += [process, *runners]

    def report_lost(self, requester: LossListener, key: JobKey, reason: str) -> None:
        self.lost.append((key, reason))


class Hearing:
    async def worker_lost(
        self, worker_name: str, *, reason: str, job_id: str | None = None
    ) -> None: ...


class Desk:
    """A post, whose calls the test takes to the server, or does not."""

    def __init__(
        self, *, limit: int = 100, through_server: bool = False, secret: str | None = None
    ):
        self.ours = Ours()
        self.stats = BusStats()
        self.outbox = Outbox(limit)
        self.router = Router(
            self.ours,
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

    async def tried(self) -> list[tuple[Any, ...]]:
        """Number what is next, as a process does that sends it, and give it as it is sent."""
        for call in await self.calls():
            self._number += 1
            call.number = call.number or self._number
        return [(call.name, *call.arguments("me", call.number)) for call in await self.calls()]

    async def sent(self, reply: str = "ok") -> list[str]:
        """Take all to the server, which says the same to each."""
        await self.tried()
        calls = await self.calls()
        self.outbox.sent(calls)
        for call in calls:
            call.replied(reply)
        return [call.name for call in calls]

    def get(self, kind: str, body: bytes = b"", ref: str = "", attempt: int = 0, lane=Lane.DATA):
        self.router.read(Entry(lane, EntryKind(kind), ref, attempt, body))

    def seal(self, message: BusMessage, number: int = 1) -> bytes:
        return self.others.seal("d", "other", number, CODEC.encode(message))

    def seal_request(self, message: BusMessage, number: int = 1, *, once: bool = False) -> bytes:
        body = encode_headers(JobHeaders(run_once=once)) + CODEC.encode(message)
        return self.others.seal("job", "other", number, body)

    def get_request(
        self, ref: str = "other:1", attempt: int = 1, *, once: bool = False, **fields: Any
    ) -> None:
        message = request(source="there", target="here", **fields)
        sealed = self.seal_request(message, int(ref.split(":")[1]), once=once)
        self.get("j", sealed, ref, attempt)

    def get_cancel(self, ref: str = "other:1", attempt: int = 1, number: int = 2) -> None:
        body = CODEC.encode(cancel(source="there", target="here"))
        self.get("m", self.others.seal("u", "other", number, body), ref, attempt, lane=Lane.URGENT)

    async def orders(self, kind: str, purpose: str) -> list[bytes]:
        """Take to the server what whoever does the first job is told, and give it unsealed."""
        told = await self.tried()
        await self.sent()
        for call in told:
            assert call[:5] == ("notify_worker", 1, "u", kind, "0")
        return [self.others.open(purpose, call[5]).body for call in told]

    def answers(self) -> list[tuple[JobStatus, Any]]:
        return [
            (message.status, message.response)
            for message in self.ours.delivered
            if isinstance(message, BusJobResponseMessage)
        ]


def request(job_id: Any = "1", source: str = "here", target: str | None = "there", **fields: Any):
    return BusJobRequestMessage(source=source, target=target, job_id=job_id, **fields)


def answer(**fields: Any) -> BusJobResponseMessage:
    about = {"source": "here", "target": "there", "job_id": "1", **fields}
    return BusJobResponseMessage(**about, status=JobStatus.COMPLETED)


def cancel(**fields: Any) -> BusJobCancelMessage:
    return BusJobCancelMessage(**{"source": "here", "target": "there", "job_id": "1", **fields})


def activate(target: str | None) -> BusActivateWorkerMessage:
    return BusActivateWorkerMessage(source="x", target=target)
