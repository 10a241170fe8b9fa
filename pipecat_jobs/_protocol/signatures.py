"""The signature of a handler: whether it takes the message, and which fields of the payload."""

import inspect
import sys
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Callable,
    Iterable,
    Mapping,
    Sequence,
)
from functools import cached_property
from inspect import Parameter, isasyncgenfunction
from types import FrameType, UnionType
from typing import Any, NotRequired, Union, cast, get_args, get_origin, get_type_hints

from pipecat.bus.messages import BusJobRequestMessage
from pydantic import ConfigDict, ValidationError
from pydantic.errors import PydanticUndefinedAnnotation, PydanticUserError
from pydantic.fields import FieldInfo
from typing_extensions import TypedDict

from pipecat_jobs._protocol.requests import (
    DataType,
    JobRequest,
    NoData,
    PlainJson,
    TypedData,
    UntypedData,
    list_problems,
)
from pipecat_jobs._protocol.text import cut
from pipecat_jobs.errors import InvalidJobError, InvalidJobTypeError
from pipecat_jobs.outcomes import JobData

_POSITIONAL = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)
_BY_NAME = (Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY)
_ANY = (Any, object, Parameter.empty)
_STREAMS = (AsyncIterator, AsyncGenerator, AsyncIterable)

if sys.version_info >= (3, 14):
    from annotationlib import Format

    def _read_signature(function: Callable[..., Any]) -> inspect.Signature:
        # An annotation may name a class that is defined further down.
        return inspect.signature(function, annotation_format=Format.FORWARDREF)

else:
    _read_signature = inspect.signature


class InvalidPayloadError(InvalidJobError):
    """A payload does not fit the parameters of its handler, which has not begun."""


