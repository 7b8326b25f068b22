"""What the database must not hold in clear: keys as HMACs, other people's secrets encrypted.

The one secret behind both is a file of mode 0600 beside the database, never in it: a copy of the database alone opens
nothing.
"""

from __future__ import annotations

import base64
import hmac
import os
import secrets
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from tuneway.errors import StartError

_BYTES = 32
_NONCE_BYTES = 12


class Vault:
    """`path` is the file of the secret; nothing is read before `open`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._hmac_key = b""
        self._cipher: AESGCM | None = None

    def open(self, *, create: bool) -> None:
        """Reads the secret, which is made first where there is none and `create` allows it. Raises StartError."""
        if not self._path.exists():
            if not create:
                raise StartError(
                    f"{self._path} is missing: without it no key and no webhook in the database can be used. Restore "
                    "it from a copy. To begin anew, give the gateway another data folder."
                )
            self._make()
        secret = self._path.read_bytes()
        if len(secret) != _BYTES:
            raise StartError(f"{self._path} is not a secret of this gateway ({_BYTES} bytes). Restore it from a copy.")
        self._hmac_key = hmac.digest(secret, b"tuneway keys", "sha256")
        self._cipher = AESGCM(hmac.digest(secret, b"tuneway sealed", "sha256"))

    def digest(self, key: str) -> str:
        """HMAC-SHA-256 of a key, in hexadecimal. Keys are random, so a slow hash would only slow requests."""
        return hmac.digest(self._hmac_key, key.encode(), "sha256").hex()

    def seal(self, secret: str, *, owner: str) -> str:
        """`secret` encrypted (AES-256-GCM), for the row `owner` only: in another row it does not open."""
        assert self._cipher is not None
        nonce = secrets.token_bytes(_NONCE_BYTES)
        return base64.b64encode(nonce + self._cipher.encrypt(nonce, secret.encode(), owner.encode())).decode()

    def unseal(self, sealed: str, *, owner: str) -> str:
        """Raises ValueError for what was sealed with another secret, for another owner, or changed since."""
        assert self._cipher is not None
        raw = base64.b64decode(sealed)
        try:
            return self._cipher.decrypt(raw[:_NONCE_BYTES], raw[_NONCE_BYTES:], owner.encode()).decode()
        except InvalidTag:
            raise ValueError(f"the secret of {owner} cannot be read with {self._path}") from None

    def _make(self) -> None:
        whole = self._path.with_suffix(".new")
        whole.unlink(missing_ok=True)
        with open(os.open(whole, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(secrets.token_bytes(_BYTES))
            file.flush()
            os.fsync(file.fileno())
        whole.rename(self._path)
        folder = os.open(self._path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
