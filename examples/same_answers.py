"""Do Transformers, vLLM and SGLang give the same tokens under one recipe? On the CPU, in float32.

vLLM and SGLang need environments of their own; `make test-vllm` and `make test-sglang` build them.
From a clone:

    .venv/bin/python examples/same_answers.py smollm2 --vllm .venv/vllm/bin/python \
        --sglang .venv/sglang/bin/python

Prompts of several lengths, each with a number to find, are answered greedily: all at once, in chunks
of a few hundred tokens. The recipe slides, with sinks, full decode and a dense tail; its window is
far shorter than the prompts. The exit status is 1 where an engine says something else than
Transformers.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
RECIPE = {"window": 256, "sink_tokens": 16, "full_decode": True, "dense_tail": 32}
LENGTHS = (300, 700, 1000, 1500)
NEW_TOKENS = 24
CHUNK = 256


def write_prompts(model, folder):
    """The model as a checkpoint in float32, and prompts with their token ids."""
    from swaa.evaluation.prompt import Prompt
    from swaa.evaluation.tasks import find_tasks
    from swaa.models import load_model

    loaded = load_model(model, device="cpu", dtype="float32")
    loaded.model.save_pretrained(folder)
    loaded.tokenizer.save_pretrained(folder)
    prompt = Prompt(tokenizer=loaded.tokenizer)
    (task,) = find_tasks(["needle"])
    samples = [task.samples(prompt, length=n, count=1, seed=7)[0] for n in LENGTHS]
    texts = [prompt.text(s.context, s.question, s.answer_prefix) for s in samples]
    ids = [prompt.encode(text) for text in texts]
    (folder / "prompts.json").write_text(json.dumps([list(map(int, one)) for one in ids]))
    return loaded.tokenizer


def of_transformers(folder, prompts):
    """Answers one by one, by `generate`."""
    import swaa
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    swaa.adapt(model, RECIPE)
    model.generation_config.eos_token_id = None  # no token ends an answer: all say as many
    answers = []
    for prompt in prompts:
        ids = torch.tensor([prompt])
        mask = torch.ones_like(ids)
        output = model.generate(
            ids, attention_mask=mask, max_new_tokens=NEW_TOKENS, do_sample=False
        )
        answers.append(output[0, len(prompt) :].tolist())
    return answers


def of_vllm(folder, prompts):
    """Answers by vLLM, all at once."""
    from vllm import LLM, SamplingParams

    llm = LLM(
        folder,
        skip_tokenizer_init=True,
        dtype="float32",
        enforce_eager=True,
        max_model_len=2048,
        max_num_batched_tokens=CHUNK,
        additional_config={"swaa": RECIPE},
    )
    sampling = SamplingParams(
        temperature=0, max_tokens=NEW_TOKENS, ignore_eos=True, detokenize=False
    )
    asked = [{"prompt_token_ids": prompt} for prompt in prompts]
    return [list(output.outputs[0].token_ids) for output in llm.generate(asked, sampling)]


def of_sglang(folder, prompts):
    """Answers by SGLang, all at once."""
    import sglang

    engine = sglang.Engine(
        model_path=folder,
        device="cpu",
        dtype="float32",
        skip_tokenizer_init=True,
        attention_backend="swaa_torch_native",
        radix_cache_backend="swaa",
        json_model_override_args=json.dumps({"swaa": RECIPE}),
        context_length=2048,
        max_total_tokens=8192,
        max_running_requests=8,
        chunked_prefill_size=CHUNK,
        log_level="warning",
    )
    sampling = {"temperature": 0, "max_new_tokens": NEW_TOKENS, "ignore_eos": True}
    outputs = engine.generate(input_ids=prompts, sampling_params=sampling)
    engine.shutdown()
    return [output["output_ids"] for output in outputs]


ENGINES = {"transformers": of_transformers, "vllm": of_vllm, "sglang": of_sglang}
ENVIRONMENT = {
    "vllm": {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"},
    "sglang": {
        "SGLANG_USE_CPU_ENGINE": "1",
        # What SGLang imports and a CPU lacks.
        "PYTHONPATH": os.pathsep.join([str(ROOT / "tests/sglang/stand_ins"), str(ROOT / "src")]),
    },
}


def ask(engine, python, folder):
    """The answers of an engine in an environment of its own, or None if it failed."""
    made = folder / f"{engine}.json"
    done = subprocess.run(
        [python, __file__, "--answer", engine, str(folder)],
        env=os.environ | {"HF_HUB_OFFLINE": "1"} | ENVIRONMENT.get(engine, {}),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    if not made.is_file():
        print(f"{engine} failed:\n{done.stderr[-2000:]}", file=sys.stderr)
        return None
    return json.loads(made.read_text())


def compare(args):
    """Ask each engine, print what it said, and count the differences."""
    wrong = 0
    with tempfile.TemporaryDirectory(prefix="swaa-same-") as made:
        folder = Path(made)
        tokenizer = write_prompts(args.model, folder)
        asked = {"transformers": sys.executable, "vllm": args.vllm, "sglang": args.sglang}
        answers = {name: ask(name, python, folder) for name, python in asked.items() if python}
    expected = answers["transformers"]
    if expected is None:
        return 1
    for name, said in answers.items():
        same = [] if said is None else [one == two for one, two in zip(said, expected, strict=True)]
        wrong += len(LENGTHS) - sum(same)
        print(f"{name:12}  {sum(same)} of {len(LENGTHS)} answers are those of Transformers")
    for length, answer in zip(LENGTHS, expected, strict=True):
        print(f"{length:>6} tokens: {tokenizer.decode(answer)!r}")
    return int(wrong > 0)


def main():
    """Compare, or answer as one of the engines."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", default="smollm2")
    parser.add_argument("--vllm", metavar="PYTHON", help="of an environment with vLLM")
    parser.add_argument("--sglang", metavar="PYTHON", help="of an environment with SGLang")
    parser.add_argument("--answer", nargs=2, metavar=("ENGINE", "FOLDER"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.answer is None:
        return compare(args)
    engine, folder = args.answer
    prompts = json.loads(Path(folder, "prompts.json").read_text())
    Path(folder, f"{engine}.json").write_text(json.dumps(ENGINES[engine](folder, prompts)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
