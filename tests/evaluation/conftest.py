import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from swaa import results
from swaa.evaluation.prompt import Prompt
from swaa.models import LoadedModel
from tests.checkpoint import tiny_llama

CHAT = (
    "<|system|>be brief\n{% for m in messages %}<|{{ m.role }}|>{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def byte_tokenizer():
    """A token for each byte, as a byte-level tokenizer without merges."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: index for index, letter in enumerate(["<pad>", "<end>", *alphabet])}
    core = Tokenizer(models.BPE(vocabulary, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", eos_token="<end>")


def word_tokenizer():
    """A token for each word or sign; unknown ones share a token."""
    core = Tokenizer(models.WordLevel({"?": 0, "the": 1, "of": 2}, unk_token="?"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=core, unk_token="?")


def chat_tokenizer():
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = CHAT
    return tokenizer


@pytest.fixture(autouse=True)
def one_commit(monkeypatch):
    """A checkout that nobody commits to while a test runs: runs of two commits lie apart."""
    monkeypatch.setattr(results, "_checkout", lambda: ("0123abcd" * 5, False))


@pytest.fixture(scope="session")
def tokenizers():
    return {"bytes": byte_tokenizer(), "words": word_tokenizer(), "chat": chat_tokenizer()}


@pytest.fixture(scope="session")
def prompt(tokenizers):
    return Prompt(tokenizer=tokenizers["chat"])


@pytest.fixture(scope="session")
def loaded(tokenizers):
    """A random model that reads bytes."""
    tokenizer = tokenizers["chat"]
    model = tiny_llama(tokenizer, num_hidden_layers=2)
    return LoadedModel(model=model, tokenizer=tokenizer, name="tiny", revision="test")


@pytest.fixture(scope="session")
def checkpoint(loaded, tmp_path_factory):
    """The folder of that model."""
    folder = tmp_path_factory.mktemp("checkpoint")
    loaded.model.save_pretrained(folder)
    loaded.tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def tiny(loaded, monkeypatch, tmp_path):
    """A model that the command line finds without loading anything, and a folder of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("swaa.models.load_model", lambda name, **options: loaded)
    monkeypatch.setattr(
        "swaa.evaluation.sources.load_tokenizer", lambda name, **options: loaded.tokenizer
    )
    return loaded
