"""A tiny random Llama with a byte tokenizer, saved as a checkpoint."""

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

CONTEXT = 1024


def tiny_llama(tokenizer, **sizes):
    """A random Llama for a tokenizer; ``sizes`` replace those of its configuration."""
    torch.manual_seed(0)
    usual = {
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 2048,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
    }
    return LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **(usual | sizes))).eval()


def save_checkpoint(folder, *, chat_template=None):
    """Write model and tokenizer into ``folder`` and return it."""
    letters = {
        sign: index for index, sign in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))
    }
    tokens = Tokenizer(models.BPE(vocab={**letters, "<end>": len(letters)}, merges=[]))
    tokens.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokens.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tokens, eos_token="<end>", pad_token="<end>", chat_template=chat_template
    )
    tokenizer.save_pretrained(folder)
    sizes = {"max_position_embeddings": CONTEXT, "initializer_range": 0.5}
    tiny_llama(tokenizer, pad_token_id=tokenizer.pad_token_id, **sizes).save_pretrained(folder)
    return folder
