"""The import law of ARCHITECTURE.md, executable: reads every import in `src/tuneway` and says which break the law.

    python scripts/check_layers.py [PACKAGE_FOLDER]

Imports inside functions and under TYPE_CHECKING count as any other. A module belongs to a unit: its first name under
`tuneway`, and under `providers` its second as well. Exit status 1 when something breaks the law or nothing was found.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass
from pathlib import Path

VALUES = {"types", "errors"}
SERVICES = {
    "jobs",
    "files",
    "uploads",
    "models",
    "permissions",
    "completions",
    "graders",
    "webhooks",
    "keys",
    "checks",
    "worker",
    "launches",
    "results",
    "accounts",
    "relay",
    "imports",
}
VENDOR = {"dataset", "providers.base", "providers.line", "providers.vendor", "providers.shapes"}
"""What a vendor's file stands on."""
OTHER_SHAPES = {"providers.openai_compatible", "providers.asked", "providers.spool"}
"""And one whose API has other shapes than OpenAI's."""
SEAM = {"providers.base", "providers.line", "providers.vendor", "providers.remote"}
"""What services know of providers: how they are asked, and nothing of any vendor."""
ANY = {"*"}
ROOT = ""
"""The unit of `tuneway/__init__.py`, which holds the version and imports nothing of ours."""

# Who may import what of ours. Everyone may import the root and itself.
LAW: Mapping[str, set[str]] = {
    ROOT: set(),
    "types": set(),
    "errors": set(),
    "ids": set(),
    "children": {"errors"},
    "rundir": set(),
    "settings": VALUES,
    "blobs": VALUES,
    "store": VALUES,
    "dataset": VALUES | {"rundir"},
    "outbound": VALUES,
    "vault": VALUES,
    "providers.base": VALUES | {"dataset"},
    "providers.line": VALUES,
    "providers.vendor": VALUES | {"dataset", "providers.base", "providers.line"},
    "providers.shapes": VALUES | {"providers.vendor"},
    "providers.outgoing": VALUES | {"dataset"},
    "providers.remote": VALUES | {"dataset", "providers.base", "providers.vendor", "providers.outgoing"},
    "providers.openai_compatible": VALUES | VENDOR,
    "providers.azure_openai": VALUES | VENDOR | {"providers.openai_compatible", "providers.azure_arm"},
    "providers.asked": VALUES | {"providers.vendor", "providers.shapes"},
    "providers.spool": VALUES | {"providers.vendor"},
    "providers.together": VALUES | VENDOR | OTHER_SHAPES | {"providers.together_shapes"},
    "providers.together_shapes": VALUES | VENDOR | OTHER_SHAPES,
    "providers.fireworks": VALUES | VENDOR | OTHER_SHAPES | {"providers.fireworks_shapes"},
    "providers.fireworks_shapes": VALUES | VENDOR | OTHER_SHAPES,
    "providers.registry": {"providers.*"},
    "providers.local": VALUES | {"dataset", "providers.base", "rundir", "children"},
    "providers.*": VALUES | VENDOR | {"providers.openai_compatible"},
    "providers": {"providers.*"},
    "trainer": VALUES | {"dataset", "rundir"},
    "inference": VALUES | {"dataset", "rundir"},
    **dict.fromkeys(
        SERVICES,
        VALUES
        | SERVICES
        | SEAM
        | {"dataset", "rundir", "settings", "blobs", "store", "ids", "children", "outbound", "vault"},
    ),
    "proxy": VALUES | {"outbound", "providers.line"},
    "api": VALUES | SERVICES | {"dataset", "settings", "ids", "proxy"},
    "dashboard": VALUES,
    "cli": VALUES | {"dataset", "rundir", "settings", "app"},
    "app": ANY,
    "__main__": {"cli"},
}

# Packages of others that only some units may import.
FENCES: Mapping[tuple[str, ...], set[str]] = {
    ("torch", "transformers", "peft", "safetensors.torch"): {"trainer"},
    ("fastapi", "starlette", "uvicorn"): {"api", "app", "proxy", "inference"},
    ("jinja2",): {"dataset"},
    ("sqlalchemy", "alembic"): {"store"},
}
STANDARD_LIBRARY_ONLY = {"rundir"}
READS_ENVIRONMENT = {"settings"}
ENVIRONMENT = {"environ", "environb", "getenv", "getenvb"}


@dataclass(frozen=True, slots=True)
class Violation:
    file: Path
    line: int
    law: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.law}"


