"""Whole numbers as users give them, checked."""

from __future__ import annotations

from axeq.words.errors import ConfigurationError

__all__ = ["whole"]


def whole(option: str, value: object, least: int, most: int | None = None) -> int:
    """Returns `value` if it is a whole number between `least` and `most`; `option` names it in errors.

    Raises `ConfigurationError` otherwise.
    """
    if isinstance(value, int) and not isinstance(value, bool) and value >= least and (most is None or value <= most):
        return value
    bounds = f"from {least}" + (f" to {most:,}" if most is not None else "")
    raise ConfigurationError(f"{option} must be a whole number {bounds}, not {value!r:.100}")
