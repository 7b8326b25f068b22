"""Azure OpenAI: a data plane in two forms, the management API that deploys, and the login that gives tokens for both.

They are three hosts in the world and three paths here: `/openai`, `/arm` and `/login`.
"""

from __future__ import annotations

import json
import re
import secrets
from typing import Any, ClassVar
from urllib.parse import parse_qsl

from tests.simulators import openai_bodies as bodies
from tests.simulators import shapes
from tests.simulators.base import Answer, Handler, Refused, Request, as_json
from tests.simulators.openai import OpenAISimulator
from tests.simulators.openai_files import Wire, page
from tests.simulators.openai_training import File, Job, now

CODES = {400: "invalidPayload", 403: "forbidden", 404: "notFound", 409: "conflict", 413: "invalidPayload"}
CODES |= {429: "tooManyRequests", 503: "serviceUnavailable"}
OWN_CODES = frozenset({"401", "404", "DeploymentNotFound", "unexpectedEntityState", "jsonlValidationFailed"})
NO_RESOURCE = "Resource not found"
NO_ACCESS = (
    "Access denied due to invalid subscription key or wrong API endpoint. Make sure to provide a valid key for an "
    "active subscription and use a correct regional API endpoint for your resource."
)
NO_DEPLOYMENT = (
    "The API deployment for this resource does not exist. If you created the deployment within the last 5 minutes, "
    "please wait a moment and try again."
)
EVENTS = {
    "Created fine-tuning job": "Job enqueued. Waiting for jobs ahead to complete.",
    "Fine-tuning job started": "Job started.",
    "The job has successfully completed": "Job succeeded.",
}
CLASSIC = re.compile(r"\d{4}-\d{2}-\d{2}(-preview)?")
RECENT = "2025-04-01-preview"
BOM = b"\xef\xbb\xbf"


def left_to_azure(check: shapes.Check) -> shapes.Check:
    """−1, where OpenAI has "auto"; a string is wrong."""
    return lambda value, path: None if type(value) is int and value == -1 else check(value, path)


RECENT_FIELDS = bodies.job_fields(left_to_azure, shapes.text(1, 40, "[a-zA-Z0-9_-]+")) | {
    "trainingType": shapes.choice("standard", "globalstandard", "developerTier")
}
GA_FIELDS = ("model", "training_file", "validation_file", "hyperparameters", "suffix", "seed")
RECENT_JOB = shapes.fields(RECENT_FIELDS, bodies.JOB_REQUIRED)
GA_JOB = shapes.fields({name: RECENT_FIELDS[name] for name in GA_FIELDS}, bodies.JOB_REQUIRED)

SKU = shapes.fields(
    {
        "name": shapes.choice("standard", "Standard", "GlobalStandard", "developertier", "DeveloperTier"),
        "capacity": shapes.integer(1),
    },
    ["name", "capacity"],
)
MODEL = {"format": shapes.choice("OpenAI"), "name": shapes.text(1), "version": shapes.choice("1")}
PROPERTIES = shapes.fields({"model": shapes.fields(MODEL, list(MODEL))}, ["model"])
DEPLOYMENT = shapes.fields({"sku": SKU, "properties": PROPERTIES}, ["sku", "properties"])
PROVISIONING = ("Accepted", "Creating", "Succeeded")

ENTRA_SCOPE = "https://cognitiveservices.azure.com/.default"
ARM_SCOPE = "https://management.azure.com/.default"


