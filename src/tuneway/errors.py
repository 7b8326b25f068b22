"""Every error that a client can see, drawn as a tree; the class docstring is the message unless one is given.

    TunewayError
    ├── InvalidRequest             400  the client's mistake; `param` names the field
    │   ├── UnknownField           400
    │   ├── ModelNotTunable        400
    │   ├── InvalidFile            400
    │   ├── JobAlreadyCompleted    400
    │   ├── JobNotEnded            400
    │   ├── UnsupportedOperation   400  the provider has no such thing
    │   ├── PayloadTooLarge        413
    │   ├── HeadTooLarge           431
    │   └── UnsupportedMediaType   415
    ├── Unauthorized               401
    ├── Forbidden                  403
    ├── NotFound                   404
    │   ├── JobNotFound            404
    │   ├── FileNotFound           404
    │   ├── ModelNotFound          404
    │   ├── ChatModelNotFound      404
    │   ├── UploadNotFound         404
    │   ├── CompletionNotFound     404
    │   ├── PermissionNotFound     404
    │   ├── KeyNotFound            404
    │   ├── WebhookNotFound        404
    │   ├── ProviderNotFound       404
    │   ├── ImportNotFound         404
    │   └── UnknownRoute           404
    ├── MethodNotAllowed           405
    ├── RequestTimedOut            408  the client stopped sending
    ├── TooManyRequests            429
    ├── InternalError              500  our mistake; the log has the rest
    ├── NotReady                   503  the gateway is starting or stopping
    ├── UpstreamError              502  a provider's or an engine's fault; its status is kept
    │   ├── UpstreamBroken         502
    │   ├── OutboundRefused        502
    │   ├── OutboundFailed         502
    │   ├── ProviderError          —    a provider's refusal, with the provider's own status
    │   ├── ProviderSilent         502  no answer: what was asked may have been done
    │   ├── ProviderTimedOut       504
    │   ├── ProviderResting        503  it failed too often; it is asked again in a while
    │   ├── ProviderGone           503  an account that is not configured any more
    │   └── EngineUnavailable      503
    ├── OutOfSpace                 507
    ├── JobFailure                 —    ends a job, never a request: what its `error` will say
    └── StartError                 —    `tuneway serve` refuses to start

One function renders them all: `{"error": {"message", "type", "param", "code"}}`, all four keys always present.
"""

from __future__ import annotations

from typing import Any, ClassVar


def _cut(name: str) -> str:
    """A name that a client made up, as far as a message repeats it."""
    return name if len(name) <= 200 else f"{name[:200]}…"


class TunewayError(Exception):
    """The request could not be served."""

    status: int = 500
    type: ClassVar[str] = "server_error"
    default_code: ClassVar[str | None] = None
    default_param: ClassVar[str | None] = None

    def __init__(self, message: str | None = None, *, param: str | None = None, code: str | None = None) -> None:
        self.message = message or " ".join((type(self).__doc__ or "").split())
        self.param = param or self.default_param
        self.code = code or self.default_code
        super().__init__(self.message)

    def envelope(self) -> dict[str, Any]:
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}

    def headers(self) -> dict[str, str]:
        """Of the response, besides those that every response has."""
        return {}


class InvalidRequest(TunewayError):
    """The request is not valid."""

    status = 400
    type = "invalid_request_error"


class UnknownField(InvalidRequest):
    """The request has a field that is not known here. Remove it; extensions go in the object `tuneway`."""

    default_code = "unknown_parameter"


class ModelNotTunable(InvalidRequest):
    """The model is not available for fine-tuning or does not exist."""

    default_code = "model_not_available"


class InvalidFile(InvalidRequest):
    """The file cannot be used here."""


class JobAlreadyCompleted(InvalidRequest):
    """Job has already completed: a job that succeeded, failed or was cancelled stays as it is."""


class JobNotEnded(InvalidRequest):
    """The job has not ended. Cancel it first, then delete it."""

    default_code = "conflict"


class UnsupportedOperation(InvalidRequest):
    """The provider does not offer this."""

    default_code = "unsupported_operation"


