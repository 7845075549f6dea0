"""The line by which a serving engine says what is active."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from swaa.config import MOST_TOKENS, LayerPlan, SWAAConfig


def adapted(config: SWAAConfig, plans: Sequence[LayerPlan], *, longest: int) -> str:
    """What slides, in words.

    Args:
        config: in force.
        plans: of the layers that this rank serves.
        longest: most tokens of a request.
    """
    roles = Counter(_role(plan) for plan in plans)
    sliding = sum(not plan.full for plan in plans)
    counts = ", ".join(f"{count} {role}" for role, count in sorted(roles.items()))
    idle = f" (no request of {longest:,} tokens outgrows it)" if config.covers(longest) else ""
    return f"swaa adapted {sliding} of {len(plans)} layers ({counts}): {config.describe()}{idle}"


def _role(plan: LayerPlan) -> str:
    if plan.full:
        return "full"
    if plan.dense_tail == MOST_TOKENS:
        return "full prompt"
    if plan.decode_heads:
        return "full decode in some KV heads"
    return "full decode" if plan.full_decode else "sliding"
