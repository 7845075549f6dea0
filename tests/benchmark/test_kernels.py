import contextlib
import json

import pytest
import torch

from swaa import cli, results
from swaa.attention import AttentionOutput, swaa_attention
from swaa.benchmark.kernels import measure as kernels
from swaa.benchmark.kernels.candidates import Candidate, candidates
from swaa.benchmark.kernels.plot import plot_kernels
from swaa.benchmark.kernels.work import PHASES, Mask, Shape
from swaa.testing import keys_seen


@pytest.mark.parametrize("sinks", [0, 1, 5, 40])
@pytest.mark.parametrize("window", [None, 1, 7, 100])
@pytest.mark.parametrize(("queries", "keys"), [(50, 50), (1, 50), (20, 50)])
def test_pairs_and_the_mask_agree_with_a_plain_loop(window, sinks, queries, keys):
    mask = Mask(window=window, sink_tokens=sinks)
    seen = torch.zeros(queries, keys, dtype=torch.bool)
    for row in range(queries):
        i = keys - queries + row
        for j in range(i + 1):
            seen[row, j] = window is None or i - j < window or j < sinks
    assert torch.equal(mask.seen(queries, keys), seen)
    assert mask.pairs(queries, keys) == seen.sum()


def test_work_and_traffic_count_what_is_seen_only():
    mask = Mask(window=10, sink_tokens=2)
    shape = Shape(phase="decode", tokens=100, batch=3, heads=4, kv_heads=2, head_dim=8)
    assert shape.flops(mask) == 4 * 3 * 4 * 8 * 12
    assert shape.kv_bytes(mask) == 2 * 3 * 12 * 2 * 8 * 2
    training = Shape(phase="backward", tokens=100, batch=3, heads=4, kv_heads=2, head_dim=8)
    assert training.flops(mask) == 4 * 3 * 4 * 8 * mask.pairs(100, 100) * 7 // 2


def test_chosen_keys_are_work_and_traffic_too():
    mask = Mask(window=20, sink_tokens=5, decode_keys=32)
    shape = Shape(phase="decode", tokens=160, heads=4, kv_heads=2, head_dim=16)
    assert shape.flops(mask) == 4 * 4 * 16 * (20 + 5 + 32)
    assert shape.kv_bytes(mask) == 2 * (20 + 5 + 32 + 160 // 16) * 2 * 16 * 2
    (ours,) = candidates("decode", mask, backends=("reference",), stock=True)
    assert ours.mask.label == "window 20 + 5 sinks + 32 chosen"
    attend = ours.prepare(1, 160)
    seen = keys_seen(
        lambda q, k, v: AttentionOutput(attend(q, k, v), None), batch=1, queries=1, keys=160
    )
    assert torch.equal(seen[0], mask.seen(1, 160))
    options = kernels.Options(phases=("decode",), decode_keys=(32, 64), lengths=(4096,))
    masks = [mask.label for _, mask in options.measurements()]
    chosen = [f"window 2048 + 128 sinks + {count} chosen" for count in (32, 64)]
    assert masks == ["full", *chosen, "window 2048 + 128 sinks"]


def test_every_phase_compares_ours_with_something():
    for phase in PHASES:
        found = candidates(phase, Mask(window=8, sink_tokens=2), backends=("triton",), stock=True)
        assert found[0].name == "swaa triton"
        assert any(not candidate.ours for candidate in found)
        alone = candidates(phase, Mask(window=8), backends=("triton",), stock=False)
        assert [candidate.name for candidate in alone] == ["swaa triton"]


def test_a_kernel_with_a_wrong_mask_is_not_timed(monkeypatch):
    def attend(q, k, v):
        return swaa_attention(q, k, v, window=9, sink_tokens=2, backend="reference").output

    def on_the_cpu(*arguments, **options):
        return keys_seen(*arguments, **{**options, "device": "cpu", "dtype": torch.float32})

    keys_seen = kernels.keys_seen
    monkeypatch.setattr(kernels, "keys_seen", on_the_cpu)
    shape = Shape(phase="prefill", tokens=64, heads=2, kv_heads=1, head_dim=64)
    for window, wrong in ((9, False), (8, True)):
        mask = Mask(window=window, sink_tokens=2)
        candidate = Candidate(name="x", mask=mask, prepare=lambda queries, keys: attend)
        monkeypatch.setattr(kernels, "_time", lambda *_: kernels.Percentiles(1e-3, 1e-3, 1e-3))
        row = kernels._measure_one(candidate, shape, 1e12, 1e12)
        assert (row["refused"] is not None) == wrong
        assert ("p50" in row) != wrong
        line = kernels.describe(row)
        assert ("wrong mask" in line) == wrong


def fake_result() -> results.Result:
    rows = []
    for phase in PHASES:
        base = {"phase": phase, "tokens": 1024, "batch": 1, "mask": "window 8"}
        speed = {"p20": 1e-3, "p50": 1e-3, "p80": 2e-3, "useful_flops": 5e14, "of_matmul": 0.7}
        speed |= {"kv_bytes_per_second": 3e12, "of_copy": 0.9, "refused": None}
        rows.append(base | speed | {"kernel": "swaa triton", "ours": True})
        rows.append(base | {"kernel": "other", "ours": False, "refused": "wrong mask"})
    options = kernels.Options()
    return results.Result(
        kind="kernels",
        name=kernels.file_name(options),
        config={"gpu": "none"},
        rows=({"phase": "ceiling", "matmul": 7e14, "copy": 4e12}, *rows),
        provenance=results.record_provenance(),
    )


def test_results_are_kept_drawn_and_printed_as_json_on_request(
    tmp_path, monkeypatch, capsys, prints
):
    monkeypatch.setattr(kernels, "measure", lambda options, keep=None: fake_result())
    words = ["bench", "kernels", "--output", str(tmp_path), "--again"]
    assert prints(*words).splitlines()[-1].startswith("kept in ")
    assert cli.main([*words, "--json"]) == 0
    printed = capsys.readouterr()
    assert "kept in " in printed.err
    kept = list(tmp_path.glob("kernels/*"))
    assert sorted(path.suffix for path in kept) == [".json", ".png"]
    (file,) = tmp_path.glob("*/*.json")
    assert json.loads(printed.out)["rows"] == list(results.load(file).rows)


def twice_then_cut():
    """Two kernels' times, then the end that a time limit makes, then times again."""
    left = iter([None, None, KeyboardInterrupt(), *[None] * 100])

    def timed(*_):
        if (error := next(left)) is not None:
            raise error
        return kernels.Percentiles(1e-3, 1e-3, 2e-3)

    return timed


@pytest.fixture
def pretended_gpu(monkeypatch):
    monkeypatch.setattr(kernels, "_time", twice_then_cut())
    monkeypatch.setattr(kernels, "require_exact", lambda *_: None)
    for name in ("matmul_rate", "copy_rate"):
        monkeypatch.setattr(kernels, name, lambda *_: 1e12)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "none")
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    fixed = results.record_provenance()
    monkeypatch.setattr(kernels.results, "record_provenance", lambda **_: fixed)


