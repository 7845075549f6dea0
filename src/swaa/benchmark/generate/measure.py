"""Measure generation end to end: recipes against the same model with the best stock attention.

All rows of a size come from one process and one model; only what serves the attention calls
differs. A row of kind ``t0`` is the run without attention, which gives the limit of the other
rows; see :mod:`swaa.benchmark.generate.limit`.
"""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedModel

import swaa
from swaa import results
from swaa.benchmark.generate.limit import attention_seconds, limits, random_call
from swaa.benchmark.generate.models import SEED, make_model
from swaa.benchmark.generate.options import NOTHING, STOCK, Options
from swaa.benchmark.generate.run import NoAttention, Recorder, Workload, measure_run, serve_by
from swaa.benchmark.generate.stock import (
    StockAttention,
    Winner,
    decode_stocks,
    find_best,
    prefill_stocks,
)
from swaa.benchmark.generate.table import describe
from swaa.benchmark.timing import copy_rate, matmul_rate
from swaa.benchmark.unfinished import NOT_BEGUN, rows_to_keep, size_of
from swaa.config import SWAAConfig
from swaa.integrations.transformers.attention import attached
from swaa.integrations.transformers.compiled_layers import compiled_layers
from swaa.integrations.transformers.fast import plans_of, require_fast
from swaa.integrations.transformers.support import find_layers
from swaa.model_shapes import SHAPES
from swaa.plan import price

FULL = SWAAConfig(window=None)
ON_CPU = (
    "torch sees no GPU: this measures the CPU, and says nothing about any GPU; a large model or a"
    " long prompt may take hours (to try the command: tiny --lengths 256)"
)
"""Printed before measuring without a GPU."""

Row = dict[str, Any]


class Setting(NamedTuple):
    """What serves the attention calls of a row."""

    name: str
    config: SWAAConfig
    attention: Any  # None: the backends of swaa


@dataclass
class _Session:
    """What all rows share."""

    options: Options
    model: PreTrainedModel
    rates: dict[str, float]
    stock: dict[str, Winner]
    report: Callable[[str], None]
    progress: Callable[[str], None]
    begin: float

    def settings(self) -> list[Setting]:
        """The settings for each size; those that others are compared with come first."""
        stock = StockAttention(self.stock["prefill"].stock, self.stock["decode"].stock)
        compared = [Setting(NOTHING, FULL, NoAttention()), Setting(STOCK, FULL, stock)]
        recipes = self.options.recipes.items()
        return [*compared, *(Setting(name, config, None) for name, config in recipes)]

    def sizes(self) -> list[tuple[int, int]]:
        """Tokens and batch of each size, in order."""
        options = self.options
        return [(tokens, batch) for batch in options.batches for tokens in options.lengths]


def measure(
    options: Options,
    report: Callable[[str], None] = print,
    progress: Callable[[str], None] = lambda _line: None,
    *,
    unfinished: results.Result | None = None,
    keep: Callable[[results.Result], None] = lambda _result: None,
) -> results.Result:
    """Run the comparison, on the GPU if there is one.

    Args:
        options: what to measure.
        report: takes one line per row, as it is measured.
        progress: takes one line before each piece of work that may take minutes.
        unfinished: a run of the same options; sizes that are complete in it are not measured again.
        keep: takes the result so far, after each row; it holds rows to come as not begun.

    Raises:
        ValueError: for a model that the fast path does not serve, with the reason, and for an
            unfinished run from other code or another device.
    """
    begin = time.perf_counter()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu":
        progress(ON_CPU)
    built = f"building {options.model} with random weights"
    progress(built if options.model in SHAPES else f"loading {options.model}")
    made = make_model(options.model, device=device, dtype=getattr(torch, options.dtype))
    require_fast(made.model)
    provenance = results.record_provenance(
        device=device,
        dtype=options.dtype,
        model=made.name,
        model_revision=made.revision,
        seed=SEED,
        packages=("flash-attn-4", "nvidia-cutlass-dsl"),
    )
    kept = [] if unfinished is None else rows_to_keep(unfinished, provenance)
    before = unfinished.provenance.seconds or 0.0 if kept and unfinished is not None else 0.0
    session = _Session(options, made.model, {}, {}, report, progress, begin)
    rows = {_key(row): row for row in _first_rows(session, kept)}

    def so_far() -> results.Result:
        return results.Result(
            kind="generate",
            name=options.file_name(),
            config=options.config(),
            rows=tuple(rows.values()),
            provenance=replace(
                provenance,
                seconds=round(before + time.perf_counter() - begin, 3),
                created=datetime.now(UTC).isoformat(timespec="seconds"),
            ),
        )

    for row in _rows(session, {size_of(row) for row in kept}):
        rows[_key(row)] = row
        keep(so_far())
    return so_far()


