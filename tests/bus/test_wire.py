"""Bus messages as bytes and back: only known types are built."""

import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable
from enum import Enum
from typing import Any

import pytest
from hypothesis import given
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
from support.schedules import schedules

from pipecat_jobs.bus.fields import FieldChecks
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


# -- round trips ---------------------------------------------------------------------------------

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


@pytest.mark.schedules
@schedules(60)
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
        "started_at": 1.5,
    }
    by_type = {"dict | None": {"some": field.name}, "bool": True}
    return samples.get(field.name, by_type.get(field.type, f"some {field.name}"))


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
    # The copy keeps the sender's id and name, which identify the frame.
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
    received = TranscriptionFrame("hello", "user", "2026-11-22T10:00:00Z")
    assert dataclasses.asdict(carried(received)) == dataclasses.asdict(received)
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


def test_fields_that_belong_to_a_pipeline_are_removed_from_a_frame_that_is_sent():
    error = ErrorFrame("broken", processor=IdentityFilter())
    arrived = carried(error)
    assert (arrived.error, arrived.processor) == ("broken", None)
    call = FunctionCallFromLLM("f", "1", {"x": 1}, LLMContext())
    assert carried(FunctionCallsStartedFrame([call])).function_calls[0].arguments == {"x": 1}


# -- types of a bot ------------------------------------------------------------------------------


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
def test_a_value_that_cannot_be_carried_is_refused_at_the_sender_with_its_path(payload, path, name):
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


# -- limits, unknown types and garbage -----------------------------------------------------------


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
def test_garbage_is_refused(data: bytes):
    with pytest.raises(UnreadableMessageError):
        CODEC.decode(data)


@pytest.mark.schedules
@schedules(150)
@given(
    st.binary() | st.builds(lambda v: json.dumps(v).encode(), st.dictionaries(st.text(), st.text()))
)
def test_decoding_any_bytes_raises_only_the_documented_error(data: bytes):
    with pytest.raises(UnreadableMessageError):
        CODEC.decode(data)


WRONG_FIELDS = [
    ("BusJobUpdateMessage", {"name": {}}),
    ("BusJobUpdateMessage", {"id": "1"}),
    ("BusJobUpdateMessage", {"job_id": 5}),
    ("BusJobUpdateMessage", {"update": [1]}),
    ("BusJobRequestMessage", {"job_name": {"$": "JobStatus", "v": "FAILED"}, "payload": 1}),
    ("BusJobResponseMessage", {"status": {"x": 1}}),
    ("BusWorkerRegistryMessage", {"runner": "r", "workers": [1]}),
    ("BusWorkerReadyMessage", {"runner": "r", "started_at": "now"}),
    ("BusTTSSpeakMessage", {"text": "x", "append_to_context": "yes"}),
    ("BusFrameMessage", {"frame": {"text": "no frame"}, "direction": None}),
    ("BusUICommandMessage", {"command_name": ["x"]}),
]
WRONG_FRAMES = [
    ("LLMMessagesUpdateFrame", {"messages": [], "name": {}}),
    ("LLMMessagesAppendFrame", {"messages": "text"}),
    ("LLMMessagesAppendFrame", {"messages": [5]}),
    ("LLMSetToolsFrame", {"tools": "text"}),
    ("TextFrame", {"text": 5}),
    ("TextFrame", {"text": "x", "pts": "now"}),
    ("TextFrame", {"text": "x", "metadata": [1]}),
    ("TextFrame", {"text": "x", "metadata": {"$": "dict", "v": [[1, 2]]}}),
    ("InputAudioRawFrame", {"audio": "text", "sample_rate": 1, "num_channels": 1}),
    ("ErrorFrame", {"error": "x", "processor": "text"}),
    ("FunctionCallsStartedFrame", {"function_calls": [{"$": "bytes", "v": ""}]}),
    ("LLMContextFrame", {"context": {}}),
    ("LLMContextFrame", {"context": {"$": "LLMContext", "v": {"messages": [5]}}}),
    ("MetricsFrame", {"data": ["x"]}),
    ("MetricsFrame", {"data": [{"$": "TTFBMetricsData", "v": {"processor": 5, "value": 1.0}}]}),
]


