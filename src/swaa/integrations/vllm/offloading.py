"""KV offloading to the CPU: vLLM's own connector, under the limits of the prefix cache.

vLLM stores whole blocks of a prompt under hashes of its tokens, and loads as far as hashes agree.
By itself it also stores the keys of a dense tail, which are right for one request only, and loads
keys that a later prompt's own tail must compute. So each request gets two limits, both those of the
prefix cache: to where it stores, and to where it loads.

vLLM finds the class by name in the module that ``kv_connector_module_path`` names, before its own
of that name. Everything else, such as copies and their order, stays vLLM's.
"""

from __future__ import annotations

import math
from typing import Any

from vllm.distributed.kv_transfer.kv_connector.v1 import KVConnectorRole, offloading_connector

from swaa.integrations.refusal import UnsupportedError
from swaa.integrations.vllm.kv_cache import AllKeysSpec, publication_limit, reuse_limit


class OffloadingConnector(offloading_connector.OffloadingConnector):
    """vLLM's connector for layers that keep every key."""

    def __init__(self, vllm_config: Any, role: Any, kv_cache_config: Any) -> None:
        super().__init__(vllm_config, role, kv_cache_config)
        if role == KVConnectorRole.SCHEDULER:
            self._specs = [group.kv_cache_spec for group in kv_cache_config.kv_cache_groups]
            for spec in self._specs:
                if not isinstance(spec, AllKeysSpec):
                    raise UnsupportedError(
                        f"swaa: KV offloading serves layers that keep every key, and the cache has"
                        f" a group of {type(spec).__name__}"
                    )

    def on_new_request(self, request: Any) -> None:
        """Take in a request, whose keys are stored up to its dense tail at most.

        The limit is vLLM's own for a request; one that the request brings holds too.
        """
        limit = publication_limit(self._specs[0], request)
        if limit is not None:
            params = request.kv_transfer_params or {}
            own = params.get("max_offload_tokens")
            if type(own) is int and 0 <= own < limit:  # of anything else vLLM takes no notice
                limit = own
            request.kv_transfer_params = {**params, "max_offload_tokens": limit}
        super().on_new_request(request)

    def get_num_new_matched_tokens(
        self, request: Any, num_computed_tokens: int
    ) -> tuple[int | None, bool]:
        """How many tokens to load beyond those at hand: none of the request's own tail."""
        assert self._kv_cache_manager is not None
        limit = reuse_limit(self._kv_cache_manager.coordinator.single_type_managers, request)
        if limit is not None:
            limit = max(0, limit - limit % self._chunk - num_computed_tokens)
        return self.scheduler.get_num_new_matched_tokens(
            request, num_computed_tokens, max_num_new_tokens=limit
        )

    @property
    def _chunk(self) -> int:
        """Tokens at whose multiples the stored pieces of every group end."""
        return math.lcm(
            *(group.tokens_per_chunk for group in self.scheduler.config.kv_group_configs)
        )
