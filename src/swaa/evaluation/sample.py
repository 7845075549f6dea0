"""One question of a task with its uniform columns, and the score of an answer to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

Place = Literal["sinks", "beyond", "window"]
"""Where the text to be found lies, as seen from the prompt's last token."""


class Needle(NamedTuple):
    """Where a fact that the answer needs lies in the prompt.

    Attributes:
        distance: from its first token to the prompt's end (tokens): to the last prompt token,
            a window of at least that many keys shows all of it.
        tokens: its length (tokens).
    """

    distance: int
    tokens: int


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One question of a task.

    Attributes:
        id: names the prompt within its task; the same prompt always has the same id.
        task: name of the task.
        length: tokens of the whole prompt, chat template included; 0: not counted yet.
        context: the long text, with the instructions before it.
        question: asked after it.
        answer_prefix: words that begin the answer, where the prompt allows it.
        answers: what a right answer holds; the task says whether all or any of them.
        max_new_tokens: longest answer (tokens).
        needles: the facts that the answer needs; empty: not known.
        tags: more about the question, such as its type.
    """

    id: str
    task: str
    length: int = 0
    context: str
    question: str = ""
    answer_prefix: str = ""
    answers: tuple[str, ...]
    max_new_tokens: int
    needles: tuple[Needle, ...] = ()
    tags: Mapping[str, str] = field(default_factory=dict)

    @property
    def needle_distance(self) -> int | None:
        """Distance of the farthest needle (tokens); ``None``: not known."""
        return max((needle.distance for needle in self.needles), default=None)

    def place(self, *, window: int | None, sink_tokens: int) -> Place | None:
        """Where the needles lie: within the sinks, within the window, or (one of them) beyond.

        >>> sample = Sample(
        ...     id="a", task="needle", length=100, context="", answers=(),
        ...     max_new_tokens=1, needles=(Needle(distance=30, tokens=5),))
        >>> sample.place(window=32, sink_tokens=4), sample.place(window=16, sink_tokens=4)
        ('window', 'beyond')

        Args:
            window: keys a sliding row sees, itself included; ``None``: all.
            sink_tokens: first tokens that every row sees.
        """
        return place(self.length, self.needles, window=window, sink_tokens=sink_tokens)

    def columns(self) -> dict[str, Any]:
        """The uniform columns, as JSON values."""
        return {
            "context": self.context,
            "question": self.question,
            "answer_prefix": self.answer_prefix,
            "answers": list(self.answers),
            "max_new_tokens": self.max_new_tokens,
            "task": self.task,
            "length": self.length,
            "needle_distance": self.needle_distance,
        }


class Score(NamedTuple):
    """What an answer is worth.

    Attributes:
        value: share of what was asked for, 0 to 1; ``None``: a judge has yet to decide.
        answered: whether there was an answer of the form asked for, right or wrong.
        extracted: the part that was scored, where it is not the whole answer.
    """

    value: float | None
    answered: bool = True
    extracted: str | None = None


def place(
    length: int, needles: Sequence[tuple[int, int]], *, window: int | None, sink_tokens: int
) -> Place | None:
    """Where needles lie in a prompt of ``length`` tokens; see :meth:`Sample.place`."""
    if not needles:
        return None
    ends = [length - distance + tokens for distance, tokens in needles]
    if all(end <= sink_tokens for end in ends):
        return "sinks"
    inside = (
        window is None or distance <= window or end <= sink_tokens
        for (distance, _), end in zip(needles, ends, strict=True)
    )
    return "window" if all(inside) else "beyond"
