"""`swaa bench generate`: the whole path on the CPU, where only the shape of results counts."""

import json
from dataclasses import replace

import pytest
import torch

import swaa
from swaa import SWAAConfig, cli, results
from swaa.attention.api import make_call
from swaa.benchmark.generate import measure as generate
from swaa.benchmark.generate.limit import attention_seconds, limits, random_call
from swaa.benchmark.generate.measure import measure
from swaa.benchmark.generate.models import make_model
from swaa.benchmark.generate.options import NOTHING, STOCK, Options, seen_whole
from swaa.benchmark.generate.plot import plot_generate
from swaa.benchmark.generate.run import (
    NoAttention,
    Recorder,
    Workload,
    kind_of,
    measure_run,
    serve_by,
)
from swaa.benchmark.generate.stock import (
    Stock,
    StockAttention,
    decode_stocks,
    find_best,
    prefill_stocks,
)
from swaa.benchmark.generate.table import describe, tables
from swaa.integrations.transformers.fast import plans_of, prefill
from swaa.integrations.transformers.static_cache import StaticSWAACache
from swaa.model_shapes import SHAPES
from swaa.plan import price
from swaa.shapes import shape_of

SLIDING = SWAAConfig(window=64, sink_tokens=8)
TINY = Options(
    model="tiny",
    recipes={"sliding": SLIDING, "fast": SWAAConfig(window=64, full_decode=True, dense_tail=9)},
    lengths=(100, 300),
    batches=(1, 2),
    new_tokens=5,
    chunk=100,
    repeats=2,
    dtype="float32",
    compiled=False,
)


@pytest.fixture(scope="module")
def result():
    return measure(TINY, report=lambda line: None)


def test_every_setting_is_measured_at_every_size(result):
    rows = [row for row in result.rows if row["kind"] in ("run", "t0")]
    found = {(row["setting"], row["tokens"], row["batch"]) for row in rows}
    settings = (NOTHING, STOCK, "sliding", "fast")
    assert found == {(s, t, b) for s in settings for t in (100, 300) for b in (1, 2)}
    assert len(rows) == len(found)
    for row in rows:
        assert row["refused"] is None
        first, token = row["first_token_s"], row["per_token_s"]
        assert 0 < first["p20"] <= first["p50"] <= first["p80"]
        assert first["timings"] == 2
        assert token["timings"] == TINY.new_tokens - 1
        assert row["prefill_tokens_per_s"] == row["batch"] * row["tokens"] / first["p50"]
        assert row["decode_tokens_per_s"] == row["batch"] / token["p50"]
        assert (row["kind"] == "t0") == (row["setting"] == NOTHING) == ("attention_s" not in row)


def test_memory_is_what_plan_says(result):
    for row in result.rows:
        if row["kind"] == "run":
            answer = 2 * 2 * 2 * 16 * 4 * TINY.new_tokens * row["batch"] * 4 // 2
            extra = 0 if row["setting"] == "sliding" else answer
            assert row["kv_bytes"] == row["kv_predicted_bytes"] + extra
            peak = row["kv_peak_bytes"]
            if row["setting"] == "sliding":
                assert peak == row["kv_predicted_peak_bytes"]
            elif row["tokens"] <= TINY.chunk:
                assert 0 <= peak - row["kv_predicted_peak_bytes"] <= extra


def test_the_limit_is_amdahls():
    def row(first, token, alone, step):
        return {
            "refused": None,
            "first_token_s": {"p50": first},
            "per_token_s": {"p50": token},
            "attention_s": alone,
            "attention_step_s": step,
        }

    found = limits(row(2.5, 0.4, 0.3, 0.1), row(2.0, 0.2, 0, 0), row(10.0, 0.8, 8.0, 0.5))
    assert found["first_token_speedup"] == 4.0
    assert found["first_token_limit"] == pytest.approx(10.0 / 2.3)
    assert found["first_token_of_limit"] == pytest.approx(4.0 / (10.0 / 2.3))
    assert found["per_token_limit"] == pytest.approx(0.7 / 0.3)
    assert limits({"refused": "x"}, row(1, 1, 1, 1), row(1, 1, 1, 1)) == {}


def test_stock_attention_gives_the_models_own_logits():
    """What is timed as stock is the model as it was, to rounding; so is full by our kernels."""
    model = make_model("tiny", device="cpu", dtype=torch.float32).model
    ids = torch.randint(512, (2, 150))
    with torch.inference_mode():
        expected = model(ids).logits[:, -1]
        swaa.adapt(model, SWAAConfig(window=None), quiet=True)
        masked = prefill_stocks()[-1]
        serve_by(model, StockAttention(masked, decode_stocks()[-1]))
        cache = StaticSWAACache(model.config, plans_of(model), prompt_tokens=150, new_tokens=1)
        actual = prefill(model, ids, cache, chunk=40)
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-4)