class PayloadTooLarge(InvalidRequest):
    """The request body is larger than this gateway accepts. Send less, or raise `max_file_bytes`."""

    status = 413


class HeadTooLarge(InvalidRequest):
    """The request's URL and headers are larger than 64 KiB together. Send less."""

    status = 431


class UnsupportedMediaType(InvalidRequest):
    """The body must be sent with `Content-Type: application/json`."""

    status = 415


class Unauthorized(TunewayError):
    """You didn't provide an API key. Send one of this gateway's as `Authorization: Bearer tnw_…`."""

    status = 401
    type = "invalid_request_error"


class Forbidden(TunewayError):
    """This request is not allowed."""

    status = 403
    type = "permission_error"


class NotFound(TunewayError):
    """There is nothing under this name."""

    status = 404
    type = "invalid_request_error"


class JobNotFound(NotFound):
    """Could not find fine tune."""

    default_param = "fine_tune_id"
    default_code = "fine_tune_not_found"

    def __init__(self, job_id: str) -> None:
        super().__init__(f"Could not find fine tune: {_cut(job_id)}")


class FileNotFound(NotFound):
    """No such File object."""

    default_param = "id"

    def __init__(self, file_id: str) -> None:
        super().__init__(f"No such File object: {_cut(file_id)}")


class ModelNotFound(NotFound):
    """The model does not exist."""

    default_param = "model"
    default_code = "model_not_found"

    def __init__(self, model: str) -> None:
        super().__init__(f"The model '{_cut(model)}' does not exist")


class ChatModelNotFound(NotFound):
    """The model does not exist or you do not have access to it."""

    default_code = "model_not_found"

    def __init__(self, model: str) -> None:
        super().__init__(f"The model `{_cut(model)}` does not exist or you do not have access to it.")


class UploadNotFound(NotFound):
    """No such Upload object."""

    default_param = "upload_id"

    def __init__(self, upload_id: str) -> None:
        super().__init__(f"No such Upload object: {_cut(upload_id)}")


class CompletionNotFound(NotFound):
    """Completion not found."""

    default_param = "completion_id"
    default_code = "not_found"

    def __init__(self, completion_id: str) -> None:
        super().__init__(f"Completion {_cut(completion_id)} not found")


class PermissionNotFound(NotFound):
    """There is no such checkpoint permission."""

    default_param = "permission_id"

    def __init__(self, permission_id: str) -> None:
        super().__init__(f"No such checkpoint permission: {_cut(permission_id)}")


class KeyNotFound(NotFound):
    """There is no such key."""

    default_param = "key_id"

    def __init__(self, key_id: str) -> None:
        super().__init__(f"No such key: {_cut(key_id)}. `tuneway keys list` shows them.")


class WebhookNotFound(NotFound):
    """There is no such webhook."""

    default_param = "webhook_id"

    def __init__(self, webhook_id: str) -> None:
        super().__init__(f"No such webhook: {_cut(webhook_id)}. `tuneway webhooks list` shows them.")


class ProviderNotFound(NotFound):
    """There is no such provider account."""

    default_param = "provider"

    def __init__(self, name: str) -> None:
        super().__init__(f"No such provider: {_cut(name)}. `tuneway providers list` shows them.")


class ImportNotFound(NotFound):
    """There is no such import."""

    default_param = "import_id"

    def __init__(self, import_id: str) -> None:
        super().__init__(f"No such import: {_cut(import_id)}.")


class UnknownRoute(NotFound):
    """Invalid URL."""


class MethodNotAllowed(TunewayError):
    """This URL does not take this method; the header `Allow` names those that it takes."""

    status = 405
    type = "invalid_request_error"


class RequestTimedOut(TunewayError):
    """The request's body stopped coming. Send it again."""

    status = 408
    type = "invalid_request_error"


class TooManyRequests(TunewayError):
    """Too many requests at once. Wait and try again."""

    status = 429
    type = "requests"
    default_code = "rate_limit_exceeded"
    retry_after: ClassVar[int] = 1
    """Seconds, of the header Retry-After."""

    def headers(self) -> dict[str, str]:
        return {"retry-after": str(self.retry_after)}


