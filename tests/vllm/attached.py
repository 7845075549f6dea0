"""Tiny drafts that read the served model's hidden states, and what each proposes by itself.

Each is a module whose state is its checkpoint, so that the reference has the weights of the
engine's draft. ``step`` takes embeddings and hidden states ``[rows, channels]`` and returns, of
each row, what the served model's ``lm_head`` reads, and the hidden state for the next step.
"""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import LlamaConfig, Qwen2Config
from transformers.models.llama import modeling_llama as llama
from transformers.models.qwen2 import modeling_qwen2 as qwen2

from tests.integrations.families import COMMON, tiny_model

SIZES = {"hidden_size": 128, "head_dim": 32, "max_position_embeddings": 8192}
WIDTH = SIZES["hidden_size"]
AUXILIARY = [1, 2, 3]


def tiny(config_class):
    return config_class(**COMMON | SIZES | {"num_hidden_layers": 1}, attn_implementation="eager")


def attend(layer, rotary, states):
    """Output of a decoder layer, or of its attention, in which every row sees all before it."""
    rows = len(states)
    hidden = torch.ones(rows, rows, dtype=torch.bool).triu(1)
    mask = torch.zeros(rows, rows).masked_fill(hidden, torch.finfo(torch.float32).min)
    turned = rotary(states[None], torch.arange(rows)[None])
    made = layer(states[None], attention_mask=mask[None, None], position_embeddings=turned)
    return (made[0] if isinstance(made, tuple) else made).reshape(rows, -1)


class Eagle(nn.Module):
    """EAGLE: a layer of Llama without a norm before or behind it."""

    method = "eagle"

    def __init__(self):
        super().__init__()
        config = tiny(LlamaConfig)
        layer = llama.LlamaDecoderLayer(config, 0)
        layer.input_layernorm = nn.Identity()
        self.layers = nn.ModuleList([layer])
        self.fc = nn.Linear(2 * WIDTH, WIDTH, bias=False)
        # A tuple hides it from the state.
        self.unsaved = (config, llama.LlamaRotaryEmbedding(config))

    def reads(self, model):
        """Modules of the served model whose inputs it reads."""
        return [model.lm_head]

    def combined(self, read):
        return read

    def imitate(self, model):
        """Do what a model does of whose layers only the last one matters, and not its attention."""
        (own,) = self.layers
        own.self_attn.o_proj.weight.data.zero_()
        own.mlp.load_state_dict(model.model.layers[-1].mlp.state_dict())
        self.fc.weight.data = torch.eye(WIDTH, 2 * WIDTH)

    def step(self, embeds, hidden):
        states = self.fc(torch.cat([embeds, hidden], -1))
        states = attend(self.layers[0], self.unsaved[1], states)
        return states, states


class Eagle3(nn.Module):
    """EAGLE-3: its layer reads states from within the served model."""

    method = "eagle3"

    def __init__(self):
        super().__init__()
        config = tiny(LlamaConfig)
        config.eagle_aux_hidden_state_layer_ids = AUXILIARY
        self.layers = nn.ModuleList([llama.LlamaDecoderLayer(config, 0)])
        (layer,) = self.layers
        layer.hidden_norm = llama.LlamaRMSNorm(WIDTH, config.rms_norm_eps)
        for name in ("q_proj", "k_proj", "v_proj"):
            out = getattr(layer.self_attn, name).out_features
            setattr(layer.self_attn, name, nn.Linear(2 * WIDTH, out, bias=False))
        self.fc = nn.Linear(len(AUXILIARY) * WIDTH, WIDTH, bias=False)
        self.norm = llama.LlamaRMSNorm(WIDTH, config.rms_norm_eps)
        self.unsaved = (config, llama.LlamaRotaryEmbedding(config))

    def reads(self, model):
        """Modules of the served model whose inputs it reads."""
        return [model.model.layers[index] for index in AUXILIARY]

    def combined(self, read):
        return self.fc(read)

    def imitate(self, model):
        """Repeat the last token, as a model does whose layers do next to nothing."""
        (own,) = self.layers
        for linear in (own.self_attn.o_proj, own.mlp.down_proj):
            linear.weight.data.zero_()
        self.fc.weight.data = torch.eye(3 * WIDTH)[-WIDTH:].clone()

    def step(self, embeds, hidden):
        (own,) = self.layers
        both = torch.cat([own.input_layernorm(embeds), own.hidden_norm(hidden)], -1)
        states = hidden + attend(own.self_attn, self.unsaved[1], both)
        states = states + own.mlp(own.post_attention_layernorm(states))
        return self.norm(states), states


