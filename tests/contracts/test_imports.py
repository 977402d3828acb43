"""Imports have one direction and no circles: faces -> launch -> search and workers -> nouns and recsys."""

import ast
import pickle
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import pareto_search
from pareto_search.errors import DivergedError

ROOT = Path(pareto_search.__file__).parent
NOUNS = {"errors", "candidate", "objective", "space", "archive"}
FACES = {"cli", "display"}


@dataclass(frozen=True)
class Import:
    """One import statement's target, and whether it happens when the module is loaded."""

    module: str
    target: str
    at_load: bool


def modules() -> dict[str, Path]:
    """Dotted name inside the package -> file; the package itself is the empty name."""
    files = [*ROOT.glob("*.py"), *ROOT.glob("recsys/*.py"), *ROOT.glob("workers/*.py"), *ROOT.glob("service/*.py")]
    return {".".join(f.relative_to(ROOT).with_suffix("").parts).removesuffix("__init__").rstrip("."): f for f in files}


MODULES = modules()


def statements(node: ast.AST, at_load: bool = True) -> Iterator[tuple[ast.Import | ast.ImportFrom, bool]]:
    """All imports under a node, those in functions and under TYPE_CHECKING included."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child, at_load
        lazy = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        lazy = lazy or (isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test))
        yield from statements(child, at_load and not lazy)


def imports(module: str) -> Iterator[Import]:
    for statement, at_load in statements(ast.parse(MODULES[module].read_text())):
        if isinstance(statement, ast.Import):
            names = [alias.name for alias in statement.names]
        else:
            assert statement.level == 0, f"{module} has a relative import"
            source = statement.module or ""
            names = [f"{source}.{a.name}" if is_ours(f"{source}.{a.name}") else source for a in statement.names]
        yield from (Import(module, name, at_load) for name in names)


def is_ours(name: str) -> bool:
    return name == "pareto_search" or name.removeprefix("pareto_search.") in MODULES


def ours(module: str) -> set[Import]:
    """What a module imports of this package, by names inside it."""
    return {
        Import(module, i.target.removeprefix("pareto_search").lstrip("."), i.at_load)
        for i in imports(module)
        if i.target.split(".")[0] == "pareto_search"
    }


def loaded(module: str) -> set[str]:
    """All modules of ours that come with it when it is loaded."""
    found, todo = set[str](), [module]
    while todo:
        found.add(module := todo.pop())
        todo += [i.target for i in ours(module) if i.at_load and i.target in MODULES and i.target not in found]
    return found


def importers(package: str) -> set[str]:
    return {m for m in MODULES for i in imports(m) if i.target.split(".")[0] == package}


def group(name: str) -> str:
    """`recsys`, `service` or `workers` for a module of theirs, else the module itself."""
    head = name.partition(".")[0]
    return head if head in ("recsys", "service", "workers") else name


def test_the_house_is_found() -> None:
    assert {"", "cli", "launch", "search", "recsys.metrics", "workers.worker", *NOUNS} <= set(MODULES)
    assert {i.target for i in ours("workers.pool")} >= {"candidate", "workers.actor"}


def test_no_module_imports_itself_through_others() -> None:
    edges = {m: {i.target for i in ours(m) if i.at_load and i.target in MODULES} for m in MODULES}
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join((*path, module))
        if module not in done:
            for target in edges[module]:
                visit(target, (*path, module))
            done.add(module)

    for module in MODULES:
        visit(module, ())


def test_nouns_import_only_nouns() -> None:
    assert {(m, i.target) for m in NOUNS for i in ours(m) if i.target not in NOUNS} == set()


@pytest.mark.parametrize(
    ("part", "allowed"),
    [
        ("recsys", {*NOUNS, "recsys"}),
        (
            "workers",
            {
                "",
                *NOUNS,
                "recsys",
                "decide",
                "entry",
                "executor",
                "fusion",
                "publish",
                "question",
                "results",
                "workers",
            },
        ),
    ],
)
def test_a_part_imports_only_what_lies_below_it(part: str, allowed: set[str]) -> None:
    wrong = {(m, i.target) for m in MODULES if group(m) == part for i in ours(m) if group(i.target) not in allowed}
    assert wrong == set()


def test_only_launch_export_and_the_faces_import_workers() -> None:
    found = {m for m in MODULES for i in ours(m) if group(i.target) == "workers" and group(m) != "workers"}
    assert found - {m for m in MODULES if m.startswith("service")} == {"launch", "export", "cli"}


def test_the_service_looks_at_searches_and_leaves_running_them_to_a_process_of_their_own() -> None:
    found = {(m, i.target) for m in MODULES if group(m) == "service" for i in ours(m)}
    allowed = {
        *NOUNS,
        "recsys",
        "service",
        "checkpoint",
        "config",
        "database",
        "decide",
        "entry",
        "loopback",
        "plots",
        "question",
        "results",
        "store",
    }
    beyond = {(m, target) for m, target in found if group(target) not in allowed}
    processes = {"service.runner", "service.deployer", "service.previewer"}
    assert {m for m, _ in beyond} == processes
    assert {target for _, target in beyond} == {"launch", "search", "workers.answer"}
    assert not {m for m in loaded("service.serve") if group(m) == "workers" or m in ("launch", "search")}
    assert {m for m in MODULES for i in ours(m) if group(i.target) == "service"} - {m for m, _ in found} == {"cli"}


@pytest.mark.parametrize("package", ["fastapi", "starlette", "uvicorn"])
def test_the_web_stays_in_the_service_and_in_deployments(package: str) -> None:
    # The command line must work where only the package itself is installed.
    assert importers(package) <= {m for m in MODULES if group(m) == "service"} | {"workers.serving"}
    assert all(not i.at_load for i in ours("cli") if group(i.target) == "service")


def test_the_loop_knows_no_face_and_only_faces_know_launch() -> None:
    for module in MODULES:
        targets = {i.target for i in ours(module)}
        if module not in FACES and not module.startswith("service"):
            assert not targets & FACES, module
            assert "launch" not in targets or module == "", module
    assert not {"report", "plots", "results", "launch"} & {i.target for i in ours("search")}


def test_words_and_commands_come_without_torch_and_ray() -> None:
    # --help must be quick: what the package and the command line load, they load without workers.
    assert {m for m in loaded("") | loaded("cli") if group(m) == "workers"} == set()


def test_the_driver_leaves_torch_to_its_workers() -> None:
    diverged = pickle.dumps(DivergedError("the loss is not finite"))  # which workers tell it
    program = f"""
import pickle, sys
import pareto_search.launch, pareto_search.workers.pool
pickle.loads({diverged!r})
print({{"torch", "transformers", "peft"}} & sys.modules.keys())
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == "set()"


def test_ray_is_imported_in_the_pool_and_the_deployment_only() -> None:
    assert importers("ray") == {"workers.cluster", "workers.pool", "workers.serving"}


def test_pymoo_is_imported_in_evolution_only() -> None:
    assert importers("pymoo") == {"evolution"}


@pytest.mark.parametrize("package", ["torch", "transformers", "peft"])
def test_torch_stays_on_the_workers(package: str) -> None:
    assert {group(m) for m in importers(package)} == {"workers"}
