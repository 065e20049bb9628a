"""Fields of a configuration with range and provenance label, checked when a configuration is made."""

import contextlib
import dataclasses
import json
from dataclasses import field
from typing import Any, get_args

LABELS = ("paper", "summary", "authors", "field", "ours")
LARGEST = 2**63 - 1  # the largest integer that torch accepts


def option(default, label: str, text: str, **checks):
    """A configuration field: its default, its origin, one sentence, and its `low`, `high` or `choices`; for a
    tuple these apply to its parts, `of` is their type and `length` their number."""
    metadata = {"label": label, "text": text, **checks}
    if isinstance(default, dict):
        return field(default_factory=lambda: dict(default), metadata=metadata)
    return field(default=default, metadata=metadata)


class Options:
    """A frozen dataclass of `option` fields, checked when it is made: ValueError for a value outside its
    range, TypeError for one of another type. JSON's lists become tuples, integers floats where due, dicts the
    Options of their fields."""

    def __post_init__(self):
        for item in dataclasses.fields(self):
            value = _convert(item, getattr(self, item.name))
            object.__setattr__(self, item.name, value)
            _check(item, value)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return json.loads(json.dumps(dataclasses.asdict(self)))

    @classmethod
    def from_dict(cls, values: dict[str, Any]):
        """Back from `to_dict`. Raises ValueError for a field that does not exist."""
        if not isinstance(values, dict):
            raise TypeError(f"a configuration must be a dict of its fields, got {shown(values)}")
        known = [item.name for item in dataclasses.fields(cls)]
        if unknown := sorted(str(name) for name in set(values) - set(known)):
            raise ValueError(
                f"unknown configuration field {', '.join(unknown)}: written by another version of dmdd_lite? "
                f"Known fields: {', '.join(known)}"
            )
        return cls(**values)

    def replace(self, **changes):
        """A copy with some fields changed, checked again."""
        return dataclasses.replace(self, **changes)


def _convert(item, value):
    nested = [kind for kind in get_args(item.type) if issubclass(kind, Options)]
    if nested and isinstance(value, dict):
        try:
            return nested[0].from_dict(value)
        except (TypeError, ValueError) as error:
            raise type(error)(f"{item.name}: {error}") from error
    if tuple in (item.type, *get_args(item.type)) and isinstance(value, list | tuple):
        return tuple(_typed(f"each part of {item.name}", item.metadata["of"], part) for part in value)
    value = _typed(item.name, item.type, value)
    if item.type is not dict:
        return value
    try:  # a copy that survives JSON unchanged
        if not all(isinstance(key, str) for key in value):
            raise TypeError("names must be text")
        return json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise TypeError(f"{item.name} must hold plain JSON values, got {shown(value)} ({error})") from error


def _typed(name: str, kind, value):
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        try:
            value = float(value)
        except OverflowError as error:
            raise ValueError(f"{name} must be finite, got {shown(value)}") from error
    if not isinstance(value, kind) or (kind is not bool and isinstance(value, bool)):
        label = getattr(kind, "__name__", str(kind))
        raise TypeError(f"{name} must be {label}, got {shown(value)} ({type(value).__name__})")
    return value


def _check(item, value):
    """Range or choice of one field, of every part of a tuple; NaN is outside every range."""
    low, high, choices, length = (item.metadata.get(key) for key in ("low", "high", "choices", "length"))
    if length is not None and isinstance(value, tuple) and len(value) != length:
        raise ValueError(f"{item.name} must have {length} parts, got {shown(value)}")
    for part in value if isinstance(value, tuple) else (value,):
        if low is not None and not part >= low:
            raise ValueError(f"{item.name} must be at least {low}, got {shown(part)}")
        most = LARGEST if high is None and isinstance(part, int) else high
        if most is not None and not part <= most:
            raise ValueError(f"{item.name} must be at most {most}, got {shown(part)}")
        if isinstance(part, float) and not abs(part) < float("inf"):
            raise ValueError(f"{item.name} must be finite, got {part}")
        if choices and part not in choices:
            raise ValueError(f"{item.name} must be of {', '.join(map(repr, choices))}, got {shown(part)}")


def read_setting(text: str) -> tuple[str, Any]:
    """NAME=VALUE of a command line, the value as JSON or else as text. Raises ValueError for another text."""
    name, equals, value = text.partition("=")
    if not equals:
        raise ValueError(f"--set {text}: must be NAME=VALUE")
    return name, read_value(value)


def read_value(text: str) -> Any:
    """A value of a command line: JSON, or else text."""
    with contextlib.suppress(ValueError):
        return json.loads(text)
    return text


def shown(value) -> str:
    """A value as a message names it, in 100 characters at most."""
    try:
        text = repr(value)
    except ValueError:  # of an integer of thousands of digits
        return f"a very long {type(value).__name__}"
    return text if len(text) <= 100 else f"{text[:97]}..."


def differences(one: Options, other: Options) -> list[str]:
    """Which fields differ, as 'name: a -> b', for messages."""
    a, b = one.to_dict(), other.to_dict()
    return [f"{name}: {a[name]!r} -> {b[name]!r}" for name in a if a[name] != b[name]]


def provenance_table(options: type[Options]) -> str:
    """The configuration as a markdown table: field, default, label, meaning."""
    rows = ["| field | default | label | meaning |", "|---|---|---|---|"]
    for item in dataclasses.fields(options):
        default = item.default_factory() if item.default is dataclasses.MISSING else item.default
        rows.append(
            f"| `{item.name}` | `{default!r}` | [{item.metadata['label']}] | {item.metadata['text']} |"
        )
    return "\n".join(rows)
