"""Result files of every kind, as their commands write them, small."""

import dataclasses

from swaa.config import SWAAConfig
from swaa.results import Result, record_provenance, save

FULL = SWAAConfig(window=None).to_dict()
SLIDING = SWAAConfig(window=64, sink_tokens=4, full_decode=True, dense_tail=8).to_dict()
EVIL = "</script><img src=x onerror=alert(1)>"


def provenance(**changes):
    values = {
        "versions": {"python": "3.12.0", "torch": "2.13.0"},
        "commit": "0123456789abcdef0123456789abcdef01234567",
        "dirty": False,
        "device": "A GPU",
        "created": "2026-11-22T12:00:00+00:00",
        "seconds": 12.5,
    }
    return dataclasses.replace(
        record_provenance(model="tiny", dtype="bfloat16"), **values | changes
    )


def evaluation(setting, config, right, length=1024, seconds=2.0):
    row = {
        "samples": 10,
        "right": right,
        "accuracy": right / 10,
        "low": max(0.0, right / 10 - 0.2),
        "high": min(1.0, right / 10 + 0.2),
        "first_token_s": seconds,
        "score": right / 10 + 0.05,
    }
    slug = "".join(c if c.isalnum() or c in ".-" else "-" for c in setting.lower()).strip("-")
    shared = {
        "model": "tiny",
        "length": length,
        "samples": 10,
        "seed": 0,
        "task": {"task": "multikey", "version": 1, "others": 3},
        "prompt": {"chat": True, "thinking": False, "cot": False, "answer_prefix": True},
        "engine": {"engine": "transformers", "dtype": "bfloat16", "backend": "auto"},
        "judge": None,
    }
    return Result(
        kind="eval",
        name=f"tiny-{slug}-multikey-{length}",
        config={**shared, "swaa": config},
        rows=({"place": "all", **row}, {"place": "sinks", **row}),
        provenance=provenance(),
    )


def gathered():
    """The form of `swaa eval --gather`: several settings in one file."""
    single = evaluation("x", FULL, 9, 2048)
    shared = {key: value for key, value in single.config.items() if key != "swaa"}
    rows = [
        {"setting": name, **row}
        for name, right in (("full", 9), (EVIL, 7))
        for row in evaluation("x", FULL, right, 2048, 4.0 if right == 9 else 1.0).rows
    ]
    return Result(
        kind="eval",
        name="tiny-multikey-2048",
        config={**shared, "settings": {"full": FULL, EVIL: SLIDING}},
        rows=tuple(rows),
        provenance=provenance(),
    )


def demo():
    return Result(
        kind="demo",
        name="tiny",
        config={
            "model": "tiny",
            "needle_tokens": 512,
            "prefill_tokens": 2000,
            "settings": {"full": FULL, "fast": SLIDING},
        },
        rows=tuple(
            {
                "setting": name,
                "answered": answered,
                "needles": 8,
                "prefill_s": seconds,
                "speedup": 8.0 / seconds,
                "kv_bytes": kv << 20,
            }
            for name, answered, seconds, kv in (("full", 8, 8.0, 40), ("fast", 6, 2.0, 10))
        ),
        provenance=provenance(device="A CPU, 2 cores"),
    )


def kernels():
    common = {"phase": "prefill", "batch": 1, "refused": None}
    rows = [
        {"phase": "ceiling", "matmul": 6e14, "copy": 4e12},
        *(
            common
            | {"tokens": n, "mask": mask, "kernel": kernel, "ours": ours, "of_matmul": 0.8}
            | {"p20": t * n * 0.9, "p50": t * n, "p80": t * n * 1.2}
            for n in (1024, 4096)
            for mask, kernel, ours, t in (
                ("window 64 + 4 sinks", "swaa triton", True, 1e-6),
                ("full", "SDPA", False, 4e-6),
                ("full", "FA4", False, 2e-6),
            )
        ),
        common | {"tokens": 1024, "mask": "full", "kernel": "swaa fa4", "refused": "cannot"},
    ]
    sizes = {"heads": 8, "kv_heads": 2, "head_dim": 64, "dtype": "bfloat16"}
    return Result(
        kind="kernels", name="k", config=sizes, rows=tuple(rows), provenance=provenance(dirty=True)
    )


