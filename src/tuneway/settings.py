"""One table of settings: it makes the flags, the environment names, the file's keys and the reference page.

Order of weight: built-in default < `tuneway.toml` < environment (`TUNEWAY_NAME`) < flag. An unknown key is an error.
This module is the only reader of `os.environ`.
"""

from __future__ import annotations

import json
import os
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from tuneway.errors import StartError
from tuneway.types import Account

CLIENT_URL = "TUNEWAY_URL"
CLIENT_KEY = "TUNEWAY_API_KEY"
ACCOUNT_NAME = "(?!(ft|kinds)$)[a-z][a-z0-9_-]{0,31}"
"""Of an account at a provider: it stands before a colon in models' names, as `ft` does, and in paths beside `kinds`."""
DEFAULT_URL = "http://127.0.0.1:8400/v1"


@dataclass(frozen=True, slots=True)
class Base:
    """An operator's own base model: a GGUF file of the Llama family on this machine."""

    gguf: Path
    description: str = ""
    learning_rate: float = 1e-3
    r: int = 16
    lora_alpha: int = 32


@dataclass(frozen=True, slots=True)
class ConfiguredAccount:
    """An account of the table `providers`. `secrets` were read from the environment or files, and are not shown."""

    account: Account
    secrets: Mapping[str, str] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Settings:
    """What `load` found; a field per row of `SETTINGS`, explained there."""

    data: Path
    cache: Path
    host: str
    port: int
    auth: bool
    allowed_hosts: tuple[str, ...]
    outbound_hosts: tuple[str, ...]
    python_graders: bool
    max_file_bytes: int
    max_upload_bytes: int
    default_provider: str
    running_jobs: int
    threads: int
    engine_parallel: int
    engine_idle_seconds: float
    model_map: Mapping[str, str]
    bases: Mapping[str, Base]
    providers: Mapping[str, ConfiguredAccount]
    relay: bool
    log_level: str


def _folder(value: Any) -> Path:
    return Path(str(value)).expanduser().absolute()


def _whole(low: int, high: int) -> Callable[[Any], int]:
    def parse(value: Any) -> int:
        number = int(value)
        if not low <= number <= high:
            raise ValueError(f"it must be from {low} to {high}")
        return number

    return parse


def _switch(value: Any) -> bool:
    found = {"on": True, "true": True, "off": False, "false": False}.get(str(value).lower())
    if found is None:
        raise ValueError("it must be on or off")
    return found


def _names(value: Any) -> tuple[str, ...]:
    found = value.split(",") if isinstance(value, str) else value
    return tuple(name.strip() for name in found if name.strip())


def _table(value: Any) -> Mapping[str, Any]:
    found = json.loads(value) if isinstance(value, str) else value
    if not isinstance(found, Mapping):
        raise ValueError("it must be a table")
    return found


def _model_map(value: Any) -> Mapping[str, str]:
    return MappingProxyType({str(name): str(model) for name, model in _table(value).items()})


def _bases(value: Any) -> Mapping[str, Base]:
    bases = {}
    for name, row in _table(value).items():
        if "/" in name or ":" in name or not name:
            raise ValueError(f"the base name {name!r} must hold no '/' and no ':'")
        unknown = sorted(set(row) - set(Base.__dataclass_fields__))
        if unknown or "gguf" not in row:
            raise ValueError(f"base {name!r} takes gguf (required), {', '.join(list(Base.__dataclass_fields__)[1:])}")
        numbers = {"learning_rate": float, "r": int, "lora_alpha": int}
        given = {key: numbers[key](value) if key in numbers else str(value) for key, value in row.items()}
        bases[name] = Base(**{**given, "gguf": _folder(row["gguf"])})  # type: ignore[arg-type]  # checked above
    return MappingProxyType(bases)


def _providers(value: Any) -> Mapping[str, ConfiguredAccount]:
    """`name = { kind = …, api_key = "env:NAME", … }`: what begins with `env:` or `file:` is a secret and is there."""
    accounts = {}
    for name, row in _table(value).items():
        if not isinstance(row, Mapping) or not re.fullmatch(ACCOUNT_NAME, name):
            raise ValueError(f"{name!r} must be a table, and its name small letters, digits, '-' and '_'")
        options, secrets = {}, {}
        for key, given in row.items():
            text = "yes" if given is True else "no" if given is False else str(given)
            where, _, place = text.partition(":")
            if where in ("env", "file"):
                secrets[key] = read_secret(f"{name}.{key}", where, place)
            elif key != "kind":
                options[key] = text
        accounts[name] = ConfiguredAccount(Account(name, str(row.get("kind", name)), options), secrets)
    return MappingProxyType(accounts)


def read_secret(what: str, where: str, place: str) -> str:
    """The secret `what`, from an environment variable (`env`) or a file that the operator named. Raises ValueError."""
    if where == "env":
        found = os.environ.get(place, "")
        if not found:
            raise ValueError(f"{what} stands in the environment variable {place}, which is not set")
        return found
    try:
        found = Path(place).expanduser().read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{what} cannot be read from {place}: {type(error).__name__}") from error
    if not found:
        raise ValueError(f"{what} stands in the file {place}, which is empty")
    return found


