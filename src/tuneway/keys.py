"""The keys service: who may use this gateway, for which project, and for what."""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Collection, Sequence

from tuneway import ids
from tuneway.errors import Forbidden, InvalidRequest, KeyNotFound, Unauthorized
from tuneway.store import Store
from tuneway.store import keys as rows
from tuneway.types import Key, Principal, Scope
from tuneway.vault import Vault

PREFIX = "tnw_"
"""How a key of this gateway begins; what does not is somebody else's."""
DEFAULT_PROJECT = "default"
DEFAULT_SCOPES = (Scope.READ, Scope.TUNE, Scope.CHAT)

_SECRET_BYTES = 32
_PROJECT = re.compile("[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
OPERATOR = Principal(DEFAULT_PROJECT, frozenset(Scope))
"""Who brings no key where none is asked for."""


class Keys:
    """`required` is the setting `auth`: without it, who brings no key is the operator, in the project `default`."""

    def __init__(self, store: Store, vault: Vault, *, required: bool) -> None:
        self._store = store
        self._vault = vault
        self._required = required

    async def authenticate(self, presented: str | None) -> Principal:
        """Who brings this key (None: no key at all). Raises Unauthorized."""
        if presented is None or not (self._required or presented.startswith(PREFIX)):
            if self._required:
                raise Unauthorized
            return OPERATOR
        key = await self._store.read(rows.by_hmac, self._vault.digest(presented))
        if key is None:
            raise Unauthorized(
                f"Incorrect API key provided: {_masked(presented)}. `tuneway keys list` shows those of this gateway.",
                code="invalid_api_key",
            )
        if key.revoked_at is not None or (key.expires_at is not None and key.expires_at <= time.time()):
            ended = "has expired" if key.revoked_at is None else "was revoked"
            raise Unauthorized(f"The API key …{key.hint} {ended}. Ask for a new one.", code="invalid_api_key")
        return Principal(key.project_id, key.scopes, key.id)

    async def create(
        self,
        project: str,
        name: str,
        scopes: Collection[Scope] = DEFAULT_SCOPES,
        expires_after: int | None = None,
    ) -> tuple[Key, str]:
        """A new key and the key itself, which is shown this once only. `expires_after` is in seconds.

        Raises InvalidRequest for a project's name that could not be part of a model's.
        """
        if not _PROJECT.fullmatch(project):
            raise InvalidRequest(
                f"Invalid project {project[:64]!r}: letters, digits, '-' and '_' only, at most 64, and none of the "
                "latter two at its beginning.",
                param="project",
            )
        secret = PREFIX + secrets.token_urlsafe(_SECRET_BYTES)
        now = int(time.time())
        key = Key(
            seq=0,
            id=ids.key_id(),
            project_id=project,
            created_at=now,
            name=name,
            hint=secret[-4:],
            scopes=frozenset(scopes),
            expires_at=None if expires_after is None else now + expires_after,
        )
        return await self._store.write(rows.insert, key, self._vault.digest(secret)), secret

    async def list(self, project: str | None) -> Sequence[Key]:
        """The keys of a project, or (None) of all, newest first, revoked ones too."""
        return await self._store.read(rows.every, project)

    async def depend_on_vault(self) -> bool:
        """Whether another secret in the vault would make keys or webhooks useless."""
        return await self._store.read(rows.depend_on_vault)

    async def revoke(self, project: str | None, key_id: str) -> Key:
        """Ends a key of the project (None: of any) from the next request on. Raises KeyNotFound."""
        key = await self._store.write(rows.revoke, project, key_id, int(time.time()))
        if key is None:
            raise KeyNotFound(key_id)
        return key


def allow(principal: Principal, scope: Scope) -> None:
    """Raises Forbidden when the key may not do this."""
    if scope not in principal.scopes:
        raise Forbidden(
            f"This key has the scopes {', '.join(sorted(principal.scopes)) or 'none'}; this needs {scope.value}."
        )


def _masked(key: str) -> str:
    return f"{key[:4]}{'*' * 8}{key[-4:]}" if len(key) > 16 else "*" * 8
