"""The `snugfit` command itself: its verbs, how signatures become arguments, and how it ends."""

import inspect
import pkgutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Literal

import pytest
from docstring_parser import google

import commands
import main

PROBE = '''"""Probes the command line.

Not part of the summary.
"""

from pathlib import Path
from typing import Literal


def probe(*images: Path, solver: Literal["lm", "adam"] = "lm", fails: str = "", code: int = 0) -> int:
    """Probes photos.

    Args:
        *images: Photos.
        solver: Which solver.
        fails: What goes wrong.
        code: What to return.
    """
    from bodies.errors import InputError

    match fails:
        case "input":
            raise InputError("a.jpg: cannot be read\\nas an image")
        case "value":
            raise ValueError("a bug")
        case "interrupt":
            raise KeyboardInterrupt
    print(*[image.name for image in images], solver)
    return code
'''


@pytest.fixture
def probe(tmp_path, monkeypatch):
    """A verb `probe` for the length of a test."""
    (tmp_path / "probe.py").write_text(PROBE)
    (tmp_path / "_shared.py").write_text('"""Is no verb."""')
    monkeypatch.setattr(commands, "__path__", [*commands.__path__, str(tmp_path)])
    yield
    sys.modules.pop("commands.probe", None)


def parse(function, *words):
    """What `function` is called with for these words, as (args, kwargs)."""
    parser = main.HelpfulParser(prog="probe")
    main.add_function(parser, function)
    seen = {}

    def spy(*args, **kwargs):
        bound = inspect.signature(function).bind(*args, **kwargs)
        seen.update(bound.arguments)

    spy.__signature__ = inspect.signature(function)
    main.call(spy, parser.parse_args(words))
    return seen


def help_of(function):
    parser = main.HelpfulParser(prog="probe")
    main.add_function(parser, function)
    return parser.format_help()


# The verbs that are there


VERBS = [module.name for module in pkgutil.iter_modules(commands.__path__) if not module.name.startswith("_")]


@pytest.mark.parametrize("verb", VERBS)
def test_every_command_explains_itself(verb):
    module = import_module(f"commands.{verb}")
    assert main.verb_summaries()[verb].endswith(".")
    assert main.verb_parser(module).format_help()
    functions = main.public_functions(module)
    assert functions
    for function in functions.values():
        documented = {p.arg_name.lstrip("*"): p.description for p in google.parse(function.__doc__).params}
        for name in inspect.signature(function).parameters:
            assert documented.get(name), f"{verb}: {function.__name__} does not say what {name} is"


def test_help_lists_the_verbs_and_loads_nothing_heavy():
    script = "import sys, main\ntry: main.main(['--help'])\nfinally: print(sorted(sys.modules))"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    *shown, modules = run.stdout.splitlines()
    for verb, summary in main.verb_summaries().items():
        assert any(line.split() == [verb, *summary.split()] for line in shown)
    for heavy in ("torch", "numpy", "lightning", "numba", "cv2", "bodies"):
        assert f"'{heavy}'" not in modules


def test_the_installed_command_runs():
    command = Path(sys.executable).with_name("snugfit")
    run = subprocess.run([command, "--version"], capture_output=True, text=True, check=True)
    assert run.stdout.startswith("snugfit ")


def test_training_verbs_appear_with_their_module():
    here = Path(import_module("lightning_modules").__path__[0], "cli.py").exists()
    assert (set(main.TRAINING_VERBS) <= set(main.verb_summaries())) is here


def test_training_verbs_go_to_lightning(monkeypatch):
    calls = []
    cli = type(sys)("lightning_modules.cli")
    cli.main = calls.append
    monkeypatch.setitem(sys.modules, "lightning_modules.cli", cli)
    assert main.run_verb("fit", ["--config", "x.yaml"]) == 0
    assert calls == [["fit", "--config", "x.yaml"]]


# How it ends


@pytest.mark.usefixtures("probe")
def test_a_verb_runs_and_its_return_value_is_the_exit_code(capsys):
    assert main.main(["probe", "photos/a.jpg", "b.jpg", "--solver", "adam", "--code", "3"]) == 3
    assert capsys.readouterr().out == "a.jpg b.jpg adam\n"
    summaries = main.verb_summaries()
    assert summaries["probe"] == "Probes the command line."
    assert "_shared" not in summaries


@pytest.mark.usefixtures("probe")
def test_an_input_error_is_one_line(capsys):
    assert main.main(["probe", "--fails", "input"]) == 2
    assert capsys.readouterr() == ("", "snugfit: error: a.jpg: cannot be read as an image\n")


@pytest.mark.usefixtures("probe")
@pytest.mark.parametrize("by_variable", [True, False])
def test_debug_shows_where_an_input_error_comes_from(by_variable, monkeypatch):
    if by_variable:
        monkeypatch.setenv("SNUGFIT_DEBUG", "1")
    with pytest.raises(ValueError, match=r"a\.jpg"):
        main.main([*([] if by_variable else ["--debug"]), "probe", "--fails", "input"])


