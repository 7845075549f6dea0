"""Answers of generate in its modes, with the logits of every token."""

import torch
from transformers import CompileConfig, DynamicCache

import swaa
from swaa.integrations.transformers.cache_name import cache_argument
from swaa.integrations.transformers.fast import graph_sample
from tests.integrations.test_phase_of_a_call import GREEDY

KEPT = {"output_logits": True, "return_dict_in_generate": True, **GREEDY}


def logits_of(output):
    return torch.stack(output.logits)


def by_definition(model, config, ids, **options):
    """Generate with a stock cache, which keeps every key, in the reference."""
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
