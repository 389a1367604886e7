"""All randomness of the fault tests comes from one seed: `AXEQ_SEED`, else one that is printed when a test fails."""

from __future__ import annotations

import os
import random
import secrets

__all__ = ["SEED", "rng"]

SEED = int(os.environ.get("AXEQ_SEED") or secrets.randbelow(1_000_000))


def rng(purpose: str, seed: int = SEED) -> random.Random:
    """Returns the random numbers for one purpose, the same for the same seed whatever else is drawn."""
    return random.Random(f"{seed} {purpose}")
