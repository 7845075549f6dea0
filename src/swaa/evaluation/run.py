"""One run: a setting on a task at a length, sample by sample, resumed where it was interrupted."""

from __future__ import annotations

import dataclasses
import hashlib
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from swaa import results
from swaa.config import SWAAConfig
from swaa.evaluation import gathered, likelihood
from swaa.evaluation.engines import Engine, Reply, Request, make_batches
from swaa.evaluation.judge import Judge, apply_verdicts
from swaa.evaluation.prompt import Prompt
from swaa.evaluation.sample import Sample
from swaa.evaluation.summary import summarize
from swaa.evaluation.tasks import Task
from swaa.evaluation.tasks.perplexity import Perplexity
from swaa.files import SamplesFile

KIND = gathered.KIND
"""Folder of these results."""

SERVED = "served"
"""Device of a model behind an endpoint, which is not known here."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """What is run.

    Attributes:
        model: its name.
        model_revision: commit or checksum of the weights.
        setting: what the configuration is called.
        config: the configuration.
        task: what is asked.
        length: tokens of each prompt; for tasks that read a file: the most; ``None``: any length.
        count: samples; ``None``: all.
        seed: of the samples.
        prompt: how samples become a model's input.
        engine: :meth:`swaa.evaluation.engines.Engine.describe`.
        judge: model that judges free answers, where one does.
    """

    model: str
    model_revision: str | None
    setting: str
    config: SWAAConfig
    task: Task
    length: int | None
    count: int | None
    seed: int
    prompt: Prompt
    engine: Mapping[str, Any]
    judge: str | None = None

    @property
    def name(self) -> str:
        """Name of the result file."""
        return _file_name(self.model, self.setting, self.task.name, str(self.length or "all"))

    @property
    def group_name(self) -> str:
        """Name of the file in which all settings are gathered."""
        return _file_name(self.model, self.task.name, str(self.length or "all"))

    @property
    def identity(self) -> dict[str, Any]:
        """Everything that distinguishes this run; the hash of its file is computed from it."""
        return {
            "model": Path(self.model).name,
            "model_revision": self.model_revision,
            "swaa": self.config.to_dict(),
            "length": self.length,
            "samples": self.count,
            "seed": self.seed,
            "task": self.task.describe(),
            "prompt": self.prompt.describe(),
            "engine": dict(self.engine),
            "judge": self.judge if self.task.needs_judge else None,
        }


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """A finished run.

    Attributes:
        run: what was run.
        result: its rows and provenance.
        samples: one JSON object per sample, in the task's order.
        path: of the result file; the samples are in the ``.jsonl`` next to it.
        resumed: samples that an earlier process had done.
    """

    run: Run
    result: results.Result
    samples: tuple[Mapping[str, Any], ...]
    path: Path
    resumed: int


def find(run: Run, *, folder: str | Path = results.FOLDER) -> Outcome | None:
    """The outcome of a finished run; ``None``: it is not finished.

    Raises:
        ValueError: for a result file that cannot be read.
    """
    result = results.find(KIND, run.name, run.identity, folder=folder)
    if result is not None:
        path = results.result_path(KIND, run.name, run.identity, folder=folder)
        samples = tuple(results.read_samples(path))
        return Outcome(run=run, result=result, samples=samples, path=path, resumed=len(samples))
    found = gathered.find(run.group_name, run.setting, run.identity, folder=folder)
    if found is None:
        return None
    result, path, samples = found.result, found.path, found.samples
    return Outcome(run=run, result=result, samples=samples, path=path, resumed=len(samples))


def gather(outcomes: Sequence[Outcome], *, folder: str | Path = results.FOLDER) -> list[Path]:
    """Gather outcomes that differ only in their setting into one pair of files.

    Returns:
        The files written; see :func:`swaa.evaluation.gathered.gather`.
    """
    by_name: dict[str, list[gathered.Finished]] = {}
    for outcome in outcomes:
        finished = gathered.Finished(
            setting=outcome.run.setting,
            result=outcome.result,
            samples=outcome.samples,
            path=outcome.path,
        )
        by_name.setdefault(outcome.run.group_name, []).append(finished)
    return [
        path
        for name, runs in by_name.items()
        for path in gathered.gather(runs, name, folder=folder)
    ]


def execute(
    run: Run,
    samples: Sequence[Sample],
    engine: Engine,
    *,
    folder: str | Path = results.FOLDER,
    batch_size: int = 1,
    judge: Judge | None = None,
    device: str = "cpu",
    progress: Callable[[int], None] | None = None,
    requests: Sequence[Request] | None = None,
    costs: Mapping[str, float] | None = None,
) -> Outcome:
    """Answer what is not answered yet, score, and write the result.

    Args:
        run: what is run.
        samples: of its task.
        engine: answers.
        folder: of all results.
        batch_size: prompts answered at once.
        judge: scores free answers.
        device: in torch's notation, for the record; several are separated by commas.
        progress: called with the number of samples done so far, at the start and after each.
        requests: of the samples, if other runs made them already (:func:`make_requests`).
        costs: a prompt's computed costs, divided by full attention's; kept with the answers.

    Raises:
        ValueError: when another process writes this run, or the prompt of a finished sample has
            changed.
        OSError: when the disk is full, or an endpoint fails for good. What was done is kept.
    """
    path = results.result_path(KIND, run.name, run.identity, folder=folder)
    started = time.perf_counter()
    with SamplesFile(path.with_suffix(".jsonl")) as file:
        # What a process left that was killed while writing the result.
        for unfinished in path.parent.glob(f".{path.stem}.json*"):
            unfinished.unlink()
        resumed = len(file.samples)
        if is_likelihood(run):
            likelihood.measure(run.prompt, samples, engine, file, progress)
            records = file.samples
            rows = likelihood.summarize(records, run.config)
        else:
            requests = requests or make_requests(run.prompt, samples)
            _answer(run, samples, requests, engine, file, batch_size, progress)
            order = {sample.id: place for place, sample in enumerate(samples)}
            records = sorted(file.samples, key=lambda record: order[record["id"]])
            if judge is not None and run.task.needs_judge:
                by_id = {sample.id: sample for sample in samples}
                records = apply_verdicts(judge, records, by_id, path.with_suffix(results.VERDICTS))
            rows = summarize(records, run.config)
            if costs is not None:
                rows[0] |= costs
        result = results.Result(
            kind=KIND,
            name=run.name,
            config=run.identity,
            rows=tuple(rows),
            provenance=_provenance(run, device, time.perf_counter() - started),
        )
        results.save(result, folder=folder, samples=records)
    return Outcome(run=run, result=result, samples=tuple(records), path=path, resumed=resumed)


def is_likelihood(run: Run) -> bool:
    """Whether a run measures likelihoods instead of answers."""
    return isinstance(run.task, Perplexity)


def _answer(
    run: Run,
    samples: Sequence[Sample],
    requests: Sequence[Request],
    engine: Engine,
    file: SamplesFile,
    batch_size: int,
    progress: Callable[[int], None] | None,
) -> None:
    """Append a record of each prompt that has none yet."""
    prints = {request.id: fingerprint(request.ids) for request in requests}
    done = _done(file, prints)
    if progress is not None:
        progress(len(done))
    by_id = {sample.id: sample for sample in samples}
    # A batch that is partly done is answered again as a whole: other companions could change
    # the last digits of its logits.
    batches = make_batches(requests, batch_size)
    left = [batch for batch in batches if any(request.id not in done for request in batch)]
    for reply in engine.answer(left):
        if reply.id in done:
            continue
        done.add(reply.id)
        file.append(_record(run, by_id[reply.id], reply, prints[reply.id]))
        if progress is not None:
            progress(len(done))


def _file_name(*words: str) -> str:
    text = "-".join(re.sub(r"[^a-z0-9._]+", "-", Path(word).name.lower()) for word in words)
    return re.sub(r"-{2,}", "-", text).strip("-._")


def fingerprint(ids: Sequence[int]) -> str:
    """Eight hexadecimal digits that identify a prompt's tokens."""
    return hashlib.sha256(" ".join(map(str, ids)).encode()).hexdigest()[:8]


