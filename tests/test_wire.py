"""Bus messages as bytes, and back: nothing is built that is not known."""

import dataclasses
import json
import subprocess
import sys
from enum import Enum
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pipecat.bus import messages as bus_messages
from pipecat.bus.adapters import TypeAdapter
from pipecat.bus.messages import (
    BusActivateWorkerMessage,
    BusAddWorkerMessage,
    BusDataMessage,
    BusFrameMessage,
    BusJobRequestMessage,
    BusJobResponseMessage,
    BusLocalMessage,
    BusMessage,
    BusWorkerRegistryMessage,
)
from pipecat.bus.ui.messages import BusUICommandMessage
from pipecat.frames.frames import (
    EndFrame,
    ErrorFrame,
    FunctionCallFromLLM,
    FunctionCallsStartedFrame,
    InputAudioRawFrame,
    InterruptionFrame,
    LLMContextFrame,
    LLMMessagesAppendFrame,
    LLMTextFrame,
    TextFrame,
    ToolsSchema,
    TranscriptionFrame,
)
from pipecat.pipeline.job_context import JobStatus
from pipecat.processors.aggregators.llm_context import NOT_GIVEN, LLMContext, LLMSpecificMessage
from pipecat.processors.filters.identity_filter import IdentityFilter
from pipecat.processors.frame_processor import FrameDirection
from pipecat.registry.types import WorkerRegistryEntry
from pydantic import BaseModel

from pipecat_jobs.bus.wire import WireCodec
from pipecat_jobs.errors import MessageTooLargeError, MessageTypeError, UnreadableMessageError

CODEC = WireCodec()


def there_and_back(message: BusMessage, codec: WireCodec = CODEC) -> Any:
    return codec.decode(codec.encode(message))


def request(payload: dict | None = None, **fields: Any) -> BusJobRequestMessage:
    return BusJobRequestMessage(source="a", target="b", job_id="1", payload=payload, **fields)


def carried(frame: Any) -> Any:
    message = BusFrameMessage(source="a", frame=frame, direction=FrameDirection.UPSTREAM)
    arrived = there_and_back(message)
    assert arrived.direction is FrameDirection.UPSTREAM
    return arrived.frame


# -- what arrives is what was sent ---------------------------------------------------------------

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(st.characters())
    | st.binary()
    | st.sampled_from([JobStatus.FAILED, FrameDirection.UPSTREAM]),
    lambda inner: (
        st.lists(inner)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text() | st.just("$"), inner)
        | st.dictionaries(st.integers() | st.tuples(st.text()), inner)
    ),
    max_leaves=20,
)


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(st.text() | st.just("$"), VALUES))
def test_a_payload_arrives_as_it_was_sent(payload: dict):
    assert there_and_back(request(payload)).payload == payload


def sample(field: dataclasses.Field) -> Any:
    samples = {
        "frame": TextFrame("hello"),
        "direction": FrameDirection.DOWNSTREAM,
        "status": JobStatus.FAILED,
        "workers": [WorkerRegistryEntry("w", started_at=1.5)],
        "flush_id": 7,
    }
    return samples.get(field.name, f"some {field.name}")


@pytest.mark.parametrize(
    "kind",
    [
        kind
        for kind in vars(bus_messages).values()
        if isinstance(kind, type)
        and issubclass(kind, BusMessage)
        and not issubclass(kind, BusLocalMessage)
    ],
)
def test_every_message_of_pipecats_bus_arrives_as_it_was_sent(kind: type):
    message = kind(**{f.name: sample(f) for f in dataclasses.fields(kind) if f.init})
    arrived = there_and_back(message)
    assert type(arrived) is kind
    if kind is BusFrameMessage:
        assert (arrived.frame.text, arrived.frame.id) == ("hello", message.frame.id)
        arrived.frame = message.frame
    # The id and the name are the sender's: a copy is known by them.
    assert vars(arrived) == vars(message)


def test_ui_messages_and_registry_snapshots_are_carried():
    command = BusUICommandMessage(source="a", command_name="show", payload={"at": [1, 2]})
    assert there_and_back(command) == command
    entry = WorkerRegistryEntry("w", parent="p", active=True)
    snapshot = BusWorkerRegistryMessage(source="r", runner="r", workers=[entry])
    assert there_and_back(snapshot).workers == [entry]