def test_without_attention_the_rest_of_the_model_runs():
    model = make_model("tiny", device="cpu", dtype=torch.float32).model
    swaa.adapt(model, SLIDING, quiet=True)
    nothing = NoAttention()
    recorder = Recorder(nothing)
    serve_by(model, recorder)
    cache = StaticSWAACache(model.config, plans_of(model), prompt_tokens=150, new_tokens=1)
    with torch.inference_mode():
        prefill(model, torch.randint(512, (1, 150)), cache, chunk=50)
    # Four layers, three chunks: the first sees no cache, the later ones a full ring.
    assert sum(recorder.calls.values()) == 12
    assert sorted((kind[1], kind[4]) for kind in recorder.calls) == [(50, 50), (50, 100), (50, 122)]
    made = {tuple(tensor.shape) for tensor in nothing._made.values()}
    assert made == {(1, 50, 4, 16)}


def test_calls_are_those_of_one_prompt_and_one_step():
    """Steps that load kernels or are captured, and the prompt's repeats, are not counted in."""
    model = make_model("tiny", device="cpu", dtype=torch.float32).model
    swaa.adapt(model, SLIDING, quiet=True)
    recorder = Recorder(NoAttention())
    serve_by(model, recorder)
    work = Workload(tokens=150, batch=1, new_tokens=5, chunk=50, repeats=2)
    calls = measure_run(model, plans_of(model), work, recorder)["calls"]
    assert sum(calls["prompt"].values()) == 4 * 3
    assert sum(calls["step"].values()) == 4
    assert {kind[1] for kind in calls["step"]} == {1}


@pytest.mark.parametrize(
    "numbers",
    [
        {"window": 20, "sink_tokens": 3, "q_start": 40},
        {"window": None},
        {"window": 20, "full_from": 70, "full_until": 90},
        {"window": 20, "full_from": 0, "decode_keys": 32},
    ],
    ids=["sliding", "full", "tail", "pages"],
)
def test_calls_of_a_kind_can_be_made_again(numbers):
    q, k = torch.randn(2, 50, 4, 16), torch.randn(2, 90, 2, 16)
    call = make_call(q, k, k, **numbers)
    again = random_call(kind_of(call), torch.float32, torch.device("cpu"))
    assert kind_of(again) == kind_of(call)
    assert again.k.shape == call.k.shape
    seconds = attention_seconds(
        lambda call: call.q + 1, {kind_of(call): 3}, dtype=torch.float32, device=q.device
    )
    assert seconds > 0


def test_a_decoding_call_sees_every_slot_of_its_cache():
    filled = torch.tensor([30, 90], dtype=torch.int32)
    q, k = torch.randn(2, 1, 4, 16), torch.randn(2, 90, 2, 16)
    call = make_call(q, k, k, window=None, kv_lens=filled, q_start=filled - 1)
    again = random_call(kind_of(call), torch.float32, torch.device("cpu"))
    assert again.kv_lens.tolist() == [90, 90]
    assert again.q_start.tolist() == [89, 89]


def test_the_fastest_stock_kernel_that_is_right_wins():
    q, k = torch.randn(1, 30, 4, 16), torch.randn(1, 70, 2, 16)
    chunk = make_call(q, k, k, window=None)
    square = make_call(torch.randn(1, 70, 4, 16), k, k, window=None)
    right = prefill_stocks()[-1]
    wrong = Stock("wrong", lambda call: call.q)
    shape = Stock("shape", lambda call: call.q[:, :1])
    whole = Stock("whole", prefill_stocks()[-1].attend, chunks=False)
    winner = find_best([wrong, shape, right, whole], square, [chunk, square])
    assert winner.stock in (right, whole)
    assert "wrong output" in winner.tried["wrong"]
    assert "wrong shape" in winner.tried["shape"]
    assert isinstance(winner.tried["whole"], float)
    with pytest.raises(ValueError, match="no stock attention runs here"):
        find_best([wrong], square, [chunk])


@pytest.mark.parametrize("name", SHAPES)
def test_shapes_are_those_of_the_published_models(name):
    from transformers import AutoConfig

    values = dict(SHAPES[name])
    config = AutoConfig.for_model(values.pop("model_type"), **values)
    shape = shape_of(config)
    active = sum(layer.linear_weights for layer in shape.layers) + shape.head_weights
    billions = {"qwen3-4b": 4.02, "llama-3.1-8b": 7.5, "qwen3-30b-a3b": 3.03, "tiny": 0.0}[name]
    assert round(active / 1e9, 1) == round(billions, 1)
    assert {layer.kind for layer in shape.layers} == {"full"}
    cost = price(shape, SWAAConfig(window=None), prompt_length=131_072).cost
    assert cost.prefill_linear_flops


