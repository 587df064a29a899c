"""The transport of a backend's HTTP client: local servers only, or a cloud with a record.

    client = httpx2.Client(transport=transport_for(config, httpx2), trust_env=False, timeout=…)

Every backend that talks HTTP gets its transport here and nowhere else; a test reads the backends'
source for any other.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

from inference.egress import EgressTransport
from inference.local_only import guarded_transport
from inference.protocol import BackendConfig


def transport_for(config: BackendConfig, httpx: ModuleType) -> Any:
    """The one transport through which this backend may be called.

    Args:
        config: the backend's; its locality decides.
        httpx: the module `httpx` or `httpx2`, whichever the client is of.
    """
    if config.locality == "local":
        return guarded_transport(httpx, config.networks)
    return EgressTransport(httpx, config.name, config.egress)