def check(package: Path) -> list[Violation]:
    """All violations under the folder of the package `tuneway`. Raises ValueError when it holds no Python file."""
    files = sorted(package.rglob("*.py"))
    if not files:
        raise ValueError(f"{package} holds no Python file: nothing was checked")
    modules = {_module(file.relative_to(package)): file for file in files}
    folders = {_module(file.relative_to(package).parent / "__init__") for file in files}
    known = modules.keys() | folders
    return [violation for module, file in modules.items() for violation in _check_file(module, file, known)]


def _check_file(module: str, file: Path, modules: Set[str]) -> Iterator[Violation]:
    unit = _unit(module)
    row = next((row for row in (unit, _family(unit)) if row in LAW), None)
    if row is None:
        yield Violation(file, 1, f"`{unit}` has no row in the import law; add one to scripts/check_layers.py")
        return
    tree = ast.parse(file.read_bytes(), filename=str(file))
    package = module if file.name == "__init__.py" else module.rpartition(".")[0]
    for line, target in _imports(tree, package, modules):
        law = _broken(unit, LAW[row], target)
        if law is not None:
            yield Violation(file, line, law)
    if unit not in READS_ENVIRONMENT:
        for line in _environment_reads(tree):
            yield Violation(file, line, f"`{unit}` reads the environment; only `settings` may: add a setting there")


def _broken(unit: str, allowed: set[str], target: str) -> str | None:
    """The law that `unit` breaks by importing `target`, or None."""
    if target == "tuneway" or target.startswith("tuneway."):
        other = _unit(target)
        if other in (unit, ROOT) or allowed & {"*", other, _family(other)}:
            return None
        return f"`{unit}` imports `{other}`; it may import {_listed(allowed)}"
    for packages, where in FENCES.items():
        for fenced in packages:
            if (target == fenced or target.startswith(fenced + ".")) and unit not in where:
                return f"`{unit}` imports `{fenced}`, which belongs in {_listed(where)}"
    if unit in STANDARD_LIBRARY_ONLY and target.partition(".")[0] not in sys.stdlib_module_names:
        return f"`{unit}` imports `{target}`; it may import the standard library only"
    return None


def _imports(tree: ast.Module, package: str, modules: Set[str]) -> Iterator[tuple[int, str]]:
    """Line and full name of every module imported, wherever the import stands."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            source = node.module or ""
            if node.level:
                parents = package.split(".")
                source = ".".join([*parents[: len(parents) - node.level + 1], *filter(None, [source])])
            for alias in node.names:
                # `from package import name` imports a module where there is one of that name; and of packages that are
                # not ours we cannot know, so the longer name is matched (`from safetensors import torch`).
                full = f"{source}.{alias.name}"
                ours = source == "tuneway" or source.startswith("tuneway.")
                yield node.lineno, full if full in modules or not ours else source
        elif isinstance(node, ast.Call) and _called(node) in ("import_module", "__import__") and node.args:
            name = node.args[0]
            if isinstance(name, ast.Constant) and isinstance(name.value, str):
                yield node.lineno, name.value


def _called(call: ast.Call) -> str:
    function = call.func
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def _environment_reads(tree: ast.Module) -> Iterator[int]:
    """Lines that read the environment; setting or deleting one variable of it reads nothing."""
    nodes = list(ast.walk(tree))
    imports = (alias for node in nodes if isinstance(node, ast.Import) for alias in node.names)
    system = {alias.asname or "os" for alias in imports if alias.name == "os"}
    stored = (node for node in nodes if isinstance(node, ast.Subscript) and not isinstance(node.ctx, ast.Load))
    written = {id(node.value) for node in stored}
    for node in nodes:
        match node:
            case ast.ImportFrom(module="os", names=names) if any(alias.name in ENVIRONMENT for alias in names):
                yield node.lineno
            case ast.Attribute(value=ast.Name(id=name), attr=attr) if name in system and attr in ENVIRONMENT:
                if id(node) not in written:
                    yield node.lineno


def _module(file: Path) -> str:
    """The dotted name of a file, given relative to the package's folder."""
    parts = ["tuneway", *file.with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _unit(module: str) -> str:
    parts = module.split(".")[1:]
    return ".".join(parts[:2] if parts[:1] == ["providers"] else parts[:1])


def _family(unit: str) -> str:
    return "providers.*" if unit.startswith("providers.") else unit


def _listed(units: set[str]) -> str:
    return ", ".join(f"`{unit}`" for unit in sorted(units)) or "nothing of ours"


def main(arguments: list[str]) -> int:
    package = Path(arguments[0]) if arguments else Path(__file__).parent.parent / "src" / "tuneway"
    try:
        violations = check(package)
    except (ValueError, SyntaxError) as error:
        print(error, file=sys.stderr)  # noqa: T201
        return 1
    for violation in violations:
        print(violation)  # noqa: T201
    return 1 if violations else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