def test_a_setting_that_does_not_fit_is_a_row(monkeypatch):
    measured = []

    def measure_run(model, plans, work, recorder):
        measured.append(work)
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(generate, "measure_run", measure_run)
    options = replace(TINY, lengths=(100,), batches=(1,))
    found = measure(options, report=lambda line: None)
    rows = [row for row in found.rows if row["kind"] in ("run", "t0")]
    assert len(rows) == len(measured) == 4
    assert all(row["refused"] == "no room" for row in rows)
    assert "not measured: no room" in describe(rows[0])
    text = [cell for table in tables(rows) for cells in table.cells for cell in cells]
    assert "not measured: no room" in text


def test_nothing_is_begun_behind_the_time_limit(monkeypatch):
    monkeypatch.setattr(generate.time, "perf_counter", iter(range(0, 10_000, 40)).__next__)
    monkeypatch.setattr(generate, "measure_run", lambda *_: pytest.fail("was begun"))
    options = replace(TINY, lengths=(100,), batches=(1,), time_limit=30)
    rows = measure(options, report=lambda line: None).rows[2:]
    assert len(rows) == 4
    assert all(row["refused"] == "not begun within the time limit of 30 s" for row in rows)
    assert options.config() == replace(options, time_limit=None).config()


def test_results_are_kept_drawn_and_printed_as_json_on_request(tmp_path, capsys, prints):
    words = ["bench", "generate", "tiny", "--lengths", "200", "--new-tokens", "3", "--dtype"]
    words += ["float32", "--no-compile", "--repeats", "1", "--output", str(tmp_path)]
    words += ["--recipes", "full,naive window=32 sink_tokens=8"]
    printed = prints(*words).splitlines()
    kept = sorted(path.suffix for path in tmp_path.glob("generate/*"))
    assert kept == [".json", ".png"]
    loaded = results.load(next(tmp_path.glob("generate/*.json")))
    assert printed[-1].startswith("kept in ")
    assert loaded.config["recipes"]["naive window=32 sink_tokens=8"]["window"] == 32
    assert any(line.startswith("   200") and "naive window=32" in line for line in printed)
    assert loaded.provenance.model_revision == "random weights"
    assert cli.main([*words, "--json"]) == 0
    again = capsys.readouterr()
    assert "measured on" in again.err
    assert json.loads(again.out)["rows"] == list(loaded.rows)


def test_knobs_take_lists_of_layers(tmp_path, monkeypatch):
    def measure(options, **_):
        measured.update(options.recipes)
        raise ValueError("measures")

    measured = {}
    monkeypatch.setattr(generate, "measure", measure)
    words = ["bench", "generate", "tiny", "--output", str(tmp_path), "--recipes"]
    cli.main([*words, "fast full_layers=1, 3 window=512,full, fast full_decode=0,2,balanced"])
    layers = "fast full_layers=1,3 window=512"
    assert list(measured) == [layers, "full", "fast full_decode=0,2", "balanced"]
    assert measured[layers].full_layers == (1, 3)
    assert measured[layers].window == 512
    assert measured["fast full_decode=0,2"].full_decode == (0, 2)


def test_what_takes_minutes_is_said_before_it_begins(tmp_path, capsys, monkeypatch):
    def make_model(name, **_):
        said = capsys.readouterr().err.splitlines()
        assert said[0].startswith("swaa bench generate: torch sees no GPU: this measures the CPU")
        assert "says nothing about any GPU" in said[0]
        assert said[1:] == [f"swaa bench generate: building {name} with random weights"]
        return made(name, **_)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    made = generate.make_model
    monkeypatch.setattr(generate, "make_model", make_model)
    words = ["bench", "generate", "tiny", "--lengths", "100,150", "--new-tokens", "2", "--dtype"]
    words += ["float32", "--no-compile", "--repeats", "1", "--output", str(tmp_path)]
    assert cli.main([*words, "--recipes", "naive window=32"]) == 0
    said = [line.split(": ", 1)[1] for line in capsys.readouterr().err.splitlines()]
    assert said[0] == "timing stock attention: prefill, 150 keys"
    assert "timing SDPA masked" in said
    assert "timing stock attention: decode, 150 keys" in said
    assert [line for line in said if line.startswith("row ")] == [
        "row 1 of 6: no attention, 100 tokens, batch 1",
        "row 2 of 6: stock, 100 tokens, batch 1",
        "row 3 of 6: naive window=32, 100 tokens, batch 1",
        "row 4 of 6: no attention, 150 tokens, batch 1",
        "row 5 of 6: stock, 150 tokens, batch 1",
        "row 6 of 6: naive window=32, 150 tokens, batch 1",
    ]


