"""JSON schemas in the form that every provider takes for the arguments of a tool."""

from collections.abc import Callable, Mapping
from typing import Any, cast

Schema = dict[str, Any]


def tidy_schema(
    node: Any,
    definitions: Mapping[str, Schema],
    refuse: Callable[[str], Exception],
    within: tuple[str, ...] = (),
) -> Any:
    """Replace references with their definitions, and remove titles.

    A tool's schema cannot have definitions, and some providers do not accept references. A type
    that contains itself is refused with the exception that ``refuse`` makes for its name.
    """
    if isinstance(node, list):
        parts = cast("list[Any]", node)
        return [tidy_schema(part, definitions, refuse, within) for part in parts]
    if not isinstance(node, dict):
        return node
    schema = cast("Schema", node)
    tidied: Schema = {}
    for key, value in schema.items():
        if key == "$ref":
            name = value.removeprefix("#/$defs/")
            if name in within:
                raise refuse(name)
            tidied |= tidy_schema(definitions[name], definitions, refuse, (*within, name))
        elif key == "properties":
            tidied[key] = {
                name: tidy_schema(part, definitions, refuse, within) for name, part in value.items()
            }
        elif key in ("const", "enum", "examples"):
            tidied[key] = value
        elif key != "title" and not (key == "default" and value is None):
            tidied[key] = tidy_schema(value, definitions, refuse, within)
    return tidied