def _level(value: Any) -> str:
    if value not in ("debug", "info", "warning", "error"):
        raise ValueError("it must be debug, info, warning or error")
    return str(value)


def _default_cache() -> Path:
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path.home() / ".cache") / "tuneway"


@dataclass(frozen=True, slots=True)
class Setting:
    name: str
    default: Any
    parse: Callable[[Any], Any]
    help: str

    @property
    def environment(self) -> str:
        return "TUNEWAY_" + self.name.upper()


SETTINGS = (
    Setting("data", "data", _folder, "Folder of the database, files, runs and logs. Made with mode 0700."),
    Setting("cache", None, _folder, "Folder of base models, shared by gateways. Default: ~/.cache/tuneway."),
    Setting("host", "127.0.0.1", str, "Address to listen on. Any other than a loopback address needs `auth`."),
    Setting("port", 8400, _whole(0, 65535), "Port to listen on; 0 takes a free one."),
    Setting("auth", "off", _switch, "on: every request needs a key, see `tuneway keys`."),
    Setting("allowed_hosts", (), _names, "Names besides the loopback ones that a Host header may carry."),
    Setting(
        "outbound_hosts",
        (),
        _names,
        "Where webhooks and file imports may connect to, and providers besides the vendors' own hosts: names "
        "(`hooks.example.com`, `*.example.com`, `*` for every public host), and addresses or networks (`10.0.0.0/8`), "
        "which alone may be private ones.",
    ),
    Setting(
        "python_graders",
        "off",
        _switch,
        "on: run graders of type `python`, which is code of clients, without network in a bubblewrap sandbox.",
    ),
    Setting("max_file_bytes", 512 * 2**20, _whole(1, 2**40), "Largest file sent in one request or imported, in bytes."),
    Setting("max_upload_bytes", 8 * 2**30, _whole(1, 2**40), "Largest file sent in parts by /v1/uploads, in bytes."),
    Setting(
        "default_provider", "local", str, "Provider that comes first where two have a model of one name: local or fake."
    ),
    Setting("running_jobs", 1, _whole(1, 64), "Local jobs that train at the same time; the others wait."),
    Setting("threads", 0, _whole(0, 1024), "CPU threads of a trainer and of an engine; 0 takes all cores."),
    Setting("engine_parallel", 2, _whole(1, 64), "Chat requests that one engine answers at the same time."),
    Setting("engine_idle_seconds", 900, _whole(1, 10**9), "An engine without requests ends after this many seconds."),
    Setting("model_map", {}, _model_map, "Table from a name that clients ask for to a model of yours."),
    Setting("bases", {}, _bases, "Table of base models of your own: name = { gguf = FILE, … }."),
    Setting(
        "providers",
        {},
        _providers,
        "Table of accounts at vendors: name = { kind = KIND, … }, see `tuneway providers kinds`. Secrets are written "
        "as `env:VARIABLE` or `file:PATH`, never as they are.",
    ),
    Setting(
        "relay",
        "on",
        _switch,
        "off: refuse requests that bring a provider's own credential to be passed on to it.",
    ),
    Setting("log_level", "info", _level, "What goes to the log: debug, info, warning or error."),
)


def load(config: Path | None, flags: Mapping[str, Any]) -> Settings:
    """The settings in force. `config` None reads ./tuneway.toml where there is one; flags of value None are unset.

    Raises StartError that names the setting, where it was set, and what it takes.
    """
    sources = [
        ("default", {row.name: row.default for row in SETTINGS} | {"cache": _default_cache()}),
        _from_file(config),
        ("environment", _from_environment()),
        ("flag", {name: value for name, value in flags.items() if value is not None}),
    ]
    values: dict[str, Any] = {}
    for row in SETTINGS:
        for source, found in sources:
            if row.name in found:
                try:
                    values[row.name] = row.parse(found[row.name])
                except (ValueError, TypeError) as error:
                    raise StartError(f"The setting {row.name!r} ({source}) is not valid: {error}.") from error
    return Settings(**values)


def client_url() -> str:
    """Where the command line looks for its gateway."""
    return os.environ.get(CLIENT_URL, DEFAULT_URL)


def client_key() -> str | None:
    """The key that the command line sends."""
    return os.environ.get(CLIENT_KEY)


def _from_file(config: Path | None) -> tuple[str, Mapping[str, Any]]:
    path = config or Path("tuneway.toml")
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if config is None:
            return str(path), {}
        raise StartError(f"There is no settings file {path}.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise StartError(f"The settings file {path} is not valid TOML: {error}.") from error
    known = {row.name for row in SETTINGS}
    unknown = sorted(set(found) - known)
    if unknown:
        raise StartError(f"{path} has unknown settings: {', '.join(unknown)}. Known: {', '.join(sorted(known))}.")
    return str(path), found


def _from_environment() -> Mapping[str, str]:
    known = {row.environment: row.name for row in SETTINGS}
    clients = (CLIENT_URL, CLIENT_KEY)
    ours = {name: value for name, value in os.environ.items() if name.startswith("TUNEWAY_") and name not in clients}
    unknown = sorted(set(ours) - set(known))
    if unknown:
        raise StartError(f"Unknown settings in the environment: {', '.join(unknown)}. Known: {', '.join(known)}.")
    return {known[name]: value for name, value in ours.items()}
