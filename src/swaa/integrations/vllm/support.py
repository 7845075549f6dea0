"""What is refused, and why: versions, models and features with which the mask would be wrong."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from swaa.heads import HeadSelection
from swaa.integrations.refusal import UnsupportedError
from swaa.integrations.vllm import connectors, fp8
from swaa.integrations.vllm.drafts import ATTACHED, draft_model, is_attached, served_model
from swaa.integrations.vllm.environment import REQUIRED
from swaa.integrations.vllm.settings import KEY, Settings, carried_by

OLDEST, NEWEST = (0, 32), (0, 33)
"""First and last vLLM release that the hooks were written for."""
ANY_VERSION = "SWAA_VLLM_ANY_VERSION"
"""Environment variable that allows other versions."""

DRAFTERS = ("ngram", "ngram_gpu", "suffix", "draft_model", *ATTACHED)
"""Speculative methods that are served."""

MTP = ("mimo_mtp",)
"""vLLM's names for the types of multi-token prediction that are served."""

HYBRIDS = ("qwen3_next", "qwen3_5_text", "qwen3_5_moe_text", "lfm2", "lfm2_moe")
"""Types of text models with linear-attention or convolution layers that are served."""

_KNOWN_ARGUMENTS = frozenset(
    (
        *("self", "num_heads", "head_size", "head_size_v", "scale", "num_kv_heads", "prefix"),
        *("cache_config", "quant_config", "attn_type", "attn_backend", "sinks"),
        *("alibi_slopes", "use_alibi_sqrt", "logits_soft_cap", "per_layer_sliding_window"),
        *("kv_sharing_target_layer_name", "mm_prefix_clamp_sliding_window"),
    )
)
"""Arguments that a layer may have: harmless, or refused by a check of their own."""


def check_version(version: str) -> None:
    """Refuse a vLLM outside the tested range.

    Raises:
        UnsupportedError: unless ``SWAA_VLLM_ANY_VERSION`` is set.
    """
    numbers = re.match(r"(\d+)\.(\d+)", version)
    known = numbers and OLDEST <= (int(numbers[1]), int(numbers[2])) <= NEWEST
    if not known and not os.environ.get(ANY_VERSION):
        tested = " to ".join(".".join(map(str, end)) for end in (OLDEST, NEWEST))
        raise UnsupportedError(
            f"vLLM {version} is outside the tested range {tested}:"
            f" install one of those, or set {ANY_VERSION}=1 to try"
        )


def check_engine(vllm_config: Any) -> None:
    """Refuse models and engine options.

    Raises:
        UnsupportedError: with the first reason.
    """
    model = served_model(vllm_config)
    for reason in (*_model_reasons(model), *_engine_reasons(vllm_config)):
        raise UnsupportedError(f"swaa: {reason}")
    if model.is_hybrid:
        for reason in _hybrid_reasons(vllm_config):
            raise UnsupportedError(f"swaa: {', '.join(model.architectures)}: {reason}")


def check_required(found: Settings | None) -> None:
    """Under ``swaa serve``: refuse an engine with another configuration than was asked for.

    vLLM merges ``--additional-config`` with its dotted forms and with ``--config`` files, and the
    last one wins.

    Raises:
        UnsupportedError: with both configurations.
    """
    wanted = os.environ.get(REQUIRED)
    said = json.dumps(None if found is None else found.to_dict(), sort_keys=True)
    if wanted not in (None, said):
        raise UnsupportedError(
            f"swaa: 'swaa serve' asked for {wanted}, and vLLM's additional_config says {said}:"
            " leave --additional-config out, in a --config file, too"
        )


def check_draft(vllm_config: Any) -> None:
    """Refuse a draft that asks for swaa: drafts run with full attention, whatever is served.

    Raises:
        UnsupportedError: when the draft's checkpoint carries a configuration.
    """
    draft = draft_model(vllm_config)
    if draft is None:
        return
    own = is_attached(vllm_config) and draft.model == served_model(vllm_config).model
    if not own and carried_by(draft) is not None:
        raise UnsupportedError(
            f"swaa: the config.json of the draft model {draft.model} asks for swaa, but drafts run"
            f" with full attention; remove {KEY!r} from it"
        )