@pytest.mark.usefixtures("pretended_gpu")
def test_what_was_measured_before_a_run_ended_is_kept(tmp_path, monkeypatch, capsys):
    words = ["bench", "kernels", "--phases", "prefill", "--output", str(tmp_path)]

    def refusals():
        (file,) = tmp_path.glob("kernels/*.json")
        return [row["refused"] for row in results.load(file).rows[1:]]

    with contextlib.suppress(KeyboardInterrupt):
        cli.main(words)
    cut = refusals()
    assert cut == [None, None, *["not begun"] * (len(cut) - 2)]
    assert len(cut) > 2
    assert cli.main(words) == 0  # measures all of them
    assert refusals() == [None] * len(cut)
    capsys.readouterr()
    assert cli.main(words) == 0  # measures none
    assert "measured on " in capsys.readouterr().out
    monkeypatch.setattr(kernels, "_time", twice_then_cut())
    with contextlib.suppress(KeyboardInterrupt):
        cli.main([*words, "--again"])
    assert refusals() == [None] * len(cut)  # a finished file stays until another is finished


def test_lists_take_spaces_behind_commas(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(
        kernels, "measure", lambda options, keep: asked.append(options) or fake_result()
    )
    flags = ["--phases", "prefill, decode", "--backends", "fa4 , triton"]
    assert cli.main(["bench", "kernels", *flags, "--output", str(tmp_path), "--again"]) == 0
    assert asked[0].phases == ("prefill", "decode")
    assert asked[0].backends == ("fa4", "triton")


def test_a_plot_of_nothing_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="nothing was measured"):
        plot_kernels([{"phase": "prefill", "refused": "x"}], tmp_path / "x.png", title="")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--phases", "prefil"], "unknown phase 'prefil'"),
        (["--phases", "prefill,"], "--phases 'prefill,': expected names"),
        (["--backends", "fa4,fa4"], "--backends fa4,fa4 names fa4 twice"),
        (["--heads", "30"], "30 heads are not a multiple of 8"),
        (["--dtype", "float64"], "dtype is 'float64'"),
        (["--lengths", "1q"], "--lengths 1q: expected whole numbers"),
        (["--windows", "0"], "--windows 0"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_a_mistake_is_one_line_and_exit_code_2(flags, message, refusal):
    assert message in refusal("bench", "kernels", *flags)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_there_is_nothing_to_measure(refusal):
    assert "needs a CUDA GPU" in refusal("bench", "kernels")
