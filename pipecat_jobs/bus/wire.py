"""Bus messages as bytes, and back.

Only types that are registered beforehand are built from bytes. The name of a type is looked up in a
table and never imported, so that a message cannot choose which code runs in this process.
"""

import base64
import dataclasses
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from enum import Enum
from types import ModuleType
from typing import Any, TypeAlias, cast

from pipecat.bus import messages as bus_messages
from pipecat.bus.adapters import LLMContextAdapter, ToolsSchemaAdapter, TypeAdapter
from pipecat.bus.messages import BusJobUpdateRequestMessage, BusLocalMessage, BusMessage
from pipecat.bus.ui import messages as ui_messages
from pipecat.frames import frames
from pipecat.metrics import metrics
from pipecat.pipeline.job_context import JobStatus
from pipecat.processors.aggregators.llm_context import (
    NOT_GIVEN,
    LLMContext,
    LLMSpecificMessage,
)
from pipecat.processors.frame_processor import FrameDirection
from pipecat.registry.types import WorkerRegistryEntry
from pydantic import BaseModel

from pipecat_jobs._protocol.checks import check_count, check_instance
from pipecat_jobs._protocol.exchange import attach_note, find_note, write_requester_note
from pipecat_jobs._protocol.text import TravelsAsText, describe, shorten
from pipecat_jobs.bus.fields import Check, FieldChecks
from pipecat_jobs.errors import (
    InvalidJobError,
    MessageTooLargeError,
    MessageTypeError,
    UnreadableMessageError,
)

# The module of this class differs between Pipecat releases; `frames` imports it in all of them.
_ToolsSchema: type = frames.ToolsSchema  # pyright: ignore[reportPrivateImportUsage]

#: The key that marks a JSON object that is not a dict.
_TAG = "$"
_VALUE = "v"
#: The field of a message with the note that is attached to it.
_NOTE = "pipecat_jobs_note"
_NOT_GIVEN = type(NOT_GIVEN)

#: Frames that are not carried, because they start and end one pipeline.
_LIFECYCLE = (frames.StartFrame, frames.EndFrame, frames.CancelFrame, frames.StopFrame)


class _NotCarried:
    """Stands for a class whose instances are never carried."""


#: Names that Pipecat imports for type checkers only, with the type of the values that can arrive.
_PIPECATS_NAMES: dict[str, object] = {
    **dict.fromkeys(
        (
            "DirectFunction",
            "FrameProcessor",
            "FunctionSchema",
            "LLMContextSummaryConfig",
            "TracingContext",
            "UserTurnCompletionConfig",
            "UserTurnStrategies",
        ),
        _NotCarried,
    ),
    "LLMContextMessage": dict[str, Any] | LLMSpecificMessage,
    "NotGiven": _NOT_GIVEN,
}

#: The most items of a set, or keys of a dict, that may have the same hash as an earlier one. Python
#: compares a new item with all items of the same hash, which can block the event loop for minutes.
_MOST_COLLISIONS = 16

#: Makes JSON data from a value, and a value from JSON data.
_Encode: TypeAlias = Callable[[Any, str], object]
_Decode: TypeAlias = Callable[[Any], object]


