"""The accounts service: which providers there are, those of tuneway.toml and those that were added while it runs.

Their secrets are in memory, and, of added ones, encrypted in the database; no answer, event or message ever has one.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from tuneway import ids
from tuneway.errors import InvalidRequest, ProviderNotFound, StartError
from tuneway.keys import DEFAULT_PROJECT
from tuneway.providers.base import Capabilities, Provider
from tuneway.providers.line import Dial, Limits, Line
from tuneway.providers.remote import Remote
from tuneway.providers.vendor import Kind, Options
from tuneway.settings import ACCOUNT_NAME, ConfiguredAccount
from tuneway.store import Store, Tx
from tuneway.store import accounts as rows
from tuneway.store import jobs as job_rows
from tuneway.types import Account, LineState
from tuneway.vault import Vault

LIMITS: Mapping[str, str] = {
    "running_jobs": "Jobs of this gateway that the account has at a time; the others wait. Default: 16.",
    "concurrency": "Requests to the account at a time. Default: 16.",
    "timeout_seconds": "For a request that transfers no file. Default: 120.",
    "poll_seconds": "Between two looks at a running job, at most; behind a change they are closer. Default: 10.",
    "settle_seconds": "How long the vendor may take to show a job whose create was not answered. Default: 20.",
}
"""Options that every account has, whatever its kind."""


@dataclass(frozen=True, slots=True)
class ShownKind:
    """A kind of account: its options and secrets with what they are for. `capabilities` None depend on the options."""

    name: str
    options: Mapping[str, str]
    secrets: Mapping[str, str]
    capabilities: Capabilities | None


@dataclass(frozen=True, slots=True)
class Shown:
    """An account as it may be shown: names of its secrets, never a secret."""

    account: Account
    secrets: Sequence[str]
    capabilities: Capabilities
    line: LineState
    unended_jobs: int


class Accounts:
    """`kinds` by name. `providers` and `slots` are those of the gateway: they live, and change with each account."""

    def __init__(
        self,
        store: Store,
        vault: Vault,
        kinds: Mapping[str, Kind],
        dial: Dial,
        *,
        providers: dict[str, Provider],
        slots: dict[str, int],
    ) -> None:
        self._store = store
        self._vault = vault
        self._kinds = kinds
        self._dial = dial
        self._providers = providers
        self._slots = slots
        self._known: dict[str, tuple[Account, Sequence[str], Remote]] = {}

    def kinds(self) -> Sequence[ShownKind]:
        """What accounts there may be."""
        return [ShownKind(kind.name, kind.options, kind.secrets, kind.capabilities) for kind in self._kinds.values()]

    def configure(self, configured: Sequence[ConfiguredAccount]) -> None:
        """Takes the accounts of the settings. Raises StartError that names the account and the option."""
        for found in configured:
            try:
                self._take(found.account, found.secrets)
            except InvalidRequest as error:
                raise StartError(f"The setting 'providers' is not valid: {error.message}") from error

    async def open(self) -> None:
        """Takes the accounts that were added. Raises StartError for one whose secrets cannot be read any more."""
        for account, row_id, sealed in await self._store.read(rows.every):
            if account.name in self._providers:
                raise StartError(
                    f"The provider account {account.name!r} stands in the settings and was added by `tuneway providers "
                    "add` as well. Rename the one in the settings."
                )
            try:
                self._take(account, json.loads(self._vault.unseal(sealed, owner=row_id)))
            except (ValueError, InvalidRequest) as error:
                raise StartError(f"The provider account {account.name!r} cannot be used: {error}") from error

    async def add(self, account: Account, secrets: Mapping[str, str]) -> Shown:
        """Stores an account and uses it from now on. Raises InvalidRequest that names what is wrong."""
        if not re.fullmatch(ACCOUNT_NAME, account.name):
            raise InvalidRequest(
                "Invalid 'name': it must be at most 32 small letters, digits, '-' and '_', a letter first, and neither "
                "'ft' nor 'kinds'.",
                param="name",
                code="invalid_value",
            )
        if account.name in self._providers:
            raise InvalidRequest(f"There is a provider {account.name!r} already.", param="name", code="conflict")
        account = replace(account, origin="store", created_at=int(time.time()))
        row_id = ids.account_id()
        sealed = self._vault.seal(json.dumps(dict(secrets)), owner=row_id)
        self._build(account, secrets)

        def insert(tx: Tx) -> bool:
            rows.forget_sent(tx, account.name)
            return rows.insert(tx, DEFAULT_PROJECT, row_id, account, sealed)

        if not await self._store.write(insert):
            raise InvalidRequest(f"There is a provider {account.name!r} already.", param="name", code="conflict")
        self._take(account, secrets)
        return await self.get(account.name)

    async def remove(self, name: str) -> None:
        """Forgets an account and its secrets.

        Raises ProviderNotFound, and InvalidRequest while it has jobs to follow.
        """
        account, _, _ = self._account(name)
        if account.origin == "settings":
            raise InvalidRequest(f"{name!r} stands in tuneway.toml; remove it there.", param="provider")

        def remove(tx: Tx) -> None:
            unended = job_rows.unended(tx, name)
            if unended:
                what = "1 job that has" if unended == 1 else f"{unended} jobs that have"
                raise InvalidRequest(
                    f"{name!r} has {what} not ended; nobody could follow or cancel without the account.",
                    param="provider",
                    code="conflict",
                )
            rows.remove(tx, name)

        before = dict(self._providers)
        del self._providers[name]  # first: a job that is being created looks again in its transaction
        try:
            await self._store.write(remove)
        except BaseException:
            self._providers.clear()
            self._providers.update(before)
            raise
        del self._known[name], self._slots[name]

    async def list(self) -> Sequence[Shown]:
        """In the order in which names of models are looked up."""
        return [await self.get(name) for name in tuple(self._known) if name in self._known]

    async def get(self, name: str) -> Shown:
        """Raises ProviderNotFound."""
        account, secrets, remote = self._account(name)
        unended = await self._store.read(job_rows.unended, name)
        return Shown(account, secrets, remote.capabilities, remote.vendor.line.state(), unended)

    async def check(self, name: str) -> None:
        """Asks the vendor for the newest of its jobs. Raises ProviderNotFound, and what comes instead of an answer."""
        await self.remote(name).vendor.list_jobs({"limit": "1"})

    def remote(self, name: str) -> Remote:
        """Raises ProviderNotFound."""
        return self._account(name)[2]

    def lines(self) -> Iterator[tuple[str, LineState]]:
        """The condition of every account's connections."""
        for name, (_, _, remote) in self._known.items():
            yield name, remote.vendor.line.state()

    def _account(self, name: str) -> tuple[Account, Sequence[str], Remote]:
        if name not in self._known:
            raise ProviderNotFound(name)
        return self._known[name]

    def _take(self, account: Account, secrets: Mapping[str, str]) -> None:
        remote, running_jobs = self._build(account, secrets)
        self._known[account.name] = account, sorted(secrets), remote
        self._providers[account.name] = remote
        self._slots[account.name] = running_jobs

    def _build(self, account: Account, secrets: Mapping[str, str]) -> tuple[Remote, int]:
        """Raises InvalidRequest."""
        kind = self._kinds.get(account.kind)
        if kind is None:
            raise InvalidRequest(
                f"{account.name}: there is no kind {account.kind[:64]!r}. Known are {', '.join(self._kinds)}.",
                param="kind",
            )
        for name in account.options:
            if name in kind.secrets:
                raise InvalidRequest(
                    f"{account.name}: '{name}' is a secret and no option. In tuneway.toml it stands as env:VARIABLE or "
                    "file:PATH; `tuneway providers add` takes it by --secret-env or --secret-file.",
                    param=name,
                )
        known = {**kind.options, **kind.secrets, **LIMITS}
        given = {**account.options, **secrets}
        for name in given:
            if name not in known:
                raise InvalidRequest(
                    f"{account.name}: '{name}' is no option of the kind '{kind.name}'. "
                    f"It has {', '.join(sorted(known))}.",
                    param=name,
                )
        options = Options(given, called=lambda name: f"{account.name}.{name}")
        limits = Limits(
            concurrency=int(options.number("concurrency", 16, 1, 1000)),
            timeout_seconds=options.number("timeout_seconds", 120, 1, 3600),
        )
        vendor = kind.build(options, Line(account.name, self._dial, limits, secrets=list(secrets.values())))
        vendor.capabilities = replace(
            vendor.capabilities,
            poll_seconds=options.number("poll_seconds", vendor.capabilities.poll_seconds, 0.05, 3600),
            settle_seconds=int(options.number("settle_seconds", vendor.capabilities.settle_seconds, 0, 3600)),
        )
        return Remote(account.name, vendor), int(options.number("running_jobs", 16, 1, 10_000))
