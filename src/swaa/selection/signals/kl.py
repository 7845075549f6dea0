"""`kl`: what a layer does for the distance from full attention's answers; needs no gold answers."""

from __future__ import annotations

from swaa.selection.board import Board
from swaa.selection.candidate import Candidate, Role
from swaa.selection.signals.flips import Direction, importance


def kl(
    board: Board, knobs: Candidate, role: Role = "full", *, direction: Direction = "add-one"
) -> dict[int, float]:
    """Nats a token by which each layer's role lowers the divergence of the answers' distributions.

    See :func:`swaa.selection.signals.flips.importance`.
    """
    return importance(board, knobs, role, "kl", direction)