class WireCodec:
    """Turns bus messages into bytes and back.

    It carries Pipecat's bus messages that are not local, its frames, and the values in them: enums,
    dataclasses, LLM contexts and tool schemas. Other values in a frame, such as a callback or the
    processor that pushed it, arrive as None.

    Args:
        types: Further types to carry: dataclasses (also messages and frames), enums and pydantic
            models. Every process of a channel needs the same ones.
        adapters: Pipecat's adapters for other types, by type.
        max_bytes: The most bytes that an encoded message may have, at least 1.

    Raises:
        InvalidJobTypeError: If a type can be neither encoded nor decoded, or is not a type.
        InvalidJobError: If two types have the same name, or ``max_bytes`` is below 1.

    Example::

        from dataclasses import dataclass

        from pipecat_jobs.bus.wire import WireCodec

        @dataclass
        class Place:
            city: str

        codec = WireCodec(types=[Place])
        request = BusJobRequestMessage(
            source="host", target="guide", job_id="1", payload={"where": Place("Oslo")}
        )
        assert codec.decode(codec.encode(request)).payload == {"where": Place("Oslo")}
    """

    def __init__(
        self,
        types: Iterable[type] = (),
        *,
        adapters: Mapping[type, TypeAdapter] | None = None,
        max_bytes: int = 1_000_000,
    ):
        self._max_bytes = check_count("max_bytes", max_bytes)
        self._encoders: dict[type, _Encode] = {}
        self._decoders: dict[str, _Decode] = {
            "bytes": base64.b64decode,
            "tuple": tuple,
            "set": lambda items: set(_refuse_flood(items)),
            "frozenset": lambda items: frozenset(_refuse_flood(items)),
            "dict": _build_dict,
            "NOT_GIVEN": lambda _: NOT_GIVEN,
        }
        self._encoders.update(
            {
                bytes: _add_tag("bytes", lambda value, _: base64.b64encode(value).decode("ascii")),
                tuple: _add_tag("tuple", self._encode_items),
                set: _add_tag("set", self._encode_items),
                frozenset: _add_tag("frozenset", self._encode_items),
                _NOT_GIVEN: _add_tag("NOT_GIVEN", lambda _, __: None),
                dict: self._encode_dict,
                list: self._encode_items,
            }
        )
        self._fields: dict[type, dict[str, Check]] = {}
        self._add_update_request()
        adapted = {LLMContext: LLMContextAdapter(), _ToolsSchema: ToolsSchemaAdapter()}
        for kind, adapter in {**adapted, **_check_adapters(adapters)}.items():
            self._add_adapter(kind, adapter)
        for kind in (*_find_pipecats_types(), *_check_types(types)):
            self._add(kind)
        self._checks = FieldChecks(
            self._encoders.keys(),
            {**_PIPECATS_NAMES, **{kind.__name__: kind for kind in self._encoders}},
        )

    def encode(self, message: BusMessage) -> bytes:
        """Turn a message into JSON in UTF-8, which :meth:`decode` reads.

        Args:
            message: The message to encode.

        Returns:
            The encoded message, of at most ``max_bytes``.

        Raises:
            MessageTypeError: If the message or a value in it is of a type that is not carried, or
                not of the type that its field declares.
            MessageTooLargeError: If the encoded message has more than ``max_bytes``.

        Example::

            from pipecat_jobs import MessageTypeError
            from pipecat_jobs.bus.wire import WireCodec

            request = BusJobRequestMessage(
                source="host", target="guide", job_id="1", payload={"when": asyncio.Event()}
            )
            with pytest.raises(MessageTypeError, match="Event"):
                WireCodec().encode(request)
        """
        try:
            value = self._encode(message, "")
        except RecursionError as error:
            raise MessageTypeError("structure that contains itself", describe(message)) from error
        try:
            text = json.dumps(value, separators=(",", ":"), ensure_ascii=False)
        except ValueError as error:
            # Python limits the digits of an int: see sys.set_int_max_str_digits().
            raise MessageTypeError("message with a huge int", describe(message)) from error
        data = text.encode("utf-8", "surrogatepass")
        if len(data) > self._max_bytes:
            raise MessageTooLargeError(describe(message), size=len(data), limit=self._max_bytes)
        return data

    def decode(self, data: bytes) -> BusMessage:
        """Build a message from bytes that may come from anywhere.

        Args:
            data: The bytes that :meth:`encode` returned in some process of the channel.

        Returns:
            The message.

        Raises:
            UnreadableMessageError: If the bytes are not a message, name an unknown type, hold a
                field whose value is not of its declared type, or would block the event loop.

        Example::

            from pipecat_jobs.bus.wire import WireCodec
            from pipecat_jobs.errors import UnreadableMessageError

            with pytest.raises(UnreadableMessageError, match="unknown type"):
                WireCodec().decode(b'{"$": "os.system", "v": "ls"}')
        """
        if len(data) > self._max_bytes:
            raise UnreadableMessageError(f"{len(data):,} bytes, more than {self._max_bytes:,}")
        try:
            message = json.loads(data.decode("utf-8", "surrogatepass"), object_hook=self._decode)
        except UnreadableMessageError:
            raise
        # A type of the user may raise anything when its data is wrong.
        except Exception as error:
            raise UnreadableMessageError(f"not a message: {error}") from error
        if not isinstance(message, BusMessage):
            raise UnreadableMessageError(f"a {type(message).__name__}, not a message")
        return message

    def _encode(self, value: Any, path: str) -> object:
        kind: type = type(value)
        if kind in (str, int, float, bool) or value is None:
            return value
        encode = self._encoders.get(kind)
        if encode is None and isinstance(value, TravelsAsText):
            return str(value)
        if encode is None:
            raise MessageTypeError(kind.__qualname__, path.lstrip(".") or "the message")
        return encode(value, path)

    def _encode_items(self, values: Iterable[Any], path: str) -> list[object]:
        return [self._encode(value, f"{path}[{n}]") for n, value in enumerate(values)]

    def _encode_dict(self, value: dict[Any, Any], path: str) -> dict[str, object]:
        if _TAG not in value and all(type(key) is str for key in value):
            return {key: self._encode(item, f"{path}.{key}") for key, item in value.items()}
        return {_TAG: "dict", _VALUE: self._encode_items(value.items(), path)}

    def _decode(self, value: dict[str, Any]) -> object:
        name = value.get(_TAG)
        if name is None:
            return value
        decode = self._decoders.get(name)
        if decode is None:
            raise UnreadableMessageError(f"unknown type {shorten(name)}")
        return decode(value[_VALUE])

    def _add(self, kind: type) -> None:
        if issubclass(kind, Enum):
            self._register(kind, lambda value, _: value.name, lambda name: kind[name])
        elif issubclass(kind, BaseModel):
            self._register(
                kind,
                lambda value, path: self._encode_fields(vars(value), path),
                # Strict: the sender had these types, and converting others takes time.
                lambda data: kind.model_validate(data, strict=True),
            )
        elif dataclasses.is_dataclass(kind):
            if issubclass(kind, BusLocalMessage):
                raise MessageTypeError(kind.__qualname__, "types=[...]: a local message")
            fields = dataclasses.fields(kind)
            init = {field.name for field in fields if field.init}
            later = {field.name for field in fields if not field.init}
            names = [field.name for field in fields]
            encode = self._encode_frame if issubclass(kind, frames.Frame) else self._encode_declared
            self._register(
                kind,
                lambda value, path: encode(
                    kind, {name: getattr(value, name) for name in names}, path
                ),
                lambda data: self._build(kind, init, later, data),
            )
        else:
            raise MessageTypeError(kind.__qualname__, "types=[...]: neither dataclass nor enum")

    def _add_update_request(self) -> None:
        """Carry the note of a requester as one more field, which earlier releases ignore."""
        kind = BusJobUpdateRequestMessage
        names = [field.name for field in dataclasses.fields(kind)]

        def encode(message: BusJobUpdateRequestMessage, path: str) -> dict[str, object]:
            fields = {name: getattr(message, name) for name in names}
            encoded = self._encode_declared(kind, fields, path)
            note = find_note(message)
            if note is not None:
                encoded[_NOTE] = self._encode(write_requester_note(note), f"{path}.note")
            return encoded

        def decode(data: dict[str, Any]) -> object:
            message = cast(BusJobUpdateRequestMessage, build(data))
            if _NOTE in data:
                attach_note(message, data[_NOTE])
            return message

        self._add(kind)
        build = self._decoders[kind.__qualname__]
        self._encoders[kind] = _add_tag(kind.__qualname__, encode)
        self._decoders[kind.__qualname__] = decode

    def _add_adapter(self, kind: type, adapter: TypeAdapter) -> None:
        # The adapter returns plain data, which is encoded like any other.
        self._register(
            kind,
            lambda value, path: self._encode(adapter.serialize(value, lambda part: part), path),
            lambda data: _check_context(
                adapter.deserialize(data, lambda part: part, target_type=kind)
            ),
        )

    def _encode_fields(self, fields: Mapping[str, Any], path: str) -> dict[str, object]:
        return {name: self._encode(value, f"{path}.{name}") for name, value in fields.items()}

    def _encode_declared(
        self, kind: type, fields: Mapping[str, Any], path: str
    ) -> dict[str, object]:
        checks = self._field_checks(kind)
        for name, check in checks.items():
            if not check(fields[name]):
                raise _make_type_error(kind, name, fields[name], path)
        return self._encode_fields(fields, path)

    def _encode_frame(self, kind: type, fields: Mapping[str, Any], path: str) -> dict[str, object]:
        checks = self._field_checks(kind)
        encoded: dict[str, object] = {}
        for name, value in fields.items():
            check = checks.get(name)
            try:
                encoded[name] = self._encode(value, f"{path}.{name}")
            except MessageTypeError:
                # A callback or a processor is useful only in the pipeline that the frame leaves.
                if check is not None and not check(None):
                    raise
                encoded[name] = None
            else:
                if check is not None and not check(value):
                    raise _make_type_error(kind, name, value, path)
        return encoded

    def _field_checks(self, kind: type) -> dict[str, Check]:
        checks = self._fields.get(kind)
        if checks is None:
            checks = self._fields[kind] = self._checks.make_checks(kind)
        return checks

    def _build(self, kind: type, init: set[str], later: set[str], data: dict[str, Any]) -> object:
        for name, check in self._field_checks(kind).items():
            if name in data and not check(data[name]):
                raise UnreadableMessageError(
                    f"{kind.__qualname__}.{name} has a value of another type: {shorten(data[name])}"
                )
        # A process with a newer release may send fields that this release does not have.
        built = kind(**{name: value for name, value in data.items() if name in init})
        for name in later & data.keys():
            setattr(built, name, data[name])
        return built

    def _register(self, kind: type, encode: _Encode, decode: _Decode) -> None:
        name = kind.__qualname__
        if kind in self._encoders:
            return
        if name in self._decoders:
            raise InvalidJobError(f"two types are named '{name}'; rename one")
        self._encoders[kind] = _add_tag(name, encode)
        self._decoders[name] = decode