def _model_reasons(model: Any) -> Iterator[str]:
    name = ", ".join(model.architectures or [])
    if model.runner_type not in ("generate", "draft"):
        yield f"{name} runs as a {model.runner_type} model; swaa serves generation"
    if model.is_encoder_decoder:
        yield f"{name} is an encoder-decoder; swaa adapts decoders"
    if model.is_multimodal_model and model.is_mm_prefix_lm:
        yield (
            f"{name} lets the tokens of a picture see later ones of it; swaa's rows see"
            " no later keys"
        )
    if model.use_mla:
        yield f"{name} compresses its keys (multi-head latent attention)"
    kind = getattr(getattr(model, "hf_text_config", None), "model_type", None)
    if model.is_attention_free or (model.is_hybrid and kind not in HYBRIDS):
        yield (
            f"{name} has layers without softmax attention of a kind that was not tried; served are"
            f" {', '.join(HYBRIDS)}"
        )


def softmax_layers(model: Any) -> tuple[int, ...]:
    """Indices of the decoder layers that have keys and can be adapted.

    Args:
        model: vLLM's configuration of a model that is not refused.
    """
    count = model.get_total_num_hidden_layers()
    types = model.hf_text_config.layer_types if model.is_hybrid else ["full_attention"] * count
    return tuple(index for index, kind in enumerate(types) if kind == "full_attention")


def _hybrid_reasons(vllm_config: Any) -> Iterator[str]:
    """What was not tried where a model's other layers keep states instead of keys."""
    if vllm_config.speculative_config is not None:
        yield "speculative decoding was not tried next to states of linear layers"
    if vllm_config.parallel_config.pipeline_parallel_size > 1:
        yield "pipeline parallelism was not tried next to states of linear layers"
    cache = vllm_config.cache_config
    if cache.mamba_cache_mode not in ("none", "align"):
        yield (
            f"--mamba-cache-mode {cache.mamba_cache_mode} was not tried; use align, or serve with"
            " --no-enable-prefix-caching"
        )
    if getattr(cache, "prefix_match_unit", None) is not None:
        yield "--prefix-match-unit would publish states within blocks; leave it out"


def check_states(vllm_config: Any, settings: Settings) -> None:
    """Refuse knobs that were not tried where a model's other layers keep states instead of keys.

    Args:
        vllm_config: of the engine.
        settings: what was asked for.

    Raises:
        UnsupportedError: with the first reason.
    """
    model, config = served_model(vllm_config), settings.config
    knobs = {
        "KV heads in full_decode": isinstance(config.full_decode, HeadSelection),
        "selected_layers": bool(config.selected_layers),
        "decode_keys": config.decode_keys > 0,
    }
    for name in (name for name in knobs if model.is_hybrid and knobs[name]):
        raise UnsupportedError(
            f"swaa: {', '.join(model.architectures)} has linear layers, next to whose states {name}"
            " was not tried; serve a recipe without, such as balanced"
        )


def _type_of(model: Any) -> str:
    """The type of a model's keys, as vLLM's flags name it."""
    return str(model.dtype).removeprefix("torch.")


def _engine_reasons(vllm_config: Any) -> Iterator[str]:
    parallel = vllm_config.parallel_config
    if parallel.decode_context_parallel_size > 1 or parallel.prefill_context_parallel_size > 1:
        yield "context parallelism spreads one sequence's keys over GPUs; serve without it"
    yield from connectors.refusals(vllm_config)
    yield from _cache_reasons(vllm_config)
    if parallel.use_ubatching:
        yield (
            "dual batch overlap splits batches without their prompt lengths; serve without"
            " --enable-dbo, and with --ubatch-size 0"
        )
    yield from _unchosen_reasons(vllm_config)
    yield from _speculation_reasons(vllm_config)


