"""The shape of the source tree: who imports whom, what is listed where, and that annotations are really executed."""

import ast
import functools
import importlib
import pkgutil
import tomllib
from collections.abc import Iterator
from pathlib import Path

import jaxtyping
import pytest
import torch

from bodies import BodyParameters, PinholeCamera
from bodies.camera import square_box

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))

#: What each package may import of ours besides itself. Nothing may import `commands` or `main`.
ARROWS = {
    "bodies": set(),
    "renderers": {"bodies"},
    "fitting": {"bodies"},
    "datamodules": {"bodies", "renderers"},
    "lightning_modules": {"bodies", "renderers", "fitting", "datamodules"},
    "commands": {"bodies", "renderers", "fitting", "datamodules", "lightning_modules"},
    "main": {"bodies", "renderers", "fitting", "datamodules", "lightning_modules", "commands"},
}
#: Third-party packages that only these files may import: optional ones, and ones under a restrictive licence.
ONLY_IN = {
    "nvdiffrast": {"renderers/cuda.py"},
    "anny": {"bodies/standin_persons.py"},
    "smplx": set(),
    "chumpy": set(),
}
LONGEST_FILE, LONGEST_BODY = 350, 40
#: Files and functions beyond the budget, each with its reason.
REASONED: dict[str, str] = {}

SOURCES = sorted([ROOT / "main.py", *(path for package in ARROWS for path in (ROOT / package).rglob("*.py"))])
TESTS = sorted((ROOT / "tests").rglob("*.py"))
_parse = functools.cache(ast.parse)


def _name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def _imports(source: str) -> Iterator[str]:
    """Every module a source imports, wherever in the file, also through `import_module` with a literal name."""
    for node in ast.walk(_parse(source)):
        match node:
            case ast.Import():
                yield from (alias.name for alias in node.names)
            case ast.ImportFrom(module=str(module), level=0):
                yield module
            case ast.ImportFrom():
                raise AssertionError("relative import: the arrows are read off absolute ones")
            case ast.Call(
                func=ast.Name(id="import_module") | ast.Attribute(attr="import_module"),
                args=[ast.Constant(value=str(module)), *_],
            ):
                yield module


def _wrong_imports(owner: str, source: str) -> list[str]:
    ours = {module for module in _imports(source) if module.partition(".")[0] in ARROWS}
    return sorted(module for module in ours if module.partition(".")[0] not in ARROWS[owner] | {owner})


@pytest.mark.parametrize("path", SOURCES, ids=_name)
def test_imports_follow_the_arrows(path):
    owner = path.stem if path.parent == ROOT else path.relative_to(ROOT).parts[0]
    assert _wrong_imports(owner, path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("owner", "source", "wrong"),
    [
        ("renderers", "from fitting.terms import x", ["fitting.terms"]),
        ("bodies", "def f():\n    import renderers.cpu", ["renderers.cpu"]),
        ("fitting", "if True:\n    from commands import refine", ["commands"]),
        ("commands", "import main", ["main"]),
        ("datamodules", "importlib.import_module('lightning_modules.cli')", ["lightning_modules.cli"]),
        ("lightning_modules", "import torch, bodies\nfrom renderers import maps\nimport lightning_modules.metrics", []),
    ],
)
def test_a_wrong_import_is_seen(owner, source, wrong):
    assert _wrong_imports(owner, source) == wrong


@pytest.mark.parametrize("module", ONLY_IN)
def test_some_packages_are_imported_in_one_place_only(module):
    importers = {
        _name(path)
        for path in SOURCES
        if any(name.partition(".")[0] == module for name in _imports(path.read_text(encoding="utf-8")))
    }
    assert importers <= ONLY_IN[module]


def test_main_is_the_only_loose_module():
    # A module at the root shadows any module of that name for whoever runs Python here.
    assert [path.name for path in ROOT.glob("*.py")] == ["main.py"]
    assert PROJECT["tool"]["setuptools"]["py-modules"] == ["main"]


