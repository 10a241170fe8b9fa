"""The arguments of a tool: their schema for the LLM, and their validation.

Pipecat's own wrapper reads the name, the description and the descriptions of the parameters.
Pydantic makes the types' schemas, for enums, literals, models and constraints too, and validates.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, cast, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model
from pydantic.errors import PydanticInvalidForJsonSchema, PydanticSchemaGenerationError

from pipecat_jobs._llm.context_value import to_context_value
from pipecat_jobs._llm.json_schema import Schema, tidy_schema
from pipecat_jobs._pipecat.schemas import DirectFunctionWrapper
from pipecat_jobs.errors import InvalidJobError, InvalidJobTypeError

#: First parameters that Pipecat supplies: ``params`` to a tool, ``flow_manager`` in a flow.
_GIVEN_BY_PIPECAT = ("params", "flow_manager")
_BY_KEYWORD = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


class ToolArguments:
    """The parameters of a tool's function that the LLM supplies.

    Raises InvalidJobTypeError if the function is not ``async def`` or a type has no schema, and
    InvalidJobError if the docstring or a parameter's annotation is missing.
    """

    def __init__(self, function: Callable[..., Any]):
        if not inspect.iscoroutinefunction(function):
            raise InvalidJobTypeError(f"@job_tool needs an 'async def' function, not {function!r}")
        self.name = function.__name__
        parameters = list(inspect.signature(function).parameters.values())
        self.is_method = bool(parameters) and parameters[0].name == "self"
        if self.is_method:
            del parameters[0]
        self.special: str | None = None
        if parameters and parameters[0].name in _GIVEN_BY_PIPECAT:
            self.special = parameters.pop(0).name
        self._check_parameters(parameters)
        bare = [parameter.replace(annotation=inspect.Parameter.empty) for parameter in parameters]
        first = inspect.Parameter("params", inspect.Parameter.POSITIONAL_OR_KEYWORD)
        self.signature = inspect.Signature([first, *bare])
        documented = self._read_docstring(function)
        self.description: str = documented.description
        if not self.description:
            raise InvalidJobError(
                f"tool {self.name}() has no docstring; write one that describes the tool, "
                "because the LLM knows nothing else about it"
            )
        self.required: list[str] = documented.required
        self._names = [parameter.name for parameter in parameters]
        self._model = self._make_model(function, parameters)
        self.properties = self._make_properties(documented.properties)

    def _check_parameters(self, parameters: list[inspect.Parameter]) -> None:
        for parameter in parameters:
            name = parameter.name
            if name in _GIVEN_BY_PIPECAT:
                raise InvalidJobError(
                    f"tool {self.name}() has '{name}' after other parameters; "
                    "make it the first parameter"
                )
            if parameter.kind not in _BY_KEYWORD:
                raise InvalidJobError(
                    f"tool {self.name}() has the parameter '{parameter}'; an LLM gives every "
                    "argument by its name, so write each one out"
                )
            if parameter.annotation is inspect.Parameter.empty:
                raise InvalidJobError(
                    f"tool {self.name}() has no type for '{name}'; annotate it, e.g. '{name}: str'"
                )

    def _read_docstring(self, function: Callable[..., Any]) -> DirectFunctionWrapper:
        async def described(params: object) -> None: ...

        described.__name__, described.__doc__ = function.__name__, function.__doc__
        # Without annotations, so that Pipecat reads everything except the types.
        described.__annotations__ = {}
        vars(described)["__signature__"] = self.signature
        return DirectFunctionWrapper(described)

    def _make_model(
        self, function: Callable[..., Any], parameters: list[inspect.Parameter]
    ) -> type[BaseModel]:
        hints = self._resolve_hints(function)
        # By alias, because a model's fields cannot have all the names that parameters can have.
        fields: dict[str, Any] = {
            f"argument_{number}": (
                hints[parameter.name],
                Field(alias=parameter.name)
                if parameter.default is inspect.Parameter.empty
                else Field(default=parameter.default, alias=parameter.name),
            )
            for number, parameter in enumerate(parameters)
        }
        try:
            return create_model(self.name, __config__=ConfigDict(extra="forbid"), **fields)
        except PydanticSchemaGenerationError as error:
            raise self._no_schema(error) from error

    def _resolve_hints(self, function: Callable[..., Any]) -> dict[str, Any]:
        # Only the LLM's parameters: the annotations of other parameters may be imported only for
        # type checkers.
        wanted = {name: function.__annotations__[name] for name in self._names}
        holder = type("Annotations", (), {"__annotations__": wanted})
        names = cast("dict[str, Any]", getattr(function, "__globals__", {}))
        try:
            return get_type_hints(holder, names, names, include_extras=True)
        except NameError as error:
            raise InvalidJobError(
                f"tool {self.name}() has an annotation that is unknown when the tool is defined: "
                f"{error}; define or import it above, at the top level of the module"
            ) from error

    def _make_properties(self, documented: dict[str, Schema]) -> dict[str, Schema]:
        try:
            schema = self._model.model_json_schema()
        except PydanticInvalidForJsonSchema as error:
            raise self._no_schema(error) from error
        definitions: dict[str, Schema] = schema.get("$defs", {})
        properties: dict[str, Schema] = {}
        for name, described in schema.get("properties", {}).items():
            properties[name] = tidy_schema(described, definitions, self._refuse_nesting)
            description = documented[name].get("description")
            if description:
                properties[name]["description"] = description
        return properties

    def _refuse_nesting(self, name: str) -> InvalidJobTypeError:
        return InvalidJobTypeError(
            f"tool {self.name}() takes a {name}, which contains itself; "
            "give an LLM a type of limited depth"
        )

    def _no_schema(self, error: Exception) -> InvalidJobTypeError:
        why = str(error).splitlines()[0]
        return InvalidJobTypeError(
            f"tool {self.name}() has a parameter of a type that an LLM cannot give: {why}"
        )

    def validate(self, given: Mapping[str, Any]) -> "ValidArguments":
        """Validate the LLM's arguments and fill in defaults; raise pydantic's ValidationError."""
        # JSON can have half of a surrogate pair, which can be neither compared nor sent.
        model = self._model.model_validate(to_context_value(given))
        values = {
            name: getattr(model, f"argument_{number}") for number, name in enumerate(self._names)
        }
        return ValidArguments(values, model)

    def explain(self, error: ValidationError) -> str:
        """Explain to the LLM which arguments are wrong, and how to correct them."""
        problems: list[str] = []
        for problem in error.errors(include_url=False):
            where = ".".join(str(part) for part in problem["loc"])
            match problem["type"]:
                case "missing":
                    problems.append(f"'{where}' is missing.")
                case "extra_forbidden" if len(problem["loc"]) == 1:
                    known = ", ".join(f"'{name}'" for name in self._names) or "none"
                    problems.append(f"'{where}' is not known; the arguments are: {known}.")
                case _:
                    problems.append(f"'{where}' is {problem['input']!r}: {problem['msg']}.")
        listed = " ".join(problems)
        return f"{self.name} was not run, its arguments are wrong. {listed} Correct them and retry."


class ValidArguments:
    """The valid arguments of one call, by name, defaults included."""

    def __init__(self, values: dict[str, Any], model: BaseModel):
        self.values = values
        self._model = model

    @property
    def identity(self) -> str:
        """A text that is equal for two calls if and only if their arguments are equal."""
        return self._model.model_dump_json(by_alias=True)
