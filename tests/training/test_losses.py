"""The losses against plain PyTorch, and the teacher against a model of its own."""

import copy

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import swaa
from swaa.training.losses import Head, answer_losses, answer_states, check_head, find_head
from tests.integrations.families import tiny_model

VOCABULARY = 53


def _case(rows=24, hidden=16):
    generator = torch.Generator().manual_seed(1)
    states = torch.randn(2, rows, hidden, generator=generator, requires_grad=True)
    weight = torch.randn(VOCABULARY, hidden, generator=generator)
    labels = torch.randint(VOCABULARY, (2, rows), generator=generator)
    labels[0, :9] = -100
    labels[1, 5:20] = -100
    taught = torch.randn(2, rows, hidden, generator=generator)
    return states, weight, labels, taught


@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("chunk", [1, 5, 1000])
def test_losses_and_gradients_equal_plain_ones(chunk, softcap):
    states, weight, labels, taught = _case()
    head = Head(weight, None, 0.5, softcap)

    def logits(x):
        plain = 0.5 * x @ weight.T
        return plain if softcap is None else softcap * torch.tanh(plain / softcap)

    shifted = labels[:, 1:]
    log_probs = logits(states)[:, :-1].log_softmax(-1)
    sft = torch.nn.functional.cross_entropy(
        logits(states)[:, :-1].flatten(0, 1), shifted.flatten(), reduction="sum"
    )
    wanted = logits(taught)[:, :-1].log_softmax(-1)
    kl = (wanted.exp() * (wanted - log_probs)).sum(-1)[shifted != -100].sum()
    (expected,) = torch.autograd.grad(2 * sft + 3 * kl, states)
    found = answer_losses(head, states, labels, teacher=answer_states(taught, labels), chunk=chunk)
    torch.testing.assert_close(found.sft, sft)
    torch.testing.assert_close(found.kl, kl)
    assert found.tokens == (shifted != -100).sum()
    right = (logits(states)[:, :-1].argmax(-1) == shifted).sum()
    assert found.right == right
    (actual,) = torch.autograd.grad(2 * found.sft + 3 * found.kl, states)
    torch.testing.assert_close(actual, expected)


def test_a_batch_without_answers_has_a_gradient_of_zero():
    states, weight, labels, _ = _case()
    found = answer_losses(Head(weight, None, 1.0, None), states, torch.full_like(labels, -100))
    (found.sft + found.kl).backward()
    assert found.tokens == found.sft == found.kl == 0
    assert not states.grad.any()


class _Largest(TorchDispatchMode):
    """Numbers in the largest tensor that any operation makes."""

    numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for x in made if isinstance(made, (tuple, list)) else (made,):
            if isinstance(x, torch.Tensor):
                self.numbers = max(self.numbers, x.numel())
        return made


def test_no_tensor_of_all_rows_by_vocabulary_exists():
    states = torch.randn(1, 400, 8, requires_grad=True)
    weight = torch.randn(1000, 8)
    labels = torch.randint(1000, (1, 400))
    with _Largest() as seen:
        taught = answer_states(states.detach(), labels)
        found = answer_losses(
            Head(weight, None, 1.0, None), states, labels, teacher=taught, chunk=16
        )
        (found.sft + found.kl).backward()
    assert seen.numbers == 16 * 1000


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3_text", "granite", "olmo2"])
def test_the_head_is_the_models_own(family):
    options = {"logits_scaling": 4.0} if family == "granite" else {}
    options |= {"final_logit_softcapping": 2.0} if family == "gemma3_text" else {}
    model = tiny_model(family, **options)
    check_head(model)
    ids = torch.randint(2, 97, (1, 12))
    with torch.no_grad():
        states = model.base_model(ids).last_hidden_state[0]
        torch.testing.assert_close(find_head(model).logits(states), model(ids).logits[0])


def test_a_head_that_does_more_is_refused():
    model = tiny_model("llama")
    model.lm_head.register_forward_hook(lambda module, args, out: 1.5 * out)
    with pytest.raises(ValueError, match="LlamaForCausalLM makes its logits in a way"):
        check_head(model)


def _teacher_pair():
    """A model with a LoRA that changes it, and the one it was made from."""
    from peft import LoraConfig, get_peft_model

    model = tiny_model("llama")
    separate = copy.deepcopy(model)
    swaa.adapt(model, swaa.SWAAConfig(window=8, sink_tokens=2, dense_tail=3), quiet=True)
    peft = get_peft_model(
        model, LoraConfig(target_modules=["q_proj", "v_proj"], lora_dropout=0.3, r=4)
    )
    with torch.no_grad():
        for name, parameter in peft.named_parameters():
            if "lora_" in name:
                parameter.normal_()
    return peft.train(), separate


def test_the_teacher_is_a_separate_full_attention_model():
    from swaa.training.forward import attach_losses, student_losses, teacher_states

    peft, separate = _teacher_pair()
    attach_losses(peft.get_base_model())
    ids = torch.randint(2, 97, (2, 44), generator=torch.Generator().manual_seed(2))
    labels = torch.where(torch.arange(44) >= 30, ids, -100)
    inputs = {"input_ids": ids, "labels": labels, "attention_mask": torch.ones_like(ids)}
    taught = teacher_states(peft, inputs)
    assert not taught.requires_grad
    assert all(module.training for module in peft.modules())
    with torch.no_grad():
        wanted = separate(ids).logits
    rows = labels[:, 1:] != -100
    logits = find_head(separate).logits(taught)
    torch.testing.assert_close(logits, wanted[:, :-1][rows], atol=1e-5, rtol=1e-5)

    peft.eval()  # the same student twice: no dropout
    found = student_losses(peft, inputs, teacher=taught)
    with swaa.attention_rows(labels != -100):
        student = peft(input_ids=ids).logits[:, :-1][rows].log_softmax(-1)
    target = wanted[:, :-1][rows].log_softmax(-1)
    kl = (target.exp() * (target - student)).sum()
    torch.testing.assert_close(found.kl, kl, atol=1e-3, rtol=1e-5)
    assert kl > 0.1, "the student is the teacher, nothing was tested"


def test_detaching_gives_the_models_own_forward_back():
    from swaa.training.forward import attach_losses, detach_losses

    model = tiny_model("llama")
    ids = torch.randint(2, 97, (1, 9))
    with torch.no_grad():
        before = model(ids).logits
        attach_losses(model)
        assert torch.equal(model(ids).logits, before)
        detach_losses(model)
        assert "forward" not in vars(model)
        assert torch.equal(model(ids).logits, before)