def test_frames_that_bridges_carry_arrive_whole():
    audio = carried(InputAudioRawFrame(audio=bytes(range(256)), sample_rate=16000, num_channels=1))
    assert (audio.audio, audio.num_frames) == (bytes(range(256)), 128)
    heard = TranscriptionFrame("hello", "user", "2026-11-22T10:00:00Z")
    assert dataclasses.asdict(carried(heard)) == dataclasses.asdict(heard)
    assert carried(LLMTextFrame("word")).text == "word"
    assert isinstance(carried(InterruptionFrame()), InterruptionFrame)
    appended = LLMMessagesAppendFrame([{"role": "user", "content": "hi"}], run_llm=True)
    assert carried(appended).messages == appended.messages


def test_an_llm_context_is_carried_with_its_tools():
    word = {"type": "string"}

    async def look_up(params, word: str):
        """Looks up.

        Args:
            word: What.
        """

    [schema] = ToolsSchema([look_up]).standard_tools
    assert schema.properties["word"]["type"] == word["type"]
    messages = [{"role": "user", "content": "hi"}, LLMSpecificMessage("openai", {"x": 1})]
    context = LLMContext(messages=messages, tools=ToolsSchema([schema]), tool_choice="auto")
    arrived = carried(LLMContextFrame(context)).context
    assert arrived.messages == messages
    assert [tool.to_default_dict() for tool in arrived.tools.standard_tools] == [
        schema.to_default_dict()
    ]
    assert arrived.tool_choice == "auto"
    assert carried(LLMContextFrame(LLMContext())).context.tools is NOT_GIVEN


def test_what_belongs_to_a_pipeline_stays_in_it_and_its_frame_goes():
    error = ErrorFrame("broken", processor=IdentityFilter())
    arrived = carried(error)
    assert (arrived.error, arrived.processor) == ("broken", None)
    call = FunctionCallFromLLM("f", "1", {"x": 1}, LLMContext())
    assert carried(FunctionCallsStartedFrame([call])).function_calls[0].arguments == {"x": 1}


# -- what a bot brings of its own ----------------------------------------------------------------


@dataclasses.dataclass
class Place:
    city: str
    near: "Place | None" = None


class Size(Enum):
    SMALL = 1


class Order(BaseModel):
    size: str
    pieces: int = 1


@dataclasses.dataclass
class NoteMessage(BusDataMessage):
    note: str


@dataclasses.dataclass
class NoteFrame(TextFrame):
    at: int = 0


class Span:
    def __init__(self, start: int):
        self.start = start


class SpanAdapter(TypeAdapter):
    def serialize(self, obj, serialize_value):
        return {"start": serialize_value(obj.start)}

    def deserialize(self, data, deserialize_value, target_type=None):
        return Span(deserialize_value(data["start"]))


def test_types_of_a_bot_are_carried_once_the_codec_knows_them():
    codec = WireCodec(
        types=[Place, Size, Order, NoteMessage, NoteFrame], adapters={Span: SpanAdapter()}
    )
    payload = {
        "where": Place("Oslo", Place("Bergen")),
        "size": Size.SMALL,
        "order": Order(size="L"),
    }
    assert there_and_back(request(payload), codec).payload == payload
    assert there_and_back(NoteMessage(source="a", note="hi"), codec).note == "hi"
    frame = BusFrameMessage(
        source="a", frame=NoteFrame("x", at=3), direction=FrameDirection.UPSTREAM
    )
    assert there_and_back(frame, codec).frame.at == 3
    assert there_and_back(request({"span": Span(4)}), codec).payload["span"].start == 4


@pytest.mark.parametrize(
    ("payload", "path", "name"),
    [
        ({"where": Place("Oslo")}, "payload.where", "Place"),
        ({"list": [1, {"deep": object()}]}, "payload.list[1].deep", "object"),
        ({"call": print}, "payload.call", "builtin_function_or_method"),
    ],
)
def test_what_cannot_be_carried_is_refused_at_the_sender_with_its_place(payload, path, name):
    with pytest.raises(MessageTypeError) as caught:
        CODEC.encode(request(payload))
    assert (caught.value.path, caught.value.type_name) == (path, name)
    assert "types=[...]" in str(caught.value)


