"""The HTTP side: the only importer of the web framework. One file per resource; `schema` holds the wire models."""

from tuneway.api.app import build
from tuneway.api.context import ApiSettings, Services

__all__ = ["ApiSettings", "Services", "build"]
