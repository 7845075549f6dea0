"""Where engines come from: a model loaded here, or a served one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Literal

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from swaa.config import SWAAConfig
from swaa.evaluation.engines import Engine
from swaa.evaluation.engines.openai import OpenAIEngine
from swaa.evaluation.engines.transformers import TransformersEngine
from swaa.evaluation.run import SERVED
from swaa.gguf_reading import read_once
from swaa.http.endpoint import Endpoint
from swaa.models import LoadedModel, find_model, model_revision, require_gguf
from swaa.plan import price


class LocalModel:
    """A loaded model, adapted anew for each configuration.

    Args:
        loaded: model and tokenizer.
        name: of the model, as typed.
        backend: attention backend of the adapted model.
        chunk: prompt tokens per forward pass; ``None``: all in one.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        name: str,
        *,
        backend: str = "auto",
        chunk: int | None = None,
    ) -> None:
        self._loaded = loaded
        self._backend = backend
        self._chunk = chunk
        self.model = loaded.name
        self.tokenizer = loaded.tokenizer
        self.revision = model_revision(name, loaded)
        self.context = loaded.trained_context
        self.device = ",".join(loaded.devices)

    def engine(self, config: SWAAConfig) -> TransformersEngine:
        """An engine for a configuration."""
        return TransformersEngine(self._loaded, config, backend=self._backend, chunk=self._chunk)

    def running(self, engine: Engine) -> AbstractContextManager[Engine]:
        """Adapt the model, and restore it afterwards."""
        assert isinstance(engine, TransformersEngine)
        return engine

    def costs(self, config: SWAAConfig, length: int) -> Mapping[str, float] | None:
        """What a prompt costs (:meth:`swaa.plan.Price.shares`).

        Args:
            config: how the model is adapted.
            length: of the prompt (tokens).

        Returns:
            The shares; ``None``: the model cannot be priced.
        """
        try:
            return price(self._loaded.model.config, config, prompt_length=length).shares()
        except ValueError:  # its answers can still be measured
            return None


class ServedModel:
    """An endpoint that runs one configuration, chosen when it was started.

    Args:
        endpoint: where to ask.
        api: see :class:`swaa.evaluation.engines.openai.OpenAIEngine`.
        concurrency: requests in progress at once.
        tokenizer: as for the engine.
    """

    revision: str | None = None
    context: int | None = None  # the server reports prompts that are too long
    device = SERVED

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        api: Literal["completions", "chat"] = "completions",
        concurrency: int = 8,
        tokenizer: PreTrainedTokenizerBase | None = None,
    ) -> None:
        self.model = endpoint.model
        self._tokenizer = tokenizer
        self._endpoint = endpoint
        self._api: Literal["completions", "chat"] = api
        self._concurrency = concurrency

    def engine(self, config: SWAAConfig) -> OpenAIEngine:
        """The only engine: which configuration the server runs is what the user says."""
        del config
        return OpenAIEngine(
            self._endpoint,
            api=self._api,
            concurrency=self._concurrency,
            tokenizer=self._tokenizer,
        )

    @contextmanager
    def running(self, engine: Engine) -> Iterator[Engine]:
        """Prepare nothing."""
        yield engine

    def costs(self, config: SWAAConfig, length: int) -> None:
        """Unknown here: only the server has the model's sizes."""
        del config, length


def load_tokenizer(name: str, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer of a model whose weights are elsewhere.

    Args:
        name: a folder, a hub name, a GGUF file, or ``smollm2``.
        trust_remote_code: run Python code that comes with the tokenizer.

    Raises:
        ValueError: when it cannot be loaded.
    """
    source = find_model(name)
    options: dict[str, Any] = {"trust_remote_code": trust_remote_code}
    if source.gguf_file is not None:
        require_gguf()
        options["gguf_file"] = source.gguf_file
    try:
        with read_once(source.gguf_file is not None):
            return AutoTokenizer.from_pretrained(source.location, **options)
    except ImportError:
        raise
    except Exception as error:  # a broken file raises errors that the loader does not document
        reason = " ".join(str(error).split())
        raise ValueError(
            f"cannot load the tokenizer of {name}: {reason:.200}; MODEL must name a folder, a GGUF"
            " file or a hub model whose tokenizer the server uses (see --served-model)"
        ) from error
