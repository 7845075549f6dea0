import importlib.util

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from swaa import models as swaa_models
from swaa.gguf_reading import read_once
from swaa.models import EMBEDDED_INSTALL, load_model
from tests.gguf_file import CONTEXT, write_gguf


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    config = LlamaConfig(
        vocab_size=16,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def tokenized(checkpoint, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenized")
    for path in checkpoint.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    words = Tokenizer(models.WordLevel({"a": 0, "b": 1, "?": 2}, unk_token="?"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="?").save_pretrained(folder)
    return folder


def test_folder_gives_model_in_eval_mode_and_tokenizer(tokenized):
    loaded = load_model(str(tokenized), dtype="bfloat16", device="cpu")
    assert loaded.model.dtype == torch.bfloat16
    assert not loaded.model.training
    assert loaded.tokenizer("a b")["input_ids"] == [0, 1]
    assert loaded.trained_context == 64
    assert loaded.name == tokenized.name


def test_folder_without_tokenizer(checkpoint):
    with pytest.raises(ValueError, match="has no tokenizer"):
        load_model(str(checkpoint))


@pytest.mark.parametrize("name", ["./nothing", "/no/such/folder", "model.gguf", "a/b/c"])
def test_missing_path(name):
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        load_model(name)


def test_empty_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"neither config\.json nor a GGUF file"):
        load_model(str(tmp_path))


def test_folder_of_several_gguf_files(tmp_path):
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).touch()
    with pytest.raises(ValueError, match=r"2 GGUF files; name one: a\.gguf, b\.gguf"):
        load_model(str(tmp_path))


def test_file_of_another_kind(tmp_path):
    (tmp_path / "model.bin").touch()
    with pytest.raises(ValueError, match=r"expected a folder, a \.gguf file or a hub name"):
        load_model(str(tmp_path / "model.bin"))


def test_broken_gguf_is_one_line(tmp_path):
    pytest.importorskip("gguf", reason="needs the extra gguf")
    (tmp_path / "broken.gguf").write_bytes(b"GGUF nothing")
    with pytest.raises(ValueError, match="cannot load the tokenizer of") as caught:
        load_model(str(tmp_path / "broken.gguf"))
    assert "\n" not in str(caught.value)


def test_unknown_dtype_and_device(tokenized):
    with pytest.raises(ValueError, match="dtype is 'int3'; expected auto, float32"):
        load_model(str(tokenized), dtype="int3")
    with pytest.raises(ValueError, match="device is 'abacus'"):
        load_model(str(tokenized), device="abacus")
    with pytest.raises(ValueError, match="this machine has"):
        load_model(str(tokenized), device="cuda:99")


def test_weights_that_do_not_fit(tokenized, monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")

    monkeypatch.setattr(LlamaForCausalLM, "to", full)
    with pytest.raises(ValueError, match=r"the weights of \S+ on cpu; load them in 16 bits, or"):
        load_model(str(tokenized), device="cpu")


def test_embedded_model_absent_names_the_pip_line(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=EMBEDDED_INSTALL):
        load_model("smollm2")


def test_gguf_package_absent_names_the_pip_line(monkeypatch, tmp_path):
    (tmp_path / "a.gguf").touch()
    monkeypatch.setattr(swaa_models.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install '.\[gguf\]'"):
        load_model(str(tmp_path / "a.gguf"))


def test_gguf_is_dequantised(tmp_path):
    pytest.importorskip("gguf", reason="needs the extra gguf")
    loaded = load_model(str(write_gguf(tmp_path / "tiny.gguf")), device="cpu")
    assert (loaded.name, loaded.revision, loaded.trained_context) == ("tiny.gguf", None, CONTEXT)
    assert type(loaded.model.model.layers[0].mlp.up_proj) is torch.nn.Linear
    assert loaded.model.dtype == torch.float32
    assert loaded.tokenizer.convert_ids_to_tokens(loaded.tokenizer("cab")["input_ids"]) == [
        "c",
        "ab",
    ]


def test_name_that_the_hub_does_not_serve(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match=r"nobody/nothing \(no such folder here, so the hub's\)"):
        load_model("nobody/nothing")


def test_a_gguf_file_is_read_once_and_as_gguf_reads_it(tmp_path, monkeypatch):
    gguf = pytest.importorskip("gguf", reason="needs the extra gguf")
    path = write_gguf(tmp_path / "tiny.gguf")
    read, names, reads = gguf.GGUFReader, gguf.get_tensor_name_map, []
    begin = read.__init__
    monkeypatch.setattr(read, "__init__", lambda *given: reads.append(begin(*given)))
    load_model(str(path), device="cpu")
    assert len(reads) == 1
    assert (gguf.GGUFReader, gguf.get_tensor_name_map) == (read, names)
    with read_once():
        ours = gguf.GGUFReader(path)
    theirs = read(path)
    assert list(ours.fields) == list(theirs.fields)
    assert all(
        ours.fields[name].contents() == theirs.fields[name].contents() for name in ours.fields
    )
    for mine, stock in zip(ours.tensors, theirs.tensors, strict=True):
        assert (mine.name, mine.tensor_type) == (stock.name, stock.tensor_type)
        assert (mine.data == stock.data).all()