def _add_tag(name: str, encode: _Encode) -> _Encode:
    return lambda value, path: {_TAG: name, _VALUE: encode(value, path)}


def _make_type_error(kind: type, name: str, value: object, path: str) -> MessageTypeError:
    field = f"{path}.{name}".lstrip(".")
    declared = {each.name: cast(object, each.type) for each in dataclasses.fields(kind)}[name]
    wanted = declared if isinstance(declared, str) else getattr(declared, "__name__", declared)
    return MessageTypeError(type(value).__qualname__, field, wanted=str(wanted))


def _refuse_flood(items: Iterable[Any]) -> Iterable[Any]:
    hashes = [hash(item) for item in items]
    if len(hashes) - len(set(hashes)) > _MOST_COLLISIONS:
        raise UnreadableMessageError("a set or dict whose items have too many equal hashes")
    return items


def _build_dict(pairs: Iterable[Any]) -> dict[Any, Any]:
    keys, values = zip(*pairs, strict=True) if pairs else ((), ())
    return dict(zip(_refuse_flood(keys), values, strict=True))


def _check_context(adapted: object) -> object:
    """Return an adapted value, or refuse an LLM context with an item that is not a message."""
    if isinstance(adapted, LLMContext) and not all(
        isinstance(cast(object, each), dict | LLMSpecificMessage) for each in adapted.get_messages()
    ):
        raise UnreadableMessageError("an LLM context with a message that is not a dict")
    return adapted


