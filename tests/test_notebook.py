"""The notebook under examples/ runs from top to bottom, and shows what its text says."""

import json

import pytest

from tests.documents import ROOT

CELLS = json.loads((ROOT / "examples/first_steps.ipynb").read_text("utf-8"))["cells"]
CODE = ["".join(cell["source"]) for cell in CELLS if cell["cell_type"] == "code"]


def test_it_is_saved_without_outputs():
    kept = [cell for cell in CELLS if cell.get("outputs") or cell.get("execution_count")]
    assert kept == []


@pytest.mark.slow
@pytest.mark.usefixtures("smollm2_at_hand")
def test_every_cell_runs_and_says_what_the_text_promises(capsys):
    space, said = {}, []
    for number, code in enumerate(CODE):
        exec(compile(code, f"cell {number}", "exec"), space)
        said.append(capsys.readouterr().out)
    adapted, lost, found, costs, restored = said
    assert adapted.startswith("adapted 30 of 30 layers: window 128, 0 sinks, backend")
    assert lost.startswith("411 tokens: ")
    assert "4711" not in lost
    assert "4711" in found
    assert found.splitlines()[-1] == "128 0"  # the plain window is active again
    shares = dict(line.split() for line in costs.splitlines())
    assert shares["full"] == "100%"
    assert int(shares["fast"].rstrip("%")) < int(shares["selected"].rstrip("%")) < 100
    assert restored == "False\n"
