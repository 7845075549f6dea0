"""Results of ``swaa eval``: settings on one task at one length, one per file or gathered."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from swaa.config import SWAAConfig
from swaa.evaluation.gathered import is_gathered
from swaa.report.cost import shares_of
from swaa.report.figures import Answers, Figures, Measurement, model_name
from swaa.report.folder import Run
from swaa.results import Result, read_samples
from swaa.statistics import percentiles

_SHOWN = ("task", "version")
_TIME = "time to first token, median over the samples"
_SHARED = "not timed: gathered runs may have shared a machine, so costs are arithmetic"


def read(run: Run) -> Figures:
    """What an evaluation shows."""
    result, config = run.result, run.result.config
    answers = tuple(_answers(run))
    settings = _settings(result)
    figures: dict[str, Any] = {
        "subject": model_name(config["model"]),
        "setting": next(iter(settings)) if len(settings) == 1 else f"{len(settings)} settings",
        "task": config["task"]["task"],
        "tokens": () if config["length"] is None else (config["length"],),
        "configs": settings,
    }
    if not answers:
        return Figures(**figures, outcome="likelihood of texts: see the rows")
    return Figures(
        **figures,
        outcome=_outcome(answers),
        answers=answers,
        measurements=tuple(_measurements(result, answers)),
    )


def _outcome(answers: Sequence[Answers]) -> str:
    """Full attention's answers next to the best of the settings that slide."""
    if len(answers) == 1:
        return _said(answers[0])
    sliding = [answer for answer in answers if not answer.full]
    parts = [f"full attention: {_said(answer)}" for answer in answers if answer.full]
    return "; ".join([*parts, _highest(sliding)] if sliding else parts)


def _highest(sliding: Sequence[Answers]) -> str:
    """What the best settings answered on these prompts: on other prompts others may be better."""
    if len(sliding) == 1:
        return f"{sliding[0].setting}: {_said(sliding[0])}"
    top = max(map(_height, sliding))
    equal = [answer for answer in sliding if _height(answer) == top]
    least = min(equal, key=lambda one: _known(one.keys_share, 1.0))
    who = least.setting
    if len(equal) > 1:
        priced = all(one.keys_share is not None for one in equal)
        who = f"{len(equal)} settings, {'fewest keys' if priced else 'one of them'}: {who}"
    return f"highest of {len(sliding)} settings here: {_said(least)} ({who})"


def _said(answer: Answers) -> str:
    parts = _height(answer) != answer.accuracy
    return f"mean score {100 * _height(answer):.0f} %" if parts else f"{answer.count} right"


def _height(answer: Answers) -> float:
    """What settings are ranked by: the mean score, which for most tasks is the accuracy."""
    return _known(answer.score, answer.accuracy)


def _known(value: float | None, otherwise: float) -> float:
    return otherwise if value is None else value


def _settings(result: Result) -> Mapping[str, SWAAConfig]:
    """The settings by name; where a file holds one setting, the file's name gives it."""
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
        shared = is_gathered(result)
        low, high = (None, None) if shared else _spread(_times(samples))
        yield Answers(
            group=_group(result, result.config["length"]),
            setting=name,
            detail=config.describe(),
            accuracy=row["accuracy"],
            low=row["low"],
            high=row["high"],
            score=row.get("score"),
            count=f"{row['right']} of {row['samples']}",
            samples=row["samples"],
            seconds=None if shared else row["first_token_s"],
            seconds_low=low,
            seconds_high=high,
            time=_SHARED if shared else _TIME,
            full=config.window is None,
            **_shares(result, config, row),
        )


def _shares(result: Result, config: SWAAConfig, row: Mapping[str, Any]) -> Mapping[str, Any]:
    """The costs that the run wrote; for runs without them, what is known of the model."""
    if "keys_share" in row:
        return {name: row.get(name) for name in ("keys_share", "flops_share", "kv_share")}
    length = result.config["length"]
    return (length and shares_of(result.config["model"], config, length)) or {}


def _times(samples: Sequence[Mapping[str, Any]]) -> list[float]:
    times = [sample.get("first_token_s") for sample in samples]
    return [time for time in times if time is not None]


def _spread(times: Sequence[float]) -> tuple[float, float] | tuple[None, None]:
    if len(times) < 2:
        return None, None
    spread = percentiles(times)
    return spread.p20, spread.p80


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
    """Everything that must be the same for two runs to be compared."""
    config = result.config
    prompt, engine = config["prompt"], config["engine"]
    parts = [
        model_name(config["model"]),
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
