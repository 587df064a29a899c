"""A small cross-encoder with random weights: no download, meaningless scores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from inference.device.model_files import locate, stay_offline

MAX_TOKENS = 64


def make(path: Path, *, outputs: int = 1) -> Path:
    """Write a model of 64 tokens and `outputs` outputs into a new directory.

    It has the packaged embedding model's tokenizer. The range of its weights is wide enough for scores
    to depend on the text.
    """
    stay_offline()
    import torch  # noqa: PLC0415 - after the environment
    from transformers import (  # noqa: PLC0415 - after the environment
        AutoTokenizer,
        BertConfig,
        BertForSequenceClassification,
    )
    from transformers.utils.logging import disable_progress_bar  # noqa: PLC0415

    disable_progress_bar()
    tokenizer: Any = AutoTokenizer.from_pretrained(locate(None).path)
    tokenizer.model_max_length = MAX_TOKENS
    with torch.random.fork_rng():
        torch.manual_seed(7)
        model = BertForSequenceClassification(
            BertConfig(
                vocab_size=len(tokenizer),
                hidden_size=32,
                num_hidden_layers=2,
                num_attention_heads=2,
                intermediate_size=64,
                max_position_embeddings=MAX_TOKENS,
                num_labels=outputs,
                initializer_range=0.5,
            )
        )
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path
