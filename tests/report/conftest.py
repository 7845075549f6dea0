"""A browser and the pages it opens; without a Chromium their tests are skipped, with the reason."""

import shutil

import pytest

from swaa.report import write_report
from tests.documents import ROOT
from tests.report import runs
from tests.report.browser import Browser, find_chromium


@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    executable = find_chromium()
    if executable is None:
        pytest.skip("no Chromium: apt-get install chromium, or name one in CHROMIUM")
    browser = Browser(executable, tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


@pytest.fixture(scope="session")
def pages(tmp_path_factory):
    """Pages by what they show: every kind of run, the committed results, nothing."""
    folder = tmp_path_factory.mktemp("pages")
    runs.write(runs.all_runs(), folder / "results")
    (folder / "empty").mkdir()
    # A copy: whoever measures meanwhile changes the original.
    shutil.copytree(ROOT / "results", folder / "committed")
    sources = {"all": folder / "results"} | {n: folder / n for n in ("committed", "empty")}
    return {
        name: write_report(source, folder / f"{name}.html").path for name, source in sources.items()
    }


@pytest.fixture
def page(browser, pages):
    browser.open(pages["all"])
    yield browser
    assert browser.console == []
    assert [url for url in browser.requests if not url.startswith("file:")] == []
