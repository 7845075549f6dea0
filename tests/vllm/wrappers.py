"""Tiny wrappers of text models that see pictures, requests with a picture, and their judge."""

import torch

from tests.integrations.loop_model import LOOP, MASKS, build_masks, rows_of
from tests.served import VOCABULARY, Judge
from tests.vllm.hybrids import DELTA_NET

PICTURE, START, END = 94, 92, 93
"""Token ids: of each part of a picture, before and after them."""
GRID = (1, 8, 12)
"""Patches of a picture: in time, rows and columns; four make a token."""
TOKENS = 24
PATCH = 4
TEXT = {
    "vocab_size": VOCABULARY,
    "hidden_size": 128,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 8192,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": None,
}
VISION = {
    "depth": 2,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_heads": 2,
    "out_hidden_size": 128,
    "patch_size": PATCH,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
}
ROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [6, 5, 5]}
FAMILIES = {
    "qwen2_5_vl": (
        {"rope_parameters": ROPE},
        {"window_size": 32, "fullatt_block_indexes": [1]},
    ),
    "qwen3_vl": (
        {"rope_parameters": {**ROPE, "mrope_interleaved": True}},
        {"num_position_embeddings": 16, "deepstack_visual_indexes": [0, 1]},
    ),
    "qwen3_5": (
        DELTA_NET
        | {
            "rope_parameters": ROPE
            | {"mrope_section": [2, 1, 1], "mrope_interleaved": True, "partial_rotary_factor": 0.25}
        },
        {"num_position_embeddings": 16},
    ),
}
OPTIONS = {
    "skip_tokenizer_init": False,
    "limit_mm_per_prompt": {"image": 1, "video": 0},
    "skip_mm_profiling": True,
}
"""Of an engine that serves one of them."""


def save_wrapper(folder, family, swaa=None):
    """Save a tiny random float32 wrapper with a tokenizer; its text model's part of config.json may
    carry a configuration."""
    from tokenizers import Tokenizer, models
    from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedTokenizerFast

    text, vision = FAMILIES[family]
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        family,
        text_config=TEXT | text | ({} if swaa is None else {"swaa": swaa}),
        vision_config=VISION | vision,
        image_token_id=PICTURE,
        video_token_id=95,
        vision_start_token_id=START,
        vision_end_token_id=END,
    )
    config.initializer_range = 0.2
    model = AutoModelForImageTextToText.from_config(config)
    with torch.no_grad():  # so that the judge may read an answer that holds the mark itself
        words = model.get_input_embeddings().weight
        words[PICTURE] = words[PICTURE - 10]
    model.save_pretrained(folder)
    known = models.WordLevel({f"t{n}": n for n in range(VOCABULARY)}, unk_token="t0")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(known), unk_token="t0")
    tokenizer.save_pretrained(folder)
    return str(folder)


def without_a_processor(patch):
    """Let engines start without the processor, which needs torchvision."""
    from vllm.model_executor.models.qwen2_vl import Qwen2VLProcessingInfo

    most = {"image": TOKENS}
    patch.setattr(Qwen2VLProcessingInfo, "get_mm_max_tokens_per_item", lambda *_, **__: most)


def without_marks(prompt):
    """A prompt of text alone: its tokens that stand for pictures are others."""
    return [token if token < START else token - 10 for token in prompt]


def around_a_picture(before, after):
    """A prompt with a picture between two texts."""
    return [*without_marks(before), START, *[PICTURE] * TOKENS, END, *without_marks(after)]


def pixels(seed):
    """A picture as its processor would hand it to a model: ``[patches, channels]``."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(torch.tensor(GRID).prod(), 3 * 2 * PATCH * PATCH, generator=generator)


def request(prompt, seed):
    """What vLLM makes of a prompt and its picture, without the processor, which needs torchvision.

    Args:
        prompt: from :func:`around_a_picture`.
        seed: which picture.
    """
    from vllm.inputs.engine import mm_input
    from vllm.model_executor.models.qwen2_vl import _create_qwen2vl_field_factory
    from vllm.multimodal.inputs import MultiModalKwargsItems, PlaceholderRange

    given = {"pixel_values": pixels(seed), "image_grid_thw": torch.tensor([GRID])}
    items = MultiModalKwargsItems.from_hf_inputs(given, _create_qwen2vl_field_factory(2)(given))
    place = PlaceholderRange(offset=prompt.index(PICTURE), length=TOKENS)
    return mm_input(prompt, items, {"image": [f"picture {seed}"]}, {"image": [place]})


class WrapperJudge(Judge):
    """The wrapper under the rule of the mask in its text layers, with a picture or without."""

    picture = None

    def __init__(self, folder, config):
        from transformers import AutoModelForImageTextToText

        self.model = AutoModelForImageTextToText.from_pretrained(
            folder, attn_implementation="eager", dtype=torch.float32
        ).eval()
        self.model.set_attn_implementation({"text_config": LOOP})
        self.config = config

    def seeing(self, seed):
        """The same judge for prompts with that picture."""
        other = self.under(self.config)
        other.picture = seed
        return other

    def logits(self, prompt, answer):
        read = [PICTURE - 10 if token == PICTURE else token for token in answer]
        ids = torch.tensor([[*prompt, *read]])
        total = ids.shape[1]
        layers = ["full_attention"] * self.model.config.text_config.num_hidden_layers
        rows = rows_of(len(prompt), self.config.dense_tail, total)
        MASKS.clear()
        MASKS.update(build_masks(self.config, layers, [0], total, rows))
        shown = {}
        if self.picture is not None:
            shown = {
                "pixel_values": pixels(self.picture),
                "image_grid_thw": torch.tensor([GRID]),
                "mm_token_type_ids": (ids == PICTURE).int(),
            }
        with torch.no_grad():
            logits = self.model(input_ids=ids, use_cache=False, **shown).logits
        return logits[0, len(prompt) - 1 : -1]
