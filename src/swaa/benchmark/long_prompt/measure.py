"""Time vLLM or SGLang on one long prompt: stock and under recipes, on one GPU, in one session.

    python -m swaa.benchmark.long_prompt OUT [--engine sglang] [--engines NAMES] [--prompt N] ...

Starting a vLLM engine takes minutes, most of it compilation, so all start at once and wait; then
each is timed alone, in turn. SGLang's engines take what memory they find, so each starts when the
one before has ended. The model has the shape of Qwen3-4B and random weights: speed and memory
do not depend on them.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from swaa import results
from swaa.attention.pages import PAGE
from swaa.config import SWAAConfig
from swaa.heads import HeadSelection
from swaa.model_shapes import SHAPES

QWEN3_4B = SHAPES["qwen3-4b"] | {
    "architectures": ["Qwen3ForCausalLM"],
    "bos_token_id": 151_643,
    "eos_token_id": 151_645,
    "torch_dtype": "bfloat16",
}
TINY = QWEN3_4B | {
    "hidden_size": 128,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "vocab_size": 512,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GIB = 1 << 30
CACHE_SHARE = {"stock_window": 0.35, "sliding": 0.35, "sliding_quarter": 0.5}
CACHE_SHARE |= dict.fromkeys(("decode_keys", "selected_decode_keys"), 1 + 1 / PAGE)
"""An engine's cache as a share of that of engines that keep all keys; statistics count, too."""


