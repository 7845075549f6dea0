"""Measure generation end to end: recipes against the same model with the best stock attention.

All rows of a result come from one process and one model; only what serves the attention calls
differs. A row of kind ``t0`` is the run without attention, from which the limit of the others
follows; see :mod:`swaa.benchmark.generate_limit`.
"""

from __future__ import annotations

import contextlib
import itertools
import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedModel

import swaa
from swaa import results
from swaa.benchmark.generate_limit import attention_seconds, random_call
from swaa.benchmark.generate_models import SHAPES, make_model
from swaa.benchmark.generate_run import NoAttention, Recorder, Workload, measure_run, serve_by
from swaa.benchmark.generate_stock import (
    StockAttention,
    Winner,
    decode_stocks,
    find_best,
    prefill_stocks,
)
from swaa.benchmark.timing import copy_rate, matmul_rate
from swaa.config import SWAAConfig
from swaa.integrations.transformers.compiled_layers import compiled_layers
from swaa.integrations.transformers.fast import CHUNK, plans_of, require_fast
from swaa.integrations.transformers.support import find_layers
from swaa.plan import price

FULL = SWAAConfig(window=None)
STOCK, NOTHING = "stock", "no attention"
"""Rows beside those of recipes."""
ON_CPU = (
    "torch sees no GPU: this measures the CPU, and says nothing about any GPU; a large model or a"
    " long prompt may take hours (to try the command: tiny --lengths 256)"
)
"""Said before anything is measured without a GPU."""

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to measure: every recipe at every length and batch.

    Attributes:
        model: a key of :data:`swaa.benchmark.generate_models.SHAPES`, or a checkpoint.
        recipes: configurations by name.
        lengths: of the prompt (tokens).
        batches: sequences at once.
        new_tokens: of each answer.
        chunk: prompt tokens of a forward pass.
        repeats: most timings of the first token at each size.
        dtype: of weights and cache.
        compiled: whether the decoder layers are compiled, for every row alike.
        time_limit: seconds after which no other row is begun; those left say so.
    """

    model: str
    recipes: Mapping[str, SWAAConfig]
    lengths: tuple[int, ...] = (8192, 32_768, 131_072)
    batches: tuple[int, ...] = (1,)
    new_tokens: int = 128
    chunk: int = CHUNK
    repeats: int = 5
    dtype: str = "bfloat16"
    compiled: bool = True
    time_limit: int | None = None

    def __post_init__(self) -> None:
        if self.dtype not in ("float32", "float16", "bfloat16"):
            raise ValueError(f"dtype is {self.dtype!r}; choose float32, float16 or bfloat16")
        if self.new_tokens < 2:
            raise ValueError(
                f"new_tokens is {self.new_tokens}; the time per token needs at least 2"
            )
        if STOCK in self.recipes or NOTHING in self.recipes:
            raise ValueError(f"{STOCK!r} and {NOTHING!r} are measured anyway; name other recipes")

    def config(self) -> dict[str, Any]:
        """What tells a run from another: the options, and where it runs."""
        values = asdict(self) | {
            "model": Path(self.model).name if Path(self.model).is_absolute() else self.model,
            "recipes": {name: config.to_dict() for name, config in self.recipes.items()},
        }
        del values["time_limit"]  # says when to stop, not what to measure
        gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
        return values | {"gpu": gpu}

    def file_name(self) -> str:
        """Name of the result: that of the model."""
        return re.sub(r"[^a-z0-9._-]+", "-", self.model.lower().rstrip("/").rpartition("/")[2])


def seen_whole(options: Options) -> str | None:
    """Where recipes differ from full attention in nothing, in one line; ``None``: nowhere."""
    by_lengths: dict[tuple[int, ...], list[str]] = {}
    for name, config in options.recipes.items():
        seen = (config.window or 0) + config.sink_tokens
        answer = 0 if config.full_decode is True else options.new_tokens
        lengths = tuple(n for n in sorted(set(options.lengths)) if n + answer <= seen)
        if config.window is not None and lengths:
            by_lengths.setdefault(lengths, []).append(name)
    if not by_lengths:
        return None
    parts = [
        f"{_listed(names)} {'sees' if len(names) == 1 else 'see'} everything at"
        f" {_listed([f'{n:,}' for n in lengths])} tokens"
        for lengths, names in by_lengths.items()
    ]
    return f"{'; '.join(parts)}: it is full attention there, and ratios to stock are noise"


def _listed(words: list[str]) -> str:
    *most, last = words
    return f"{', '.join(most)} and {last}" if most else last


class Setting(NamedTuple):
    """What serves the attention calls of a row."""

    name: str
    config: SWAAConfig
    attention: Any  # None: the backends of swaa


@dataclass
class _Session:
    """What the rows share."""

    options: Options
    model: PreTrainedModel
    rates: dict[str, float]
    report: Callable[[str], None]
    progress: Callable[[str], None]
    begin: float
    stock: dict[str, Winner] = field(default_factory=dict)


def measure(
    options: Options,
    report: Callable[[str], None] = print,
    on_row: Callable[[Row], None] | None = None,
    progress: Callable[[str], None] = lambda _line: None,
) -> results.Result:
    """Run the comparison, on the GPU if there is one.

    Args:
        options: what to measure.
        report: takes one line per row, as it is measured.
        on_row: takes each row as it is measured, for a file that survives an interruption.
        progress: takes one line before each piece of work that may take minutes.

    Raises:
        ValueError: for a model that the fast path does not serve, with the reason.
    """
    begin = time.perf_counter()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu":
        progress(ON_CPU)
    dtype = getattr(torch, options.dtype)
    progress(
        f"building {options.model} with random weights"
        if options.model in SHAPES
        else f"loading {options.model}"
    )
    made = make_model(options.model, device=device, dtype=dtype)
    require_fast(made.model)
    session = _Session(options, made.model, _rates(dtype), report, progress, begin)
    rows: list[Row] = []
    for row in _rows(session):
        rows.append(row)
        if on_row is not None:
            on_row(row)
    return results.Result(
        kind="generate",
        name=options.file_name(),
        config=options.config(),
        rows=tuple(rows),
        provenance=results.record_provenance(
            device=device,
            dtype=options.dtype,
            model=made.name,
            model_revision=made.revision,
            seed=0,
            seconds=time.perf_counter() - begin,
            packages=("flash-attn-4", "nvidia-cutlass-dsl"),
        ),
    )


def _rates(dtype: torch.dtype) -> dict[str, float]:
    if not torch.cuda.is_available():
        return {}
    return {"matmul": matmul_rate(dtype), "copy": copy_rate()}


def _rows(session: _Session) -> Iterator[Row]:
    options = session.options
    yield {"kind": "ceiling", **session.rates}
    _find_stock(session)
    yield {
        "kind": "stock",
        **{phase: {"best": w.stock.name, "tried": w.tried} for phase, w in session.stock.items()},
    }
    prefill, decode = (session.stock[phase].stock for phase in ("prefill", "decode"))
    stock = StockAttention(prefill, decode)
    settings = [Setting(NOTHING, FULL, NoAttention()), Setting(STOCK, FULL, stock)]
    settings += [Setting(name, config, None) for name, config in options.recipes.items()]
    scope = compiled_layers if options.compiled else _as_it_is
    swaa.adapt(session.model, FULL, quiet=True)
    with scope(session.model):
        pass  # refuses a model that cannot be compiled before minutes have gone by
    count, sizes = itertools.count(1), len(options.batches) * len(options.lengths)
    for batch in options.batches:
        for tokens in options.lengths:
            group: dict[str, Row] = {}
            for setting in settings:
                session.progress(
                    f"row {next(count)} of {sizes * len(settings)}: {setting.name},"
                    f" {tokens:,} tokens, batch {batch}"
                )
                row = _measure(session, setting, tokens, batch, scope)
                group[setting.name] = row
                if setting.name != NOTHING:
                    row |= limits(row, group[NOTHING], group[STOCK])
                session.report(describe(row))
                yield row


@contextlib.contextmanager
def _as_it_is(model: PreTrainedModel) -> Iterator[None]:
    yield


def _find_stock(session: _Session) -> None:
    options, config = session.options, session.model.config
    text = config.get_text_config()
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    heads = (text.num_attention_heads, head_dim)
    # As long as it takes to tell the kernels apart, and no longer.
    keys = min(max(options.lengths), 32_768)
    dtype = getattr(torch, options.dtype)

    def call(rows: int, keys: int) -> Any:
        start = None if rows == 1 else keys - rows
        kind = (1, rows, *heads, keys, text.num_key_value_heads, None, 0, start, None, None)
        return random_call(kind, dtype, session.model.device)

    for phase, stocks, rows, checks in (
        ("prefill", prefill_stocks(), keys, [call(300, 300), call(300, 700)]),
        ("decode", decode_stocks(), 1, [call(1, 700)]),
    ):
        session.progress(f"timing stock attention: {phase}, {keys:,} keys")
        winner = find_best(stocks, call(rows, keys), checks, progress=session.progress)
        session.stock[phase] = winner
        session.report(f"best stock {phase}: {winner.stock.name}, of {_tried(winner)}")


def _tried(winner: Winner) -> str:
    parts = [
        f"{name} ({1e3 * seconds:.2f} ms)" if isinstance(seconds, float) else f"{name} (no)"
        for name, seconds in winner.tried.items()
    ]
    return ", ".join(parts)


def _measure(
    session: _Session, setting: Setting, tokens: int, batch: int, scope: Callable[..., Any]
) -> Row:
    options, model = session.options, session.model
    row: Row = {
        "kind": "t0" if setting.name == NOTHING else "run",
        "setting": setting.name,
        "does": setting.config.describe(),
        "tokens": tokens,
        "batch": batch,
        "refused": None,
    }
    limit = options.time_limit
    if limit is not None and time.perf_counter() - session.begin > limit:
        return row | {"refused": f"not begun within the time limit of {limit} s"}
    adaptation = swaa.adapt(model, setting.config, quiet=True)
    plans = plans_of(model)
    served_by = setting.attention or _backends(model)
    recorder = Recorder(served_by)
    serve_by(model, recorder)
    row["attention"] = f"swaa {adaptation.backend}" if setting.attention is None else setting.name
    chunk = options.chunk
    if setting.name == STOCK:
        best = [session.stock[phase].stock for phase in ("prefill", "decode")]
        row["attention"] = f"{best[0].name} (decoding: {best[1].name})"
        chunk = chunk if best[0].chunks else tokens
    work = Workload(
        tokens=tokens,
        batch=batch,
        new_tokens=options.new_tokens,
        chunk=chunk,
        repeats=options.repeats,
    )
    try:
        with scope(model):
            measured = measure_run(model, plans, work, recorder)
        calls = measured.pop("calls")
        if setting.name != NOTHING:
            dtype, device = getattr(torch, options.dtype), model.device
            for phase, name in (("prompt", "attention_s"), ("step", "attention_step_s")):
                measured[name] = attention_seconds(
                    served_by.run, calls[phase], dtype=dtype, device=device
                )
    except torch.OutOfMemoryError as error:
        torch.cuda.empty_cache()
        return row | {"refused": " ".join(str(error).split())[:200]}
    return row | measured | _expected(session, setting, tokens, batch)


def _backends(model: PreTrainedModel) -> Any:
    module = next(iter(find_layers(model).full.values()))
    return vars(module)["swaa_layer"].backends


def _expected(session: _Session, setting: Setting, tokens: int, batch: int) -> Row:
    """What sizes alone say: KV bytes, and the time that matrix products and weights need."""
    options, rates = session.options, session.rates
    cost = price(
        session.model.config,
        setting.config,
        prompt_length=tokens,
        batch=batch,
        chunk=options.chunk,
        dtype=options.dtype,
    ).cost
    row: Row = {
        "kv_predicted_bytes": cost.kv_steady_bytes,
        "kv_predicted_peak_bytes": cost.kv_peak_bytes,
    }
    if rates and cost.prefill_linear_flops and cost.decode_linear_flops:
        row["matmul_s"] = cost.prefill_linear_flops / rates["matmul"]
        # Every weight that one token meets is read once per step, whatever the batch. (More tokens
        # meet more experts: with a batch, this is too little for models that have some.)
        weights = cost.decode_linear_flops / (2 * batch)
        row["weights_s"] = weights * getattr(torch, options.dtype).itemsize / rates["copy"]
    return row


def limits(row: Row, nothing: Row, stock: Row) -> Row:
    """Speed against stock, the limit that Amdahl sets, and how much of it is reached."""
    if row["refused"] or nothing["refused"] or stock["refused"]:
        return {}
    found: Row = {}
    for name, timed, alone in (
        ("first_token", "first_token_s", "attention_s"),
        ("per_token", "per_token_s", "attention_step_s"),
    ):
        rest = nothing[timed]["p50"]
        speedup = stock[timed]["p50"] / row[timed]["p50"]
        limit = (rest + stock[alone]) / (rest + row[alone])
        found |= {
            f"{name}_speedup": speedup,
            f"{name}_limit": limit,
            f"{name}_of_limit": speedup / limit,
        }
    return found


def describe(row: Row) -> str:
    """One measured row as a line."""
    head = f"{row['tokens']:>7} x {row['batch']:<3} {row['setting']:<24}"
    if row["refused"]:
        return f"{head} not measured: {row['refused']}"
    first, token = row["first_token_s"]["p50"], row["per_token_s"]["p50"]
    line = f"{head} first token {first:.3f} s, then {1e3 * token:.2f} ms each"
    if "first_token_speedup" in row:
        line += (
            f"; {row['first_token_speedup']:.2f}x of {row['first_token_limit']:.2f}x,"
            f" {row['per_token_speedup']:.2f}x of {row['per_token_limit']:.2f}x"
        )
    elif "matmul_s" in row:
        line += (
            f"; matrix products {row['matmul_s']:.3f} s, weights {1e3 * row['weights_s']:.2f} ms"
        )
    return line