def test_every_package_is_listed():
    listed = PROJECT["tool"]["setuptools"]["packages"]
    there = {
        _name(path.parent).replace("/", ".")
        for package in ARROWS
        for path in (ROOT / package).rglob("*.py")
        if path.parent != ROOT
    }
    assert sorted(there) == sorted(listed)
    for package in listed:
        assert (ROOT / package.replace(".", "/") / "__init__.py").exists(), f"{package} has no __init__.py"
    roots = {name for name in there if "." not in name} | {"main"}
    assert roots == set(ARROWS)
    mypy = PROJECT["tool"]["mypy"]
    assert roots == {*mypy["packages"], *mypy["modules"]}


def test_every_data_file_is_packaged():
    patterns = PROJECT["tool"]["setuptools"]["package-data"]
    for package in ARROWS:
        files = [path for path in (ROOT / package).rglob("data/*") if path.is_file() and not path.name.startswith(".")]
        packaged = {path for pattern in patterns.get(package, []) for path in (ROOT / package).glob(pattern)}
        assert set(files) <= packaged


@pytest.mark.parametrize("path", [*SOURCES, *TESTS], ids=_name)
def test_annotations_stay_objects(path):
    # Postponed annotations are strings, which the run-time check has to resolve by guesswork.
    assert "__future__" not in _imports(path.read_text(encoding="utf-8"))


def _open_unpickling(source: str) -> list[int]:
    """Lines that may run what a foreign file says: `torch.load` without weights_only=True, or allow_pickle=True."""
    lines = []
    for node in ast.walk(_parse(source)):
        if isinstance(node, ast.Call):
            given = {word.arg: getattr(word.value, "value", None) for word in node.keywords}
            trusting = ast.unparse(node.func) == "torch.load" and given.get("weights_only") is not True
            if trusting or given.get("allow_pickle", False) is not False:
                lines.append(node.lineno)
    return lines


@pytest.mark.parametrize("path", SOURCES, ids=_name)
def test_no_file_is_unpickled_openly(path):
    # Plain pickle is ruff's S301; bodies/safe_pickle.py is the one place that reads pickles.
    assert _open_unpickling(path.read_text(encoding="utf-8")) == []


def test_open_unpickling_is_seen():
    safe = "torch.load(f, weights_only=True)\nnp.load(f, allow_pickle=False)\nnp.load(f)\n"
    wrong = "torch.load(f)\nnp.load(f, allow_pickle=True)\nnp.load(f, allow_pickle=x)\n"
    assert _open_unpickling(safe + wrong) == [4, 5, 6]


def _body_length(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    body = function.body[1:] if ast.get_docstring(function) is not None else function.body
    return (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0


@pytest.mark.parametrize("path", SOURCES, ids=_name)
def test_files_and_functions_are_short(path):
    source = path.read_text(encoding="utf-8")
    lengths = {_name(path): len(source.splitlines())}
    beyond = {name: length for name, length in lengths.items() if length > LONGEST_FILE}
    for node in ast.walk(_parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and _body_length(node) > LONGEST_BODY:
            beyond[f"{_name(path)}:{node.name}"] = _body_length(node)
    assert {name: length for name, length in beyond.items() if name not in REASONED} == {}


@pytest.mark.parametrize("package", [package for package in ARROWS if package not in ("commands", "main")])
def test_every_module_goes_through_the_shape_checker(package):
    """The list in pytest's addopts covers the package, and the hook came before its first import."""
    for name in [package, *(module.name for module in pkgutil.walk_packages([str(ROOT / package)], f"{package}."))]:
        try:
            loader = importlib.import_module(name).__loader__
        except ModuleNotFoundError as error:
            if error.name in ONLY_IN:
                continue  # an optional package that this machine lacks
            raise
        assert type(loader).__module__.startswith("jaxtyping"), f"{name} was imported by {loader}"


def test_shape_annotations_are_executed():
    two, three = torch.zeros(1, 2), torch.zeros(1, 3)
    PinholeCamera(two, two, two)
    with pytest.raises(jaxtyping.TypeCheckError):  # a dataclass
        PinholeCamera(two, three, two)
    with pytest.raises(jaxtyping.TypeCheckError):  # a method
        BodyParameters.from_axis_angle(torch.zeros(2, 72), torch.zeros(3, 10), torch.zeros(2, 3))
    with pytest.raises(jaxtyping.TypeCheckError):  # a function
        square_box(torch.zeros(1, 5, 2), torch.ones(1, 4), 1.2)
    with pytest.raises(jaxtyping.TypeCheckError):  # a dtype
        PinholeCamera(two.long(), two, two)