def test_recipes_that_are_full_attention_at_a_length_are_named():
    near = SWAAConfig(window=90, sink_tokens=14)  # 104 keys: the answer's last ones don't fit
    recipes = {"full": SWAAConfig(window=None), **TINY.recipes, "near": near}
    assert seen_whole(replace(TINY, recipes=recipes)) is None
    recipes |= {"near": replace(near, full_decode=True), "wide": replace(near, window=91)}
    assert seen_whole(replace(TINY, recipes=recipes)) == (
        "near and wide see everything at 100 tokens: it is full attention there, and ratios to"
        " stock are noise"
    )
    recipes["wide"] = SWAAConfig(window=2048)
    assert seen_whole(replace(TINY, recipes=recipes)) == (
        "near sees everything at 100 tokens; wide sees everything at 100 and 300 tokens: it is full"
        " attention there, and ratios to stock are noise"
    )


def test_a_window_that_never_binds_is_said_before_it_begins(tmp_path, capsys, monkeypatch):
    def measure(*_, **__):
        raise ValueError("measures")

    monkeypatch.setattr(generate, "measure", measure)
    words = ["bench", "generate", "tiny", "--lengths", "256,1024", "--output", str(tmp_path)]
    assert cli.main([*words, "--recipes", "fast"]) == 2
    said = capsys.readouterr().err.splitlines()
    assert said[0].startswith("swaa bench generate: fast sees everything at 256 and 1,024 tokens")
    assert len(said) == 2


def test_a_checkpoint_is_loaded_not_built(monkeypatch):
    def make_model(name, **_):
        raise ValueError("no such folder")

    monkeypatch.setattr(generate, "make_model", make_model)
    said = []
    with pytest.raises(ValueError, match="no such folder"):
        measure(replace(TINY, model="my-model"), progress=said.append)
    assert said[-1] == "loading my-model"


def test_a_plot_of_nothing_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="nothing was measured"):
        plot_generate([{"kind": "run", "refused": "x"}], tmp_path / "x.png", title="")


def test_columns_say_what_the_rows_hold(result):
    made = {table.title.split()[0]: table for table in tables(result.rows)}
    assert list(made) == ["Seconds", "Milliseconds", "Memory"]  # no rates without a GPU
    for table in made.values():
        assert all(len(cells) == len(table.headers) for cells in table.cells)
    row = next(row for row in result.rows if row.get("setting") == "sliding")
    cells = next(cells for cells in made["Seconds"].cells if cells[2] == "sliding")
    assert cells[3] == f"{row['first_token_s']['p50']:.3f}"
    assert cells[8] == f"{row['first_token_of_limit']:.0%}"
    rest = {**row, "kind": "t0", "matmul_s": 0.25, "weights_s": 0.001}
    rest |= {"first_token_s": {"p50": 0.5}, "per_token_s": {"p50": 0.002}}
    (table,) = tables([rest])
    assert table.cells == [("100", "1", "0.500", "0.250", "50%", "2.00", "1.00", "50%")]
    assert "matrix products 0.250 s, weights 1.00 ms" in describe(
        {key: value for key, value in rest.items() if not key.startswith("first_token_")}
        | {"first_token_s": {"p50": 0.5}}
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--recipes", "fsat"], "unknown recipe 'fsat'"),
        (["--recipes", "fast widow=3"], "'widow=3' is not a knob; write one of window"),
        (["--recipes", "fast widow=3,5"], "'widow=3,5' is not a knob"),
        (["--recipes", "3,fast"], "unknown recipe '3'"),
        (["--recipes", "fast, fast"], "--recipes fast, fast names fast twice"),
        (["--recipes", "stock"], "unknown recipe"),
        (["--lengths", "8q"], "--lengths 8q: expected whole numbers"),
        (["--chunk", "0"], "--chunk 0: expected a whole number of at least 1"),
        (["--new-tokens", "1"], "the time per token needs at least 2"),
        (["--dtype", "int8"], "dtype is 'int8'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_a_mistake_is_one_line_and_exit_code_2(words, message, refusal):
    assert message in refusal("bench", "generate", "tiny", *words)


def test_the_names_of_the_other_rows_are_taken():
    with pytest.raises(ValueError, match="are measured anyway"):
        replace(TINY, recipes={STOCK: SLIDING})


def test_a_checkpoints_path_stays_out_of_the_result(tmp_path):
    options = Options(model=str(tmp_path / "my-model"), recipes={})
    assert options.config()["model"] == "my-model"
    assert Options(model="tiny", recipes={}).config()["model"] == "tiny"
