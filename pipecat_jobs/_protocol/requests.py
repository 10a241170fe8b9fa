"""Requests of typed handlers: what they carry, and the type of their response."""

from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from typing import (
    Any,
    Concatenate,
    Generic,
    ParamSpec,
    Protocol,
    Self,
    TypeAlias,
    TypeVar,
    cast,
    overload,
)

from pipecat.bus.messages import BusJobRequestMessage
from pydantic import TypeAdapter, ValidationError
from pydantic_core import to_jsonable_python

from pipecat_jobs._protocol.checks import check_instance
from pipecat_jobs.errors import InvalidJobError, InvalidJobTypeError
from pipecat_jobs.outcomes import JobData
from pipecat_jobs.params import CheckedParams

#: The key of a response that is not an object.
RESULT_KEY = "result"

_P = ParamSpec("_P")
_Q = ParamSpec("_Q")
_R = TypeVar("_R")
_R_co = TypeVar("_R_co", covariant=True)
_X_co = TypeVar("_X_co", covariant=True)

_Schema: TypeAlias = Mapping[str, Any]


class DataType(Protocol[_R_co]):
    """The type of a response: how its values are written as data, and read again."""

    @property
    def annotation(self) -> object:
        """The type as it was annotated."""
        ...

    def write(self, value: object) -> JobData | None:
        """Write a value; None when it is not a response."""
        ...

    def read(self, data: JobData) -> _R_co:
        """Read a value; raise pydantic's ValidationError for data that does not fit."""
        ...


class UntypedData:
    """Data as it is: of a message handler, or of a handler without a return annotation."""

    annotation = JobData

    def write(self, value: object) -> JobData | None:
        """Return the value; the executor checks it."""
        return cast("JobData | None", value)

    def read(self, data: JobData) -> JobData:
        """Return the data."""
        return data


class NoData:
    """The response of a handler that returns nothing: an empty dict."""

    annotation = None

    def write(self, value: object) -> JobData:
        """Return an empty dict."""
        return {}

    def read(self, data: JobData) -> None:
        """Return None, whatever the worker has sent."""
        return None


class PlainJson(Generic[_R]):
    """Values of one type as plain JSON types, and again as values."""

    __slots__ = ("_to_python", "schema", "validate", "write")

    def __init__(self, annotation: Any):
        adapter: TypeAdapter[_R] = TypeAdapter(annotation)
        # It raises for a type that has no place in JSON, or is not fully defined.
        self.schema: _Schema = adapter.json_schema(mode="serialization")
        # Without the adapter's own methods between, because each typed job takes these steps.
        self.validate: Callable[[object], _R] = adapter.validator.validate_python
        self._to_python = adapter.serializer.to_python
        # JSON has no bytes, and every bus carries them.
        self.write = self._write_with_bytes if _has_bytes(self.schema) else self._write

    def _write(self, value: object) -> Any:
        # round_trip leaves out computed fields, which a model that forbids others would refuse.
        return self._to_python(
            self.validate(value), mode="json", by_alias=True, round_trip=True, warnings=False
        )

    def _write_with_bytes(self, value: object) -> Any:
        return _to_plain(
            self._to_python(self.validate(value), by_alias=True, round_trip=True, warnings=False)
        )


class TypedData(Generic[_R]):
    """A type whose values travel as plain JSON types.

    A type of objects (a model, a dataclass, a TypedDict, a dict) travels as its dict, and a value
    of any other type as ``{"result": value}``.
    """

    __slots__ = ("_is_object", "_json", "annotation")

    def __init__(self, annotation: Any):
        self.annotation: object = annotation
        self._json: PlainJson[_R] = PlainJson(annotation)
        schema = self._json.schema
        self._is_object = _is_object(schema, schema.get("$defs", {}))

    def write(self, value: object) -> JobData:
        """Write a value; raise InvalidJobTypeError for one of another type."""
        try:
            written = self._json.write(value)
        except ValidationError as error:
            raise InvalidJobTypeError(
                f"the handler returned {type(value).__name__}, which does not fit its annotation: "
                f"{'; '.join(list_problems(error))}"
            ) from error
        return written if self._is_object else {RESULT_KEY: written}

    def read(self, data: JobData) -> _R:
        """Read a value; raise pydantic's ValidationError for data that does not fit."""
        # Without the key, the error names the whole response.
        return self._json.validate(data if self._is_object else data.get(RESULT_KEY, data))


def _to_plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {_to_plain(key): _to_plain(item) for key, item in cast(Any, value).items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_to_plain(item) for item in cast(Any, value)]
    return value if isinstance(value, bytes) else to_jsonable_python(value)


def _has_bytes(schema: object) -> bool:
    """Return whether a JSON schema has a value of bytes anywhere."""
    if isinstance(schema, dict):
        parts = cast("dict[str, object]", schema)
        return parts.get("format") == "binary" or any(map(_has_bytes, parts.values()))
    return isinstance(schema, list) and any(map(_has_bytes, cast("list[object]", schema)))