class HandlerSignature:
    """What a typed handler takes and returns.

    Its annotations are resolved when they are first needed: they may name classes that are defined
    after the handler.
    """

    def __init__(
        self,
        method: Callable[..., Any],
        job_name: str,
        parameters: Sequence[Parameter],
        names: Mapping[str, object],
        *,
        takes_message: bool,
    ):
        self.job_name = job_name
        #: Whether the first argument is the message.
        self.takes_message = takes_message
        #: Whether it is an async generator, whose chunks have the type of the response.
        self.streams = isasyncgenfunction(method)
        self._method = method
        self._where = _where(method)
        self._names = names
        fields = [p for p in parameters if p.kind in _BY_NAME]
        self._parameters = parameters
        self._known = {p.name for p in fields}
        self._required = {p.name for p in fields if p.default is Parameter.empty}
        self._takes_others = len(fields) < len(parameters)
        self._check(parameters)

    def _check(self, parameters: Iterable[Parameter]) -> None:
        for parameter in parameters:
            name = parameter.name
            if parameter.kind is Parameter.VAR_KEYWORD:
                continue
            if parameter.kind not in _BY_NAME:
                raise InvalidJobError(
                    f"{self._where} the parameter '{parameter}' has no name in a payload; write "
                    "each field out, as a parameter that is given by its name"
                )
            if parameter.annotation is Parameter.empty:
                raise InvalidJobError(
                    f"{self._where} there is no type for '{name}'; annotate it, e.g. '{name}: str'"
                )
            if isinstance(parameter.default, FieldInfo):
                raise InvalidJobError(
                    f"{self._where} the default of '{name}' is a Field(); write "
                    f"'{name}: Annotated[..., Field(...)]', and the default behind it"
                )

    def check_key(self, fields: Iterable[str]) -> None:
        """Refuse a key that a payload which fits the parameters may not have."""
        known = ", ".join(map(repr, sorted(self._known)))
        for name in fields:
            if name not in self._known and not self._takes_others:
                raise InvalidJobError(
                    f"{self._where} key: '{name}' is not a parameter of "
                    f"{self._method.__name__}(); give one of {known}"
                )
            if name in self._known - self._required:
                raise InvalidJobError(
                    f"{self._where} key: '{name}' has a default, so that a payload may lack it; "
                    "remove the default"
                )

    def check_aliases(self, fields: Iterable[str]) -> None:
        """Refuse a key under whose name a payload does not carry it."""
        carried = dict(
            zip(self.signature.parameters, self._payload.schema.get("properties", ()), strict=False)
        )
        for name in fields:
            if carried.get(name, name) != name:
                raise InvalidJobError(
                    f"{self._where} key: '{name}' has the alias '{carried[name]}', and a payload "
                    "may have either name; remove the alias"
                )

    def prepare(self) -> None:
        """Resolve the annotations, unless they are; raise InvalidJobTypeError if that fails."""
        _ = self._payload, self.response

    # -- its types ---------------------------------------------------------------------------

    @cached_property
    def signature(self) -> inspect.Signature:
        """The fields of the payload, with their types."""
        hints = self._resolve({p.name: p.annotation for p in self._parameters})
        return inspect.Signature(
            [p.replace(annotation=hints.get(p.name, p.annotation)) for p in self._parameters]
        )

    @cached_property
    def _payload(self) -> PlainJson[JobData]:
        types: dict[str, Any] = {}
        for name, parameter in self.signature.parameters.items():
            if parameter.kind is not Parameter.VAR_KEYWORD:
                required = parameter.default is Parameter.empty
                types[name] = (
                    parameter.annotation if required else NotRequired[parameter.annotation]
                )
            elif parameter.annotation not in _ANY:
                raise InvalidJobTypeError(
                    f"{self._where} '**{name}' has a type; annotate it as Any, because it takes "
                    "fields that are not known"
                )
        fields = cast(Any, TypedDict)(self._method.__name__, types)
        extra = "allow" if self._takes_others else "forbid"
        # request() gives a field with an alias by its own name.
        fields.__pydantic_config__ = ConfigDict(extra=extra, populate_by_name=True)
        return self._build(lambda: PlainJson[JobData](fields), "parameters")

    @cached_property
    def response(self) -> DataType[object]:
        """The type of the response, or of a chunk of a stream."""
        annotation = _read_signature(self._method).return_annotation
        if annotation is Parameter.empty:
            return UntypedData()
        resolved = self._resolve({"return": annotation})["return"]
        if self.streams:
            chunks = get_args(resolved)
            if get_origin(resolved) not in _STREAMS or not chunks:
                return UntypedData()
            resolved = chunks[0]
        elif resolved is type(None):
            return NoData()
        return self._build(lambda: TypedData[object](resolved), "response")

    def _resolve(self, annotations: Mapping[str, object]) -> dict[str, Any]:
        given = {name: a for name, a in annotations.items() if a is not Parameter.empty}
        try:
            return _resolve(self._method, given, self._names)
        except Exception as error:
            raise InvalidJobTypeError(
                f"{self._where} an annotation cannot be resolved: {error}; define or import what "
                "it names at the top level of the module, or above the class"
            ) from error

    def _build(self, build: Callable[[], Any], what: str) -> Any:
        try:
            return build()
        except (PydanticUserError, PydanticUndefinedAnnotation) as error:
            why = str(error).splitlines()[0]
            raise InvalidJobTypeError(
                f"{self._where} the type of its {what} cannot be sent: {why}"
            ) from error

    # -- its payloads ------------------------------------------------------------------------

    def bind(self, payload: JobData | None) -> JobData:
        """Make the arguments of a call from a payload; raise InvalidPayloadError if it is wrong."""
        try:
            return self._payload.validate({} if payload is None else payload)
        except ValidationError as error:
            # Without the cause: its text has the values.
            raise InvalidPayloadError(self._explain(error)) from None

    def request(self, *args: Any, **kwargs: Any) -> JobRequest[Any]:
        """Make a request from the arguments of the handler.

        Args:
            *args: Its fields by position.
            **kwargs: Its fields by name.

        Returns:
            The request, for ``job()``, ``request_job()`` or ``job_group()``.

        Raises:
            TypeError: If an argument is missing or not known.
            InvalidJobTypeError: If an argument has the wrong type.
        """
        if args or not self._known.issuperset(kwargs):
            bound = self.signature.bind(*args, **kwargs).arguments
            kwargs = {k: v for k, v in bound.items() if k in self._known} | {
                name: value for name, value in kwargs.items() if name not in self._known
            }
        try:
            payload = self._payload.write(kwargs)
        except ValidationError as error:
            # For one that is missing, a TypeError as of any call.
            self.signature.bind(**kwargs)
            raise InvalidJobTypeError(f"request(): {self._explain(error)}") from None
        return JobRequest(self.job_name, payload, NoData() if self.streams else self.response)

    def _explain(self, error: ValidationError) -> str:
        return (
            f"the payload of job '{self.job_name}' does not fit its handler: "
            f"{'; '.join(list_problems(error))}; it takes {cut(str(self.signature))}"
        )


