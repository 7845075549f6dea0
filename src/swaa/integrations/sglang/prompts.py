"""Where the prompt of each request ends, by the request's slot in SGLang's page table.

``Req.origin_input_ids`` is what the request came with; every other number that SGLang passes on
counts generated tokens, too, once a request was retracted and is computed again. Attention
backends do not see requests, and attributes of a ``ForwardBatch`` are lost when runners copy it. So
a hook after ``ForwardBatch.init_new`` writes lengths here, and the backend reads them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class PromptLengths:
    """Prompt lengths of the requests that are served.

    Args:
        slots: rows of SGLang's page table.
        device: of the table.
    """

    def __init__(self, slots: int, device: torch.device) -> None:
        self.by_slot = torch.zeros(slots, dtype=torch.int32, device=device)
        self._last: tuple[list[int], list[int]] | None = None

    def note(self, made: Any, requests: list[Any]) -> None:
        """Write the lengths of a batch that is about to be computed.

        Args:
            made: its ``ForwardBatch``.
            requests: its ``Req``, in the same order.
        """
        lengths = [len(request.origin_input_ids) for request in requests]
        host = torch.tensor(lengths, dtype=torch.int32)
        if self.by_slot.is_cuda:
            host = host.pin_memory()  # otherwise the copy would wait for the device
        device = self.by_slot.device
        self.by_slot[made.req_pool_indices] = host.to(device, non_blocking=True)
        self._last = (list(made.extend_seq_lens_cpu), lengths)

    def of(self, batch: Any) -> tuple[Tensor, list[int] | None]:
        """Prompt lengths of a batch: int32 ``[requests]``, and on the host if they are known.

        A batch that SGLang makes up to warm something is not known on the host.
        """
        count = batch.batch_size
        lengths = self.by_slot[batch.req_pool_indices[:count]]
        if self._last is None or self._last[0] != list(batch.extend_seq_lens_cpu)[:count]:
            return lengths, None
        return lengths, self._last[1]
