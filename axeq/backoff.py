"""How long a failed job waits before its next attempt."""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = ["Backoff"]


@dataclass(frozen=True, slots=True)
class Backoff:
    """Exponential delays: `min_delay * factor ** (attempt - 1)`, at most `max_delay`. All in seconds."""

    min_delay: float = 1.0
    max_delay: float = 600.0
    factor: float = 2.0

    def delay(self, attempt: int) -> float:
        """Returns the seconds to wait after attempt number `attempt`, counted from 1."""
        if self.min_delay <= 0:
            return 0.0
        # In logarithms, so that attempt ten thousand does not overflow.
        exponent = math.log(self.min_delay) + max(attempt - 1, 0) * math.log(self.factor)
        if exponent >= math.log(self.max_delay):
            return self.max_delay
        return min(self.min_delay * self.factor ** max(attempt - 1, 0), self.max_delay)