def generate(model="qwen3-4b"):
    def row(setting, kind, tokens, first, kv):
        spread = {"p20": first * 0.9, "p50": first, "p80": first * 1.1, "timings": 5}
        found = {
            "kind": kind,
            "setting": setting,
            "tokens": tokens,
            "batch": 1,
            "refused": None,
            "attention": "FA4 (decoding: SDPA)" if setting == "stock" else "swaa triton",
            "first_token_s": spread,
            "per_token_s": {"p20": 0.009, "p50": 0.01, "p80": 0.011, "timings": 127},
            "prefill_tokens_per_s": tokens / first,
            "decode_tokens_per_s": 100.0,
            "kv_bytes": kv,
            "kv_peak_bytes": kv,
            "kv_predicted_bytes": kv,
            "peak_bytes": None,
        }
        if setting == "fast":
            found |= {"first_token_speedup": 3.0, "first_token_of_limit": 0.9}
            found |= {"per_token_speedup": 1.2, "per_token_of_limit": 0.95}
            found |= {"first_token_limit": 3.33, "per_token_limit": 1.26}
        return found

    rows = [
        {"kind": "ceiling"},
        {"kind": "stock", "prefill": {"best": "FA4"}},
        *(
            row(*one, tokens, first * tokens / 8192, kv * tokens)
            for tokens in (8192, 16384)
            for *one, first, kv in (
                ("no attention", "t0", 0.5, 1),
                ("stock", "run", 3.0, 4096),
                ("fast", "run", 1.0, 1024),
            )
        ),
        {"kind": "run", "setting": "fast", "tokens": 32768, "refused": "out of memory"},
    ]
    rows = [r if len(r) < 10 else {k: r[k] for k in r} for r in rows]
    config = {"model": model, "recipes": {"fast": SLIDING}, "new_tokens": 128}
    return Result(
        kind="generate",
        name=model,
        config=config | {"dtype": "bfloat16", "compiled": True},
        rows=tuple(rows),
        provenance=provenance(),
    )


def serve():
    spread = {"p20": 0.9, "p50": 1.0, "p80": 1.3, "mean": 1.05, "count": 10}
    rows = (
        {"metric": "requests", "total_tokens_per_s": 12_345.6, "failed": 1},
        {"metric": "ttft_s", **spread},
        {"metric": "tpot_s", **spread},
    )
    size = {"requests": 11, "input_tokens": 4096, "output_tokens": 128}
    workload = {**size, "rate": None, "concurrency": 2}
    config = {"model": "tiny", "setting": "fast", "swaa": SLIDING, "workload": workload}
    return Result(kind="serve", name="tiny-fast", config=config, rows=rows, provenance=provenance())


def train():
    rows = tuple(
        {"state": state, "task": task, "samples": 40, "right": right}
        for task, counts in (("needle", (40, 9, 30)), ("multikey", (26, 14, 20)))
        for state, right in zip(("full", "before", "kl"), counts, strict=True)
    )
    perplexity = {"state": "kl", "task": "perplexity", "samples": 8, "perplexity": 20.0}
    config = {"swaa": SLIDING, "settings": {"objective": "kl"}}
    return Result(
        kind="train",
        name="tiny-train",
        config=config,
        rows=(*rows, perplexity),
        provenance=provenance(),
    )


def tune():
    rows = tuple(
        {
            "recipe": name,
            "task": "multikey",
            "samples": 50,
            "right": right,
            "low": right / 50 - 0.1,
            "high": min(1.0, right / 50 + 0.1),
            "prefill_flops": flops,
            "kv_bytes": kv,
            "swaa": config,
        }
        for name, right, flops, kv, config in (
            ("full", 45, 1.0, 1.0, FULL),
            ("found", 44, 0.2, 0.25, SLIDING),
        )
    )
    return Result(
        kind="tune", name="tiny-tune", config={"x": 1}, rows=rows, provenance=provenance()
    )


def vllm():
    sizes = {"prompt_tokens": 131_072, "requests": 4, "traffic_prompt": 128_000}
    sizes |= {"traffic_answer": 512}
    config = {
        "settings": [
            {"name": "stock", "swaa": None, **sizes},
            {"name": "full_decode", "swaa": SLIDING, **sizes},
        ]
    }
    rows = tuple(
        {
            "engine": name,
            "first_token_seconds": first,
            "each_token_seconds": None,
            "live_kv_bytes": 1 << 30,
            "kv_tokens_per_gib": 7000.0 if name == "stock" else 21_000.0,
            "traffic_seconds": first,
            "timed": [{"first": first}, {"first": first + 1}],
            "traffic_tokens": 900,
        }
        for name, first in (("stock", 9.0), ("full_decode", 3.0))
    )
    return Result(kind="vllm", name="q", config=config, rows=rows, provenance=provenance())


def all_runs():
    """One run of each kind, evaluations in both forms."""
    return [
        demo(),
        evaluation("full", FULL, 9),
        evaluation("fast", SLIDING, 8, seconds=1.0),
        gathered(),
        generate(),
        kernels(),
        serve(),
        train(),
        tune(),
        vllm(),
    ]


def write(runs, folder):
    """Save runs; the paths of their files, relative to the folder."""
    paths = [save(run, folder=folder) for run in runs]
    return [path.relative_to(folder).as_posix() for path in paths]
