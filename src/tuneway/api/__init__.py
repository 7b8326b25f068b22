"""The HTTP side: the only importer of the web framework. One file per resource; `schema.py` holds the wire models."""

from tuneway.api.app import build
from tuneway.api.context import ApiSettings

__all__ = ["ApiSettings", "build"]
