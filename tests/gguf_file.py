"""A tiny random Llama as a GGUF file with quantised weights, read in a moment."""

import numpy as np

LAYERS, WIDTH, HEADS, KV_HEADS, MIDDLE, WORDS, CONTEXT = 2, 64, 4, 2, 96, 97, 512


def write_gguf(path, *, weights=True):
    """Write metadata, a tokenizer of single letters and, if wanted, weights of 4 bits (Q4_1)."""
    import gguf  # an extra

    file = gguf.GGUFWriter(path, "llama")
    file.add_name("tiny")
    file.add_context_length(CONTEXT)
    file.add_embedding_length(WIDTH)
    file.add_block_count(LAYERS)
    file.add_feed_forward_length(MIDDLE)
    file.add_head_count(HEADS)
    file.add_head_count_kv(KV_HEADS)
    file.add_layer_norm_rms_eps(1e-5)
    file.add_rope_freq_base(10_000.0)
    file.add_vocab_size(WORDS)
    file.add_tokenizer_model("gpt2")
    file.add_token_list([*map(chr, range(0x21, 0x7F)), "ab", "<pad>", "<end>"])
    file.add_token_merges(["a b"])
    file.add_eos_token_id(WORDS - 1)
    if weights:
        for name, shape in _shapes().items():
            _add(gguf, file, name, shape)
    file.write_header_to_file()
    file.write_kv_data_to_file()
    file.write_tensors_to_file()
    file.close()
    return path


def _shapes():
    kv = WIDTH // HEADS * KV_HEADS
    layer = {
        "attn_norm": (WIDTH,),
        "attn_q": (WIDTH, WIDTH),
        "attn_k": (kv, WIDTH),
        "attn_v": (kv, WIDTH),
        "attn_output": (WIDTH, WIDTH),
        "ffn_norm": (WIDTH,),
        "ffn_gate": (MIDDLE, WIDTH),
        "ffn_up": (MIDDLE, WIDTH),
        "ffn_down": (WIDTH, MIDDLE),
    }
    shapes = {"token_embd": (WORDS, WIDTH), "output_norm": (WIDTH,)}
    for index in range(LAYERS):
        shapes |= {f"blk.{index}.{name}": shape for name, shape in layer.items()}
    return shapes


def _add(gguf, file, name, shape):
    chance = np.random.default_rng(len(name) + 31 * sum(map(ord, name)))
    values = (0.15 * chance.standard_normal(shape)).astype(np.float32)
    if len(shape) == 1:  # norms keep 32 bits, as in real files
        file.add_tensor(f"{name}.weight", 1 + values)
        return
    kind = gguf.GGMLQuantizationType.Q4_1
    file.add_tensor(f"{name}.weight", gguf.quants.quantize(values, kind), raw_dtype=kind)