OTHER_STOCK = ("stock_fa3", "stock_flashinfer")
"""Stock SGLang with other attention backends than the one that ours is derived from."""
HEADS = ("heads", "scattered_heads")
"""Half of the KV heads keep every key: the first of each layer, or unlike numbers of any."""
VLLM_ONLY = ("stock_window", "decode_keys", "selected", "selected_decode_keys", *HEADS)


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What one engine serves.

    Attributes:
        name: of the row.
        engine: ``vllm`` or ``sglang``.
        model: folder with a config.json.
        swaa: knobs, or None for the stock engine.
        attention: backend of a stock SGLang; None: the one that ours is derived from.
        kv_bytes: of its KV cache; SGLang takes ``memory_share`` instead.
        memory_share: of the GPU that SGLang's weights and KV memory may take.
        dtype: of weights and cache.
        max_tokens: longest request.
        chunk_tokens: most tokens of a forward pass.
        prompt_tokens: of the timed request.
        answer_tokens: of the timed request.
        repeats: of the timed request.
        requests: sent at once afterwards; 0: none.
        traffic_prompt: tokens of each of those requests' prompts.
        traffic_answer: tokens of each of their answers.
        eager: without compilation and CUDA graphs.
    """

    name: str
    engine: str
    model: str
    swaa: dict[str, Any] | None
    attention: str | None
    kv_bytes: int
    memory_share: float
    dtype: str
    max_tokens: int
    chunk_tokens: int
    prompt_tokens: int
    answer_tokens: int
    repeats: int
    requests: int
    traffic_prompt: int
    traffic_answer: int
    eager: bool


def recipes(
    window: int, sinks: int, layers: int, kv_heads: int
) -> dict[str, SWAAConfig | int | None]:
    """The rows of the table: our configuration, a native window, or None for full attention."""
    quarter = tuple(range(3, layers, 4))
    selected = {"dense_tail": 128, "selected_layers": "all", "selected_keys": 4096}
    chosen = {"window": window, "sink_tokens": sinks, "full_decode": True}
    return {
        "stock": None,
        **dict.fromkeys(OTHER_STOCK),
        "stock_window": window,
        "full_decode": SWAAConfig(window=window, sink_tokens=sinks, full_decode=True),
        "sliding": SWAAConfig(window=window, sink_tokens=sinks),
        "sliding_quarter": SWAAConfig(window=window, sink_tokens=sinks, full_layers=quarter),
        "tail": SWAAConfig(window=window, sink_tokens=sinks, full_decode=True, dense_tail=128),
        **{
            name: SWAAConfig(window=window, sink_tokens=sinks, full_decode=kept)
            for name, kept in zip(HEADS, _half_of_heads(layers, kv_heads), strict=True)
        },
        "decode_keys": SWAAConfig(**chosen, decode_keys=4096),
        "selected": SWAAConfig(**chosen, **selected),
        "selected_decode_keys": SWAAConfig(**chosen, **selected, decode_keys=4096),
    }


def _half_of_heads(layers: int, kv_heads: int) -> tuple[HeadSelection, HeadSelection]:
    """The first half of each layer's heads; and now few, now many, with gaps between them."""
    first = range(kv_heads // 2)
    order = [*range(0, kv_heads, 2), *range(1, kv_heads, 2)]
    counts = [(3 * layer // 2) % (kv_heads + 1) for layer in range(layers // 2)]
    counts += [kv_heads - count for count in counts]
    scattered = {layer: sorted(order[:count]) for layer, count in enumerate(counts)}
    return HeadSelection.of(dict.fromkeys(range(layers), first)), HeadSelection.of(scattered)


def settings_of(args: argparse.Namespace, folder: Path) -> list[Setting]:
    """The engines that a command line asks for; writes their models' config.json files."""
    shape = TINY if args.tiny else QWEN3_4B
    layers = shape["num_hidden_layers"]
    longest = max(args.prompt + args.answer, args.traffic_prompt + args.traffic_answer) + 16
    found = []
    known = recipes(args.window, args.sinks, layers, shape["num_key_value_heads"])
    for name in args.engines:
        wanted = known[name]
        native = wanted if isinstance(wanted, int) else None
        kv_gib = args.kv_gib * CACHE_SHARE.get(name, 1.0)
        found.append(
            Setting(
                name=name,
                engine=args.engine,
                model=str(_write_model(folder / "models", shape, native)),
                swaa=wanted.to_dict() if isinstance(wanted, SWAAConfig) else None,
                attention=name.removeprefix("stock_") if name in OTHER_STOCK else None,
                kv_bytes=int(kv_gib * GIB),
                memory_share=args.memory_share,
                dtype="float32" if args.tiny else "bfloat16",
                max_tokens=longest,
                chunk_tokens=args.chunk,
                prompt_tokens=args.prompt,
                answer_tokens=args.answer,
                repeats=args.repeats,
                requests=args.requests if name in ("stock", "full_decode", *HEADS) else 0,
                traffic_prompt=args.traffic_prompt,
                traffic_answer=args.traffic_answer,
                eager=args.tiny,
            )
        )
    return found


def _write_model(folder: Path, shape: dict[str, Any], native_window: int | None) -> Path:
    """A folder with a config.json; a native window makes vLLM itself slide in every layer."""
    content = dict(shape)
    if native_window is not None:
        layers = shape["num_hidden_layers"]
        content |= {
            "layer_types": ["sliding_attention"] * layers,
            "sliding_window": native_window,
            "use_sliding_window": True,
            "max_window_layers": layers,
        }
    made = folder / ("full" if native_window is None else f"window-{native_window}")
    made.mkdir(parents=True, exist_ok=True)
    (made / "config.json").write_text(json.dumps(content), encoding="utf-8")
    return made


def measure(
    settings: Sequence[Setting],
    folder: Path,
    *,
    start: float,
    turn: float,
    after: Path | None = None,
) -> None:
    """Start engines and let each measure in turn; results are written to ``folder``.

    Args:
        settings: the engines.
        folder: for results, logs and the files that pass the turn on.
        start: seconds that engines may take to start.
        turn: seconds that each may take to measure.
        after: no turn begins before this file exists.
    """
    if settings and settings[0].engine == "sglang":
        for setting in settings:
            _measure_together([setting], folder, start=start, turn=turn, after=after)
    else:
        _measure_together(settings, folder, start=start, turn=turn, after=after)


def _measure_together(
    settings: Sequence[Setting], folder: Path, *, start: float, turn: float, after: Path | None
) -> None:
    processes = {setting.name: _spawn(setting, folder) for setting in settings}
    try:
        end = time.monotonic() + start
        for name, process in processes.items():
            _wait_for(folder, name, "ready", process, end)
        while after is not None and not after.exists():
            time.sleep(0.2)
        for name, process in processes.items():
            if process.poll() is None and _events(folder, name):
                (folder / f"{name}.go").touch()
                _wait_for(folder, name, "done", process, time.monotonic() + turn)
    finally:
        for process in processes.values():
            process.terminate()
        for process in processes.values():
            process.wait()


def _spawn(setting: Setting, folder: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "swaa.benchmark.long_prompt.engine"]
    environment = os.environ | {"VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}
    with (folder / f"{setting.name}.log").open("wb") as log:
        return subprocess.Popen(
            [*command, json.dumps(asdict(setting)), str(folder)],
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
        )


def _wait_for(
    folder: Path, name: str, event: str, process: subprocess.Popen[bytes], end: float
) -> None:
    while time.monotonic() < end and process.poll() is None:
        if any(found["event"] == event for found in _events(folder, name)):
            return
        time.sleep(0.2)


def _events(folder: Path, name: str) -> list[dict[str, Any]]:
    path = folder / f"{name}.jsonl"
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")[:-1]  # the last may be half written
    return [json.loads(line) for line in lines]


def row(setting: Setting, events: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """One row of the table, from what an engine has measured so far."""
    of: dict[str, list[dict[str, Any]]] = {}
    for event in events:
        of.setdefault(event["event"], []).append(event)
    timed, ready, warm = of.get("timed", []), of.get("ready", [{}])[0], of.get("warm", [{}])[0]
    best = min(timed, key=lambda event: event["first"], default={})
    live = warm.get("usage")
    longest = ready.get("longest_requests")
    held, of_bytes = ready.get("kv_tokens"), ready.get("kv_bytes")
    if longest is not None:
        held, of_bytes = longest * setting.max_tokens, setting.kv_bytes
    traffic = of.get("traffic", [{}])[0]
    return {
        "engine": setting.name,
        "first_token_seconds": best.get("first"),
        "each_token_seconds": min((event["each"] for event in timed), default=None),
        "live_kv_bytes": None if live is None else live * setting.kv_bytes,
        "kv_tokens_per_gib": held / of_bytes * GIB if held and of_bytes else None,
        "traffic_seconds": traffic.get("seconds"),
        "traffic_tokens": traffic.get("tokens"),
        "start_seconds": ready.get("seconds"),
        "timed": timed,
    }


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Rows as text, one line per engine."""
    lines = [
        f"{'engine':16} {'first token':>12} {'each token':>11} {'live KV':>10}"
        f" {'KV capacity':>18} {'traffic':>14}"
    ]
    for found in rows:
        live, capacity = found["live_kv_bytes"], found["kv_tokens_per_gib"]
        seconds, tokens = found["traffic_seconds"], found["traffic_tokens"]
        cells = (
            _cell(found["first_token_seconds"], 1, "s", 3),
            _cell(found["each_token_seconds"], 1e3, "ms", 2),
            _cell(live, 1 / GIB, "GiB", 2),
            _cell(capacity, 1, "tokens/GiB", 0),
            _cell(tokens / seconds if seconds else None, 1, "tokens/s", 0),
        )
        widths = (12, 11, 10, 18, 14)
        numbers = " ".join(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True))
        lines.append(f"{found['engine']:16} {numbers}")
    return "\n".join(lines)


def _cell(value: float | None, factor: float, unit: str, digits: int) -> str:
    return "-" if value is None else f"{value * factor:.{digits}f} {unit}"


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    names = tuple(recipes(2048, 128, 36, 8))
    parser.add_argument("out", type=Path, help="folder for results and logs")
    parser.add_argument(
        "--engine", choices=("vllm", "sglang"), default="vllm", help="(default: vllm)"
    )
    parser.add_argument(
        "--engines",
        help=f"of {', '.join(names)}, in turn (default: all that the engine has but tail,"
        f" {', '.join(HEADS)})",
    )
    parser.add_argument("--window", type=int, default=2048, help="keys (default: 2048)")
    parser.add_argument("--sinks", type=int, default=128, help="tokens (default: 128)")
    parser.add_argument("--prompt", type=int, default=131_072, help="tokens (default: 131072)")
    parser.add_argument("--answer", type=int, default=128, help="tokens (default: 128)")
    parser.add_argument("--chunk", type=int, default=16_384, help="tokens (default: 16384)")
    parser.add_argument("--repeats", type=int, default=2, help="timed requests (default: 2)")
    parser.add_argument("--requests", type=int, default=0, help="traffic, at once (default: 0)")
    parser.add_argument("--traffic-prompt", type=int, default=128_000, help="(default: 128000)")
    parser.add_argument("--traffic-answer", type=int, default=512, help="(default: 512)")
    parser.add_argument("--kv-gib", type=float, default=20, help="of an engine that keeps all keys")
    parser.add_argument(
        "--memory-share", type=float, default=0.5, help="of the GPU, for SGLang (default: 0.5)"
    )
    parser.add_argument("--start", type=float, default=900, help="seconds to start (default: 900)")
    parser.add_argument("--turn", type=float, default=300, help="seconds each (default: 300)")
    parser.add_argument("--after", type=Path, help="time nothing before this file exists")
    parser.add_argument("--tiny", action="store_true", help="a tiny model, to try the script")
    args = parser.parse_args(words)
    foreign = OTHER_STOCK if args.engine == "vllm" else VLLM_ONLY
    names = tuple(name for name in names if name not in foreign)
    usual = [name for name in names if name not in ("tail", *OTHER_STOCK, *HEADS)]
    args.engines = usual if args.engines is None else args.engines.split(",")
    unknown = set(args.engines) - set(names)
    if unknown:
        parser.error(f"unknown engine {sorted(unknown)[0]!r}; choose from {', '.join(names)}")
    return args


def main(words: Sequence[str] | None = None) -> None:
    """Measure, save one result, print the table; if ended early, with what there is."""
    args = parse(words)
    args.out.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    begin = time.monotonic()
    settings = settings_of(args, args.out)
    try:
        measure(settings, args.out, start=args.start, turn=args.turn, after=args.after)
    finally:
        rows = [row(setting, _events(args.out, setting.name)) for setting in settings]
        result = result_of(settings, rows, time.monotonic() - begin, tiny=args.tiny)
        print(results.save(result, folder=args.out))
        print(table(rows), flush=True)


def result_of(
    settings: Sequence[Setting], rows: Sequence[dict[str, Any]], seconds: float, *, tiny: bool
) -> results.Result:
    """The result file's content."""
    device = "cpu" if tiny else "cuda"
    provenance = results.record_provenance(
        device=device,
        dtype=settings[0].dtype,
        model="Qwen3-4B shape, random weights",
        seed=0,
        seconds=seconds,
        packages=(settings[0].engine,),
    )
    return results.Result(
        kind=settings[0].engine,
        name="tiny" if tiny else "qwen3-4b-shape",
        config={
            "settings": [asdict(setting) | {"model": "random weights"} for setting in settings],
            "device": provenance.device,
        },
        rows=tuple(rows),
        provenance=provenance,
    )
