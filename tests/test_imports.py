"""Who may import whom: attention no options, backends not each other, and nothing in a ring."""

import ast
from pathlib import Path

import pytest

import swaa

ROOT = Path(swaa.__file__).parent
BACKENDS = {"reference", "sdpa", "fa4", "triton"}


def _modules(folder):
    return sorted(path.relative_to(ROOT) for path in (ROOT / folder).rglob("*.py"))


def _imports(path):
    """Absolute names of everything a file imports from swaa: at its top, inside functions, for
    types only, or by ``importlib.import_module``."""
    package = ("swaa", *path.parent.parts)
    for node in ast.walk(ast.parse((ROOT / path).read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*base, *filter(None, [node.module])])
            yield from (f"{module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "importlib.import_module":
            yield from (one.value for one in node.args if isinstance(one, ast.Constant))


def _within(name, module):
    return name == module or name.startswith(f"{module}.")


@pytest.mark.parametrize("path", _modules("attention"), ids=str)
def test_attention_knows_neither_options_nor_integrations(path):
    above = {"config", "layers", "adaptation", "integrations", "cli", "recipes", "plan", "phase"}
    for name in _imports(path):
        assert name != "swaa.SWAAConfig"
        assert not any(_within(name, f"swaa.{module}") for module in above), f"{path}: {name}"


def _backend(path):
    """The backend that a file of attention/ is part of, or None."""
    name = path.parts[1].removesuffix(".py").partition("_")[0]
    return name if name in BACKENDS else None


@pytest.mark.parametrize(
    "path", [path for path in _modules("attention") if _backend(path)], ids=str
)
def test_backends_never_import_one_another(path):
    others = BACKENDS - {_backend(path)}
    for name in _imports(path):
        assert not any(_within(name, f"swaa.attention.{other}") for other in others), name


@pytest.mark.parametrize(
    "path", [path for path in _modules(".") if path.parts[0] not in ("cli", "__main__.py")], ids=str
)
def test_only_the_command_line_imports_the_command_line(path):
    assert not any(_within(name, "swaa.cli") for name in _imports(path))


@pytest.mark.parametrize("path", _modules("cli"), ids=str)
def test_the_command_line_imports_what_is_heavy_inside_functions(path):
    light = ("swaa.cli", "swaa.config", "swaa.heads", "swaa.layers", "swaa.__version__")
    light += ("swaa.recipes.DEFAULT",)
    tree = ast.parse((ROOT / path).read_text("utf-8"))
    for node in tree.body:
        if isinstance(node, ast.ImportFrom):
            assert node.module != "torch"
            assert node.module.split(".")[0] != "transformers"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            ours = [name for name in names if _within(name, "swaa")]
            assert all(any(_within(name, part) for part in light) for name in ours), ours


def _module(path):
    parts = path.with_suffix("").parts
    return ".".join(["swaa", *(parts[:-1] if parts[-1] == "__init__" else parts)])


def _package(module):
    """A folder right below swaa, or a file there."""
    return ".".join(module.split(".")[:2])


def _graph():
    """Which files each file imports."""
    paths = {_module(path): path for path in _modules(".")}

    def target(name):
        return name if name in paths else name.rpartition(".")[0]

    return {
        module: {target(name) for name in _imports(path)} & paths.keys() - {module}
        for module, path in paths.items()
    }


def _rings(graph):
    """Each first ring found from a node, as the nodes on it."""
    done, way = set(), []

    def walk(node):
        if node in way:
            yield way[way.index(node) :]
        elif node not in done:
            way.append(node)
            for other in sorted(graph.get(node, ())):
                yield from walk(other)
            way.pop()
            done.add(node)

    return [ring for node in sorted(graph) for ring in list(walk(node))]


def test_no_file_imports_itself_by_way_of_others():
    """Not even inside functions: a late import would only hide the ring."""
    assert not _rings(_graph())


def test_no_package_imports_itself_by_way_of_others():
    between = {}
    for module, imported in _graph().items():
        others = {_package(name) for name in imported} - {_package(module)}
        between.setdefault(_package(module), set()).update(others)
    assert not _rings(between)


def test_a_ring_is_found():
    assert _rings({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}})
