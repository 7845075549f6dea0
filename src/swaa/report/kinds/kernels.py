"""Results of ``swaa bench kernels``: attention of one layer, ours and the best stock kernels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from swaa.report.figures import Figures, Measurement
from swaa.report.folder import Run
from swaa.results import Result

_MATMUL = ("of_matmul", "matrix product rate")


def read(run: Run) -> Figures:
    """What a kernel benchmark shows."""
    result, config = run.result, run.result.config
    timed = [row for row in result.rows if row.get("p50") is not None]
    refused = sum(bool(row.get("refused")) for row in result.rows)
    return Figures(
        subject=f"attention, {config['heads']}/{config['kv_heads']} heads,"
        f" head_dim {config['head_dim']}",
        setting=f"{len({row['kernel'] for row in timed})} kernels",
        task=", ".join(dict.fromkeys(row["phase"] for row in timed)),
        tokens=tuple(sorted({row["tokens"] for row in timed})),
        outcome=f"{len(timed)} timed, {refused} refused",
        measurements=tuple(_measurements(result)),
    )


def _measurements(result: Result) -> Iterator[Measurement]:
    config = result.config
    for row in result.rows:
        if row.get("p50") is None:
            continue
        full = row["mask"] == "full"
        yield Measurement(
            chart="speed",
            measure=f"{row['phase']}, attention of one layer",
            unit="s",
            group=f"{config['heads']}/{config['kv_heads']} heads, head_dim {config['head_dim']},"
            f" {config['dtype']}, batch {row['batch']}, {result.provenance.device}",
            series=f"{row['kernel']} ({row['mask']})",
            tokens=row["tokens"],
            value=row["p50"],
            low=row["p20"],
            high=row["p80"],
            ours=row["ours"],
            full=full and not row["ours"],
            note=_of_hardware(row),
        )


def _of_hardware(row: Mapping[str, Any]) -> str:
    """Share of the same GPU's ceiling in the same run: matrix products, or copies in decode."""
    name, what = ("of_copy", "copy bandwidth") if row["phase"] == "decode" else _MATMUL
    share = row.get(name)
    return "" if share is None else f"{100 * share:.0f} % of the {what} of this run"
