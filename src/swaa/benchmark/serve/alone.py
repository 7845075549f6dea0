"""Are answers under a load those of the same requests alone?"""

from __future__ import annotations

import math
from typing import Any

from swaa.benchmark.serve.client import LIKELY, encode_request, request
from swaa.benchmark.serve.load import Load
from swaa.http.address import Address

TIE = 0.1
"""Two tokens whose log-probabilities differ less are a tie: in 16 bits a batch's size decides
between them (nats)."""


def ask_alone(load: Load, address: Address) -> dict[str, Any]:
    """Ask some requests of a load once more, one after another, and compare the tokens.

    Where two answers part, the token that was given under the load must be within :data:`TIE` of
    the best one alone; what follows cannot be compared.

    Args:
        load: with the tokens of its answers; its workload says how many are ``checked``.
        address: of the server.

    Returns:
        A row with how many answers were ``equal``, ``tied`` (they part at a tie), ``different``,
        and ``failed`` in one of the two, and the ``largest_gap`` of those that part (nats), as far
        as it is known.
    """
    workload = load.workload
    wanted = {n * workload.requests // workload.checked for n in range(workload.checked)}
    prompts = workload.prompts(load.nonce)
    next(prompts)  # of the warm-up
    gaps: list[float | None] = []
    for index, ids in enumerate(prompts):
        if index not in wanted:
            continue
        body = encode_request(address, ids, workload, LIKELY)
        alone = request(address, body, input_tokens=len(ids))
        loaded = load.timings[index]
        broken = alone.error or loaded.error or not (alone.likely and loaded.tokens)
        gaps.append(None if broken else gap(loaded.tokens, alone.tokens, alone.likely))
    found = [value for value in gaps if value is not None]
    return {
        "metric": "alone",
        "checked": len(gaps),
        "equal": found.count(0.0),
        "tied": sum(0 < value < TIE for value in found),
        "different": sum(value >= TIE for value in found),
        "failed": gaps.count(None),
        "largest_gap": max(filter(math.isfinite, found), default=None),
    }


def gap(loaded: Any, alone: Any, likely: Any) -> float:
    """How much less likely than the best token that one is with which two answers part.

    >>> gap([5, 7], [5, 6], [{"token_id:5": 0.0}, {"token_id:6": -0.5, "token_id:7": -0.75}])
    0.25
    >>> gap([5, 7], [5, 7], [{"token_id:5": 0.0}, {"token_id:7": -0.5}])
    0.0

    Args:
        loaded: token ids of an answer under a load.
        alone: of the same request's answer alone.
        likely: log-probabilities of the likeliest tokens at each place of the latter.

    Returns:
        Nats; 0: the answers are equal; infinite: the token is not among the likeliest ones, or an
        answer is shorter.
    """
    for ours, theirs, words in zip(loaded, alone, likely, strict=False):
        if ours != theirs:
            missing = float("-inf")
            return words[f"token_id:{theirs}"] - words.get(f"token_id:{ours}", missing)
    return 0.0 if len(loaded) == len(alone) else float("inf")
