"""What pip installs: every file that the code reads, and nothing else, in a wheel that works."""

import email
import itertools
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import swaa

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "src" / "swaa"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
PAPERS = ("pyproject.toml", "MANIFEST.in", "README.md", "LICENSE", "CHANGELOG.md")
BUILD = "import setuptools.build_meta as b, sys; getattr(b, f'build_{sys.argv[1]}')(sys.argv[2])"

NEXT_TO_VLLM = {
    "0.32.0": {"torch": "2.13.0", "transformers": "5.19.0"},
    "0.33.0": {"torch": "2.14.0", "transformers": "5.20.0"},
}
"""What the metadata of vLLM's wheels ask for exactly, or the newest minor version they allow."""
PINNED_BY_BOTH = {"nvidia-cutlass-dsl": "4.8.0", "quack-kernels": "0.6.5"}


def _files(folder):
    return {
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and "egg-info" not in str(path)
    }


def _build(kind, source, target):
    pytest.importorskip("setuptools", reason="needs setuptools: pip install --group dev")
    command = [sys.executable, "-c", BUILD, kind, str(target)]
    subprocess.run(command, cwd=source, check=True, capture_output=True, text=True)


@pytest.fixture(scope="module")
def sdist(tmp_path_factory):
    """The sdist of a copy of the tree, tests included, so that nothing is written here."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    for name in PAPERS:
        shutil.copy(ROOT / name, source)
    for name in ("src", "tests"):
        ignore = shutil.ignore_patterns("__pycache__", "*.egg-info")
        shutil.copytree(ROOT / name, source / name, ignore=ignore)
    _build("sdist", source, target)
    (file,) = target.iterdir()
    return file


@pytest.fixture(scope="module")
def wheel(sdist, tmp_path_factory):
    """The wheel, built from the sdist as an installer would."""
    unpacked, target = tmp_path_factory.mktemp("unpacked"), tmp_path_factory.mktemp("wheel")
    with tarfile.open(sdist) as archive:
        archive.extractall(unpacked, filter="data")
    (folder,) = unpacked.iterdir()
    _build("wheel", folder, target)
    (file,) = target.iterdir()
    return file


def test_every_data_file_is_named_as_package_data():
    patterns = PROJECT["tool"]["setuptools"]["package-data"]["swaa"]
    packed = {path for pattern in patterns for path in PACKAGE.glob(pattern)}
    data = {
        path
        for path in PACKAGE.rglob("*")
        if path.is_file() and path.suffix != ".py" and "__pycache__" not in path.parts
    }
    assert data - packed == set()


def test_the_version_is_written_down_twice_alike():
    assert PROJECT["project"]["version"] == swaa.__version__


def test_the_sdist_holds_the_package_and_its_papers(sdist):
    head = f"swaa-{swaa.__version__}/"
    with tarfile.open(sdist) as archive:
        names = {one.name.removeprefix(head) for one in archive.getmembers() if one.isfile()}
    names = {name for name in names if "egg-info" not in name}
    package = {f"src/swaa/{name}" for name in _files(PACKAGE)}
    assert names == {*PAPERS, *package, "PKG-INFO", "setup.cfg"}


def test_the_wheel_holds_the_package_and_says_what_it_is(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        about = f"swaa-{swaa.__version__}.dist-info"
        metadata = email.message_from_bytes(archive.read(f"{about}/METADATA"))
        scripts = archive.read(f"{about}/entry_points.txt").decode()
        assert archive.read(f"{about}/licenses/LICENSE") == (ROOT / "LICENSE").read_bytes()
    assert names == {f"swaa/{name}" for name in _files(PACKAGE)}
    assert {"swaa/py.typed", "swaa/recipes/selected.json"} <= names
    assert wheel.name == f"swaa-{swaa.__version__}-py3-none-any.whl"
    assert "Typing :: Typed" in metadata.get_all("Classifier", [])
    assert set(metadata.get_all("Provides-Extra", [])) == set(
        PROJECT["project"]["optional-dependencies"]
    )
    assert "swaa = swaa.cli:main" in scripts
    assert "swaa = swaa.integrations.vllm.plugin:register" in scripts
    assert "swaa = swaa.integrations.sglang.plugin:register" in scripts


def _without_pythonpath():
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """A new venv with the wheel; of this interpreter's packages it sees all but swaa."""
    pytest.importorskip("pip", reason="needs pip in this environment")
    folder = tmp_path_factory.mktemp("venv")
    venv.create(folder, with_pip=False)
    bin = folder / ("Scripts" if os.name == "nt" else "bin")
    words = ["--python", str(bin / "python"), "install", "--no-deps", "--no-index", str(wheel)]
    # pip takes a checkout on PYTHONPATH for an installed swaa, and would install nothing.
    command = [sys.executable, "-m", "pip", *words]
    subprocess.run(command, check=True, capture_output=True, env=_without_pythonpath())
    paths = {"base": str(folder), "platbase": str(folder)}
    site = Path(sysconfig.get_path("purelib", "venv", vars=paths))
    # A path in a .pth file: the .pth files there, an editable swaa's among them, are not read.
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return bin


def test_the_wheel_works_without_the_repository(installed, tmp_path):
    def said(*command):
        options = {
            "cwd": tmp_path,
            "env": _without_pythonpath(),
            "capture_output": True,
            "text": True,
        }
        done = subprocess.run([str(installed / command[0]), *command[1:]], **options)
        assert done.returncode == 0, done.stderr
        return done.stdout

    where = said("python", "-c", "import swaa; print(swaa.__file__)")
    assert Path(where.strip()).is_relative_to(installed.parent)
    assert "verbs:" in said("swaa", "--help")
    assert said("swaa", "--version") == f"swaa {swaa.__version__}\n"
    assert said("swaa", "recipes").startswith("Start with 'selected'")


@pytest.mark.parametrize("version", NEXT_TO_VLLM)
def test_every_extra_installs_next_to_vllm(version):
    there = {"vllm": version, **NEXT_TO_VLLM[version], **PINNED_BY_BOTH}
    project = PROJECT["project"]
    asked = itertools.chain(project["dependencies"], *project["optional-dependencies"].values())
    judged = [one for one in map(Requirement, asked) if one.name in there]
    assert {one.name for one in judged} == set(there)
    assert [str(one) for one in judged if not one.specifier.contains(there[one.name])] == []
