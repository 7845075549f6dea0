"""From a task's columns to the text a model reads, and from its output to the final answer."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from swaa.evaluation.sample import Sample
from swaa.thoughts import END, opened

STEP_BY_STEP = (
    "The text above is long. Think step by step, and go back to the passages that matter before"
    " you answer."
)
"""What `--cot` adds to the question."""

THINKING_TOKENS = 10_000
"""Longest output of a model that thinks first (arXiv 2512.10411, evaluation code)."""

ANSWER_TOKENS = 4_000
"""Longest answer that is scored; a longer one counts as no answer (same source)."""

_MARK = "\ue000"


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """How samples become a model's input.

    Attributes:
        tokenizer: the model's.
        chat: use the tokenizer's chat template; default: if it has one.
        thinking: the model thinks before it answers: the answer is what follows ``</think>``,
            outputs may have 10,000 tokens, and no answer is begun for it. Also the case where the
            chat template opens ``<think>``: a begun answer would be inside the thoughts.
        cot: ask to think step by step (the paper's first version).
        prefix: begin the answer with the task's words.
    """

    tokenizer: PreTrainedTokenizerBase
    chat: bool | None = None
    thinking: bool = False
    cot: bool = False
    prefix: bool = True

    def describe(self) -> dict[str, Any]:
        """What distinguishes runs with different prompts."""
        return {
            "chat": self._chat,
            "thinking": self._thinks,
            "cot": self.cot,
            "answer_prefix": self._prefixed,
        }

    def content(self, context: str, question: str) -> str:
        """What the user says."""
        parts = (context.strip(), question.strip(), STEP_BY_STEP if self.cot else "")
        return "\n\n".join(part for part in parts if part)

    def begun(self, answer_prefix: str) -> str:
        """The words that begin the answer."""
        return answer_prefix.strip() if self._prefixed else ""

    def text(self, context: str, question: str, answer_prefix: str = "") -> str:
        """The whole prompt as text."""
        head, tail = self._frame
        return f"{head}{self.content(context, question)}{tail}{self.begun(answer_prefix)}"

    def encode(self, text: str) -> list[int]:
        """Token ids of a prompt, or of the beginning of one."""
        ids: Any = self.tokenizer(text, add_special_tokens=not self._chat, verbose=False)
        return ids["input_ids"]

    def ids(self, sample: Sample) -> list[int]:
        """Token ids of a sample's prompt."""
        return self.encode(self.text(sample.context, sample.question, sample.answer_prefix))

    def count(self, context: str, question: str, answer_prefix: str = "") -> int:
        """Tokens of a prompt."""
        return len(self.encode(self.text(context, question, answer_prefix)))

    def max_new_tokens(self, sample: Sample) -> int:
        """Longest output allowed."""
        if self._thinks:
            return THINKING_TOKENS
        # Reasoning needs room that the tasks' short answers do not.
        return max(sample.max_new_tokens, 2_000) if self.cot else sample.max_new_tokens

    def final_answer(self, output: str) -> str | None:
        """The part of an output that is the answer; ``None``: it has no answer.

        Thoughts that never ended, or an answer of more than 4,000 tokens, count as no answer.
        """
        if self._thinks and END not in output:
            return None
        answer = output.rpartition(END)[2].strip()
        # Text has at most one token per UTF-8 byte: short answers need no counting.
        fits = len(answer.encode()) <= ANSWER_TOKENS
        return answer if fits or len(plain_ids(self.tokenizer, answer)) <= ANSWER_TOKENS else None

    @property
    def _chat(self) -> bool:
        return self.tokenizer.chat_template is not None if self.chat is None else self.chat

    @property
    def _prefixed(self) -> bool:
        return self.prefix and not self._thinks and not self.cot

    @property
    def _thinks(self) -> bool:
        return self.thinking or bool(opened(self._frame[1]))

    @functools.cached_property
    def _frame(self) -> tuple[str, str]:
        """The text before and after the user's words."""
        if not self._chat:
            return "", "\n"
        if self.tokenizer.chat_template is None:
            raise ValueError("the tokenizer has no chat template; evaluate with --no-chat")
        framed: Any = self.tokenizer.apply_chat_template(
            [{"role": "user", "content": _MARK}], add_generation_prompt=True, tokenize=False
        )
        head, mark, tail = framed.partition(_MARK)
        if not mark:
            raise ValueError("the chat template does not show the user's words; use --no-chat")
        return head, tail


def plain_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Token ids of the text alone, without template and special tokens."""
    ids: Any = tokenizer(text, add_special_tokens=False, verbose=False)
    return ids["input_ids"]
