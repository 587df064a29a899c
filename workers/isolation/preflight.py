"""Preflight of a private worker: no cloud credentials, no cloud backends, no core dumps."""

from __future__ import annotations

import ctypes
import re
import resource
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Final

from inference.catalogue.schema import Catalogue
from inference.remote.local_network import Network, NotLocal, check_url

CLOUD_VARIABLE_PREFIXES: Final = (
    "ANTHROPIC", "AWS", "AZURE", "BEDROCK", "CLOUDSDK", "CLOUDFLARE", "COHERE", "DATABRICKS",
    "DEEPGRAM", "DEEPSEEK", "ELEVENLABS", "FIREWORKS", "GCLOUD", "GCP", "GEMINI", "GOOGLE", "GROQ",
    "HF", "HUGGINGFACE", "HUGGINGFACEHUB", "HUGGING_FACE", "JINA", "LANGCHAIN", "LANGSMITH",
    "MISTRAL", "NVIDIA", "OLLAMA", "OPENAI", "OPENROUTER", "PERPLEXITY", "REPLICATE", "SAGEMAKER",
    "TOGETHER", "VERTEX", "VOYAGE", "WANDB", "WATSONX", "XAI",
)  # fmt: skip
"""Prefixes of the variables from which the providers' libraries take credentials."""
_SECRET = re.compile(
    r".*(API_?KEY|ACCESS_?KEY|SECRET|TOKEN|PASSWORD|CREDENTIALS?|CONNECTION_STRING|SESSION)(_.*)?"
)
_CLOUD_SECRET = re.compile(rf"({'|'.join(CLOUD_VARIABLE_PREFIXES)})_{_SECRET.pattern}")
_ANY_KEY = re.compile(r".*_API_?(KEY|TOKEN)(_.*)?")
"""Form of any provider's key variable."""
OTHER_CLOUD_VARIABLES: Final = frozenset(
    {"CO_API_KEY", "AWS_PROFILE", "AWS_ROLE_ARN", "GOOGLE_CLOUD_KEYFILE_JSON"}
)
PR_SET_DUMPABLE: Final = 4
"""prctl(2): if it is 0, the kernel writes no core, and only root can read /proc/PID/mem and environ."""


class PrivacyPreflightError(SystemExit):
    """A private worker failed its preflight; the message names each fault."""


def cloud_credentials(environment: Iterable[str]) -> list[str]:
    """Names of the variables that hold credentials of a cloud."""
    return sorted(
        name
        for name in environment
        if not name.startswith("VESTRY_")
        and (
            name in OTHER_CLOUD_VARIABLES
            or _CLOUD_SECRET.fullmatch(name.upper())
            or _ANY_KEY.fullmatch(name.upper())
        )
    )


def check_private_worker(
    environment: Mapping[str, str],
    catalogue: Catalogue,
    *,
    keys: Collection[str],
    allowed: Iterable[Network] = (),
) -> None:
    """Check that a private worker has no access to a cloud.

    Args:
        environment: the process's.
        catalogue: of the enabled backends only, with their URLs.
        keys: names of the backends whose API keys it has.
        allowed: networks that count as local besides the loopback interface.

    Raises:
        PrivacyPreflightError: it has; the message names each access, and how to remove it.
    """
    faults = list(_faults(environment, catalogue, keys, tuple(allowed)))
    if faults:
        raise PrivacyPreflightError("a private worker does not start: " + "; ".join(faults))


def _faults(
    environment: Mapping[str, str],
    catalogue: Catalogue,
    keys: Collection[str],
    allowed: tuple[Network, ...],
) -> Iterator[str]:
    if names := cloud_credentials(environment):
        yield f"its environment has a cloud's credentials, unset {', '.join(names)}"
    for backend in catalogue.backends:
        if backend.locality != "local":
            yield f"the cloud backend {backend.name} is enabled, remove it from VESTRY_BACKENDS"
            continue
        try:
            if backend.url is not None:
                check_url(backend.url, allowed)
        except NotLocal as error:
            yield f"backend {backend.name}: {error}"
    local = {backend.name for backend in catalogue.backends if backend.locality == "local"}
    for name in sorted(set(keys) - local):
        yield f"it has a key of {name}, remove it from VESTRY_BACKEND_KEYS"


def disable_core_dumps() -> None:
    """Disable core dumps of this process and its children; on Linux, also debuggers of its account.

    A child that runs another program can be debugged by its account again.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)
