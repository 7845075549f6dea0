import json
import sys
from dataclasses import replace

import pytest
import torch

pytest.importorskip("triton", reason="tile sizes belong to Triton kernels")
from swaa.attention.triton.tiles import Tile, forced, tile_for
from swaa.benchmark.kernels import tune as tune_kernels

CPU = torch.device("cpu")
START = Tile(block_m=64, block_n=64, warps=4, stages=2)


@pytest.fixture
def hopper_card(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (9, 0))


def test_descent_finds_the_fastest_tile_and_times_none_twice(hopper_card):
    goal = Tile(block_m=128, block_n=32, warps=8, stages=4, tma=True)
    timed = []

    def seconds(tile):
        timed.append(tile)
        apart = abs(tile.block_m - 128) + abs(tile.block_n - 32) + 30 * abs(tile.stages - 4)
        return 1 + apart + 50 * (tile.warps != 8) + 50 * (not tile.tma)

    moves = lambda tile: tune_kernels.neighbours("dq", tile, CPU)  # noqa: E731
    assert tune_kernels.descend(START, moves, seconds) == goal
    assert len(timed) == len(set(timed))


def test_descent_stays_where_nothing_runs_faster(hopper_card):
    moves = lambda tile: tune_kernels.neighbours("dq", tile, CPU)  # noqa: E731
    seconds = lambda tile: 1.0 if tile == START else float("inf")  # noqa: E731
    assert tune_kernels.descend(START, moves, seconds) == START
    slightly = lambda tile: 1.0 if tile == START else 0.995  # noqa: E731
    assert tune_kernels.descend(START, moves, slightly) == START


def test_neighbours_differ_in_one_knob_that_the_kernel_has(hopper_card):
    for kernel, knobs in (("dq", 5), ("hopper", 2)):
        changed = set()
        for tile in tune_kernels.neighbours(kernel, START, CPU):
            differing = {
                name for name in vars(START) if getattr(tile, name) != getattr(START, name)
            }
            assert len(differing) == 1
            changed |= differing
        assert len(changed) == knobs


def test_the_hopper_kernel_is_never_tried_with_one_stage(hopper_card):
    """It would hang the GPU: its next keys wait for a place that is released behind them."""
    seen, open_ = set(), [START]
    while open_:
        tile = open_.pop()
        seen.add(tile)
        open_ += [t for t in tune_kernels.neighbours("hopper", tile, CPU) if t not in seen]
    assert {tile.stages for tile in seen} == {2, 3, 4, 5}
    assert {tile.stages for tile in tune_kernels.neighbours("dq", START, CPU)} == {1, 2, 3}


def test_older_cards_have_no_copy_engine_to_try(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (8, 0))
    assert not any(tile.tma for tile in tune_kernels.neighbours("dq", START, CPU))


def test_a_forced_tile_holds_for_its_kernel_and_time_only():
    before = tile_for("dq", CPU, torch.float16, 64)
    with forced("dq", START):
        assert tile_for("dq", CPU, torch.float16, 64) == START
        assert tile_for("dkdv", CPU, torch.float16, 64) != START
    assert tile_for("dq", CPU, torch.float16, 64) == before


def test_the_table_in_force_keeps_every_entry_that_serves():
    table = tune_kernels.table_in_force(CPU)
    for kernel in ("prefill", "dq", "dkdv", "sinks"):
        entry = table[kernel]["16"]["256"]
        assert Tile(**entry) == tile_for(kernel, CPU, torch.float16, 256)


def test_a_wrong_or_failing_tile_is_never_the_best(monkeypatch):
    lines = []
    monkeypatch.setattr(tune_kernels.Shape, "inputs", lambda self: ())
    shape = tune_kernels.Options().shape("dq", 64)
    watch = tune_kernels.Stopwatch("dq", shape, tune_kernels.Mask(window=8), lines.append)

    def wrong(candidate, shape):
        raise AssertionError("wrong mask: 3 of 9 pairs")

    monkeypatch.setattr(tune_kernels, "require_exact", wrong)
    assert watch(START) == float("inf")
    assert "wrong mask" in lines[0]
    monkeypatch.setattr(tune_kernels, "require_exact", lambda *_: None)
    monkeypatch.setattr(watch, "_time", lambda: 2e-3)
    assert watch(replace(START, tma=True)) == 2e-3
    assert lines[1] == "dq head_dim 64 64x64 warps 4 stages 2 tma: 2.000 ms"


def test_the_table_is_written_under_the_name_of_the_card(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(tune_kernels, "table_names", lambda device: ("some_card", "sm90"))
    table = tune_kernels.table_in_force(CPU)
    path = tune_kernels.save(table, tmp_path)
    assert path.name == "some_card.json"
    assert json.loads(path.read_text()) == table
    with pytest.raises(ValueError, match="name a folder"):
        tune_kernels.save(table, path / "below-a-file")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--kernels", "dq, decode"], "unknown kernel 'decode'"),
        (["--dtype", "float32"], "choose float16 or bfloat16"),
        (["--head-dims", "512"], "each must be 1 to 256"),
        (["--head-dims", "x"], "--head-dims x: expected whole numbers"),
    ],
)
def test_bad_options_are_one_line(arguments, message, refusal):
    assert message in refusal("bench", "tune-kernels", *arguments)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(refusal):
    assert "needs a CUDA GPU" in refusal("bench", "tune-kernels")


def test_without_triton_it_says_so(monkeypatch, refusal):
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "needs Triton" in refusal("bench", "tune-kernels")
