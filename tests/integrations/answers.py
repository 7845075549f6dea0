"""Configurations whose generated rows differ by KV head or choose keys; answers in every mode."""

import functools

import torch
from transformers import CompileConfig, DynamicCache

import swaa
from swaa import SWAAConfig
from swaa.integrations.transformers.cache_name import cache_argument
from swaa.integrations.transformers.fast import graph_sample
from tests.integrations.test_phase_of_a_call import GREEDY, sharp_model, tokens

KEPT = {"output_logits": True, "return_dict_in_generate": True, **GREEDY}
KNOBS = {"window": 20, "sink_tokens": 3}
TAIL = {**KNOBS, "dense_tail": 4}
HEADS = {"0": [1], "1": [0, 3], "2": [1, 2, 3], "3": [0, 1, 2, 3]}
BY_HEAD = {
    "heads": SWAAConfig(**KNOBS, full_decode=HEADS),
    "tail": SWAAConfig(**TAIL, full_decode=HEADS),
    "pages": SWAAConfig(**TAIL, full_decode=HEADS, decode_keys=32),
    "full layers": SWAAConfig(**KNOBS, full_layers=[1], full_decode=HEADS),
    "selected": SWAAConfig(**TAIL, full_decode=HEADS, selected_layers=[1], selected_keys=64),
}
MANY = {"full_layers": [3], "selected_layers": [1, 2], "selected_keys": 64}
BY_PAGE = {
    "all choose": SWAAConfig(**TAIL, full_decode=True, decode_keys=32),
    "some choose": SWAAConfig(**TAIL, full_layers=[1], full_decode=[0], decode_keys=32),
    "selected choose": SWAAConfig(**TAIL, **MANY, decode_keys=48),
    "full choose": SWAAConfig(**KNOBS, full_layers="every:1", decode_keys=32),
}
IDS = tokens(150)
TOLERANCE = {"atol": 2e-4, "rtol": 1e-4}


def model_of(config=None):
    return sharp_model(config, num_attention_heads=8, num_key_value_heads=4, head_dim=16)


def logits_of(output):
    return torch.stack(output.logits)


@functools.cache  # every mode is compared with the same answer
def by_definition(config, ids=IDS, **options):
    """Generate with a stock cache, which keeps every key, in the reference."""
    model = model_of()
    swaa.adapt(model, config, backend="reference", quiet=True)
    cache = cache_argument(DynamicCache(config=model.config))
    return model.generate(ids, **KEPT, **cache, **options)


def options_of(mode):
    """Options of generate by the name of a mode; of an unknown name none, which is plain."""
    compiled = CompileConfig(backend="eager", fullgraph=True)
    compiled._compile_all_devices = True
    static = {"cache_implementation": "static"}
    return {
        "chunks": {"prefill_chunk_size": 40},
        "graph": {"custom_generate": graph_sample},
        "graph, chunks": {"custom_generate": graph_sample, "prefill_chunk_size": 40},
        "static": {**static, "disable_compile": True},
        "compiled": {**static, "compile_config": compiled},
        "beams": {"num_beams": 3},
        "assistant": {"prompt_lookup_num_tokens": 3},
        "self": {"assistant_early_exit": 2},
    }.get(mode, {})