class MessageRequests:
    """Makes the requests of a handler that takes the message alone."""

    def __init__(self, job_name: str):
        self._job_name = job_name

    def request(self, payload: JobData | None = None, /) -> JobRequest[JobData]:
        """Make a request with a payload, whose response is a dict."""
        return JobRequest(self._job_name, payload, UntypedData())


def read_handler(
    method: Callable[..., Any], job_name: str, frame: FrameType | None
) -> HandlerSignature | None:
    """Read the signature of a handler; None if it takes the message alone.

    Args:
        method: The handler.
        job_name: The name of its jobs.
        frame: The frame of the class body, for the names that the annotations use.
    """
    parameters = list(_read_signature(method).parameters.values())
    names = _find_names(parameters, method, frame)
    # The first parameter is the worker, unless it is '*args', which has both.
    if parameters and parameters[0].kind is not Parameter.VAR_POSITIONAL:
        del parameters[0]
    if not parameters:
        return HandlerSignature(method, job_name, (), names, takes_message=False)
    first, others = parameters[0], parameters[1:]
    takes_message = _is_message(first, method, names, alone=not others)
    if takes_message and not any(map(_is_field, others)):
        return None
    fields = others if takes_message else parameters
    for parameter in fields:
        if _is_message(parameter, method, names, alone=False):
            raise InvalidJobError(
                f"{_where(method)} '{parameter.name}' is the message and not the first parameter; "
                "put it first, so that type checkers know the fields"
            )
    return HandlerSignature(method, job_name, fields, names, takes_message=takes_message)


def _is_field(parameter: Parameter) -> bool:
    # What Pipecat's handlers may have beside the message: it calls them with the message alone.
    if parameter.kind in (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD):
        return parameter.annotation is not Parameter.empty
    return parameter.annotation is not Parameter.empty or parameter.default is Parameter.empty


def _is_message(
    parameter: Parameter, method: Callable[..., Any], names: Mapping[str, object], *, alone: bool
) -> bool:
    if parameter.kind is Parameter.VAR_POSITIONAL:
        return alone or parameter.annotation is Parameter.empty
    if parameter.kind not in _POSITIONAL and parameter.name != "message":
        return False
    if parameter.annotation is Parameter.empty:
        return alone or parameter.name == "message"
    try:
        annotation = _resolve(method, {"it": parameter.annotation}, names)["it"]
    except Exception:
        # It names what is imported for type checkers alone, or is defined further down.
        annotation = Any
    if annotation in _ANY:
        return parameter.name == "message"
    return _fits_message(annotation)


def _fits_message(annotation: object) -> bool:
    if get_origin(annotation) in (Union, UnionType):
        return any(map(_fits_message, get_args(annotation)))
    return isinstance(annotation, type) and annotation in BusJobRequestMessage.__mro__


def _resolve(
    method: Callable[..., Any], annotations: Mapping[str, object], names: Mapping[str, object]
) -> dict[str, Any]:
    holder = type("Annotations", (), {"__annotations__": dict(annotations)})
    module = cast("dict[str, Any]", getattr(inspect.unwrap(method), "__globals__", {}))
    return get_type_hints(holder, module, dict(names), include_extras=True)


def _find_names(
    parameters: Iterable[Parameter], method: Callable[..., Any], frame: FrameType | None
) -> dict[str, object]:
    """Keep what the annotations name in the class and in the function around it.

    Neither can be found later, when the annotations are resolved.
    """
    returned: object = _read_signature(method).return_annotation
    annotations = [*(parameter.annotation for parameter in parameters), returned]
    wanted: set[str] = set()
    for annotation in annotations:
        if isinstance(annotation, str):
            try:
                wanted.update(compile(annotation, "<annotation>", "eval").co_names)
            except SyntaxError:
                # Resolving it raises an error that says so.
                continue
    if not wanted or frame is None:
        return {}
    scopes = [frame.f_locals]
    if frame.f_back is not None and frame.f_code in frame.f_back.f_code.co_consts:
        scopes.append(frame.f_back.f_locals)
    return {name: s[name] for s in reversed(scopes) for name in wanted if name in s}


def _where(method: Callable[..., Any]) -> str:
    return f"@job {method.__qualname__}():"
