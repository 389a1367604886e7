"""Names for priorities."""

from __future__ import annotations

from enum import IntEnum

__all__ = ["Priority"]


class Priority(IntEnum):
    """Which of the due jobs runs first: the lower number. Any whole number from HIGHEST to LOWEST will do."""

    HIGHEST = -32768
    """Before everything else."""
    HIGH = -16384
    """Before what is ordinary."""
    DEFAULT = 0
    """What a job has that names none."""
    LOW = 16384
    """After what is ordinary."""
    LOWEST = 32767
    """When there is nothing else to do."""
