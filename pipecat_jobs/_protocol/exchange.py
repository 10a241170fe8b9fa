"""What requester and worker tell each other about an open job, beside its request and response.

A requester attaches a note to Pipecat's ``BusJobUpdateRequestMessage``, and a worker writes one
under the reserved key of an update. This is the only module that reads or writes either.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TypeAlias, cast

from pipecat.bus import AsyncQueueBus, WorkerBus
from pipecat.bus.messages import BusJobUpdateMessage, BusJobUpdateRequestMessage

from pipecat_jobs._protocol.delivery import CarriesNotes
from pipecat_jobs._protocol.statements import RESERVED_KEY
from pipecat_jobs._protocol.text import shorten
from pipecat_jobs.outcomes import JobData
from pipecat_jobs.steering import SteerState

_ATTRIBUTE = "pipecat_jobs_note"


@dataclass(frozen=True, slots=True)
class SteerNote:
    """A requester steers the job; the worker replies with a :class:`SteeredNote` of its id."""

    id: str
    data: JobData


@dataclass(frozen=True, slots=True)
class SteeredNote:
    """A worker says what became of a steer."""

    id: str
    state: SteerState
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class QuestionNote:
    """A worker asks; the requester replies with an :class:`AnswerNote` of its id."""

    id: str
    text: str
    schema: JobData
    #: Why the last answer did not fit; None when it is asked for the first time.
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class AnswerNote:
    """A requester answers a question, or refuses it with a reason."""

    id: str
    value: object = None
    refused: str | None = None


@dataclass(frozen=True, slots=True)
class WithdrawnNote:
    """A worker does not wait for the answer of a question any more."""

    id: str


#: What a requester may attach to a message.
RequesterNote: TypeAlias = SteerNote | AnswerNote
#: What a worker may write into an update.
WorkerNote: TypeAlias = SteeredNote | QuestionNote | WithdrawnNote


# -- from the requester ------------------------------------------------------------------------


def make_note_message(
    source: str, target: str, job_id: str, note: RequesterNote
) -> BusJobUpdateRequestMessage:
    """Make the message that takes a note to the worker of a job."""
    message = BusJobUpdateRequestMessage(source=source, target=target, job_id=job_id)
    setattr(message, _ATTRIBUTE, note)
    return message


def find_note(message: BusJobUpdateRequestMessage) -> RequesterNote | None:
    """Find the note of a message; None for a request for an update."""
    note = getattr(message, _ATTRIBUTE, None)
    return note if isinstance(note, SteerNote | AnswerNote) else None


def write_requester_note(note: RequesterNote) -> JobData:
    """Write a note as data, for a bus that carries no attributes of a message."""
    match note:
        case SteerNote():
            return {"kind": "steer", "id": note.id, "data": note.data}
        case AnswerNote(refused=None):
            return {"kind": "answer", "id": note.id, "value": note.value}
        case AnswerNote():
            return {"kind": "answer", "id": note.id, "refused": note.refused}


def attach_note(message: BusJobUpdateRequestMessage, written: object) -> None:
    """Attach what :func:`write_requester_note` wrote; raise ValueError for anything else."""
    fields = _read_fields(written)
    match fields:
        case {"kind": "steer", "id": str(id), "data": dict(data)}:
            note = SteerNote(id, cast(JobData, data))
        case {"kind": "answer", "id": str(id), "refused": str(refused)}:
            note = AnswerNote(id, refused=refused)
        case {"kind": "answer", "id": str(id), "value": value}:
            note = AnswerNote(id, value)
        case _:
            raise ValueError(f"a note with other fields: {shorten(fields)}")
    setattr(message, _ATTRIBUTE, note)


_KINDS: dict[type[WorkerNote], str] = {
    SteeredNote: "steered",
    QuestionNote: "question",
    WithdrawnNote: "withdrawn",
}

# -- from the worker ---------------------------------------------------------------------------


def make_worker_note_message(
    source: str, target: str, job_id: str, note: WorkerNote
) -> BusJobUpdateMessage:
    """Make the message that takes a note to the requester of a job."""
    written = {"kind": _KINDS[type(note)], **asdict(note)}
    return BusJobUpdateMessage(
        source=source, target=target, job_id=job_id, update={RESERVED_KEY: written}
    )


def read_worker_note(update: Mapping[str, object]) -> WorkerNote | None:
    """Read the note of an update that has the reserved key; None for one of another release."""
    written = update.get(RESERVED_KEY)
    fields = _read_fields(written) if isinstance(written, dict) else {}
    match fields:
        case {
            "kind": "steered",
            "id": str(id),
            "state": "accepted" | "refused" | "over" as state,
            "reason": str() | None as reason,
        }:
            return SteeredNote(id, cast(SteerState, state), reason)
        case {
            "kind": "question",
            "id": str(id),
            "text": str(text),
            "schema": dict(schema),
            "problem": str() | None as problem,
        }:
            return QuestionNote(id, text, cast(JobData, schema), problem)
        case {"kind": "withdrawn", "id": str(id)}:
            return WithdrawnNote(id)
        case _:
            return None


def make_refusal(
    message: BusJobUpdateRequestMessage, note: SteerNote, reason: str
) -> BusJobUpdateMessage:
    """Make the message that refuses a note in place of the worker that it is for."""
    refused = SteeredNote(note.id, "refused", reason)
    return make_worker_note_message(message.target or "", message.source, message.job_id, refused)


def _read_fields(written: object) -> Mapping[str, object]:
    if not isinstance(written, dict):
        raise ValueError("a note that is not an object")
    return cast("Mapping[str, object]", written)


# -- who can take part -------------------------------------------------------------------------


def find_bus_problem(bus: WorkerBus) -> str | None:
    """Say why a bus cannot carry notes, or return None."""
    if isinstance(bus, AsyncQueueBus | CarriesNotes):
        return None
    return (
        f"{type(bus).__name__} drops what pipecat-jobs attaches to a message; use RoutedBus in one "
        "process, and RedisStreamsBus between processes"
    )


def describe_plain_worker(name: str, kind: str) -> str:
    """Say why a plain Pipecat worker cannot take a note."""
    return (
        f"worker '{name}' is a plain Pipecat {kind}, which knows nothing of it; import the "
        "worker's class from pipecat_jobs, or add JobsMixin to its bases"
    )
