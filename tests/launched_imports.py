"""What the processes of `tests.launched` need, imported before they are forked."""

import importlib
import importlib.util

for _name in (
    "swaa.evaluation.replicas",
    "torch._dynamo",
    "transformers.generation",
    "transformers.models.llama.modeling_llama",
    "trl",
    "swaa.training.run",
):
    if importlib.util.find_spec(_name.partition(".")[0]):  # TRL is an extra
        importlib.import_module(_name)
