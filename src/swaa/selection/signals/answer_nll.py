"""`answer_nll`: what a layer does for the likelihood of the answers (arXiv 2606.27791)."""

from __future__ import annotations

from swaa.selection.board import Board
from swaa.selection.candidate import Candidate, Role
from swaa.selection.signals.flips import Direction, importance


def answer_nll(
    board: Board, knobs: Candidate, role: Role = "full", *, direction: Direction = "add-one"
) -> dict[int, float]:
    """Nats a token that each layer's role saves; see :func:`swaa.selection.signals.flips`."""
    return importance(board, knobs, role, "nll", direction)
