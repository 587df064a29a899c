"""Embedding by sentence-transformers on CUDA, ROCm, MPS or CPU.

Importing this module does not import torch; loading a model does.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from inference.catalogue.schema import Locality
from inference.device.batching import DeviceBatches, device_thread
from inference.device.model_files import ModelFiles, locate, stay_offline
from inference.device.threads import set_threads
from inference.device.tokenizer import ModelTokenizer, break_long_words
from inference.errors import BadVectors, DeviceMissing, ModelMissing, TooLong
from inference.protocol import BackendConfig, BackendProbe, InputType, SpaceSpec, space_name

if TYPE_CHECKING:
    from inference.catalogue.schema import ModelEntry
    from inference.protocol import Vectors

NAME: Final = "sentence-transformers"

CPU_BATCH_TOKENS: Final = 512
"""Padded tokens of one batch on a CPU: measured on two cores, larger ones are no faster, and one delays
an urgent text by about 0.13 s."""
GPU_BATCH_TOKENS: Final = 16_384
"""The same on a GPU, intended for about 50 ms of a small model; not measured."""
BATCHES_PER_CALL: Final = 8
"""Batches of `call_tokens`."""


class SentenceTransformersBackend:
    """Models in this process. See `inference.protocol.Backend`."""

    def __init__(self, config: BackendConfig) -> None:
        self.name = config.name
        self.locality: Locality = config.locality
        self._config = config

    def load(self, model: ModelEntry) -> SentenceTransformersModel:
        """An embedding model: the directory in its `options.path`, else by its served name."""
        return SentenceTransformersModel(
            str(model.options.get("path") or model.served_name),
            device=self._config.device,
            threads=self._config.threads,
            name=self.name,
        )

    def probe(self) -> BackendProbe:
        """Whether its library is installed; loads nothing."""
        installed = find_spec("sentence_transformers") is not None
        return BackendProbe(
            installed, None, "installed" if installed else "pip install sentence-transformers"
        )

    def close(self) -> None:
        """Models are freed with the process."""


def connect(config: BackendConfig) -> SentenceTransformersBackend:
    """The backend of a configuration."""
    return SentenceTransformersBackend(config)


class SentenceTransformersModel:
    """A loaded SentenceTransformer. See `inference.protocol.EmbeddingModel`."""

    locality: Locality = "local"

    def __init__(
        self,
        model: str | None = None,
        *,
        device: str = "auto",
        threads: int | None = None,
        name: str = NAME,
    ) -> None:
        """Load the model.

        Args:
            model: as `inference.device.model_files.locate` takes it.
            device: `auto`, `cpu`, `cuda` (also ROCm), `cuda:N` or `mps`.
            threads: as `inference.device.threads.set_threads` takes it.
            name: the backend's, for receipts.

        Raises:
            ModelMissing: it is not on this machine, or cannot be loaded.
            DeviceMissing: the device is not on this machine.
        """
        self.name = name
        set_threads(threads)
        stay_offline()
        files = locate(model)
        import torch  # noqa: PLC0415 - takes seconds; the dispatcher and the command line do not need it

        self.threads = set_threads(threads)
        self._torch = torch
        self.device = choose_device(torch, device)
        half = self.device.partition(":")[0] in {"cuda", "mps"}
        precision = "fp16" if half else "fp32"
        self._model = _load(files, self.device, torch.float16 if half else torch.float32)
        self._tokenizer = ModelTokenizer.of(self._model.tokenizer)
        self._batch_tokens = GPU_BATCH_TOKENS if half else CPU_BATCH_TOKENS
        self._device_thread = device_thread(self.device)
        self._batches = DeviceBatches(torch, self._device_thread, self._batch_tokens)
        self._prefixes: dict[InputType, str] = {
            "query": self._model.prompts.get("query") or "",
            "document": self._model.prompts.get("document") or "",
        }
        self.space = self._describe(files, precision)

    @property
    def max_tokens(self) -> int:
        """Most tokens in one text; the model's own code would truncate more."""
        return int(self._model.max_seq_length or self._tokenizer.max_tokens)

    @property
    def call_tokens(self) -> int:
        """About a second of work on a CPU."""
        return self._batch_tokens * BATCHES_PER_CALL

    @property
    def tokenizer(self) -> Any | None:
        """See `EmbeddingModel.tokenizer`."""
        return self._tokenizer.fast

    @property
    def longest_word(self) -> int | None:
        """See `EmbeddingModel.longest_word`."""
        return self._tokenizer.longest_word

    def count_tokens(
        self,
        texts: Sequence[str],
        input: InputType = "document",  # noqa: A002 - the protocol's name
    ) -> list[int]:
        """Exact tokens of each text, its prefix and special tokens included."""
        return self._count(self._prepared(texts), input)

    def embed(
        self,
        texts: Sequence[str],
        input: InputType = "document",  # noqa: A002 - the protocol's name
        *,
        urgent: bool = False,
    ) -> Vectors:
        """Vectors of length 1, float32 of shape (len(texts), dimension).

        Raises:
            TooLong: with the indices of the texts over `max_tokens`.
            OutOfMemory: not even a single text fits the device.
            InferenceFailed: the model raised for a single text.
            BadRequest: a text is not valid Unicode.
            BadVectors: the model's vectors have another dimension than the space.
            BackendUnavailable: this process has lost the device.
        """
        prepared = self._prepared(texts)
        tokens = self._count(prepared, input)
        too_long = [index for index, count in enumerate(tokens) if count > self.max_tokens]
        if too_long:
            raise TooLong(indices=too_long)
        vectors = np.empty((len(texts), self.space.dimension), dtype=np.float32)

        def forward(indices: list[int]) -> Vectors:
            return self._run_model([prepared[index] for index in indices], input)

        for indices, part in self._batches.run(tokens, forward, urgent=urgent):
            if part.shape != (len(indices), self.space.dimension):
                raise BadVectors(indices=indices)
            vectors[indices] = part
        return vectors

    def warm_up(self) -> None:
        """Run a short query and one full batch."""
        self.embed(["warm"], "query", urgent=True)
        words = " ".join(["warm"] * max(1, self.max_tokens // 4))
        self.embed([words] * max(1, self._batch_tokens // self.max_tokens), "document")

    def _prepared(self, texts: Sequence[str]) -> list[str]:
        return [break_long_words(text, self.longest_word).text for text in texts]

    def _count(self, prepared: Sequence[str], input: InputType) -> list[int]:  # noqa: A002
        prefix = self._prefixes[input]
        return self._tokenizer.count([prefix + text for text in prepared])

    def _run_model(self, texts: list[str], input: InputType) -> Vectors:  # noqa: A002
        """Run one batch, as the library's `encode` does, without its sorting, stacking and copying."""
        from sentence_transformers.util import batch_to_device  # noqa: PLC0415 - see __init__

        torch = self._torch
        with torch.inference_mode():
            prefix = self._prefixes[input]
            features = self._model.preprocess(texts, prompt=prefix or None, task=input)
            features = batch_to_device(features, self._model.device)
            vectors = self._model(features, task=input)["sentence_embedding"]
            if self._model.truncate_dim is not None:
                vectors = vectors[..., : self._model.truncate_dim]
            normalised = torch.nn.functional.normalize(vectors.float(), p=2, dim=1)
            result: Vectors = normalised.cpu().numpy()
        return result

    def _describe(self, files: ModelFiles, precision: str) -> SpaceSpec:
        import sentence_transformers  # noqa: PLC0415 - see __init__

        dimension = self._model.get_embedding_dimension()
        if dimension is None:
            raise ModelMissing(f"embedding model {files.name!r} does not state its dimension")
        return SpaceSpec(
            name=space_name(files.name, files.revision, dimension, precision),
            model=files.name,
            revision=files.revision,
            dimension=dimension,
            query_prefix=self._prefixes["query"],
            document_prefix=self._prefixes["document"],
            normalised=True,
            precision=precision,
            library=f"{NAME} {sentence_transformers.__version__}",
        )


def choose_device(torch: Any, setting: str) -> str:
    """The torch device for VESTRY_DEVICE; for `auto` CUDA or ROCm, else MPS, else CPU.

    Raises:
        DeviceMissing: it is not on this machine.
    """
    available = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    names = [name for name, present in available.items() if present]
    if setting == "auto":
        return names[0]
    kind, _, number = setting.partition(":")
    if kind not in names or (
        number and not (number.isdecimal() and int(number) < torch.cuda.device_count())
    ):
        raise DeviceMissing(
            f"VESTRY_DEVICE={setting} is not on this machine; there is: {', '.join(names)} (or auto)"
        )
    return setting


def _load(files: ModelFiles, device: str, dtype: Any) -> Any:
    # Their warnings contain texts and lengths, and their progress bars write to stderr.
    for name in ("sentence_transformers", "transformers", "huggingface_hub"):
        logging.getLogger(name).setLevel(logging.ERROR)
    from sentence_transformers import SentenceTransformer  # noqa: PLC0415 - see __init__
    from transformers.utils.logging import disable_progress_bar  # noqa: PLC0415 - see __init__

    disable_progress_bar()
    try:
        model = SentenceTransformer(
            str(files.path), device=device, local_files_only=True, model_kwargs={"dtype": dtype}
        )
    except Exception as error:
        raise ModelMissing(
            f"embedding model {files.name!r} cannot be loaded ({type(error).__name__}); check that its "
            "directory is complete"
        ) from error
    model.eval()
    return model