class AzureSimulator(OpenAISimulator):
    """`deployments` by name, `deployed` the names in order of creation, `tokens_issued` the scopes in that order."""

    prefix: ClassVar = "/openai/v1"
    auto: ClassVar = -1
    pausing: ClassVar = "pausing"
    resuming: ClassVar = "resuming"
    settling: ClassVar = {"pausing": "paused", "resuming": "running"}
    preface: ClassVar = {"prompt_filter_results": [{"prompt_index": 0, "content_filter_results": {}}]}
    bases: ClassVar = ["gpt-4o-mini-2024-07-18", "gpt-4o-2024-08-06", "gpt-4.1-mini-2025-04-14", "o4-mini-2025-04-16"]
    tunable: ClassVar = bases

    def __init__(self, key: str = "azure-simulated") -> None:
        super().__init__(key)
        self.states = ["pending", "running", "succeeded"]
        self.file_states = ["pending", "running", "processed"]
        self.require_bom = False
        self.metrics_as_strings = True
        self.subscription, self.resource_group, self.account = "00000000-0000-0000-0000-000000000001", "rg", "acme"
        self.tenant, self.client_id, self.client_secret = "tenant-1", "client-1", "secret-1"
        self.entra_token, self.arm_token = "entra-token", "arm-token"
        self.tokens_issued: list[str] = []
        self.deployments: dict[str, Wire] = {}
        self.deployed: list[str] = []
        self.models = {name: model_wire(name, name, None) for name in self.bases}

    @property
    def arm_url(self) -> str:
        return f"{self.url}/arm"

    @property
    def login_url(self) -> str:
        return f"{self.url}/login"

    # The edge.

    def routes(self) -> list[tuple[str, str, str, Handler]]:
        accounts = (
            "/arm/subscriptions/{subscription}/resourceGroups/{group}/providers/Microsoft.CognitiveServices/accounts"
        )
        arm = f"{accounts}/{{account}}/deployments"
        chat = "/openai/deployments/{deployment}/chat/completions"
        not_classic = {"chat", "completions", "delete_model", "run_grader", "validate_grader", "permissions"}
        not_classic |= {"create_permission", "delete_permission"}
        return [
            ("POST", "/login/{tenant}/oauth2/v2.0/token", "token", self.give_token),
            ("PUT", f"{arm}/{{name}}", "deploy", self.deploy),
            ("GET", f"{arm}/{{name}}", "deployment", self.get_deployment),
            ("DELETE", f"{arm}/{{name}}", "delete_deployment", self.delete_deployment),
            ("GET", arm, "deployments", self.list_deployments),
            ("POST", chat, "chat", self.chat),
            *self.own_routes("/openai/v1"),
            *(route for route in self.own_routes("/openai") if route[2] not in not_classic),
        ]

    def own_routes(self, root: str) -> list[tuple[str, str, str, Handler]]:
        return [
            *self.data_routes(root),
            ("DELETE", f"{root}/fine_tuning/jobs/{{job}}", "delete_job", self.delete_job),
        ]

    def version(self, request: Request) -> str | None:
        return request.seen.query.get("api-version")

    def is_recent(self, request: Request) -> bool:
        """Whether this request may use what was added since the stable version."""
        return request.seen.path.startswith("/openai/v1/") or (self.version(request) or "") >= RECENT

    def authorize(self, request: Request, operation: str) -> None:
        path, version, bearer = request.seen.path, self.version(request), request.seen.bearer
        if path.startswith("/login/"):
            return
        if path.startswith("/arm/"):
            if bearer is None:
                raise Refused(
                    401, "Authentication failed. The 'Authorization' header is missing.", code="AuthenticationFailed"
                )
            if bearer != self.arm_token:
                raise Refused(401, "The access token is invalid.", code="InvalidAuthenticationToken")
            if version is None or not CLASSIC.fullmatch(version):
                message = "The api-version query parameter (?api-version=) is required for all requests."
                raise Refused(400, message, code="MissingApiVersionParameter")
            return
        if path.startswith("/openai/v1/"):
            if version not in (None, "v1", "preview"):
                raise Refused(400, "API version not supported")
        elif version is None or not CLASSIC.fullmatch(version):
            raise Refused(404, NO_RESOURCE, code="404")
        if request.seen.headers.get("api-key") != self.key and bearer != self.entra_token:
            raise Refused(401, NO_ACCESS, code="401")

    def no_such_route(self, request: Request) -> Answer:
        raise Refused(404, NO_RESOURCE, code="404")

    def refusal(self, refused: Refused, path: str) -> Answer:
        if path.startswith("/login/"):
            return as_json({"error": refused.code, "error_description": refused.message}, refused.status)
        code = refused.code
        if not path.startswith("/arm/") and code not in OWN_CODES:
            code = CODES.get(refused.status, "internalFailure")
        return as_json({"error": {"code": code or "InvalidRequestContent", "message": refused.message}}, refused.status)

    def headers(self, path: str) -> dict[str, str]:
        return {"apim-request-id": secrets.token_hex(16), "x-ms-region": "Sweden Central"}

    # Files.

    def create_file(self, request: Request) -> Answer:
        return self.created_at_location(request, super().create_file(request))

    def created_at_location(self, request: Request, answer: Answer) -> Answer:
        """201, and where the new thing is."""
        answer.status = 201
        answer.headers["location"] = f"{self.url}{request.seen.path}/{json.loads(answer.body)['id']}"
        return answer

    def add_file(self, name: str, purpose: str, size: int, content: bytes | None, rows: int, sha256: str) -> File:
        file = super().add_file(name, purpose, size, content, rows, sha256)
        if purpose == "fine-tune":
            file.wire["status"] = self.file_states[0]
        return file

    def get_file(self, request: Request) -> Answer:
        wire = self.find_file(request).wire
        if wire["status"] in self.file_states[:-1]:
            wire["status"] = self.file_states[self.file_states.index(wire["status"]) + 1]
        return super().get_file(request)

    def list_files(self, request: Request) -> Answer:
        """All of them, whatever page was asked for."""
        purpose = request.seen.query.get("purpose")
        found = [self.file_wire(file) for file in self.files.values() if purpose in (None, file.wire["purpose"])]
        return as_json({"object": "list", "data": found})

    def file_wire(self, file: File) -> Wire:
        return {name: value for name, value in file.wire.items() if name != "expires_at"}

    def new_file_id(self) -> str:
        return f"file-{secrets.token_hex(16)}"

    # Jobs.

    def check_job(self, body: Wire, request: Request) -> None:
        (RECENT_JOB if self.is_recent(request) else GA_JOB)(body, "")

    def create_job(self, request: Request) -> Answer:
        return self.created_at_location(request, super().create_job(request))

    def snapshot(self, name: str) -> str:
        if name not in self.models:
            raise Refused(400, f"The specified base model '{name}' does not support fine-tuning.")
        return name

    def job_file(self, param: str, name: str) -> File:
        file = super().job_file(param, name)
        if file.wire["status"] != self.file_states[-1]:
            message = f"The file '{name}' is {file.wire['status']}; it must be processed first."
            raise Refused(400, message, code="unexpectedEntityState")
        if self.require_bom and file.content is not None and not file.content.startswith(BOM):
            raise Refused(400, f"The file '{name}' is not UTF-8 with a BOM.", code="jsonlValidationFailed")
        if file.rows < 10:
            raise Refused(400, f"The file '{name}' has {file.rows} rows of at least 10.", code="jsonlValidationFailed")
        return file

    def delete_job(self, request: Request) -> Answer:
        self.jobs.pop(request.params["job"], None)
        return Answer([], 204)

    def list_jobs(self, request: Request) -> Answer:
        """Without a filter: one that was sent is not seen."""
        return as_json(page([self.job_wire(job) for job in reversed(self.jobs.values())], request, 20))

    def job_wire(self, job: Job) -> Wire:
        wire = super().job_wire(job)
        names = ["object", "id", "created_at", "status", "model", "training_file", "validation_file", "seed"]
        names += ["fine_tuned_model", "finished_at", "trained_tokens", "estimated_finish"]
        shown = {name: wire[name] for name in names} | {"hyperparameters": job.hyperparameters}
        shown |= {"suffix": wire["user_provided_suffix"], "result_files": wire["result_files"] or None}
        recent = {
            name: wire.get(name, job.body[name]) for name in ("method", "metadata", "trainingType") if name in job.body
        }
        return shown | {"error": wire["error"] or None} | recent

    def event_wire(self, event: Wire) -> Wire:
        message = next((text for start, text in EVENTS.items() if event["message"].startswith(start)), event["message"])
        return event | {"message": message, "level": "warning" if event["level"] == "warn" else event["level"]}

    def checkpoint_wire(self, checkpoint: Wire) -> Wire:
        metrics = checkpoint["metrics"]
        if self.metrics_as_strings:
            metrics = {name: str(value) for name, value in metrics.items()}
        return checkpoint | {"id": checkpoint["id"].replace("ftckpt_", "ftchkpt-"), "metrics": metrics}

    def list_checkpoints(self, request: Request) -> Answer:
        found = [self.checkpoint_wire(checkpoint) for checkpoint in reversed(self.find_job(request).checkpoints)]
        return as_json(page(found, request, 10))

    def new_job_id(self) -> str:
        return f"ftjob-{secrets.token_hex(16)}"

    def new_model_name(self, job: Job) -> str:
        suffix = job.wire["user_provided_suffix"]
        return f"{job.wire['model']}.ft-{job.id.removeprefix('ftjob-')}" + (f"-{suffix}" if suffix else "")

    # Models and chat.

    def publish(self, job: Job, name: str) -> None:
        self.models.setdefault(name, model_wire(name, job.wire["model"], job.id))

    def delete_model(self, request: Request) -> Answer:
        model = self.find_model(request)
        if model["fine_tune"] is None:
            raise Refused(403, "A base model cannot be deleted.")
        del self.models[model["id"]]
        return as_json({"object": "model", "id": model["id"], "deleted": True})

    def speaker(self, name: str) -> tuple[str, str]:
        deployment = self.deployments.get(name)
        if deployment is None or deployment["properties"]["provisioningState"] != "Succeeded":
            raise Refused(404, NO_DEPLOYMENT, code="DeploymentNotFound")
        model: str = deployment["properties"]["model"]["name"]
        return model, "base:" if self.models[model]["fine_tune"] is None else "tuned:"

    # The management API.

    def check_account(self, request: Request) -> str:
        asked = tuple(request.params[name] for name in ("subscription", "group", "account"))
        if asked != (self.subscription, self.resource_group, self.account):
            raise Refused(404, f"The Resource '{asked[2]}' was not found.", code="ResourceNotFound")
        return request.params.get("name", "")

    def deploy(self, request: Request) -> Answer:
        name, body = self.check_account(request), request.object()
        DEPLOYMENT(body, "")
        model, known = body["properties"]["model"], self.deployments.get(name)
        if model["name"] not in self.models:
            raise Refused(400, f"The model '{model['name']}' does not exist.", code="DeploymentModelNotSupported")
        others = [found for other, found in self.deployments.items() if other != name]
        if any(other["properties"]["model"]["name"] == model["name"] for other in others):
            raise Refused(409, f"The model '{model['name']}' is deployed already.", code="Conflict")
        if known and known["properties"]["model"] == model and known["sku"] == body["sku"]:
            return as_json(known)
        id = request.seen.path.removeprefix("/arm")
        wire = {"id": id, "name": name, "type": "Microsoft.CognitiveServices/accounts/deployments", "sku": body["sku"]}
        self.deployments[name] = wire | {"properties": {"model": model, "provisioningState": PROVISIONING[0]}}
        if known is None:
            self.deployed.append(name)
        return as_json(self.deployments[name], 201 if known is None else 200)

    def get_deployment(self, request: Request) -> Answer:
        name = self.check_account(request)
        if name not in self.deployments:
            raise Refused(404, f"The deployment '{name}' was not found.", code="ResourceNotFound")
        properties = self.deployments[name]["properties"]
        if properties["provisioningState"] in PROVISIONING[:-1]:
            properties["provisioningState"] = PROVISIONING[PROVISIONING.index(properties["provisioningState"]) + 1]
        return as_json(self.deployments[name])

    def list_deployments(self, request: Request) -> Answer:
        self.check_account(request)
        return as_json({"value": list(self.deployments.values())})

    def delete_deployment(self, request: Request) -> Answer:
        known = self.deployments.pop(self.check_account(request), None)
        return Answer([b""] if known else [], 200 if known else 204)

    # The login.

    def give_token(self, request: Request) -> Answer:
        kind = request.seen.headers.get("content-type", "")
        form = dict(parse_qsl((request.body or b"").decode("latin-1"))) if "x-www-form-urlencoded" in kind else {}
        tokens = {ENTRA_SCOPE: self.entra_token, ARM_SCOPE: self.arm_token}
        if request.params["tenant"] != self.tenant:
            raise Refused(400, "AADSTS90002: Tenant not found.", code="invalid_request")
        if form.get("grant_type") != "client_credentials":
            raise Refused(400, "AADSTS70003: The grant type is not supported.", code="unsupported_grant_type")
        if form.get("client_id") != self.client_id:
            raise Refused(400, "AADSTS700016: Application was not found.", code="unauthorized_client")
        if form.get("client_secret") != self.client_secret:
            raise Refused(401, "AADSTS7000215: Invalid client secret provided.", code="invalid_client")
        scope = form.get("scope", "")
        if scope not in tokens:
            raise Refused(400, "AADSTS70011: The provided value for scope is not valid.", code="invalid_scope")
        self.tokens_issued.append(scope)
        answer = {"token_type": "Bearer", "expires_in": 3599, "ext_expires_in": 3599, "access_token": tokens[scope]}
        return as_json(answer)


def model_wire(name: str, base: str, job_id: str | None) -> dict[str, Any]:
    capabilities = {"fine_tune": job_id is None, "inference": True, "completion": False}
    wire = {"object": "model", "id": name, "created_at": now(), "status": "succeeded", "model": base}
    wire |= {"fine_tune": job_id, "capabilities": capabilities | {"chat_completion": True, "embeddings": False}}
    return wire | {"lifecycle_status": "generally-available", "deprecation": {"inference": now() + 10**8}}
