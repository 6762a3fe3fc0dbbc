"""The layers of the package: which folder may import which."""

import ast
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "src" / "diffusers_pfgm"

# Each folder may import itself and those named here, which come before it.
ALLOWED = {
    "utils": set[str](),
    "physics": {"utils"},
    "solvers": {"physics", "utils"},
    "hub": {"models", "utils"},
    "models": {"utils"},
    "metrics": {"utils"},
    "losses": {"physics", "utils"},
    "schedulers": {"physics", "solvers", "hub", "utils"},
    "flow": {"physics", "solvers", "schedulers", "utils"},
    "inverse": {"physics", "solvers", "schedulers", "flow", "utils"},
    "pipelines": {"physics", "solvers", "hub", "schedulers", "flow", "inverse", "utils"},
    "plots": {"physics", "solvers", "schedulers", "flow", "pipelines", "utils"},
    "training": {
        "physics",
        "solvers",
        "hub",
        "models",
        "metrics",
        "losses",
        "schedulers",
        "flow",
        "plots",
        "pipelines",
    },
    "examples": {"physics", "hub", "metrics", "losses", "schedulers", "flow", "inverse", "plots", "pipelines"},
}
ALLOWED["training"] |= {"utils"}
ALLOWED["examples"] |= {"utils", "training"}
# What the first two folders may import besides the package.
STANDARD = {"__future__", "collections", "contextlib", "copy", "dataclasses", "functools", "itertools", "math"}
STANDARD |= {"threading", "types", "typing", "warnings"}
LIBRARIES = {"physics": {"torch"}, "solvers": {"numpy", "scipy", "torch", "torchdiffeq"}}


def imports(path: Path) -> list[str]:
    """Return the absolute names of the modules that a file imports, such as "diffusers_pfgm.physics.kernel"."""
    package = ["diffusers_pfgm", *path.relative_to(PACKAGE).parts[:-1]]
    modules = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            modules += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else []
            modules.append(".".join([*base, *([node.module] if node.module else [])]))
    return modules


def test_every_module_is_in_a_folder() -> None:
    assert [path.name for path in PACKAGE.glob("*.py")] == ["__init__.py"]
    assert {path.parent.name for path in PACKAGE.glob("*/__init__.py")} == set(ALLOWED)


def test_folders_import_only_what_comes_before_them() -> None:
    for folder, allowed in ALLOWED.items():
        for path in (PACKAGE / folder).rglob("*.py"):
            if not (path.parent / "__init__.py").exists():
                continue  # the code in the folder of a model, which diffusers copies and loads by itself
            modules = [name.split(".")[1:] for name in imports(path) if name.startswith("diffusers_pfgm")]
            folders = {module[0] if module else "the root" for module in modules}
            assert folders <= allowed | {folder}, (path, folders - allowed - {folder})


def test_physics_and_solvers_need_torch_alone() -> None:
    for folder, libraries in LIBRARIES.items():
        for path in (PACKAGE / folder).rglob("*.py"):
            names = {name.split(".")[0] for name in imports(path)}
            assert names - libraries - {"diffusers_pfgm"} <= STANDARD, (path, names)