def test_a_payload_that_contains_itself_is_refused():
    payload: dict = {}
    payload["self"] = payload
    with pytest.raises(MessageTypeError, match="contains itself"):
        CODEC.encode(request(payload))


@pytest.mark.parametrize(
    "message",
    [
        BusAddWorkerMessage(source="a", worker=None),
        NoteMessage(source="a", note="x"),
        BusFrameMessage(source="a", frame=EndFrame(), direction=FrameDirection.UPSTREAM),
    ],
)
def test_local_unknown_and_lifecycle_messages_are_not_carried(message: BusMessage):
    with pytest.raises(MessageTypeError):
        CODEC.encode(message)


def test_a_type_that_cannot_be_carried_is_refused_when_it_is_named():
    for kind in (Span, BusAddWorkerMessage):
        with pytest.raises(MessageTypeError, match="types="):
            WireCodec(types=[kind])
    twin = dataclasses.make_dataclass("TextFrame", ["x"])
    with pytest.raises(ValueError, match="two types are named 'TextFrame'"):
        WireCodec(types=[twin])


# -- limits, strangers and garbage ---------------------------------------------------------------


def test_a_message_over_the_limit_is_refused_at_the_sender():
    codec = WireCodec(max_bytes=500)
    assert there_and_back(request({"text": "x" * 100}), codec)
    with pytest.raises(MessageTooLargeError) as caught:
        codec.encode(request({"text": "x" * 500}))
    error = caught.value
    assert error.size > error.limit == 500
    assert "BusJobRequestMessage" in error.message
    assert "max_message_bytes" in str(error)
    with pytest.raises(UnreadableMessageError, match="more than 500"):
        codec.decode(CODEC.encode(request({"text": "x" * 500})))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x00\xff",
        b"null",
        b"[]",
        b'{"source":"a"}',
        b'{"$":"TextFrame","v":{"text":"not a message"}}',
        b'{"$":"BusJobRequestMessage"}',
        b'{"$":"BusJobRequestMessage","v":[]}',
        b'{"$":"BusJobRequestMessage","v":{"source":"a"}}',
        b'{"$":"BusJobRequestMessage","v":{"source":1,"job_id":"1"}}',
        b'{"$":"BusJobRequestMessage","v":{"source":"a","target":{},"job_id":"1"}}',
        b'{"$":["x"],"v":{}}',
        b'{"$":"JobStatus","v":"NONE"}',
        b'{"$":"os.system","v":"true"}',
        b'{"$":"BusAddWorkerMessage","v":{"source":"a","worker":null}}',
        b'{"$":"EndFrame","v":{}}',
        b'{"$":"bytes","v":"***"}',
        b'{"$":"dict","v":[[[],1]]}',
        b"[" * 100_000,
    ],
)
def test_garbage_is_told_apart_from_messages(data: bytes):
    with pytest.raises(UnreadableMessageError):
        CODEC.decode(data)


@settings(max_examples=300, deadline=None)
@given(
    st.binary() | st.builds(lambda v: json.dumps(v).encode(), st.dictionaries(st.text(), st.text()))
)
def test_whatever_the_bytes_are_decoding_them_raises_nothing_else(data: bytes):
    with pytest.raises(UnreadableMessageError):
        CODEC.decode(data)


def test_what_the_wire_names_is_never_imported():
    code = (
        "import sys; from pipecat_jobs.bus.wire import WireCodec;"
        "from pipecat_jobs.errors import UnreadableMessageError\n"
        "for name in ('xml.dom.minidom', 'xml.dom.minidom.Document', 'this.s'):\n"
        '    try: WireCodec().decode(b\'{"$":"%s","v":{}}\' % name.encode())\n'
        "    except UnreadableMessageError: pass\n"
        "print([m for m in ('xml.dom.minidom', 'this') if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip().splitlines()[-1] == "[]"


def test_a_field_that_only_a_newer_peer_knows_is_passed_over():
    data = CODEC.encode(BusActivateWorkerMessage(source="a", target="b", args={"x": 1}))
    data = data.replace(b'"args":', b'"mood":"good","args":')
    assert CODEC.decode(data).args == {"x": 1}


def test_an_answer_arrives_with_its_status():
    answer = BusJobResponseMessage(source="b", target="a", job_id="1", status=JobStatus.CANCELLED)
    assert there_and_back(answer).status is JobStatus.CANCELLED
