import argparse
import json
import re
import subprocess
import sys
import types
import warnings

import pytest
import transformers

import swaa
from swaa import cli
from swaa.cli import options
from swaa.cli.options import add_config_options, config_from, name_from
from swaa.config import SWAAConfig
from swaa.recipes import list_recipes, load_recipe
from tests.documents import read

HEAVY = ("torch", "transformers", "triton", "vllm", "sglang", "trl", "datasets")


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """Folder of a model's configuration, without weights, under the working directory."""
    monkeypatch.chdir(tmp_path)
    config = transformers.LlamaConfig(
        vocab_size=96,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=4096,
    )
    config.save_pretrained("tiny")
    return "tiny"


def _options(*words):
    parser = argparse.ArgumentParser()
    add_config_options(parser)
    return parser.parse_args(words)


@pytest.mark.parametrize("code", ["import swaa", "import swaa.cli; swaa.cli.main(['--help'])"])
def test_nothing_heavy_is_imported_before_it_is_needed(code):
    check = f"{code}; import sys; print([m for m in {HEAVY} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_python_m_swaa_is_the_command():
    command = [sys.executable, "-m", "swaa", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == f"swaa {swaa.__version__}\n"


def test_version_help_and_no_verb(capsys, prints):
    assert prints("--version") == f"swaa {swaa.__version__}\n"
    assert cli.main([]) == cli.main(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(verb in out for verb in cli.VERBS)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["plna"], "swaa: unknown verb 'plna'; did you mean 'plan'? (known: "),
        (["--nope"], "swaa: unrecognized arguments: --nope (see 'swaa --help')"),
        (["plan"], "swaa plan: the following arguments are required: MODEL (see 'swaa plan --hel"),
        (
            ["plan", "tiny", "--prompt", "9"],
            "swaa plan: unrecognized arguments: --prompt 9; did you mean --prompt-length?"
            " (see 'swaa plan --help')",
        ),
        (["plan", "tiny", "--widnow", "9"], "swaa plan: unrecognized arguments: --widnow 9; did"),
        (["plan", "tiny", "--zzz"], "swaa plan: unrecognized arguments: --zzz (see 'swaa plan"),
        (["bench", "kernels", "--head", "2"], "swaa bench kernels: unrecognized arguments: --head"),
        (["serve", "--widnow", "9", "m"], "swaa serve: unrecognized arguments: --widnow"),
        (["plan", "tiny", "--batch", "x"], "swaa plan: argument --batch: 'x': expected a whole nu"),
        (["plan", "tiny", "--batch", "4kb"], "swaa plan: argument --batch: '4kb': expected a wh"),
        (["plan", "no/such.gguf"], "swaa plan: no such file or folder: no/such.gguf"),
        (["plan", "tiny", "--recipe", "fst"], "swaa plan: unknown recipe 'fst'; did you mean 'fa"),
        (["plan", "tiny", "--recipe", "x.json"], "swaa plan: no recipe file x.json; give"),
        (["plan", "tiny", "--window", "0"], "swaa plan: --window 0: expected a whole number of at"),
        (["plan", "tiny", "--sink-tokens", "-1"], "swaa plan: --sink-tokens -1: expected a whole"),
        (["plan", "tiny", "--prompt-length", "0"], "swaa plan: prompt_length is 0; expected at"),
        (["plan", "tiny", "--dtype", "fp8"], "swaa plan: a cache of 'fp8' cannot be priced; give"),
        (
            ["plan", "tiny", "--recipes", "fast,fast"],
            "swaa plan: --recipes fast,fast names fast tw",
        ),
        (
            ["plan", "tiny", "--recipes", "full", "--window", "8"],
            "swaa plan: --window would do not",
        ),
        (["plan", "tiny", "--recipes", "full", "--recipe", "fast"], "swaa plan: --recipe and --re"),
        (["plan", "tiny", "--gpu-memory", "0"], "swaa plan: --gpu-memory 0.0: expected GiB, a nu"),
        (["recipes", "fst"], "swaa recipes: unknown recipe 'fst'; did you mean 'fast'? Give one"),
    ],
    ids=" ".join,
)
def test_a_mistake_is_one_line_and_code_2(words, message, tiny, capsys):
    assert cli.main(words) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(message)
    assert captured.err.count("\n") == 1
    assert captured.out == ""


def _verb(monkeypatch, run):
    module = types.ModuleType("swaa.cli.env")
    module.register = lambda subparsers: subparsers.add_parser("env")
    module.run = run
    monkeypatch.setitem(sys.modules, "swaa.cli.env", module)