def make_requests(prompt: Prompt, samples: Iterable[Sample]) -> list[Request]:
    """The encoded prompts of samples: the same for every setting."""
    return [
        Request(
            id=sample.id,
            ids=tuple(prompt.ids(sample)),
            content=prompt.content(sample.context, sample.question),
            max_new_tokens=prompt.max_new_tokens(sample),
        )
        for sample in samples
    ]


def _done(file: SamplesFile, prints: Mapping[str, str]) -> set[str]:
    """Ids of finished samples; they must have been asked with the same prompts."""
    for record in file.samples:
        if prints.get(record["id"]) != record.get("prompt"):
            raise ValueError(
                f"{file.path}: sample {record['id']} was made from another prompt; move the file"
                " away to start over"
            )
    return {record["id"] for record in file.samples}


def _record(run: Run, sample: Sample, reply: Reply, prompt: str) -> dict[str, Any]:
    score = run.task.score(sample, run.prompt.final_answer(reply.output))
    return {
        "id": sample.id,
        "prompt": prompt,
        "length": sample.length,
        "needles": [list(needle) for needle in sample.needles],
        "needle_distance": sample.needle_distance,
        **({"tags": dict(sample.tags)} if sample.tags else {}),
        "answers": list(sample.answers),
        "output": reply.output,
        **({} if score.extracted is None else {"extracted": score.extracted}),
        "score": score.value,
        "answered": score.answered,
        "first_token_s": None if reply.first_token_s is None else round(reply.first_token_s, 4),
        "new_tokens": reply.new_tokens,
        "truncated": reply.truncated,
    }


def _provenance(run: Run, device: str, seconds: float) -> results.Provenance:
    described = run.task.describe()
    served = device == SERVED
    first, *others = device.split(",")
    provenance = results.record_provenance(
        device="cpu" if served else first,
        dtype=run.engine.get("dtype"),
        model=Path(run.model).name,
        model_revision=run.model_revision,
        data=run.task.name,
        data_revision=described.get("data_revision"),
        seed=run.seed,
        seconds=seconds,
    )
    if served:
        return dataclasses.replace(provenance, device=SERVED)
    return dataclasses.replace(provenance, device=", ".join([provenance.device, *others]))