def wire(name: str, fields: dict) -> bytes:
    known = {"source": "a", "target": "b", **({"job_id": "1"} if "Job" in name else {})}
    return json.dumps({"$": name, "v": {**known, **fields}}).encode()


def wire_frame(name: str, fields: dict) -> bytes:
    direction = {"$": "FrameDirection", "v": "UPSTREAM"}
    frame = {"$": name, "v": fields}
    return wire("BusFrameMessage", {"frame": frame, "direction": direction})


@pytest.mark.parametrize(
    "data",
    [wire(*each) for each in WRONG_FIELDS] + [wire_frame(*each) for each in WRONG_FRAMES],
    ids=[str(each) for each in WRONG_FIELDS + WRONG_FRAMES],
)
def test_a_field_of_another_type_than_it_declares_is_refused(data: bytes):
    with pytest.raises(UnreadableMessageError):
        CODEC.decode(data)


def test_the_same_messages_with_the_declared_types_are_read():
    for name, fields in [
        ("BusJobUpdateMessage", {"name": "n", "id": 1, "update": {}}),
        ("BusWorkerReadyMessage", {"runner": "r", "started_at": 1}),
        ("BusUICommandMessage", {"command_name": "x"}),
    ]:
        assert CODEC.decode(wire(name, fields)).source == "a"
    for name, fields in [
        ("TextFrame", {"text": "x", "pts": None, "metadata": {"a": [1]}}),
        ("LLMMessagesAppendFrame", {"messages": [{"role": "user", "content": "hi"}]}),
        # Some services give the language as a str.
        ("TranscriptionFrame", {"text": "x", "user_id": "", "timestamp": "", "language": "en"}),
        ("ErrorFrame", {"error": "x", "processor": None}),
    ]:
        assert type(CODEC.decode(wire_frame(name, fields)).frame).__name__ == name


def test_a_field_of_another_type_is_refused_at_the_sender_with_its_declared_type():
    with pytest.raises(MessageTypeError) as caught:
        CODEC.encode(
            BusJobResponseMessage(
                source="a",
                job_id="1",
                response=["x"],  # type: ignore[arg-type]
                status=JobStatus.COMPLETED,
            )
        )
    assert (caught.value.path, caught.value.type_name) == ("response", "list")
    assert "send the declared type: dict | None" in str(caught.value)
    with pytest.raises(MessageTypeError) as caught:
        CODEC.encode(BusActivateWorkerMessage(source=5))  # type: ignore[arg-type]
    assert caught.value.path == "source"
    frame = TextFrame("x")
    frame.pts = {}  # type: ignore[assignment]
    with pytest.raises(MessageTypeError, match=r"^frame\.pts is a dict"):
        carried(frame)


def test_a_frame_without_a_required_field_is_refused_at_the_sender():
    with pytest.raises(MessageTypeError, match=r"^frame\.messages\[0\]\.call is a builtin"):
        carried(LLMMessagesAppendFrame([{"call": print}]))


@dataclasses.dataclass
class Sloppy:
    count: int = None  # type: ignore[assignment]
    tags: "list[str]" = dataclasses.field(default_factory=list)
    shape: "tuple[int, ...] | Unheard | None" = None  # type: ignore[name-defined]  # noqa: F821


def test_dataclasses_with_loose_annotations_are_understood():
    codec = WireCodec(types=[Sloppy])
    for sloppy in (Sloppy(), Sloppy(3, ["a"], (1, 2))):
        assert there_and_back(request({"x": sloppy}), codec).payload == {"x": sloppy}
    with pytest.raises(MessageTypeError, match=r"payload\.x\.tags is a list"):
        codec.encode(request({"x": Sloppy(tags=[1])}))  # type: ignore[list-item]


