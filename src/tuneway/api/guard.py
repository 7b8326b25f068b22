"""Loopback is not private: any web page can send requests to 127.0.0.1. These rules keep them out.

A `Host` that is not ours means DNS rebinding; a foreign `Origin` or `Sec-Fetch-Site: cross-site` means another site's
page. No CORS header is ever sent, so what slips through could still not be read.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Collection

from starlette.datastructures import Headers

from tuneway.errors import Forbidden

_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(?::([0-9]{1,5}))?")
_DEFAULT_PORTS = {"http://": "80", "https://": "443"}


def check(headers: Headers, allowed_hosts: Collection[str]) -> None:
    """Raises Forbidden. `allowed_hosts` are names besides the loopback ones, with a port or for every port."""
    hosts = [host.lower() for host in headers.getlist("host")]
    found = _HOST.fullmatch(hosts[0]) if len(hosts) == 1 else None
    if found is None or not _is_ours(found, {name.lower() for name in allowed_hosts}):
        raise Forbidden(
            f"The Host header is {hosts[0]!r}, which is not a name of this gateway. "
            "Use a loopback name, or add this one to the setting `allowed_hosts`."
            if len(hosts) == 1
            else "The request needs one Host header."
        )
    own = found[1], found[2] if found[2] not in _DEFAULT_PORTS.values() else None
    foreign = any(_origin(origin.lower()) != own for origin in headers.getlist("origin"))
    if foreign or headers.get("sec-fetch-site", "").lower() == "cross-site":
        raise Forbidden("Pages of other sites may not use this gateway. Call it from a program, not from a web page.")


def _is_ours(host: re.Match[str], allowed: Collection[str]) -> bool:
    name = host[1]
    try:
        loopback = ipaddress.ip_address(name.strip("[]")).is_loopback
    except ValueError:
        loopback = name == "localhost"
    return loopback or name in allowed or host[0] in allowed


def _origin(origin: str) -> tuple[str, str | None] | None:
    """Name and port, the port None where it is the scheme's own; None for an origin such as `null`."""
    for scheme, default in _DEFAULT_PORTS.items():
        found = _HOST.fullmatch(origin.removeprefix(scheme)) if origin.startswith(scheme) else None
        if found is not None:
            return found[1], found[2] if found[2] != default else None
    return None