class InternalError(TunewayError):
    """The gateway made a mistake. Its log has the details under this response's x-request-id."""

    status = 500


class NotReady(TunewayError):
    """The gateway is starting or stopping. Send the request again in a moment."""

    status = 503


class UpstreamError(TunewayError):
    """The provider behind this gateway answered with an error."""

    status = 502
    type = "upstream_error"


class UpstreamBroken(UpstreamError):
    """The connection to the model broke before the answer was complete. Send the request again."""

    default_code = "upstream_broken"


class OutboundRefused(UpstreamError):
    """This gateway may not connect to that host. Its operator allows hosts by the setting `outbound_hosts`."""

    default_code = "outbound_refused"


class OutboundFailed(UpstreamError):
    """A host outside did not answer, or not as it should."""

    default_code = "outbound_failed"

    def __init__(self, message: str | None = None, *, sent: bool = True, timed_out: bool = False) -> None:
        """`sent`: whether the host may have got the request; `timed_out`: whether it was waited for to the end."""
        super().__init__(message)
        self.sent = sent
        self.timed_out = timed_out


class ProviderError(UpstreamError):
    """The provider refused the request."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        request_id: str | None = None,
        retry_after: str | None = None,
        redirected: bool = False,
    ) -> None:
        """The provider's own words. `retry_after` is its header of that name, seconds or an HTTP date."""
        super().__init__(message, param=param, code=code)
        self.status = status
        self.request_id = request_id
        self.retry_after = retry_after
        self.redirected = redirected

    def headers(self) -> dict[str, str]:
        found = {"x-request-id": self.request_id, "retry-after": self.retry_after}
        return {name: value for name, value in found.items() if value is not None}

    @property
    def without_effect(self) -> bool:
        """Whether it is sure that the provider did nothing. A 5xx may come behind the effect; so may a 408, a 409."""
        return self.redirected or (400 <= self.status < 500 and self.status not in (408, 409))

    @property
    def passes(self) -> bool:
        """Whether it may be taken later: a limit, or a credential or an address that the operator mends."""
        return self.redirected or self.status in (401, 403, 425, 429)


class ProviderSilent(UpstreamError):
    """The provider did not answer."""

    default_code = "provider_silent"

    def __init__(self, message: str | None = None, *, sent: bool = True) -> None:
        """`sent`: whether the provider may have got the request, and done what it asked for."""
        super().__init__(message)
        self.sent = sent


class ProviderTimedOut(ProviderSilent):
    """The provider did not answer in time."""

    status = 504
    default_code = "provider_timed_out"


class ProviderResting(UpstreamError):
    """The provider failed too often in a row and is left alone for a while."""

    status = 503
    default_code = "provider_resting"

    def __init__(self, message: str, *, seconds: int) -> None:
        """`seconds` until it is asked again."""
        super().__init__(message)
        self.seconds = seconds

    def headers(self) -> dict[str, str]:
        return {"retry-after": str(self.seconds)}


class ProviderGone(UpstreamError):
    """The provider's account is not configured here any more."""

    status = 503
    default_code = "provider_gone"

    def __init__(self, name: str) -> None:
        super().__init__(
            f"The provider account '{_cut(name)}' is not configured here any more. Its operator adds it again by "
            f"`tuneway providers add {_cut(name)}`, or in tuneway.toml."
        )


class EngineUnavailable(UpstreamError):
    """The engine that serves this model could not be started. `tuneway doctor` says what is missing."""

    status = 503
    default_code = "engine_unavailable"


class OutOfSpace(TunewayError):
    """The disk of the gateway is full; nothing was stored. Free space in its data folder and send the request again."""

    status = 507
    default_code = "out_of_space"


class JobFailure(TunewayError):
    """The job cannot go on, and another try would not help."""

    default_code = "server_error"


class StartError(TunewayError):
    """The gateway cannot start."""
