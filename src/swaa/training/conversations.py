"""Chat-format JSONL to token ids and labels; mistakes are reported with their line.

Each line is an object with ``messages``, a list of ``{"role": ..., "content": ...}``. Every
assistant turn is an answer: its tokens are the labels, with the token that ends the turn; all else
is prompt (-100). The prompt's tokens are the same as in generation.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from transformers import PreTrainedTokenizerBase

from swaa.thoughts import BEGIN, END, opened

IGNORED = -100
"""Label of a token outside the answers."""

_SHOWN = 5
_Made = TypeVar("_Made")


class Span(NamedTuple):
    """Character positions of one answer in the rendered conversation."""

    start: int
    end: int


@dataclass(frozen=True, kw_only=True)
class Example:
    """One conversation, ready to train on.

    Attributes:
        line: where it stands in its file, from 1.
        input_ids: all tokens.
        labels: the answers' tokens, and :data:`IGNORED` elsewhere.
    """

    line: int
    input_ids: tuple[int, ...]
    labels: tuple[int, ...]

    @property
    def answer_tokens(self) -> int:
        """Tokens that are trained on."""
        return sum(label != IGNORED for label in self.labels)


@dataclass(frozen=True, kw_only=True)
class TrainingData:
    """The contents of a file.

    Attributes:
        examples: in the file's order.
        skipped: one reason for each line left out.
    """

    examples: tuple[Example, ...]
    skipped: tuple[str, ...] = ()


def load_conversations(
    path: str | Path,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int,
    skip_bad: bool = False,
) -> TrainingData:
    """Read and tokenize a chat-format JSONL file.

    Args:
        path: the file.
        tokenizer: the model's; a fast one. Its chat template, if it has one, frames the turns.
        max_length: most tokens of a conversation, template included.
        skip_bad: leave bad lines out and report them; otherwise they are an error.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: naming the bad lines, or when no line is left.
    """
    if not tokenizer.is_fast:
        raise ValueError(
            f"{type(tokenizer).__name__} does not say which letters its tokens stand for; training"
            " needs a fast tokenizer"
        )

    def make(messages: list[Any], line: int) -> Example:
        return make_example(tokenizer, messages, line, max_length=max_length)

    examples, bad = _read(path, make, skip_bad=skip_bad)
    return TrainingData(examples=tuple(examples), skipped=tuple(bad))


def check_conversations(path: str | Path, *, skip_bad: bool = False) -> None:
    """Find mistakes in a file before the model and its tokenizer are loaded.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: for all mistakes that can be checked without tokens.
    """
    _read(path, lambda messages, _line: _turns(messages), skip_bad=skip_bad)


def _read(
    path: str | Path, make: Callable[[list[Any], int], _Made], *, skip_bad: bool
) -> tuple[list[_Made], list[str]]:
    """The results of ``make`` for each conversation and line, and one reason for each bad line."""
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path}")
    made: list[_Made] = []
    bad: list[str] = []
    for line, text in _lines(path):
        try:
            made.append(make(_parse(text), line))
        except _BadLineError as error:
            bad.append(f"line {line}: {error}")
    if bad and not skip_bad:
        more = f"; and {len(bad) - _SHOWN} more" if len(bad) > _SHOWN else ""
        raise ValueError(
            f"{path.name}: {len(bad)} of {len(bad) + len(made)} lines cannot be trained on:"
            f" {'; '.join(bad[:_SHOWN])}{more}. Correct them, or leave them out with --skip-bad"
        )
    if not made:
        raise ValueError(f"{path.name} holds no conversation to train on")
    return made, bad


class _BadLineError(ValueError):
    """A mistake in a line."""


def make_example(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Any], line: int, *, max_length: int
) -> Example:
    """Tokenize one conversation.

    Args:
        tokenizer: the model's.
        messages: turns with ``role`` and ``content``.
        line: in its file, for messages.
        max_length: most tokens.

    Raises:
        ValueError: for a conversation that cannot be trained on, with the reason.
    """
    turns = _turns(messages)
    text, spans = _render(tokenizer, turns)
    encoded: Any = tokenizer(
        text,
        add_special_tokens=tokenizer.chat_template is None,
        return_offsets_mapping=True,
        verbose=False,
    )
    ids: list[int] = encoded["input_ids"]
    if len(ids) > max_length:
        raise _BadLineError(
            f"{len(ids)} tokens, at most {max_length} are allowed (by --max-length or the model)"
        )
    labels = _labels(ids, encoded["offset_mapping"], spans)
    return Example(line=line, input_ids=tuple(ids), labels=tuple(labels))


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield number, line


def _parse(text: bytes) -> list[Any]:
    try:
        value = json.loads(text)
    except ValueError as error:  # bad JSON, or not UTF-8
        raise _BadLineError(f"not JSON ({error})") from None
    messages = value.get("messages") if isinstance(value, dict) else None
    if not isinstance(messages, list) or not messages:
        raise _BadLineError("expected an object with 'messages', a list of turns")
    return messages


def _turns(messages: Sequence[Any]) -> list[dict[str, str]]:
    turns = [_turn(number, message) for number, message in enumerate(messages, 1)]
    if all(turn["role"] != "assistant" for turn in turns):
        raise _BadLineError("no assistant turn")
    return turns


def _turn(number: int, message: Any) -> dict[str, str]:
    if not isinstance(message, Mapping):
        raise _BadLineError(f"turn {number} is not an object with 'role' and 'content'")
    role, content = message.get("role"), message.get("content")
    if not isinstance(role, str) or not isinstance(content, str):
        raise _BadLineError(f"turn {number} needs 'role' and 'content', both text")
    if role == "assistant" and not content.strip():
        raise _BadLineError(f"turn {number} is an empty answer")
    return {"role": role, "content": content}


def _render(
    tokenizer: PreTrainedTokenizerBase, turns: list[dict[str, str]]
) -> tuple[str, list[Span]]:
    """The conversation as the model reads it, and where its answers are."""
    if tokenizer.chat_template is None:
        return _render_plainly(tokenizer, turns)
    text, spans = _whole(tokenizer, turns), []
    for place, turn in enumerate(turns):
        if turn["role"] != "assistant":
            continue
        before = _apply(tokenizer, turns[:place], add_generation_prompt=True)
        last = place == len(turns) - 1
        through = text if last else _apply(tokenizer, turns[: place + 1])
        if not (text.startswith(through) and through.startswith(before)):
            raise _BadLineError(
                f"the chat template renders turn {place + 1} differently in the whole conversation"
                " than when it was generated; split the conversation after it"
            )
        # What follows the token that ends the turn, such as a line break, is not generated.
        spans.append(Span(len(before), len(through.rstrip())))
    return text, spans


def _whole(tokenizer: PreTrainedTokenizerBase, turns: list[dict[str, str]]) -> str:
    """The template's rendering, with the last answer's thoughts, which templates leave out."""
    text, last = _apply(tokenizer, turns), turns[-1]
    if last["role"] != "assistant":
        return text
    before = _apply(tokenizer, turns[:-1], add_generation_prompt=True)
    said = last["content"].strip()
    thinks = END in said or opened(before)
    if not thinks or (text.startswith(before) and said in text[len(before) :]):
        return text
    return before + _as_generated(before, text, said, len(turns))


def _as_generated(before: str, text: str, said: str, number: int) -> str:
    """The last answer as the model wrote it, thoughts included, and what ends the turn.

    Args:
        before: the prompt, whose end may open the thoughts.
        text: the template's rendering, which ends as the turn does.
        said: content of the turn.
        number: of the turn, from 1, for messages.
    """
    begun = opened(before)
    if begun and END not in said:
        raise _BadLineError(
            f"the chat template opens {BEGIN} for the model, and turn {number} has no {END}; put"
            f" the thoughts before the answer, or {END} alone where there are none"
        )
    answer = said.rpartition(END)[2].strip()
    if not answer or answer not in text:
        raise _BadLineError(f"the chat template does not show what turn {number} answers")
    ending = text.rpartition(answer)[2]
    if begun:
        said = said.removeprefix(begun if said.startswith(begun) else BEGIN)
    return said + ending


def _render_plainly(
    tokenizer: PreTrainedTokenizerBase, turns: list[dict[str, str]]
) -> tuple[str, list[Span]]:
    """Without a chat template: the prompt, a line break, the answer, the end token."""
    if [turn["role"] for turn in turns] != ["user", "assistant"]:
        raise _BadLineError(
            "the tokenizer has no chat template, so that only one user turn and one assistant turn"
            " can be trained on"
        )
    before = f"{turns[0]['content']}\n"
    end: Any = tokenizer.eos_token or ""
    text = f"{before}{turns[1]['content']}{end}"
    return text, [Span(len(before), len(text))]


def _apply(tokenizer: PreTrainedTokenizerBase, turns: list[dict[str, str]], **options: Any) -> str:
    try:
        text: Any = tokenizer.apply_chat_template(turns, tokenize=False, **options)
    except Exception as error:  # templates raise anything, for instance for an unknown role
        reason = " ".join(str(error).split())
        raise _BadLineError(f"the chat template refuses it: {reason:.100}") from None
    return text


def _labels(
    ids: Sequence[int], offsets: Sequence[tuple[int, int]], spans: Sequence[Span]
) -> list[int]:
    labels = [IGNORED] * len(ids)
    for span in spans:
        inside = [i for i, (a, b) in enumerate(offsets) if max(a, span.start) < min(b, span.end)]
        if not inside or offsets[inside[0]][0] < span.start:
            raise _BadLineError(
                "the tokenizer joins the beginning of an answer with the words before it; begin the"
                " answer without a space or line break"
            )
        for i in inside:
            labels[i] = ids[i]
    return labels
