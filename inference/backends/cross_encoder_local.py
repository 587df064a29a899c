"""Reranking by a sentence-transformers cross-encoder, which reads query and passage together.

Importing this module does not import torch; loading a model does.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any, Final

from inference.backends.sentence_transformers_local import (
    CPU_BATCH_TOKENS,
    GPU_BATCH_TOKENS,
    choose_device,
)
from inference.catalogue.schema import Locality, ModelEntry
from inference.device.batching import DeviceBatches, device_thread
from inference.device.model_files import ModelFiles, locate, stay_offline
from inference.device.threads import set_threads
from inference.device.tokenizer import ModelTokenizer, break_long_words
from inference.errors import BadAnswer, ModelMissing, TooLong
from inference.protocol import BackendConfig, BackendProbe

_QUIET: Final = ("sentence_transformers", "transformers", "huggingface_hub")


class CrossEncoderBackend:
    """Cross-encoders in this process. See `inference.protocol.Backend`."""

    def __init__(self, config: BackendConfig) -> None:
        self.name = config.name
        self.locality: Locality = config.locality
        self._config = config

    def load(self, model: ModelEntry) -> CrossEncoderModel:
        """A model by its directory: `path` of its own options, else of the backend's.

        Without either, its served name is searched in the local cache of the hub.

        Raises:
            ModelMissing: it is not on this machine, or no reranker.
            DeviceMissing: the device is not on this machine.
        """
        path = model.options.get("path") or self._config.options.get("path") or model.served_name
        return CrossEncoderModel(
            str(path), device=self._config.device, threads=self._config.threads
        )

    def probe(self) -> BackendProbe:
        """Whether its library is installed; loads nothing."""
        installed = find_spec("sentence_transformers") is not None
        return BackendProbe(
            installed, None, "installed" if installed else "pip install sentence-transformers"
        )

    def close(self) -> None:
        """Models are freed with the process."""


def connect(config: BackendConfig) -> CrossEncoderBackend:
    """The backend of a configuration."""
    return CrossEncoderBackend(config)


class CrossEncoderModel:
    """A loaded cross-encoder with a single output. See `inference.protocol.RerankModel`."""

    def __init__(self, model: str, *, device: str = "auto", threads: int | None = None) -> None:
        """Load the model.

        Args:
            model: a directory, or a hub name that is in the local cache.
            device: as VESTRY_DEVICE.
            threads: as `inference.device.threads.set_threads` takes it.

        Raises:
            ModelMissing: it is not on this machine, cannot be loaded, or is no reranker.
            DeviceMissing: the device is not on this machine.
        """
        set_threads(threads)
        stay_offline()
        files = _located(model)
        import torch  # noqa: PLC0415 - takes seconds; the dispatcher and the command line do not need it

        set_threads(threads)
        self.device = choose_device(torch, device)
        half = self.device.partition(":")[0] in {"cuda", "mps"}
        self._model = _load(files, self.device, torch.float16 if half else torch.float32)
        self._tokenizer = ModelTokenizer.of(self._model.tokenizer)
        self._budget = GPU_BATCH_TOKENS if half else CPU_BATCH_TOKENS
        self._batches = DeviceBatches(torch, device_thread(self.device), self._budget)

    @property
    def max_tokens(self) -> int:
        """Most tokens in query and passage together; the model's own code would truncate more."""
        return int(self._model.max_seq_length or self._tokenizer.max_tokens)

    def rerank(
        self, query: str, passages: Sequence[str], *, urgent: bool = False
    ) -> Sequence[float]:
        """A score for each passage, on the model's own scale: logits, or 0 to 1.

        Raises:
            TooLong: with the indices of the passages that do not fit together with the query.
            OutOfMemory: not even a single passage fits the device.
            InferenceFailed: the model raised for a single passage.
            BadRequest: a text is not valid Unicode.
            BadAnswer: a score is not finite.
            BackendUnavailable: this process has lost the device.
        """
        longest = self._tokenizer.longest_word
        query = break_long_words(query, longest).text
        pairs = [(query, break_long_words(passage, longest).text) for passage in passages]
        tokens = self._tokenizer.count_pairs(pairs)
        too_long = [index for index, count in enumerate(tokens) if count > self.max_tokens]
        if too_long:
            raise TooLong(
                "a passage is longer, together with the query, than the model reads; "
                "nothing was truncated",
                indices=too_long,
            )
        scores = [0.0] * len(pairs)

        def forward(indices: list[int]) -> list[float]:
            return self._run_model([pairs[index] for index in indices])

        for indices, part in self._batches.run(tokens, forward, urgent=urgent):
            if not all(map(math.isfinite, part)):
                raise BadAnswer("the model's scores are not finite")
            for index, score in zip(indices, part, strict=True):
                scores[index] = score
        return scores

    def warm_up(self) -> None:
        """Run one pair and one full batch."""
        self.rerank("warm", ["warm"], urgent=True)
        words = " ".join(["warm"] * max(1, self.max_tokens // 4))
        self.rerank("warm", [words] * max(1, self._budget // self.max_tokens))

    def _run_model(self, pairs: list[tuple[str, str]]) -> list[float]:
        scores = self._model.predict(
            pairs, batch_size=len(pairs), show_progress_bar=False, convert_to_numpy=True
        )
        return [float(score) for score in scores]


def _located(model: str) -> ModelFiles:
    try:
        return locate(model)
    except ModelMissing:
        raise ModelMissing(
            f"reranking model {model!r} is not on this machine: set VESTRY_RERANK_MODEL to a "
            "directory that holds one, or HF_HUB_OFFLINE=0 to let it be downloaded"
        ) from None


def _load(files: ModelFiles, device: str, dtype: Any) -> Any:
    # Their warnings contain texts and lengths, and their progress bars write to stderr.
    for name in _QUIET:
        logging.getLogger(name).setLevel(logging.ERROR)
    from sentence_transformers import CrossEncoder  # noqa: PLC0415 - see __init__
    from transformers.utils.logging import disable_progress_bar  # noqa: PLC0415 - see __init__

    disable_progress_bar()
    try:
        model = CrossEncoder(
            str(files.path), device=device, local_files_only=True, model_kwargs={"dtype": dtype}
        )
    except Exception as error:
        raise ModelMissing(
            f"reranking model {files.name!r} cannot be loaded ({type(error).__name__}); check that its "
            "directory is complete"
        ) from error
    task = getattr(model[0], "transformer_task", None)
    if model.num_labels != 1 or task != "sequence-classification":
        raise ModelMissing(
            f"model {files.name!r} is no reranker: it does not give one score for a pair of texts"
        )
    model.eval()
    return model
