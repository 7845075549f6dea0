"""`answer_nll` (arXiv 2606.27791) and `kl`, in either direction: one layer flipped at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from swaa.selection.board import Board, Objective, mean
from swaa.selection.candidate import Candidate, Role, Unit

Direction = Literal["add-one", "leave-one-out"]
"""Either all layers slide and one gets the role, or all have the role and one slides."""


def importance(
    board: Board, knobs: Candidate, role: Role, objective: Objective, direction: Direction
) -> dict[Unit, float]:
    """How much each unit's role lowers the objective (nats per token); high: keep the role.

    Add-one measures what a layer adds alone, leave-one-out what is lost without it: at most one
    pass per layer, which begins at that layer.

    Args:
        board: measures.
        knobs: window, sinks and tail; for the role ``full`` also the layers with full decode.
        role: what is given to a layer, or taken from it.
        objective: what is compared.
        direction: add to no layers, or remove from all.
    """
    base, flipped = flips(board.units(role), knobs, role, direction)
    # When screened, all layers full differ from all sliding in only a few rows.
    near = base.with_layers("full", ()) if board.screen else base
    board.ask([base, *flipped.values()], near=near)

    def value(candidate: Candidate) -> float:
        return mean(getattr(board.scores(candidate), objective))

    sign = 1 if direction == "add-one" else -1
    return {layer: sign * (value(base) - value(c)) for layer, c in flipped.items()}


def flips(
    units: Sequence[Unit], knobs: Candidate, role: Role, direction: Direction
) -> tuple[Candidate, dict[Unit, Candidate]]:
    """The set that flips begin with, and the sets with one unit flipped."""
    adding = direction == "add-one"
    base = knobs.with_layers(role, () if adding else frozenset(units))
    flipped = {unit: base.with_layers(role, base.layers(role) ^ {unit}) for unit in units}
    if not adding and role == "full":
        # A full layer decodes in full; once it slides, it decodes as the knobs say.
        flipped = {
            layer: replace(candidate, decode=knobs.decode & {layer})
            for layer, candidate in flipped.items()
        }
    return base, flipped