def test_errors_of_several_lines_become_one_and_bugs_keep_their_traceback(monkeypatch, capsys):
    def missing(_args):
        raise ImportError("needs a package;\n  run: pip install 'swaa[x]'")

    _verb(monkeypatch, missing)
    assert cli.main(["env"]) == 2
    assert capsys.readouterr().err == "swaa env: needs a package; run: pip install 'swaa[x]'\n"
    with pytest.raises(ImportError):
        cli.main(["--traceback", "env"])

    def bug(_args):
        raise ZeroDivisionError

    _verb(monkeypatch, bug)
    with pytest.raises(ZeroDivisionError):
        cli.main(["env"])


def test_interruption_and_warnings_take_one_line(monkeypatch, capsys):
    def run(_args):
        warnings.simplefilter("default")
        warnings.warn("layers 9\ndropped", stacklevel=1)
        raise KeyboardInterrupt

    _verb(monkeypatch, run)
    assert cli.main(["env"]) == 130
    assert capsys.readouterr().err == "swaa: warning: layers 9 dropped\nswaa env: interrupted\n"


@pytest.mark.parametrize(
    ("words", "changes"),
    [
        ([], {}),
        (["--window", "512"], {"window": 512}),
        (["--sink-tokens", "0", "--dense-tail", "7"], {"sink_tokens": 0, "dense_tail": 7}),
        (["--full-layers", "5,1, 3"], {"full_layers": (1, 3, 5)}),
        (["--full-layers", "odd"], {"full_layers": "odd"}),
        (["--full-layers", "none"], {"full_layers": ()}),
        (["--full-decode", "all"], {"full_decode": True}),
        (["--full-decode", "none"], {"full_decode": False}),
        (["--full-decode", "last:1/2"], {"full_decode": "last:1/2"}),
        (["--full-decode", "0"], {"full_decode": (0,)}),
    ],
    ids=" ".join,
)
def test_knobs_override_the_recipe(words, changes):
    base = load_recipe("quality").to_dict()
    config = config_from(_options("--recipe", "quality", *words))
    assert config == SWAAConfig.from_dict(base | changes)


def test_no_window_is_full_attention_whatever_the_recipe():
    assert config_from(_options("--recipe", "quality", "--window", "none")) == SWAAConfig(
        window=None
    )


def test_default_recipe_and_default_configuration():
    assert config_from(_options()) == load_recipe("selected")
    carried = SWAAConfig(window=7)
    assert config_from(_options("--dense-tail", "3"), default=carried).window == 7
    assert config_from(_options("--recipe", "fast"), default=carried) == load_recipe("fast")
    assert name_from(_options()) == "selected"
    words = ("--recipe", "fast", "--window", "512")
    assert name_from(_options(*words)) == "fast window=512"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--window", "two"], "--window two: expected a whole number of at least 1 or none"),
        (["--dense-tail", "none"], "--dense-tail none: expected a whole number of at least 0$"),
        (["--full-layers", "1,x"], "--full-layers: unknown rule '1,x'; choose from all, odd"),
        (["--full-layers", "1,-3"], "--full-layers holds -3; layer indices start at 0"),
        (["--full-decode", "most"], "--full-decode: unknown rule 'most'"),
        (["--recipe", "full", "--sink-tokens", "4"], "--sink-tokens would do nothing: the window"),
        (["--window", "none", "--dense-tail", "4"], "--dense-tail would do nothing"),
    ],
    ids=" ".join,
)
def test_flags_that_cannot_be_read_or_would_be_ignored(words, message):
    with pytest.raises(ValueError, match=message):
        config_from(_options(*words))


def test_plan_prints_layers_totals_and_notes(tiny, prints):
    words = ["plan", tiny, "--recipe", "fast", "--window", "100", "--chunk", "512"]
    words += ["--full-decode", "middle:1/2"]
    lines = prints(*words, "--prompt-length", "5000").splitlines()
    assert lines[0].startswith("tiny: window 100, 128 sinks, full decode in layers middle:1/2")
    sizes = "1 x 5000 prompt tokens in chunks of 512, weights 80.6 KiB, cache in bfloat16"
    assert lines[1] == f"{sizes} (assumed: the checkpoint names no type)"
    assert [line.split()[:2] for line in lines[5:7]] == [["0,3", "sliding"], ["1-2", "full"]]
    ratio = next(line for line in lines if line.startswith("KV once")).split()[-1]
    assert ratio == f"{(2 * 5000 + 2 * 228) / (4 * 5000):.3f}"
    assert "longer than the 4096" in lines[-1]


def test_plan_prints_json(tiny, prints):
    values = json.loads(prints("plan", tiny, "--json"))
    assert (values["model"], values["prompt_length"]) == ("tiny", 4096)
    assert values["config"] == load_recipe("selected").to_dict()
    assert values["ratios"]["kv_steady_bytes"] == 1
    assert len(values["cost"]["layers"]) == 4