def _is_object(schema: _Schema, definitions: Mapping[str, _Schema]) -> bool:
    if "$ref" in schema:
        return _is_object(definitions[schema["$ref"].removeprefix("#/$defs/")], definitions)
    variants = schema.get("anyOf") or schema.get("oneOf")
    if variants:
        return all(_is_object(variant, definitions) for variant in variants)
    return schema.get("type") == "object"


def list_problems(error: ValidationError) -> list[str]:
    """List which fields do not fit and what was expected, without any of their values."""
    problems: list[str] = []
    for problem in error.errors(include_url=False, include_input=False):
        where = ".".join(str(part) for part in problem["loc"])
        match problem["type"]:
            case "missing":
                problems.append(f"'{where}' is missing")
            case "extra_forbidden":
                problems.append(f"'{where}' is not known")
            case "union_tag_invalid":
                # Pydantic's text has the value.
                tags = problem.get("ctx", {}).get("expected_tags")
                problems.append(f"'{where}': the tag should be one of {tags}")
            case _:
                problems.append(f"'{where}': {problem['msg']}" if where else problem["msg"])
    return problems


@dataclass(frozen=True, slots=True)
class JobRequest(Generic[_R_co]):
    """The request of a typed handler, and the type of its response.

    ``Worker.handler.request(...)`` makes it, and ``job()``, ``request_job()`` and ``job_group()``
    take it in place of ``name`` and ``payload``.

    Parameters:
        name: The name of the job.
        payload: The handler's arguments as plain JSON types.

    Example::

        class Library(BaseWorker):
            @job
            async def find_shelf(self, title: str) -> int:
                return len(title)


        request = Library.find_shelf.request(title="Moby Dick")
        assert request.name == "find_shelf" and request.payload == {"title": "Moby Dick"}
        assert request.response_type is int
    """

    name: str
    payload: JobData | None
    _response: DataType[_R_co] = field(repr=False, compare=False)

    @property
    def response_type(self) -> object:
        """The return annotation of the handler; ``dict[str, Any]`` when it has none."""
        return self._response.annotation

    def read(self, response: JobData) -> _R_co:
        """Read a response of the handler.

        Args:
            response: The data of the response, a dict.

        Returns:
            The response as a value of the handler's return type.

        Raises:
            pydantic.ValidationError: If the data does not fit that type.

        Example::

            class Library(BaseWorker):
                @job
                async def find_shelf(self, title: str) -> int:
                    return len(title)


            assert Library.find_shelf.request(title="Emma").read({"result": 4}) == 4
        """
        return self._response.read(response)


def add_request(params: CheckedParams, request: object) -> None:
    """Set a call's name and payload from its ``request``; refuse a call that has its own."""
    if request is None:
        return
    wanted = "what request() of a typed @job handler returns"
    checked = cast("JobRequest[object]", check_instance("request", request, JobRequest, wanted))
    given = {"name": params.name, "payload": params.payload, "payloads": params.payloads}
    for name, value in given.items():
        if value is not None:
            raise InvalidJobError(
                f"{name} is given beside request, which has its own; leave {name} out"
            )
    params.name, params.payload = checked.name, checked.payload


class _TakesMessage(Protocol[_P, _X_co]):
    def __call__(
        self,
        worker: Any,
        message: BusJobRequestMessage,
        /,
        *args: _P.args,
        **kwargs: _P.kwargs,
    ) -> _X_co: ...


class JobHandler(Protocol[_P, _X_co]):
    """A method with ``@job``, as type checkers see it: the method itself, and ``request()``."""

    # By its self, each overload knows whether the first parameter is the message, and whether the
    # method returns a response or streams.
    @overload
    def request(
        self: _TakesMessage[[], Any], payload: JobData | None, /
    ) -> JobRequest[JobData]: ...

    @overload
    def request(
        self: _TakesMessage[_Q, Coroutine[Any, Any, _R]], *args: _Q.args, **kwargs: _Q.kwargs
    ) -> JobRequest[_R]: ...

    @overload
    def request(
        self: _TakesMessage[_Q, AsyncIterator[Any]], *args: _Q.args, **kwargs: _Q.kwargs
    ) -> JobRequest[None]: ...

    @overload
    def request(
        self: "JobHandler[_Q, Coroutine[Any, Any, _R]]", *args: _Q.args, **kwargs: _Q.kwargs
    ) -> JobRequest[_R]: ...

    @overload
    def request(
        self: "JobHandler[_Q, AsyncIterator[Any]]", *args: _Q.args, **kwargs: _Q.kwargs
    ) -> JobRequest[None]: ...

    @overload
    def __get__(self, instance: None, owner: type, /) -> Self: ...

    @overload
    def __get__(self, instance: object, owner: type | None = None, /) -> Callable[_P, _X_co]: ...

    def __call__(self, worker: Any, /, *args: _P.args, **kwargs: _P.kwargs) -> _X_co:
        """Call the method as a function of its class."""
        ...


class JobDecorator(Protocol):
    """What ``@job(...)`` returns."""

    def __call__(self, method: Callable[Concatenate[Any, _P], _X_co], /) -> JobHandler[_P, _X_co]:
        """Mark a method."""
        ...