def test_every_name_in_the_annotations_of_pipecats_messages_and_frames_is_known():
    """A field with an unknown type name is not checked: add the name to `_PIPECATS_NAMES`."""
    unknown = set()

    class Names(dict):
        def get(self, name: str, default: Any = None) -> Any:
            if name not in self:
                unknown.add(name)
            return super().get(name, default)

    checks = FieldChecks(CODEC._encoders.keys(), Names(CODEC._checks._names))
    for kind in CODEC._encoders:
        if dataclasses.is_dataclass(kind):
            checks.make_checks(kind)
    assert unknown == set()


def make_colliding() -> list[int]:
    """Make many numbers of the same hash; as late as possible, because each process collects."""
    return [number * (2**61 - 1) for number in range(40_000)]


@pytest.mark.parametrize(
    "make_flood",
    [
        lambda: {"$": "set", "v": make_colliding()},
        lambda: {"$": "frozenset", "v": make_colliding()},
        lambda: {"$": "dict", "v": [[number, 0] for number in make_colliding()]},
        lambda: {"$": "set", "v": [{"$": "tuple", "v": [number]} for number in make_colliding()]},
        lambda: {"$": "set", "v": [float(2**n) for n in range(0, 1000, 61)] * 2000},
    ],
    ids=["set", "frozenset", "dict", "tuples", "floats"],
)
def test_a_set_or_dict_that_would_take_minutes_to_build_is_refused_at_once(
    make_flood: Callable[[], dict],
):
    codec = WireCodec(max_bytes=10_000_000)
    with pytest.raises(UnreadableMessageError, match="equal hashes"):
        codec.decode(wire("BusJobRequestMessage", {"payload": {"x": make_flood()}}))


def test_large_sets_and_dicts_of_other_values_are_carried():
    numbers = [number << shift for shift in (0, 40) for number in range(1, 5000)]
    payload = {"set": set(numbers), "dict": dict.fromkeys(numbers, 1), "negative": {-1, -2}}
    assert there_and_back(request(payload)).payload == payload


def test_a_pydantic_model_builds_no_set_out_of_a_list():
    class Ids(BaseModel):
        ids: set[int]

    codec = WireCodec(types=[Ids])
    message = request({"x": Ids(ids={1, 2})})
    assert there_and_back(message, codec).payload == message.payload
    listed = {"$": Ids.__qualname__, "v": {"ids": [1, 2]}}
    with pytest.raises(UnreadableMessageError):
        codec.decode(wire("BusJobRequestMessage", {"payload": {"x": listed}}))


def test_an_int_too_long_for_text_is_refused_at_the_sender():
    with pytest.raises(MessageTypeError, match="huge int"):
        CODEC.encode(request({"x": 10**5000}))


@pytest.mark.parametrize(
    "data",
    [
        b"x" * 100_000,
        wire("y" * 100_000, {}),
        wire("BusJobRequestMessage", {"job_name": ["z" * 100_000]}),
        wire_frame("LLMContextFrame", {"context": {"$": "LLMContext", "v": "q" * 100_000}}),
    ],
    ids=["noise", "type", "field", "adapter"],
)
def test_the_error_about_garbage_is_short(data: bytes):
    with pytest.raises(UnreadableMessageError) as caught:
        CODEC.decode(data)
    assert len(str(caught.value)) <= 203


def test_a_type_named_on_the_wire_is_never_imported():
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


def test_a_field_that_only_a_newer_peer_knows_is_ignored():
    data = CODEC.encode(BusActivateWorkerMessage(source="a", target="b", args={"x": 1}))
    data = data.replace(b'"args":', b'"mood":"good","args":')
    assert CODEC.decode(data).args == {"x": 1}


def test_a_response_arrives_with_its_status():
    response = BusJobResponseMessage(source="b", target="a", job_id="1", status=JobStatus.CANCELLED)
    assert there_and_back(response).status is JobStatus.CANCELLED