def test_plan_takes_the_configuration_that_the_checkpoint_carries(tiny, prints):
    carried = SWAAConfig(window=64, sink_tokens=4)
    config = transformers.AutoConfig.from_pretrained(tiny)
    config.swaa = carried.to_dict()
    config.save_pretrained(tiny)
    assert json.loads(prints("plan", tiny, "--json", "--sink-tokens", "9"))[
        "config"
    ] == carried.to_dict() | {"sink_tokens": 9}
    assert (
        json.loads(prints("plan", tiny, "--json", "--recipe", "fast"))["config"]
        == load_recipe("fast").to_dict()
    )


def test_recipes_lists_cost_and_measurements(prints):
    out = prints("recipes")
    assert out.startswith("Start with 'selected', the nearest to full attention.")
    fast = next(line for line in out.splitlines() if line.startswith("fast "))
    assert fast.split()[:3] == ["fast", "0.51", "1.00"]
    kept = (
        "SmolLM2-135M-Instruct.Q4_1.gguf, 7,500 tokens, window 1,024: multikey 51 of 100 (full 54),"
    )
    assert kept in " ".join(out.split())
    assert "SmolLM2-135M-Instruct" in out
    assert "naive: Do not use it" in out


def test_what_to_start_with_are_recipes_that_the_readme_names_for_the_same():
    from swaa.cli.recipes import START

    named = re.findall(r"'(\w+)'", " ".join(START))
    assert set(named) <= {recipe.name for recipe in list_recipes()}
    choice = read("README.md").split("## Which recipe")[1].split("##")[0]
    told = dict.fromkeys(re.findall(r"`(\w+)`", choice))
    assert named == [name for name in told if name in named]  # in the same order
    assert f"`{named[0]}`" in choice.partition("Start here")[0]


def test_recipes_shows_one_and_prints_json(prints):
    assert "without training it loses most" in " ".join(
        prints("recipes", "paper-trained-efficiency").split()
    )
    recipes = json.loads(prints("recipes", "--json"))
    full = next(recipe for recipe in recipes if recipe["name"] == "full")
    assert set(full["cost"]["ratios"].values()) == {1.0}
    assert (
        json.loads(prints("recipes", "fast", "--json"))["config"] == load_recipe("fast").to_dict()
    )


def test_the_reference_shape_is_that_of_qwen3_4b():
    from swaa.cli.recipes import reference_shape
    from swaa.shapes import shape_of

    config = transformers.Qwen3Config(
        hidden_size=2560,
        intermediate_size=9728,
        num_hidden_layers=36,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=128,
    )
    shape = shape_of(config)
    ours = reference_shape()
    assert (ours.layers, ours.head_weights) == (shape.layers, shape.head_weights)


def test_parts_with_commas():
    assert options.words("needle, multikey ", "--tasks") == ("needle", "multikey")
    assert options.whole_numbers("4_096, 8192", "--lengths") == (4096, 8192)
    for text, reason in (
        ("needle,", "expected names or numbers"),
        ("needle,recall, needle", "names needle twice"),
    ):
        with pytest.raises(ValueError, match=f"--tasks .*{reason}"):
            options.words(text, "--tasks")
    with pytest.raises(ValueError, match=r"--lengths 0,8: expected whole numbers of at least 1"):
        options.whole_numbers("0,8", "--lengths")


@pytest.mark.parametrize(
    ("words", "heading"),
    [
        (["bench", "generate", "qwen3-4b", "--recipes", "ful"], "swaa bench generate: unknown"),
        (["bench", "gen"], "swaa bench: argument WHAT: invalid choice"),
        (["recipes", "ful"], "swaa recipes: unknown"),
        (["--traceback-not"], "swaa: "),
    ],
)
def test_a_mistake_is_headed_by_the_command(capsys, words, heading):
    assert cli.main(words) == 2
    assert capsys.readouterr().err.startswith(heading)


def test_plan_prices_several_recipes_side_by_side(tiny, prints):
    words = ["plan", tiny, "--recipes", "full,fast,naive", "--window", "1k", "--dtype", "fp16"]
    said = prints(*words, "--gpu-memory", "1")
    rows = {line.split()[0]: line for line in said.splitlines() if line and "iB" in line}
    assert rows["full"].split()[5] == "100"
    assert rows["naive"].endswith("left")
    assert "fast: window 1024, 128 sinks, full decode, dense tail 128" in said
    assert prints(*words, "--gpu-memory", "0.000001").count("does not fit, ") == 3
    values = json.loads(prints(*words, "--gpu-memory", "1", "--json"))
    assert [value["recipe"] for value in values] == ["full", "fast", "naive"]
    assert all(value["fits"] and value["dtype"] == "float16" for value in values)


def test_plan_says_whether_one_recipe_fits(tiny, prints):
    said = prints("plan", tiny, "--gpu-memory", "1")
    assert "On 1 GiB, weights and KV at its peak: fits, " in said
    assert "assumed: the checkpoint names no type" in said