def _cache_reasons(vllm_config: Any) -> Iterator[str]:
    cache, model = vllm_config.cache_config.cache_dtype, served_model(vllm_config)
    if fp8.stores_fp8(vllm_config):
        yield from fp8.refusals(vllm_config)
    elif cache not in ("auto", _type_of(model)):
        yield f"a KV cache of {cache} is not served; {_other_cache(model)}, or fp8"


def _other_cache(model: Any) -> str:
    """The flag for the model's own type; ``auto`` fails where the checkpoint asks for another."""
    from vllm.utils.torch_utils import resolve_kv_cache_dtype_string

    if resolve_kv_cache_dtype_string("auto", model) == "auto":
        return "use --kv-cache-dtype auto"
    return f"the checkpoint asks for it; use --kv-cache-dtype {_type_of(model)}"


def _unchosen_reasons(vllm_config: Any) -> Iterator[str]:
    """What vLLM checks for backends that it chooses itself, and so never for ours.

    ``AttentionBackend.validate_configuration`` holds the list; docs/reference/vllm.md says for each
    entry where it is honoured or refused, and a test covers all of them.
    """
    from vllm.envs import VLLM_BATCH_INVARIANT

    if VLLM_BATCH_INVARIANT:
        yield (
            "VLLM_BATCH_INVARIANT=1 asks for the same bits whatever the batch, and which kernel"
            " serves a chunk of a prompt follows the chunk's length here; unset it"
        )
    if vllm_config.attention_config.use_non_causal:
        yield "non-causal attention was asked for; swaa's rows see no later keys"
    speculative = vllm_config.speculative_config
    if speculative is not None and speculative.enable_adaptive_verification:
        yield (
            "adaptive verification trims batches without the host's row offsets, by which long"
            " chunks are gathered; leave enable_adaptive_verification out"
        )


def check_prefix_window(vllm_config: Any) -> None:
    """Refuse vLLM's own window after a full prompt (R-SWA), because swaa uses its switch.

    Raises:
        UnsupportedError: when the model or ``--hf-overrides`` asks for it.
    """
    if getattr(served_model(vllm_config), "rswa_window", None) is not None:
        raise UnsupportedError(
            "swaa: rswa_window asks for vLLM's own window after a full prompt, which would not"
            " hold; leave it out"
        )


def check_heads(vllm_config: Any, settings: Settings) -> None:
    """Refuse KV heads in ``full_decode`` that ranks or stages would hold unevenly.

    Args:
        vllm_config: of the engine.
        settings: fitted to its model.

    Raises:
        UnsupportedError: with the first reason.
    """
    model = served_model(vllm_config)
    total = model.get_total_num_kv_heads()
    plans = settings.plans(model.get_total_num_hidden_layers(), total)
    heads = HeadSelection.of({n: plan.decode_heads for n, plan in enumerate(plans)})
    if heads:
        for reason in _head_reasons(vllm_config.parallel_config, heads, total):
            raise UnsupportedError(f"swaa: full_decode names KV heads {heads}: {reason}")


