"""Every kind of account that there is; a new vendor is a file beside this one and a line here."""

from __future__ import annotations

from collections.abc import Mapping

from tuneway.providers import azure_openai, fireworks, openai, openai_compatible, together
from tuneway.providers.vendor import Kind

KINDS: Mapping[str, Kind] = {
    kind.name: kind
    for kind in (
        openai.KIND,
        azure_openai.KIND,
        together.KIND,
        fireworks.KIND,
        *openai_compatible.KINDS,
    )
}
HOSTS = tuple(sorted({host for kind in KINDS.values() for host in kind.hosts}))
"""What may be called without the operator's leave."""
