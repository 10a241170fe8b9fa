"""Checks that the fields of a dataclass have values of their declared types."""

import dataclasses
import types
import typing
from collections.abc import Callable, Collection, Iterable, Mapping
from enum import Enum
from typing import Any, TypeAlias, cast

from loguru import logger

#: Returns whether a value is of a declared type.
Check: TypeAlias = Callable[[object], bool]

_SEQUENCES = (list, tuple)


class FieldChecks:
    """Makes checks of dataclass fields from their annotations.

    ``carried`` are the classes whose instances can arrive. A field declared as another class, such
    as a callback, arrives as None. ``names`` resolves names in annotations that are imported for
    type checkers only.
    """

    def __init__(self, carried: Collection[type], names: Mapping[str, object]):
        self._carried = carried
        self._names = names

    def of(self, kind: type) -> dict[str, Check]:
        """Make the checks of a dataclass by field, without the fields that take any value."""
        declared = self._annotations(kind)
        checks: dict[str, Check] = {}
        for field in dataclasses.fields(kind):
            check = self._check(declared.get(field.name, Any))
            if check is not None:
                # `x: int = None` is a common way to write an optional field.
                checks[field.name] = _or_none(check) if field.default is None else check
        return checks

    def _annotations(self, kind: type) -> dict[str, Any]:
        known: dict[str, object] = {}
        while True:
            # An annotation may be any code of the user's, and raise anything.
            try:
                return typing.get_type_hints(kind, localns=known)
            except Exception as error:
                name = error.name if isinstance(error, NameError) else None
                if name is None or name in known:
                    logger.warning(f"fields of {kind.__qualname__} are not checked: {error!r}")
                    return {}
                known[name] = self._names.get(name, Any)

    def _check(self, declared: Any) -> Check | None:
        """Make the check of an annotation, or return None if it takes any value."""
        origin, arguments = typing.get_origin(declared), typing.get_args(declared)
        if declared is None or declared is type(None):
            return lambda value: value is None
        if origin is typing.Union or origin is types.UnionType:
            return self._any_of(arguments)
        if origin is typing.Annotated or origin is typing.Final:
            return self._check(arguments[0])
        if origin is typing.Literal:
            return lambda value: any(value == one and type(value) is type(one) for one in arguments)
        if isinstance(declared, typing.NewType):
            return self._check(declared.__supertype__)
        if typing.is_typeddict(declared):
            return _instance_of(dict)
        kind = origin or declared
        if not isinstance(kind, type) or kind in (object, Any):
            return None
        return self._check_class(kind, arguments)

    def _check_class(self, kind: type, arguments: tuple[Any, ...]) -> Check:
        if kind is float:
            return _instance_of((int, float))
        if kind in (bool, int, str, bytes):
            return _instance_of(kind)
        if issubclass(kind, Enum):
            # Pipecat's own services use a string in place of a member of a string enum.
            return _instance_of((kind, str) if issubclass(kind, str) else kind)
        if kind in self._carried and kind not in (dict, list, tuple, set, frozenset):
            return _instance_of(kind)
        if issubclass(dict, kind) and issubclass(kind, Mapping):
            return self._check_mapping(arguments)
        if kind is tuple and arguments and arguments[-1] is not ...:
            return self._check_tuple(arguments)
        if issubclass(kind, set | frozenset):
            return self._check_items((set, frozenset), arguments[:1])
        if any(issubclass(each, kind) for each in _SEQUENCES) and issubclass(kind, Iterable):
            return self._check_items(_SEQUENCES, arguments[:1])
        subclasses = tuple(each for each in self._carried if issubclass(each, kind))
        return _instance_of((*subclasses, type(None)))

    def _any_of(self, choices: tuple[Any, ...]) -> Check | None:
        checks = [self._check(choice) for choice in choices]
        if None in checks:
            return None
        known = cast("list[Check]", checks)
        if len(known) == 2 and type(None) in choices:
            return _or_none(known[choices.index(type(None)) - 1])
        return lambda value: any(check(value) for check in known)

    def _check_mapping(self, arguments: tuple[Any, ...]) -> Check:
        check_key, check_value = (self._check(each) for each in (arguments or (Any, Any)))

        def check(value: object) -> bool:
            return (
                isinstance(value, dict)
                and (check_key is None or all(map(check_key, cast("dict[object, object]", value))))
                and (
                    check_value is None
                    or all(map(check_value, cast("dict[object, object]", value).values()))
                )
            )

        return check

    def _check_items(self, kinds: tuple[type, ...], arguments: tuple[Any, ...]) -> Check:
        check_item = self._check(arguments[0]) if arguments else None
        if check_item is None:
            return _instance_of(kinds)

        def check(value: object) -> bool:
            return isinstance(value, kinds) and all(
                map(check_item, cast("Iterable[object]", value))
            )

        return check

    def _check_tuple(self, arguments: tuple[Any, ...]) -> Check:
        checks = [self._check(each) for each in arguments]

        def check(value: object) -> bool:
            if not isinstance(value, _SEQUENCES):
                return False
            items = cast("tuple[object, ...]", value)
            return len(items) == len(checks) and all(
                each is None or each(item) for each, item in zip(checks, items, strict=True)
            )

        return check


def _instance_of(kinds: type | tuple[type, ...]) -> Check:
    return lambda value: isinstance(value, kinds)


def _or_none(check: Check) -> Check:
    return lambda value: value is None or check(value)
