"""Fields of a documented configuration: how one is declared, and how its values are checked."""

import json
from dataclasses import field

LARGEST = 2**63 - 1  # a whole number that torch still takes


def option(default, label: str, text: str, **checks):
    """A configuration field: its default, its origin, one sentence, and its `low`, `high` or `choices`; for a
    tuple these are of its parts, and `of` is their type."""
    metadata = {"label": label, "text": text, **checks}
    if isinstance(default, dict):
        return field(default_factory=lambda: dict(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def shown(value) -> str:
    """A value as a message names it, in 100 characters at most."""
    try:
        text = repr(value)
    except ValueError:  # of a whole number of thousands of digits
        return f"a very long {type(value).__name__}"
    return text if len(text) <= 100 else f"{text[:97]}..."


def coerce(item, value):
    """JSON's lists back to tuples, whole numbers to floats where a float is due, a dict as JSON would give it
    back; else a TypeError."""
    if item.type is tuple and isinstance(value, list | tuple):
        return tuple(_typed(f"each part of {item.name}", item.metadata["of"], part) for part in value)
    value = _typed(item.name, item.type, value)
    return _plain(item.name, value) if item.type is dict else value


def _typed(name: str, kind: type, value):
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        try:
            value = float(value)
        except OverflowError as error:
            raise ValueError(f"{name} must be finite, got {shown(value)}") from error
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise TypeError(f"{name} must be {kind.__name__}, got {shown(value)} ({type(value).__name__})")
    return value


def _plain(name: str, value: dict) -> dict:
    """A copy that survives JSON unchanged, tuples as lists."""
    try:
        if not all(isinstance(key, str) for key in value):
            raise TypeError("names must be text")
        return json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise TypeError(f"{name} must hold plain JSON values, got {shown(value)} ({error})") from error


def check(item, value):
    """Range or choice of one field, of every part of a tuple; NaN is outside every range."""
    for part in value if isinstance(value, tuple) else (value,):
        _check_part(item, part)


def _check_part(item, value):
    low, high = item.metadata.get("low"), item.metadata.get("high")
    choices = item.metadata.get("choices")
    if low is not None and not value >= low:
        raise ValueError(f"{item.name} must be at least {low}, got {shown(value)}")
    if isinstance(value, int) and high is None:
        high = LARGEST
    if high is not None and not value <= high:
        raise ValueError(f"{item.name} must be at most {high}, got {shown(value)}")
    if isinstance(value, float) and not abs(value) < float("inf"):
        raise ValueError(f"{item.name} must be finite, got {value}")
    if choices and value not in choices:
        raise ValueError(f"{item.name} must be of {', '.join(map(repr, choices))}, got {shown(value)}")