class MiMo(qwen2.Qwen2DecoderLayer):
    """MTP as in MiMo: a layer of Qwen2, in the served model's own checkpoint."""

    method = "mtp"

    def __init__(self):
        config = tiny(Qwen2Config)
        super().__init__(config, 0)
        self.input_proj = nn.Linear(2 * WIDTH, WIDTH, bias=False)
        for name in ("token_layernorm", "hidden_layernorm", "final_layernorm"):
            setattr(self, name, qwen2.Qwen2RMSNorm(WIDTH, config.rms_norm_eps))
        self.unsaved = (config, qwen2.Qwen2RotaryEmbedding(config))

    def reads(self, model):
        """Modules of the served model whose inputs it reads."""
        return [model.model.norm]

    def combined(self, read):
        return read

    def imitate(self, model):
        """Do what a model does of whose layers only the last one matters, and not its attention."""
        self.self_attn.o_proj.weight.data.zero_()
        self.mlp.load_state_dict(model.model.layers[-1].mlp.state_dict())
        # The norm before it makes embeddings of 0.2 to those of 1.
        self.input_proj.weight.data = 0.2 * torch.eye(2 * WIDTH)[-WIDTH:]

    def step(self, embeds, hidden):
        embeds = torch.cat([torch.zeros_like(embeds[:1]), embeds[1:]])  # vLLM's, at position 0
        both = torch.cat([self.hidden_layernorm(hidden), self.token_layernorm(embeds)], -1)
        states = self.final_layernorm(attend(self, self.unsaved[1], self.input_proj(both)))
        return states, states


FAMILIES = {Eagle: "llama", Eagle3: "qwen3", MiMo: "qwen2"}


def save_pair(folder, kind, imitates):
    """Save a served model and its draft.

    Args:
        folder: empty.
        kind: class of the draft.
        imitates: whether most of its proposals are right. Else its weights are random.

    Returns:
        The draft, the served model's folder, and the draft's.
    """
    served, beside = folder / "served", folder / "draft"
    model = tiny_model(FAMILIES[kind], initializer_range=0.2, **SIZES)
    torch.manual_seed(1)
    draft = kind().eval()
    for module in draft.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.1)
    if imitates:
        _weaken(model, wholly=kind is Eagle3)
        draft.imitate(model)
    model.save_pretrained(served)
    state = {name: weight.contiguous() for name, weight in draft.state_dict().items()}
    if kind is MiMo:
        file = served / "model.safetensors"
        inside = {f"model.mtp_layers.0.{name}": weight for name, weight in state.items()}
        save_file(load_file(file) | inside, file, {"format": "pt"})
        said = {"architectures": ["MiMoForCausalLM"], "num_nextn_predict_layers": 1}
        _write(served, json.loads(Path(served / "config.json").read_text()) | said)
        return draft, str(served), str(served)
    beside.mkdir()
    save_file(state, beside / "model.safetensors", {"format": "pt"})
    _write(beside, draft.unsaved[0].to_dict() | {"architectures": ["LlamaForCausalLM"]})
    return draft, str(served), str(beside)


def _write(folder, config):
    Path(folder, "config.json").write_text(json.dumps(config))


def _weaken(model, wholly):
    """Leave attention that moves scores, but seldom the best token, and of the MLPs the last one.

    Args:
        model: changed in place.
        wholly: leave none of the MLPs, so that a token's own embedding scores best; attention then
            takes more to change that.
    """
    layers = model.model.layers
    for layer in layers:
        layer.self_attn.o_proj.weight.data.mul_(0.1 if wholly else 0.001)
    for layer in layers if wholly else layers[:-1]:
        layer.mlp.down_proj.weight.data.zero_()
    if wholly:
        model.lm_head.weight.data.copy_(0.1 * model.model.embed_tokens.weight.data)


class Proposals:
    """What a draft proposes to a model under a configuration, one answer at a time.

    Args:
        draft: one of the classes above.
        judge: of the served model.
        prompt, answer: tokens.
    """

    def __init__(self, draft, judge, prompt, answer):
        self.draft, self.model = draft, judge.model
        read = []
        hooks = [
            module.register_forward_pre_hook(lambda _, given: read.append(given[0][0]))
            for module in draft.reads(judge.model)
        ]
        judge.logits(prompt, answer)
        for hook in hooks:
            hook.remove()
        self.ids = torch.tensor([*prompt, *answer])
        self.read = torch.cat(read, -1)

    @torch.no_grad()
    def lost(self, known, proposed):
        """How much better than each of the proposed tokens the draft's own would have scored.

        Args:
            known: tokens of the sequence that were known before.
            proposed: one after another.
        """
        embed, lm_head = self.model.get_input_embeddings(), self.model.lm_head
        tokens, lost = self.ids[1:known], []
        hidden = self.draft.combined(self.read[: known - 1])
        for token in proposed:
            states, later = self.draft.step(embed(tokens), hidden)
            scores = lm_head(states[-1]).log_softmax(-1)
            lost.append(float(scores.max() - scores[token]))
            tokens = torch.cat([tokens, torch.tensor([token])])
            hidden = torch.cat([hidden, later[-1:]])
        return lost
