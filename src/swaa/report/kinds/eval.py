"""Results of ``swaa eval``: settings on one task at one length, one a file or gathered."""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from swaa.config import SWAAConfig
from swaa.evaluation.gathered import is_gathered
from swaa.report.figures import Answers, Figures, Measurement
from swaa.report.folder import Run
from swaa.results import Result, read_samples

_SHOWN = ("task", "version")
_TIME = "time to first token, median over the samples"
_TOGETHER = " (gathered runs, which may have shared a machine)"


def read(run: Run) -> Figures:
    """What an evaluation shows."""
    result, config = run.result, run.result.config
    answers = tuple(_answers(run))
    settings = _settings(result)
    figures: dict[str, Any] = {
        "subject": config["model"],
        "setting": next(iter(settings)) if len(settings) == 1 else f"{len(settings)} settings",
        "task": config["task"]["task"],
        "tokens": () if config["length"] is None else (config["length"],),
        "configs": settings,
    }
    if not answers:
        return Figures(**figures, outcome="likelihood of texts: see the rows")
    best = max(answers, key=lambda answer: answer.accuracy)
    said = f"{best.count} right"
    return Figures(
        **figures,
        outcome=said if len(answers) == 1 else f"{best.setting}: {said}",
        answers=answers,
        measurements=tuple(_measurements(result, answers)),
    )


def _settings(result: Result) -> Mapping[str, SWAAConfig]:
    """The settings by name; of a file with one, only the file's name tells what it is called."""
    config = result.config
    if is_gathered(result):
        return {name: SWAAConfig.from_dict(one) for name, one in config["settings"].items()}
    model = re.sub(r"[^a-z0-9._]+", "-", config["model"].lower())
    name = result.name.removeprefix(f"{model}-")
    name = name.removesuffix(f"-{config['task']['task']}-{config['length'] or 'all'}")
    return {name.replace(".json", "") or result.name: SWAAConfig.from_dict(config["swaa"])}


def _answers(run: Run) -> Iterator[Answers]:
    result = run.result
    settings = _settings(result)
    samples = read_samples(run.file)
    for name, config in settings.items():
        rows = [row for row in result.rows if row.get("setting", name) == name]
        row = next((row for row in rows if row.get("place") == "all"), rows[0])
        if "accuracy" not in row:
            return
        low, high = _spread(_times(samples, name))
        yield Answers(
            group=_group(result, result.config["length"]),
            setting=name,
            detail=config.describe(),
            accuracy=row["accuracy"],
            low=row["low"],
            high=row["high"],
            score=row.get("score"),
            count=f"{row['right']} of {row['samples']}",
            seconds=row["first_token_s"],
            seconds_low=low,
            seconds_high=high,
            time=_TIME + (_TOGETHER if is_gathered(result) else ""),
            full=config.window is None,
        )


def _times(samples: Sequence[Mapping[str, Any]], setting: str) -> list[float]:
    """Seconds to the first token; a gathered file's sample holds the replies of all settings."""
    replies = [sample.get("replies", {}).get(setting, sample) for sample in samples]
    times = [reply.get("first_token_s") for reply in replies]
    return [time for time in times if time is not None]


def _spread(times: Sequence[float]) -> tuple[float, float] | tuple[None, None]:
    if len(times) < 2:
        return None, None
    fifths = statistics.quantiles(times, n=5, method="inclusive")
    return fifths[0], fifths[-1]


def _measurements(result: Result, answers: Sequence[Answers]) -> Iterator[Measurement]:
    length = result.config["length"]
    for answer in answers:
        if length is not None and answer.seconds is not None:
            yield Measurement(
                chart="speed",
                measure="time to first token, median over samples",
                unit="s",
                group=_group(result, None),
                series=answer.setting,
                tokens=length,
                value=answer.seconds,
                low=answer.seconds_low,
                high=answer.seconds_high,
                full=answer.full,
                ours=not answer.full,
            )


def _group(result: Result, length: int | None) -> str:
    """Everything by which two runs must agree to be compared."""
    config = result.config
    prompt, engine = config["prompt"], config["engine"]
    parts = [
        config["model"],
        config["task"]["task"],
        *([] if length is None else [f"{length:,} tokens"]),
        "all samples" if config["samples"] is None else f"{config['samples']} samples",
        *([f"seed {config['seed']}"] if config["seed"] else []),
        *(f"{name} {value}" for name, value in config["task"].items() if name not in _SHOWN),
        *(name.replace("_", " ") for name, on in prompt.items() if on and name != "chat"),
        engine["engine"],
        *([f"judge {config['judge']}"] if config["judge"] else []),
        result.provenance.device,
    ]
    return ", ".join(parts)