def _key(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return (row["kind"], row.get("setting"), row.get("tokens"), row.get("batch"))


def _first_rows(session: _Session, kept: list[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Rows that hold for every size, then all rows to come, then those already measured."""
    if kept:
        head = [row for row in kept if size_of(row) is None]
        _take_head({row["kind"]: row for row in head}, session)
    else:
        head = _measure_head(session)
    sizes, settings = session.sizes(), session.settings()
    planned = [
        _row(setting, *size) | {"refused": NOT_BEGUN} for size in sizes for setting in settings
    ]
    if kept:
        session.progress(f"{len(kept) - len(head)} of {len(planned)} rows are there already")
    return [*head, *planned, *kept]


def _measure_head(session: _Session) -> list[Mapping[str, Any]]:
    if torch.cuda.is_available():
        dtype = getattr(torch, session.options.dtype)
        session.rates = {"matmul": matmul_rate(dtype), "copy": copy_rate()}
    _find_stock(session)
    found = session.stock.items()
    stock = {phase: {"best": won.stock.name, "tried": won.tried} for phase, won in found}
    return [{"kind": "ceiling", **session.rates}, {"kind": "stock", **stock}]


def _take_head(head: Mapping[str, Mapping[str, Any]], session: _Session) -> None:
    session.rates = {name: rate for name, rate in head["ceiling"].items() if name != "kind"}
    for phase, stocks in (("prefill", prefill_stocks()), ("decode", decode_stocks())):
        found = head["stock"][phase]
        best = next(stock for stock in stocks if stock.name == found["best"])
        session.stock[phase] = Winner(best, found["tried"])


def _rows(session: _Session, done: set[tuple[int, int] | None]) -> Iterator[Row]:
    options, sizes, settings = session.options, session.sizes(), session.settings()
    scope = compiled_layers if options.compiled else _as_it_is
    swaa.adapt(session.model, FULL, quiet=True)
    with scope(session.model):
        pass  # refuses a model that cannot be compiled now, not minutes later
    count = itertools.count(1)
    for tokens, batch in sizes:
        group: dict[str, Row] = {}
        for setting in settings:
            number = next(count)
            if (tokens, batch) in done:
                continue
            session.progress(
                f"row {number} of {len(sizes) * len(settings)}: {setting.name},"
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
    # Long enough to tell the kernels apart, and no longer.
    keys = min(max(options.lengths), 32_768)
    dtype = getattr(torch, options.dtype)

    def call(rows: int, keys: int) -> Any:
        start = None if rows == 1 else keys - rows
        mask = (None, 0, 0, 0)  # as kind_of has it: every row sees everything
        kind = (1, rows, *heads, keys, text.num_key_value_heads, *mask, start, None, None)
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


def _row(setting: Setting, tokens: int, batch: int) -> Row:
    return {
        "kind": "t0" if setting.name == NOTHING else "run",
        "setting": setting.name,
        "does": setting.config.describe(),
        "tokens": tokens,
        "batch": batch,
        "refused": None,
    }


def _measure(
    session: _Session, setting: Setting, tokens: int, batch: int, scope: Callable[..., Any]
) -> Row:
    options, model = session.options, session.model
    row = _row(setting, tokens, batch)
    limit = options.time_limit
    if limit is not None and time.perf_counter() - session.begin > limit:
        return row | {"refused": f"{NOT_BEGUN} within the time limit of {limit} s"}
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
    return attached(module).backends


def _expected(session: _Session, setting: Setting, tokens: int, batch: int) -> Row:
    """Computed from sizes alone: KV bytes, and the time for matrix products and weights."""
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
        # Every weight that one token uses is read once per step, whatever the batch. (With a batch,
        # this is too little for mixture-of-experts models: more tokens use more experts.)
        weights = cost.decode_linear_flops / (2 * batch)
        row["weights_s"] = weights * getattr(torch, options.dtype).itemsize / rates["copy"]
    return row
