"""How a job gets to its provider, once: its files, the intent, the call, and what is found of it after a crash.

The worker decides when; what is told apart here is what was surely not done, what surely was, and what may have been.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from weakref import WeakValueDictionary

from tuneway import ids
from tuneway.blobs import Blobs
from tuneway.errors import (
    InvalidRequest,
    JobFailure,
    OutboundRefused,
    ProviderError,
    ProviderResting,
    ProviderSilent,
    UnsupportedOperation,
)
from tuneway.providers.base import LaunchUnclear, Provider
from tuneway.providers.vendor import is_lacking
from tuneway.store import Store
from tuneway.store import accounts as account_rows
from tuneway.store import jobs as rows
from tuneway.types import DataFile, Job, JobHandle, LaunchSpec


class NotYet(Exception):
    """The provider is asked again in `seconds` whether it has the job."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        super().__init__()


class Launches:
    def __init__(self, store: Store, blobs: Blobs, providers: Mapping[str, Provider]) -> None:
        self._store = store
        self._blobs = blobs
        self._providers = providers
        self._locks: WeakValueDictionary[tuple[str, str, str], asyncio.Lock] = WeakValueDictionary()

    async def start(self, job: Job, *, attempt: int) -> JobHandle:
        """Starts the job at its provider: the intent first, then the call, then what confirms it.

        An intent that was never confirmed is looked up before anything is sent again. The handle is stored whatever
        became of the job meanwhile: one that was cancelled must still be stopped.
        """
        provider = self._providers[job.spec.provider]
        files = await self._files(job, send=True) if provider.capabilities.remote else (None, None)
        async with self._alone(job):
            spec = await self._spec(job, attempt, files)
            handle = None
            # `find` would know a paused local job too, and not say that it stands still; a vendor's that is known goes
            # on by `launch`, which asks before it sends anything.
            lost = spec.intended_at is not None and spec.provider_job_id is None
            if lost and (attempt == 1 or provider.capabilities.remote):
                handle = await self._find(job, spec)
            if handle is None:
                await self._store.write(rows.intend, job, ids.effect_id(), _now())
                handle = await self._launch(job, spec)
            await self._store.write(rows.hold, job, handle)
        return handle

    async def held(self, job: Job) -> JobHandle | None:
        """What the job may still hold at its provider."""
        provider = self._providers[job.spec.provider]
        if not provider.capabilities.remote:
            return await provider.find(await self._spec(job, job.attempt, (None, None)))
        if job.provider_job_id is not None:
            return JobHandle(job.spec.provider, job.provider_job_id)
        files = await self._files(job, send=False)
        async with self._alone(job):
            spec = await self._spec(job, max(job.attempt, 1), files)
            handle = None if spec.intended_at is None else await self._find(job, spec)
            if handle is not None:
                await self._store.write(rows.hold, job, handle)
        return handle

    def _alone(self, job: Job) -> asyncio.Lock:
        """One at a time of those that a vendor's list could take for each other: what one finds is not the other's."""
        return self._locks.setdefault((job.spec.provider, job.training_sha256, "start"), asyncio.Lock())

    async def _launch(self, job: Job, spec: LaunchSpec) -> JobHandle:
        """Calls the provider, and remembers of a failure whether it is sure that nothing was done."""
        try:
            return await self._providers[job.spec.provider].launch(spec)
        except BaseException as failure:
            if spec.provider_job_id is not None:
                raise  # it is there already: what its provider refuses now ends nothing
            if not _surely_undone(failure):
                await self._store.write(rows.leave_unclear, job, _now())
                raise
            await self._store.write(rows.take_back, job)
            if isinstance(failure, InvalidRequest) or (isinstance(failure, ProviderError) and not failure.passes):
                raise JobFailure(failure.message, code=failure.code, param=failure.param) from failure
            raise

    async def _find(self, job: Job, spec: LaunchSpec) -> JobHandle | None:
        """The job at its provider, if it got there.

        Raises NotYet while the provider may still be about to show it, and LaunchUnclear where it cannot be looked up.
        """
        provider = self._providers[job.spec.provider]
        try:
            handle = await provider.find(spec)
        except (UnsupportedOperation, ProviderError) as error:
            if isinstance(error, ProviderError) and not is_lacking(error):
                raise
            raise LaunchUnclear(
                f"The gateway was interrupted while it started this job at {job.spec.provider}, which cannot be asked "
                f"for its jobs ({error.message}). Look there, and say which one it is by `tuneway jobs adopt`, or that "
                "there is none by `tuneway jobs relaunch`.",
                (),
            ) from error
        if handle is None:
            since = await self._store.read(rows.unclear_since, job) or 0
            left = since + provider.capabilities.settle_seconds - _now()
            if left > 0:
                raise NotYet(left)
        return handle

    async def _spec(self, job: Job, attempt: int, files: tuple[str | None, str | None]) -> LaunchSpec:
        """What starts the job, or finds it."""
        remote = self._providers[job.spec.provider].capabilities.remote
        taken = await self._store.read(rows.upstream_jobs, job.spec.provider, but=job.id) if remote else frozenset()
        return LaunchSpec(
            key=job.id,
            job=job.spec,
            hyperparameters=job.resolved or job.spec.hyperparameters,
            attempt=attempt,
            training_file=files[0],
            validation_file=files[1],
            intended_at=await self._store.read(rows.intended, job),
            provider_job_id=job.provider_job_id if remote else None,
            taken=taken,
        )

    async def _files(self, job: Job, *, send: bool) -> tuple[str | None, str | None]:
        """What the provider calls the job's files; without `send`, as far as it is known."""
        name = job.spec.provider
        found: list[str | None] = []
        for sha256 in (job.training_sha256, job.validation_sha256):
            if sha256 is None:
                found.append(None)
                continue
            key = (name, sha256, job.spec.method.value)
            # One at a time: two jobs of one file would send it twice.
            async with self._locks.setdefault(key, asyncio.Lock()):
                known = await self._store.read(account_rows.sent, *key)
                if send and job.provider_job_id is None and not await self._store.read(rows.intended, job):
                    known = await self._send(job, sha256, known)
                found.append(known)
        return found[0], found[1]

    async def _send(self, job: Job, sha256: str, known: str | None) -> str | None:
        path = self._blobs.path(sha256)
        file = DataFile(path, sha256, path.stat().st_size, job.spec.method)
        try:
            sent = await self._providers[job.spec.provider].send(file, known)
        except ProviderError as refused:
            if not refused.without_effect or refused.passes:
                raise
            raise JobFailure(refused.message, code=refused.code, param="training_file") from refused
        if sent is not None and sent != known:
            await self._store.write(
                account_rows.remember_sent,
                job.project_id,
                ids.effect_id(),
                _now(),
                provider=job.spec.provider,
                sha256=sha256,
                form=job.spec.method.value,
                upstream=sent,
            )
        return sent


def _surely_undone(failure: BaseException) -> bool:
    """Whether the call has had no effect for certain. What is not known to be so is looked up."""
    if isinstance(failure, ProviderError):
        return failure.without_effect
    if isinstance(failure, ProviderSilent):
        return not failure.sent
    return isinstance(failure, ProviderResting | OutboundRefused | InvalidRequest)


def _now() -> int:
    return int(time.time())