def _check_types(types: object) -> list[type]:
    wanted = "a list of dataclasses, enums and pydantic models"
    kinds = list(cast("Iterable[object]", check_instance("types", types, Iterable, wanted)))
    return [check_instance("types", kind, type, wanted) for kind in kinds]


def _check_adapters(adapters: object) -> Mapping[type, TypeAdapter]:
    wanted = "a dict of Pipecat's TypeAdapter objects by type"
    given = check_instance("adapters", {} if adapters is None else adapters, Mapping, wanted)
    for kind, adapter in given.items():
        check_instance("adapters", kind, type, wanted)
        check_instance("adapters", adapter, TypeAdapter, wanted)
    return given


def _find_pipecats_types() -> Iterator[type]:
    yield from (FrameDirection, JobStatus, WorkerRegistryEntry)
    for module in (bus_messages, ui_messages):
        for kind in _find_types(module):
            if issubclass(kind, BusMessage) and not issubclass(kind, BusLocalMessage):
                yield kind
    for module in (frames, metrics):
        for kind in _find_types(module):
            if kind not in _LIFECYCLE and (
                dataclasses.is_dataclass(kind) or issubclass(kind, Enum | BaseModel)
            ):
                yield kind


def _find_types(module: ModuleType) -> Iterator[type]:
    for value in vars(module).values():
        if isinstance(value, type):
            yield value