def _head_reasons(parallel: Any, heads: HeadSelection, total: int) -> Iterator[str]:
    """Why some heads of layers, of so many in each, cannot be dealt out."""
    ranks = parallel.tensor_parallel_size
    if parallel.pipeline_parallel_size > 1:
        yield "pipeline parallelism was not tried with them; serve without it"
    if total % ranks:
        yield f"{total} KV heads are not dealt out evenly to {ranks} ranks"
    for layer, kept in heads.layers:
        counts = Counter(head * ranks // total for head in kept)
        on_each = [counts[rank] for rank in range(ranks)]
        if len({*on_each}) > 1:
            yield (
                f"of layer {layer} the ranks would keep {', '.join(map(str, on_each))}, and the"
                " blocks of all ranks have one size; name as many heads on each rank, whose"
                f" {total // ranks} KV heads follow one another"
            )


def _speculation_reasons(vllm_config: Any) -> Iterator[str]:
    speculative = vllm_config.speculative_config
    if speculative is None:
        return
    if speculative.method not in DRAFTERS:
        yield (
            f"speculative decoding by {speculative.method} was not tried; served are"
            f" {', '.join(DRAFTERS)}"
        )
    draft = draft_model(vllm_config)
    if draft is None:
        return
    yield from _model_reasons(draft)
    if is_attached(vllm_config):
        yield from _attached_reasons(speculative)
    if draft.is_multimodal_model or served_model(vllm_config).is_multimodal_model:
        yield "a draft model was not tried where one of the models sees pictures; serve without it"
    if draft.is_hybrid:
        yield "a draft model with linear layers was not tried; choose another"
    if vllm_config.parallel_config.pipeline_parallel_size > 1:
        yield "a draft model under pipeline parallelism was not tried; serve without one of them"
    served = served_model(vllm_config).max_model_len
    if vllm_config.use_v2_model_runner and draft.max_model_len < served:
        yield (
            f"the draft model sees {draft.max_model_len:,} tokens and {served:,} are served, and"
            " vLLM's V2 runner would draft beyond them; lower --max-model-len"
        )
    scheduler = vllm_config.scheduler_config
    step, requests = scheduler.max_num_batched_tokens, scheduler.max_num_seqs
    extra = speculative.method == "draft_model"
    if extra and vllm_config.use_v2_model_runner and step < 2 * requests:
        # GPUModelRunner._dummy_run: each request gives one row to the draft and keeps at least one.
        yield (
            f"{requests:,} requests next to a draft model need steps of {2 * requests:,} tokens to"
            f" start vLLM's V2 runner, and a step has {step:,}; lower --max-num-seqs or raise"
            " --max-num-batched-tokens"
        )
    if speculative.kv_cache_dtype not in (None, "auto", _type_of(draft)):
        yield (
            f"a KV cache of {speculative.kv_cache_dtype} is not served for a draft model; leave"
            " kv_cache_dtype out of --speculative-config"
        )


def _attached_reasons(speculative: Any) -> Iterator[str]:
    """What was not tried of drafts that read the served model's hidden states."""
    kind = speculative.draft_model_config.hf_config.model_type
    if speculative.method == "mtp" and kind not in MTP:
        yield f"multi-token prediction by {kind} was not tried; served are {', '.join(MTP)}"
    elif speculative.use_multi_module_mtp():
        yield "several modules of multi-token prediction were not tried; propose one token"
    if speculative.parallel_drafting:
        yield f"parallel drafting by {speculative.method} was not tried; leave it out"


def check_layer(layer: str, exact_class: bool, given: Mapping[str, Any]) -> None:
    """Refuse an attention layer for the arguments of its constructor.

    Args:
        layer: its name.
        exact_class: whether it is vLLM's ``Attention`` itself, not a class derived from it.
        given: arguments of its constructor by name.

    Raises:
        UnsupportedError: with the first reason.
    """
    for reason in _layer_reasons(exact_class, given):
        raise UnsupportedError(f"swaa: layer {layer} {reason}")


def _layer_reasons(exact_class: bool, given: Mapping[str, Any]) -> Iterator[str]:
    if not exact_class or given.get("attn_backend") is not None:
        yield "is a special kind of attention with a backend of its own"
    attention = given.get("attn_type", "decoder")
    if attention != "decoder":
        yield f"is {attention} attention; swaa adapts decoders"
    cache = given.get("cache_config")
    if given.get("per_layer_sliding_window") or getattr(cache, "sliding_window", None):
        yield "slides already, as the model came"
    if given.get("logits_soft_cap"):
        yield "soft-caps its scores"
    if given.get("alibi_slopes") is not None or given.get("use_alibi_sqrt"):
        yield "biases its scores by position (ALiBi)"
    if given.get("sinks") is not None:
        yield "has learned sink logits"
    strange = given.keys() - _KNOWN_ARGUMENTS
    for name in sorted(name for name in strange if given[name] is not None):
        yield f"asks for {name}, which swaa's attention does not know"
    if given.get("kv_sharing_target_layer_name") is not None:
        yield "reads another layer's keys"
    if given.get("head_size_v") not in (None, given.get("head_size")):
        yield "has values of another size than its keys"
