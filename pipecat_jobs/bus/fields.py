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
    """Makes checks of dataclass fields from their annotations."""

    def __init__(self, carried: Collection[type], names: Mapping[str, object]):
        #: The classes whose instances can arrive. A field that is declared as another class, such
        #: as a callback, arrives as None.
        self._carried = carried
        #: The values of names that a module of Pipecat imports for type checkers only.
        self._names = names

    def make_checks(self, kind: type) -> dict[str, Check]:
        """Make the checks of a dataclass, by field; a field that takes any value has none."""
        declared = self._read_annotations(kind)
        checks: dict[str, Check] = {}
        for field in dataclasses.fields(kind):
            check = self._make_check(declared.get(field.name, Any))
            if check is not None:
                # `x: int = None` is a common way to write an optional field.
                checks[field.name] = _allow_none(check) if field.default is None else check
        return checks

    def _read_annotations(self, kind: type) -> dict[str, Any]:
        known: dict[str, object] = {}
        while True:
            # Resolving an annotation runs code of the user, which may raise anything.
            try:
                return typing.get_type_hints(kind, localns=known)
            except Exception as error:
                name = error.name if isinstance(error, NameError) else None
                if name is None or name in known:
                    logger.warning(f"fields of {kind.__qualname__} are not checked: {error!r}")
                    return {}
                known[name] = self._names.get(name, Any)

    def _make_check(self, declared: Any) -> Check | None:
        """Make the check of an annotation, or return None if it takes any value."""
        origin, arguments = typing.get_origin(declared), typing.get_args(declared)
        if declared is None or declared is type(None):
            return lambda value: value is None
        if origin is typing.Union or origin is types.UnionType:
            return self._make_union_check(arguments)
        if origin is typing.Annotated or origin is typing.Final:
            return self._make_check(arguments[0])
        if origin is typing.Literal:
            return lambda value: any(value == one and type(value) is type(one) for one in arguments)
        if isinstance(declared, typing.NewType):
            return self._make_check(declared.__supertype__)
        if typing.is_typeddict(declared):
            return _make_instance_check(dict)
        kind = origin or declared
        if not isinstance(kind, type) or kind in (object, Any):
            return None
        return self._make_class_check(kind, arguments)

    def _make_class_check(self, kind: type, arguments: tuple[Any, ...]) -> Check:
        if kind is float:
            return _make_instance_check((int, float))
        if kind in (bool, int, str, bytes):
            return _make_instance_check(kind)
        if issubclass(kind, Enum):
            # Pipecat's own services use a string in place of a member of a string enum.
            return _make_instance_check((kind, str) if issubclass(kind, str) else kind)
        if kind in self._carried and kind not in (dict, list, tuple, set, frozenset):
            return _make_instance_check(kind)
        if issubclass(dict, kind) and issubclass(kind, Mapping):
            return self._make_mapping_check(arguments)
        if kind is tuple and arguments and arguments[-1] is not ...:
            return self._make_tuple_check(arguments)
        if issubclass(kind, set | frozenset):
            return self._make_items_check((set, frozenset), arguments[:1])
        if any(issubclass(each, kind) for each in _SEQUENCES) and issubclass(kind, Iterable):
            return self._make_items_check(_SEQUENCES, arguments[:1])
        subclasses = tuple(each for each in self._carried if issubclass(each, kind))
        return _make_instance_check((*subclasses, type(None)))

    def _make_union_check(self, choices: tuple[Any, ...]) -> Check | None:
        checks = [self._make_check(choice) for choice in choices]
        if None in checks:
            return None
        known = cast("list[Check]", checks)
        if len(known) == 2 and type(None) in choices:
            return _allow_none(known[choices.index(type(None)) - 1])
        return lambda value: any(check(value) for check in known)

    def _make_mapping_check(self, arguments: tuple[Any, ...]) -> Check:
        check_key, check_value = (self._make_check(each) for each in (arguments or (Any, Any)))

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

    def _make_items_check(self, kinds: tuple[type, ...], arguments: tuple[Any, ...]) -> Check:
        check_item = self._make_check(arguments[0]) if arguments else None
        if check_item is None:
            return _make_instance_check(kinds)

        def check(value: object) -> bool:
            return isinstance(value, kinds) and all(
                map(check_item, cast("Iterable[object]", value))
            )

        return check

    def _make_tuple_check(self, arguments: tuple[Any, ...]) -> Check:
        checks = [self._make_check(each) for each in arguments]

        def check(value: object) -> bool:
            if not isinstance(value, _SEQUENCES):
                return False
            items = cast("tuple[object, ...]", value)
            return len(items) == len(checks) and all(
                each is None or each(item) for each, item in zip(checks, items, strict=True)
            )

        return check


def _make_instance_check(kinds: type | tuple[type, ...]) -> Check:
    return lambda value: isinstance(value, kinds)


def _allow_none(check: Check) -> Check:
    return lambda value: value is None or check(value)
