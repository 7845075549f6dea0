"""Self-distillation: the full-attention model answers; the shortest right answers are kept.

A model learns its own words most easily under another mask (arXiv 2512.10411, section 4.3): only
the mask is new to it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from swaa.evaluation.engines import Engine, Reply, Request
from swaa.evaluation.judge import Judge, apply_verdicts
from swaa.evaluation.prompt import Prompt
from swaa.evaluation.sample import Sample
from swaa.evaluation.tasks import Task
from swaa.files import SamplesFile
from swaa.results import VERDICTS, write_whole


@dataclass(frozen=True, kw_only=True)
class DistillSettings:
    """How answers are drawn and kept.

    Attributes:
        answers: drawn for each question.
        keep: most right answers kept for each question, the shortest ones.
        max_new_tokens: longest answer; ``None``: the question's own.
        batch_size: prompts answered at once.

    Raises:
        ValueError: naming the setting, for a value out of range.
    """

    answers: int = 4
    keep: int = 1
    max_new_tokens: int | None = None
    batch_size: int = 1

    def __post_init__(self) -> None:
        for name in ("answers", "keep", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected at least 1")
        if self.max_new_tokens is not None and self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens is {self.max_new_tokens}; expected at least 1")
        if self.keep > self.answers:
            raise ValueError(f"keep is {self.keep}, of only {self.answers} answers a question")


@dataclass(frozen=True, kw_only=True)
class Distilled:
    """The outcome.

    Attributes:
        path: chat-format JSONL.
        questions: how many were asked.
        answers: how many were drawn.
        right: answers that ended and held what was asked for.
        kept: conversations written.
        unanswered: questions without a right answer.
        unjudged: unreadable verdicts of the judge; their answers count as wrong.
    """

    path: Path
    questions: int
    answers: int
    right: int
    kept: int
    unanswered: int
    unjudged: int


def distill(
    questions: Sequence[Sample],
    task: Task,
    prompt: Prompt,
    engine: Engine,
    out: str | Path,
    settings: DistillSettings,
    *,
    draws: Mapping[str, Any],
    judge: Judge | None = None,
    progress: Callable[[int], None] | None = None,
) -> Distilled:
    """Draw answers, filter them, write the conversations; resumes after an interruption.

    Every answer is kept next to ``sft.jsonl``, in ``sft.answers.jsonl``, and the judge's verdicts
    in ``sft.judge.jsonl``.

    Args:
        questions: of the task.
        task: says which answers are right.
        prompt: frames the questions, without beginning the answers.
        engine: draws the answers.
        out: the file to write, a ``.jsonl``; see :func:`check_out`.
        settings: how many are drawn and kept.
        draws: what distinguishes these draws: temperature, seed, engine, model.
        judge: says which answers are right, instead of the task.
        progress: called with the number of answers so far.

    Raises:
        ValueError: when the answers next to ``out`` were drawn in another way, or ``out`` was not
            written by a distillation.
        OSError: when the disk is full, or an endpoint fails for good. What was done is kept.
    """
    out = check_out(out)
    requests = _requests(questions, prompt, settings)
    setup = _fingerprint({**draws, "prompt": prompt.describe()})
    with SamplesFile(_answers_path(out)) as file:
        prints = {r.id: _fingerprint([r.ids, r.max_new_tokens]) for r in requests}
        done = _check(file, prints, setup)
        batches = _batches(requests, settings.batch_size)
        left = [batch for batch in batches if any(r.id not in done for r in batch)]
        if progress is not None:
            progress(len(done))
        for reply in engine.answer(left):
            if reply.id in done:
                continue
            done.add(reply.id)
            file.append(_record(reply, setup, prints[reply.id]))
            if progress is not None:
                progress(len(done))
        records = [record for record in file.samples if record["id"] in prints]
        by_id = {_answer_id(s, i): s for s in questions for i in range(settings.answers)}
        scored = _score(records, by_id, task, prompt, judge, out)
    return _write(questions, scored, prompt, out, settings)


def check_out(out: str | Path, data: str | Path | None = None) -> Path:
    """Refuse, before a model is loaded, to write where a file would be lost.

    Args:
        out: as for :func:`distill`. Its name without ``.jsonl`` names the files next to it, so it
            must have that ending: files with different endings would share their answers.
        data: file of the questions; ``None``: they come from no file.

    Returns:
        The path of ``out``.

    Raises:
        ValueError: for a file that is not a ``.jsonl``, that holds the questions, or that no
            distillation seems to have written.
    """
    out = Path(out).expanduser()
    if out.suffix != ".jsonl":
        raise ValueError(f"--out {out}: expected a file that ends in .jsonl")
    answers = _answers_path(out)
    for path in (out, answers, _verdicts_path(out)):
        if data is not None and path.exists() and path.samefile(Path(data).expanduser()):
            raise ValueError(
                f"{path} holds the questions (--data) and would be overwritten; choose another"
                " --out"
            )
    if out.exists() and not answers.is_file():
        raise ValueError(
            f"{out} exists and was not written by 'swaa distill': {answers.name} is not next to"
            " it; choose another --out, or move that file away"
        )
    return out


def _answers_path(out: Path) -> Path:
    return out.with_suffix(".answers.jsonl")


def _verdicts_path(out: Path) -> Path:
    return out.with_suffix(VERDICTS)


def _answer_id(question: Sample, number: int) -> str:
    return f"{question.id}#{number}"


def _requests(
    questions: Sequence[Sample], prompt: Prompt, settings: DistillSettings
) -> list[Request]:
    made = []
    for question in questions:
        ids = tuple(prompt.encode(prompt.text(question.context, question.question)))
        content = prompt.content(question.context, question.question)
        longest = settings.max_new_tokens or prompt.max_new_tokens(question)
        made += [
            Request(
                id=_answer_id(question, number), ids=ids, content=content, max_new_tokens=longest
            )
            for number in range(settings.answers)
        ]
    return made


def _batches(requests: Sequence[Request], size: int) -> list[tuple[Request, ...]]:
    # In the questions' order, whatever is done already, so that a batch always draws the same.
    return [tuple(requests[first : first + size]) for first in range(0, len(requests), size)]


def _check(file: SamplesFile, prints: Mapping[str, str], setup: str) -> set[str]:
    """Ids of the answers so far; they must have been drawn in the same way."""
    for record in file.samples:
        name = record["id"]
        if record.get("setup") != setup:
            raise ValueError(
                f"{file.path} was drawn with another model, temperature, seed or prompt; choose"
                " another --out, or move that file away"
            )
        if prints.get(name, record.get("prompt")) != record.get("prompt"):
            raise ValueError(
                f"{file.path}: the question of answer {name} has changed; move that file away to"
                " start over"
            )
    return {record["id"] for record in file.samples}


def _fingerprint(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:8]


def _record(reply: Reply, setup: str, prompt: str) -> dict[str, Any]:
    return {
        "id": reply.id,
        "setup": setup,
        "prompt": prompt,
        "output": reply.output,
        "new_tokens": reply.new_tokens,
        "truncated": reply.truncated,
    }


def _score(
    records: Sequence[dict[str, Any]],
    by_id: Mapping[str, Sample],
    task: Task,
    prompt: Prompt,
    judge: Judge | None,
    out: Path,
) -> list[dict[str, Any]]:
    """Records with their scores: 1 for a right answer, None where the judge gave no verdict."""
    scored = []
    for record in records:
        final = None if record["truncated"] else prompt.final_answer(record["output"])
        value: float | None = 0.0
        if final and judge is not None:
            value = None
        elif final:
            value = task.score(by_id[record["id"]], final).value
        scored.append({**record, "extracted": final or "", "score": value})
    if judge is None:
        return scored
    return apply_verdicts(judge, scored, by_id, _verdicts_path(out))


def _write(
    questions: Sequence[Sample],
    records: Iterable[Mapping[str, Any]],
    prompt: Prompt,
    out: Path,
    settings: DistillSettings,
) -> Distilled:
    records = list(records)
    answers: dict[str, list[Mapping[str, Any]]] = {}
    for record in records:
        if record["score"] == 1:
            answers.setdefault(record["id"].rpartition("#")[0], []).append(record)
    lines, seen = [], set()
    for question in questions:
        content = prompt.content(question.context, question.question)
        kept = 0
        for record in sorted(answers.get(question.id, []), key=_length):
            text = record["output"].strip()
            same = (content, " ".join(text.split()).casefold())
            if kept < settings.keep and same not in seen:
                seen.add(same)
                kept += 1
                lines.append(_conversation(record["id"], content, text))
    write_whole(out, "".join(lines))
    return Distilled(
        path=out,
        questions=len(questions),
        answers=len(records),
        right=sum(map(len, answers.values())),
        kept=len(lines),
        unanswered=sum(question.id not in answers for question in questions),
        unjudged=sum(record["score"] is None for record in records),
    )


def _length(record: Mapping[str, Any]) -> tuple[int, int, str]:
    tokens = record["new_tokens"]
    return (
        len(record["output"]) if tokens is None else tokens,
        len(record["output"]),
        record["id"],
    )


def _conversation(name: str, content: str, answer: str) -> str:
    turns = [{"role": "user", "content": content}, {"role": "assistant", "content": answer}]
    return json.dumps({"id": name, "messages": turns}, ensure_ascii=False) + "\n"