@pytest.mark.usefixtures("probe")
def test_our_own_errors_are_not_dressed_up_as_the_users():
    with pytest.raises(ValueError, match="a bug"):
        main.main(["probe", "--fails", "value"])


@pytest.mark.usefixtures("probe")
def test_an_interrupt_ends_with_130(capsys):
    assert main.main(["probe", "--fails", "interrupt"]) == 130
    assert capsys.readouterr().err.strip() == "snugfit: interrupted"


@pytest.mark.usefixtures("probe")
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["prob"], "invalid choice: 'prob'"),
        (["--verbose", "probe"], "unrecognized arguments: --verbose"),
        (["probe", "--sol", "lm"], "unrecognized arguments: --sol"),
        (["probe", "--solver", "newton"], "invalid choice: 'newton'"),
        (["probe", "--code", "x"], "argument --code: invalid int value: 'x'"),
    ],
)
def test_wrong_use_exits_with_2(words, message, capsys):
    with pytest.raises(SystemExit) as stop:
        main.main(words)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_no_words_show_the_help(capsys):
    assert main.main([]) == 2
    assert "verbs:" in capsys.readouterr().err


# Signatures to arguments


def test_kinds_of_parameters():
    def f(source: Path, name: str = "standin", /, *rest: int, out: Path, count: int = 1) -> None: ...

    assert parse(f, "a", "--out", "o") == {"source": Path("a"), "name": "standin", "out": Path("o"), "count": 1}
    assert parse(f, "a", "b", "3", "4", "--out", "o", "--count", "2") == {
        "source": Path("a"), "name": "b", "rest": (3, 4), "out": Path("o"), "count": 2,
    }  # fmt: skip
    with pytest.raises(SystemExit):
        parse(f, "a")  # --out is required


def test_types_of_values():
    def f(
        images: list[Path],
        *,
        kind: Literal["lm", "adam"] = "lm",
        size: tuple[int, int] | None = None,
        people: tuple[int, ...] = (),
        names: list[str] | None = None,
        ratio: float | None = None,
        dry_run: bool = False,
        save: bool = True,
    ) -> None: ...

    defaults = {"kind": "lm", "size": None, "people": (), "names": None, "ratio": None, "dry_run": False, "save": True}
    assert parse(f, "a", "b") == {"images": [Path("a"), Path("b")], **defaults}
    words = "a --kind adam --size 4 3 --people 1 2 --names x y --ratio 0.5 --dry-run --no-save"
    assert parse(f, *words.split()) == {
        "images": [Path("a")], "kind": "adam", "size": (4, 3), "people": (1, 2), "names": ["x", "y"], "ratio": 0.5,
        "dry_run": True, "save": False,
    }  # fmt: skip
    for wrong in (["a", "--size", "4"], ["a", "--kind", "x"], ["a", "--ratio", "x"], []):
        with pytest.raises(SystemExit):
            parse(f, *wrong)


@pytest.mark.parametrize("annotation", [dict, int | str, tuple[int, str], inspect.Parameter.empty, complex])
def test_a_type_without_words_is_refused(annotation):
    with pytest.raises(TypeError, match="the command line cannot give"):
        main.value_keywords(annotation)


def test_help_comes_from_the_docstring():
    def f(
        images: list[Path], *, focal_px: float | None = None, solver: Literal["lm", "adam"] = "lm", save: bool = True
    ) -> None:
        """Fits bodies to 100 % of the photos.

        First paragraph,
        in two lines.

            snugfit probe --focal 3

        Args:
            images: Photos,
                or folders of them.
            focal_px: Focal length.
            solver: Which one is 100 % yours.
            save: Writes files.
        """

    text = help_of(f)
    words = " ".join(text.split())
    assert "Fits bodies to 100 % of the photos." in text
    assert "First paragraph, in two lines." in text
    assert "\n    snugfit probe --focal 3\n" in text
    assert "IMAGE [IMAGE ...]" in text
    assert "IMAGE Photos, or folders of them." in words
    assert "--focal PX Focal length. --solver" in words  # a default that means "none" is not shown
    assert "--solver {lm,adam} Which one is 100 % yours. (default: lm)" in words
    assert words.endswith("--save, --no-save Writes files. (default: on)")
    assert parse(f, "a", "--focal", "3")["focal_px"] == 3.0


def test_subcommands_are_the_modules_own_public_functions():
    module = type(sys)("commands.store")
    source = '''
from os.path import join
def import_():
    """Takes in 100 % of it."""
def show_all():
    """Shows it."""
def _helper(): ...
'''
    exec(compile(source, "store.py", "exec"), vars(module))
    assert list(main.public_functions(module)) == ["import", "show-all"]
    options = main.verb_parser(module).parse_args(["show-all"])
    assert options.command_function is module.show_all
    assert "import    Takes in 100 % of it." in main.verb_parser(module).format_help()
