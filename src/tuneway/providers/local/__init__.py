"""The local provider: trains in a child process and serves by an engine, both on this machine."""

from tuneway.providers.local.provider import Local

__all__ = ["Local"]
