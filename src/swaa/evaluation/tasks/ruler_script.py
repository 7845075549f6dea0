"""Run one generator of the RULER wheel as its authors do, but without its downloads.

Its scripts read the command line when imported and seed the whole process, so this one runs in its
own process: ``python -m swaa.evaluation.tasks.ruler_script SPEC``, where SPEC is a JSON file.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import re
import runpy
import sys
import types
from pathlib import Path
from typing import Any

MARKS = ("\ue000", "\ue001")
"""Put after the context and before the answer prefix, to take the prompt apart there."""

TRIES = 1_000
"""After so many prompts in a row that are too long, none will ever fit: generators try fewer and
fewer parts, a few hundred times at most, and go on forever with the smallest prompt they make."""


def split_sentences(text: str) -> list[str]:
    """Sentences of English text; replaces the splitter whose model nltk would download.

    >>> split_sentences('He came. "Who?" she asked. No 3.5 of them.')
    ['He came.', '"Who?"', 'she asked.', 'No 3.5 of them.']
    """
    return [part for part in re.split(r"(?<=[.!?])\s+|(?<=[.!?][\"')])\s+", text.strip()) if part]


class _Tokenizer:
    """Counts for the scripts: the model's tokens, plus those of the chat template.

    Args:
        folder: of the tokenizer.
        overhead: tokens of the chat template.
        room: tokens that a prompt may have; a script that finds none so short is ended.
    """

    def __init__(self, folder: str, overhead: int, room: int) -> None:
        from transformers import AutoTokenizer

        self._tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        self._overhead = overhead
        self._room = room
        self._too_long = 0

    def text_to_tokens(self, text: str) -> list[int]:
        for mark in MARKS:
            text = text.replace(mark, "")
        ids = self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        count = len(ids) + self._overhead
        self._too_long = self._too_long + 1 if count > self._room else 0
        if self._too_long == TRIES:
            print(
                f"its prompts have {count:,} tokens and more; ask for longer ones", file=sys.stderr
            )
            os._exit(1)  # The scripts catch every exception, SystemExit too.
        return [*ids, *([0] * self._overhead)]


def _module(name: str, **members: object) -> None:
    module = types.ModuleType(name)
    vars(module).update(members)
    sys.modules[name] = module


def main(spec: dict[str, Any]) -> None:
    """Write the samples of one task."""
    _module("nltk")
    _module("nltk.tokenize", sent_tokenize=split_sentences)
    package = importlib.util.find_spec("long_context_eval")
    assert package is not None
    assert package.origin is not None
    root = Path(package.origin).parent
    import yaml

    task = yaml.safe_load((root / "synthetic.yaml").read_text("utf-8"))[spec["task"]]
    constants = importlib.import_module("long_context_eval.data.synthetic.constants")
    base = constants.TASKS[task["task"]]
    room = spec["length"] - base["tokens_to_generate"]

    def select_tokenizer(kind: str, path: str) -> _Tokenizer:
        del kind
        return _Tokenizer(path, spec["overhead"], room)

    # The scripts import it by both names.
    _module("tokenizer", select_tokenizer=select_tokenizer)
    _module("long_context_eval.data.tokenizer", select_tokenizer=select_tokenizer)
    template = base["template"].replace("{context}", f"{{context}}{MARKS[0]}")
    script = root / "data" / "synthetic" / f"{task['task']}.py"
    words = {
        "save_dir": spec["folder"],
        "save_name": "samples",
        "tokenizer_path": spec["tokenizer"],
        "tokenizer_type": "hf",
        "max_seq_length": spec["length"],
        "tokens_to_generate": base["tokens_to_generate"],
        "num_samples": spec["count"],
        "random_seed": spec["seed"],
        "template": f"{template} {MARKS[1]}{base['answer_prefix']}",
        **task["args"],
    }
    # Like Python when it starts a script.
    sys.path.insert(0, str(script.parent))
    sys.argv = [str(script), *(word for k, v in words.items() for word in (f"--{k}", str(v)))]
    runpy.run_path(str(script), run_name="__main__")
    lines = (Path(spec["folder"]) / "samples" / "validation.jsonl").read_text("utf-8").splitlines()
    samples = [json.loads(line) for line in lines]
    made = {"tokens_to_generate": base["tokens_to_generate"], "samples": samples}
    (Path(spec["folder"]) / "made.json").write_text(json.dumps(made), encoding="utf-8")


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text("utf-8")))
