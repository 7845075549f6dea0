"""A model spread by accelerate answers as on one device; on a CPU, spread over memory and disk."""

import importlib.util

import pytest

from swaa.config import SWAAConfig
from swaa.evaluation.engines import Request, make_batches
from swaa.evaluation.engines.transformers import TransformersEngine
from swaa.evaluation.sources import LocalModel
from swaa.models import load_model
from tests.evaluation.fakes import make_run, make_samples

SPREAD = {
    "model.embed_tokens": "cpu",
    "model.rotary_emb": "cpu",
    "model.layers.0": "disk",
    "model.layers.1": "cpu",
    "model.norm": "disk",
    "lm_head": "disk",
}
FULL = SWAAConfig(window=None)
FAST = SWAAConfig(window=16, sink_tokens=2, full_decode=True, dense_tail=4)
FREEING = SWAAConfig(window=16, sink_tokens=2, dense_tail=4)


@pytest.fixture(scope="module")
def models(checkpoint):
    spread = load_model(str(checkpoint), device_map=SPREAD)
    assert spread.devices == ("cpu", "disk")
    on_disk = spread.model.model.layers[0].self_attn.q_proj.weight
    assert on_disk.device.type == "meta"  # brought by a hook for each pass
    return load_model(str(checkpoint), device="cpu"), spread


@pytest.mark.parametrize("chunk", [None, 20])
@pytest.mark.parametrize("config", [FULL, FAST, FREEING], ids=["full", "fast", "freeing"])
def test_answers_and_likelihoods_are_those_of_one_device(models, config, chunk):
    ids = tuple(range(5, 95))
    requests = [
        Request(id=str(tokens), ids=ids[:tokens], content="", max_new_tokens=8)
        for tokens in (90, 41, 70)
    ]
    found = []
    for loaded in models:
        with TransformersEngine(loaded, config, chunk=chunk) as engine:
            replies = list(engine.answer(make_batches(requests, 2)))
            (nll,) = engine.read([(ids, 60)])
        found.append(([(reply.id, reply.ids) for reply in replies], nll.tolist()))
    assert found[0] == found[1]


def test_the_record_names_every_device(models, prompt, checkpoint, tmp_path):
    from swaa.evaluation.run import execute

    plain, spread = (LocalModel(loaded, str(checkpoint)) for loaded in models)
    assert (plain.device, spread.device) == ("cpu", "cpu,disk")
    recorded = []
    for source in (plain, spread):
        run = make_run(prompt, count=1, config=FULL, length=600)
        with source.engine(FULL) as engine:
            outcome = execute(
                run, make_samples(run), engine, folder=tmp_path / source.device,
                device=source.device,
            )  # fmt: skip
        recorded.append(outcome.result.provenance.device)
    assert recorded[1] == f"{recorded[0]}, disk"


def test_the_flag_of_swaa_eval(checkpoint, monkeypatch, tmp_path, prints):
    monkeypatch.chdir(tmp_path)
    words = ["--tasks", "needle", "--lengths", "600", "--samples", "1", "--recipes", "full"]
    flags = ([], ["--device-map", "auto", "--results", "other"])
    tables = [prints("eval", checkpoint, *words, *flag).split() for flag in flags]
    times = tables[0].index("full") + 9
    assert tables[0][:times] == tables[1][:times]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device_map": "everywhere"}, "device map is 'everywhere'; expected auto, balanced"),
        ({"device_map": "auto", "device": "cpu"}, "leave the device cpu out"),
    ],
    ids=["unknown", "device too"],
)
def test_mistakes(checkpoint, options, message):
    with pytest.raises(ValueError, match=message):
        load_model(str(checkpoint), **options)


def test_without_accelerate(checkpoint, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "accelerate" else find(name)
    )
    with pytest.raises(ImportError, match="a device map needs accelerate; run: pip install"):
        load_model(str(checkpoint), device_map="auto")
