"""Backend classes for vLLM: one per kind of layer, derived from the platform's own.

vLLM groups layers by backend class and cache spec, and asks the class for everything else. So each
plan gets its own class, named after its numbers. Full layers, including all layers of a draft
model, keep their stock backend and kernels. Only their cache spec is ours, and prompt lengths are
hidden from them, because stock kernels would derive a mask from these. Where keys are stored in
fp8, full layers have our kernels, too.
"""

from __future__ import annotations

import functools
from typing import Any

from vllm.platforms import current_platform

from swaa.integrations.refusal import UnsupportedError
from swaa.integrations.vllm.attention import CPUAttention, GPUAttention, SlidingAttention
from swaa.integrations.vllm.kv_cache import Memory
from swaa.integrations.vllm.metadata import SlidingMetadataBuilder
from swaa.integrations.vllm.packing import packed_layouts


def platform_attention() -> tuple[type[Any], type[SlidingAttention]]:
    """The stock backend whose cache layout sliding layers use on this platform, and their class.

    Raises:
        UnsupportedError: on a platform without either.
    """
    if current_platform.is_cpu():
        from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend

        return CPUAttentionBackend, CPUAttention
    if current_platform.is_cuda() and not current_platform.has_device_capability(80):
        raise UnsupportedError(
            "swaa's kernels need an NVIDIA GPU of compute capability 8.0 or more"
        )
    if current_platform.is_cuda_alike():
        from vllm.v1.attention.backends.triton_attn import TritonAttentionBackend

        return TritonAttentionBackend, GPUAttention
    raise UnsupportedError(
        f"swaa serves vLLM's CPU and GPU platforms, not {current_platform.device_name}"
    )


@functools.cache
def sliding_backend(memory: Memory) -> type[Any]:
    """The backend class of a layer that swaa's kernels serve."""
    stock, attention = platform_attention()
    plan = memory.plan
    mine = type(f"Swaa{attention.__name__}", (attention,), {"plan": plan})
    numbers = {"plan": plan, "min_rows": attention.min_rows}
    builder = type("SwaaMetadataBuilder", (SlidingMetadataBuilder,), numbers)
    return _derive(
        stock,
        _name("Full" if plan.full else "Sliding", memory),
        memory,
        {
            "get_impl_cls": staticmethod(lambda: mine),
            "get_builder_cls": staticmethod(lambda: builder),
            "forward_includes_kv_cache_update": False,
            # Otherwise vLLM passes its own options to our attention.
            "supports_alibi_sqrt": classmethod(lambda cls: False),
        },
    )


@functools.cache
def full_backend(stock: type[Any], memory: Memory) -> type[Any]:
    """The backend class of a full layer: the stock one, which does not see prompt lengths."""
    stock_builder = stock.get_builder_cls()

    def build(
        self: Any, common_prefix_len: int, common_attn_metadata: Any, *args: Any, **kwargs: Any
    ) -> Any:
        blind = common_attn_metadata.replace(rswa_prefix_lens=None)
        return stock_builder.build(self, common_prefix_len, blind, *args, **kwargs)

    builder = type(f"Swaa{stock_builder.__name__}", (stock_builder,), {"build": build})
    name = _name("Draft" if memory.draft else "Full", memory)
    return _derive(stock, name, memory, {"get_builder_cls": staticmethod(lambda: builder)})


def _derive(stock: type[Any], name: str, memory: Memory, changes: dict[str, Any]) -> type[Any]:
    def customize_spec(cls: type[Any], spec: Any) -> Any:
        return memory.spec(stock.customize_spec(spec))

    if memory.packed:
        layouts = packed_layouts(stock)
        changes["supported_kv_cache_layouts"] = classmethod(lambda cls: layouts)
    return type(name, (stock,), {**changes, "customize_spec": classmethod(customize_spec)})


def _name(kind: str, memory: Memory) -> str:
    plan = memory.plan
    decode = "FullDecode" if plan.full_decode else ""
    chosen = f"K{plan.selected_keys}" if plan.selected_keys else ""
    read = f"D{plan.decode_keys}" if plan.decode_keys else ""
    return f"Swaa{kind}W{plan.window}S{plan.sink_tokens}T{plan.dense_tail}{decode}{chosen}{read}"
