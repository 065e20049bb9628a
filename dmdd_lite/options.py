"""Fields of a documented configuration: how one is declared, and how its values are checked."""

from dataclasses import field


def option(default, label: str, text: str, **checks):
    """A configuration field: its default, its origin, one sentence, and its `low`, `high` or `choices`."""
    metadata = {"label": label, "text": text, **checks}
    if isinstance(default, dict):
        return field(default_factory=lambda: dict(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def coerce(item, value):
    """JSON's lists back to tuples, whole numbers to floats where a float is due; else a TypeError."""
    kind = item.type
    if kind is tuple and isinstance(value, list):
        value = tuple(value)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise TypeError(f"{item.name} must be {kind.__name__}, got {value!r} ({type(value).__name__})")
    return value


def check(item, value):
    """Range or choice of one field; NaN is outside every range."""
    low, high = item.metadata.get("low"), item.metadata.get("high")
    choices = item.metadata.get("choices")
    if low is not None and not value >= low:
        raise ValueError(f"{item.name} must be at least {low}, got {value}")
    if high is not None and not value <= high:
        raise ValueError(f"{item.name} must be at most {high}, got {value}")
    if isinstance(value, float) and not abs(value) < float("inf"):
        raise ValueError(f"{item.name} must be finite, got {value}")
    if choices and not set(value if isinstance(value, tuple) else (value,)) <= set(choices):
        raise ValueError(f"{item.name} must be of {', '.join(map(repr, choices))}, got {value!r}")
