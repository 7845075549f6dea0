"""Every document: links lead somewhere, code is code, and pages list what there is."""

import ast
import dataclasses
import importlib
import itertools
import json
import re

import pytest

from swaa.cli import VERBS
from swaa.config import AUTHORS_KEYS, SWAAConfig
from swaa.layers import RULES
from tests.documents import NAMES, ROOT, anchors, fences, links, prose, read

LANGUAGES = {"bash", "python", "json", "text"}


def _has(target, anchor):
    return not anchor or anchor in anchors(target.resolve().relative_to(ROOT))


@pytest.mark.parametrize("page", NAMES)
def test_links_and_anchors_lead_somewhere(page):
    missing = []
    for link in links(page):
        path, _, anchor = link.partition("#")
        target = (ROOT / page).parent / path if path else ROOT / page
        if not target.exists() or not _has(target, anchor):
            missing.append(link)
    assert missing == []


@pytest.mark.parametrize("page", NAMES)
def test_every_block_is_fenced_and_names_its_language(page):
    assert read(page).count("```") == 2 * len(fences(page))
    assert {language for language, _ in fences(page)} <= LANGUAGES
    text = prose(page).splitlines()
    indented = [
        line for before, line in itertools.pairwise(text)
        if not before.strip() and re.match(r"    \S", line)
    ]  # fmt: skip
    assert indented == []


@pytest.mark.parametrize("page", NAMES)
def test_python_imports_what_there_is(page):
    for language, block in fences(page):
        if language != "python":
            continue
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and node.module != "vllm":
                module = importlib.import_module(node.module)
                assert all(hasattr(module, alias.name) for alias in node.names), block


@pytest.mark.parametrize("page", NAMES)
def test_json_is_json(page):
    for language, block in fences(page):
        if language == "json":
            json.loads(block)


def test_every_page_is_on_the_map():
    mapped = {(ROOT / "docs" / link).resolve() for link in links("docs/index.md")}
    pages = {(ROOT / page).resolve() for page in NAMES if page.startswith("docs/")}
    assert pages - mapped == {(ROOT / "docs/index.md").resolve()}


def test_every_verb_knob_and_rule_is_in_the_reference():
    commands, knobs = read("docs/reference/commands.md"), read("docs/reference/configuration.md")
    assert [verb for verb in VERBS if f"| `swaa {verb}` |" not in commands] == []
    fields = [field.name for field in dataclasses.fields(SWAAConfig)]
    assert [name for name in fields if f"| `{name}` |" not in knobs] == []
    assert [
        f"{key} {ours}" for key, ours in AUTHORS_KEYS.items() if f"| `{key}` |" not in knobs
    ] == []
    rules = [rule.strip() for rule in RULES.partition(" (")[0].split(",")]
    assert [rule for rule in rules if f"`{rule}`" not in knobs] == []


def test_the_tree_names_what_is_there():
    tree = read("docs/architecture.md").split("## What lies where")[1]
    names = re.findall(r"^  ([\w., /]+?)  ", tree, flags=re.MULTILINE)
    files = [name.strip() for entry in names for name in entry.split(",")]
    assert len(files) > 10
    assert [name for name in files if name and not (ROOT / "src/swaa" / name).exists()] == []
