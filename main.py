"""The `snugfit` command: Lightning's fit, validate, test and predict, and the verbs of commands/.

Every public module of `commands` is a verb. One that has a function of its own name is that function (`snugfit refine
IMAGE`); the public functions of any other are its subcommands (`snugfit body bake`). The signature and the docstring of
a function are its command line, see `add_parameter`, so there is nothing to register and nothing to repeat.

Only the verb that was asked for is imported: the rest of the help is read off the sources, and torch stays out of it.
"""

import argparse
import ast
import inspect
import os
import pkgutil
import sys
import textwrap
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, NoneType, UnionType
from typing import Any, Final, Literal, Union, get_args, get_origin

import commands

#: The verbs of Lightning's own command line, offered by `lightning_modules.cli`.
TRAINING_VERBS: Final = {
    "fit": "Train the network.",
    "validate": "Score a checkpoint on the validation set.",
    "test": "Score a checkpoint on the test set, before and after fitting.",
    "predict": "Write the predictions of a checkpoint.",
}
#: A parameter that ends in one of these units shows it as its value: `focal_px` is `--focal PX`.
UNITS: Final = ("px", "mm", "m", "deg")
EXIT_USAGE: Final = 2
EXIT_INTERRUPTED: Final = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        argv: The words after `snugfit`; those of the process by default.

    Returns:
        The exit code: what the verb returned, else 0; 2 if the user's input cannot be used; 130 if interrupted.

    Raises:
        SystemExit: With code 2 for wrong use, with 0 after `--help` and `--version`.
    """
    words = sys.argv[1:] if argv is None else argv
    parser = top_parser()
    if not words:
        parser.print_help(sys.stderr)
        return EXIT_USAGE
    options = parser.parse_args(words)
    debug = options.debug or os.environ.get("SNUGFIT_DEBUG", "0") not in ("", "0")
    try:
        return run_verb(options.verb, options.arguments)
    except KeyboardInterrupt:
        if debug:
            raise
        sys.stderr.write("\nsnugfit: interrupted\n")
        return EXIT_INTERRUPTED
    except ValueError as error:
        from bodies.errors import InputError  # not at the top: `--help` needs nothing of ours

        if debug or not isinstance(error, InputError):
            raise
        sys.stderr.write(f"snugfit: error: {' '.join(str(error).splitlines())}\n")
        return EXIT_USAGE


def run_verb(verb: str, arguments: Sequence[str]) -> int:
    """Imports the verb's module, reads its arguments and calls it; returns its exit code."""
    if verb in TRAINING_VERBS:
        return import_module("lightning_modules.cli").main([verb, *arguments]) or 0
    options, unknown = verb_parser(import_module(f"commands.{verb}")).parse_known_args(arguments)
    if unknown:  # said by the command's own parser: it shows the usage of the command, parse_args that of the verb
        options.command_parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    return call(options.command_function, options) or 0


def top_parser() -> argparse.ArgumentParser:
    """The parser of what comes before the verb; what follows it is left in `arguments`."""
    summaries = verb_summaries()
    width = max(map(len, summaries)) if summaries else 0
    parser = argparse.ArgumentParser(
        prog="snugfit",
        usage="snugfit [--debug] VERB ...",
        description="Refines 3D human mesh estimates with dense 2D displacements and a fast batched fit.",
        epilog="verbs:\n"
        + "".join(f"  {verb:{width}}  {summary}\n" for verb, summary in summaries.items())
        + "\n`snugfit VERB --help` shows what a verb takes.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"snugfit {version('snugfit')}")
    parser.add_argument(
        "--debug", action="store_true", help="show the traceback of an input error (so does SNUGFIT_DEBUG=1)"
    )
    parser.add_argument("verb", choices=summaries, metavar="VERB", help=argparse.SUPPRESS)
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help=argparse.SUPPRESS).required = False
    return parser


def verb_summaries() -> dict[str, str]:
    """Each verb that is there with the first line of its module's docstring, read without importing it."""
    summaries = {}
    for module in pkgutil.iter_modules(commands.__path__):
        if module.name.startswith("_"):  # helpers of the verbs
            continue
        spec = module.module_finder.find_spec(module.name, None)
        assert spec is not None
        assert spec.origin is not None
        doc = ast.get_docstring(ast.parse(Path(spec.origin).read_text(encoding="utf-8"))) or ""
        summaries[module.name] = doc.partition("\n")[0]
    lightning = find_spec("lightning_modules")
    assert lightning is not None
    # Looked up beside the package, for asking the import system would import the package and with it torch.
    if any(Path(place, "cli.py").exists() for place in lightning.submodule_search_locations or ()):
        summaries |= TRAINING_VERBS
    return summaries


def verb_parser(module: ModuleType) -> argparse.ArgumentParser:
    """The parser of a module of `commands`; the parsed options name the chosen function, `command_function`."""
    name = module.__name__.rpartition(".")[2]
    functions = public_functions(module)
    if name in functions:
        parser = HelpfulParser(prog=f"snugfit {name}")
        add_function(parser, functions[name])
        return parser
    parser = HelpfulParser(prog=f"snugfit {name}", description=inspect.getdoc(module))
    subcommands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for word, function in functions.items():
        summary = (inspect.getdoc(function) or "").partition("\n")[0].replace("%", "%%")
        add_function(subcommands.add_parser(word, help=summary), function)
    return parser


def public_functions(module: ModuleType) -> dict[str, Callable[..., int | None]]:
    """The functions that are the commands of `module`, by their word on the command line.

    They are those it defines without a leading underscore, and those it takes from a helper (`commands._...`) and names
    in its `__all__`. Underscores become dashes, and the one that tells a name from a keyword of Python falls off:
    `import_` is "import".
    """
    named = getattr(module, "__all__", ())
    return {
        name.rstrip("_").replace("_", "-"): value
        for name, value in vars(module).items()
        if inspect.isfunction(value)
        and not name.startswith("_")
        and (value.__module__ == module.__name__ or (value.__module__.startswith("commands._") and name in named))
    }


class HelpfulParser(argparse.ArgumentParser):
    """An argparse parser that takes no abbreviations and keeps the paragraphs of its description.

    Args:
        **keywords: As for argparse.ArgumentParser.
    """

    def __init__(self, **keywords: Any) -> None:
        super().__init__(**keywords)
        self.formatter_class = _ParagraphFormatter
        self.allow_abbrev = False


class _ParagraphFormatter(argparse.HelpFormatter):
    """Fills each paragraph by itself and leaves indented ones as they are."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        paragraphs = [
            textwrap.indent(paragraph, indent)
            if paragraph.startswith(" ")
            else super(_ParagraphFormatter, self)._fill_text(paragraph, width, indent)
            for paragraph in text.split("\n\n")
        ]
        return "\n\n".join(paragraphs)


def add_function(parser: argparse.ArgumentParser, function: Callable[..., int | None]) -> None:
    """Makes `function` what `parser` parses for: its docstring the description, its parameters the arguments."""
    from docstring_parser.google import parse

    doc = parse(inspect.getdoc(function))
    parser.description = "\n\n".join(filter(None, [doc.short_description, doc.long_description]))
    helps = {param.arg_name.lstrip("*"): " ".join((param.description or "").split()) for param in doc.params}
    for parameter in inspect.signature(function).parameters.values():
        add_parameter(parser, parameter, helps.get(parameter.name, ""))
    parser.set_defaults(command_function=function, command_parser=parser)


def add_parameter(parser: argparse.ArgumentParser, parameter: inspect.Parameter, help_text: str) -> None:
    """Adds one parameter of a function to its parser.

    What has no default, stands before `/` or is `*args` becomes positional, any other an option, dashes for
    underscores. A bool is a flag, a Literal a choice, a list or tuple takes several words, and `X | None` is an X.

    Raises:
        TypeError: If words on the command line cannot become what the annotation says.
    """
    kind, default = parameter.kind, parameter.default
    help_text = help_text.replace("%", "%%") + _default_note(default)
    if parameter.annotation is bool:
        _add_flag(parser, parameter, help_text)
        return
    keywords = value_keywords(parameter.annotation) | {"help": help_text}
    required = default is inspect.Parameter.empty
    if kind is inspect.Parameter.VAR_POSITIONAL:
        _add_positional(parser, parameter.name, keywords | {"nargs": "*"})
    elif kind is inspect.Parameter.POSITIONAL_ONLY and not required:
        _add_positional(parser, parameter.name, keywords | {"nargs": "?", "default": default})
    elif kind is not inspect.Parameter.KEYWORD_ONLY and required:
        _add_positional(parser, parameter.name, keywords)
    else:
        stem, _, unit = parameter.name.rpartition("_")
        word, value = (stem, {"metavar": unit.upper()}) if stem and unit in UNITS else (parameter.name, {})
        presence = {"required": True} if required else {"default": default}
        parser.add_argument(_option(word), dest=parameter.name, **(keywords | value | presence))


def value_keywords(annotation: Any) -> dict[str, Any]:
    """The keywords of `add_argument` that make words into a value of the annotated type.

    Raises:
        TypeError: If there are none.
    """
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return {"choices": inner, "type": type(inner[0])}
    if origin in (Union, UnionType) and len(inner) == 2 and NoneType in inner:
        return value_keywords(next(arm for arm in inner if arm is not NoneType))
    if origin is list or (origin is tuple and inner[1:] == (Ellipsis,)):
        return value_keywords(inner[0]) | {"nargs": "+"}
    if origin is tuple and len(set(inner)) == 1:
        return value_keywords(inner[0]) | {"nargs": len(inner)}
    shown = {Path: "PATH", str: None, int: "N", float: "X"}  # None shows the parameter's own name
    if annotation in shown:
        return {"type": annotation, "metavar": shown[annotation]}
    raise TypeError(f"the command line cannot give a value of type {annotation}")


def call(function: Callable[..., int | None], options: argparse.Namespace) -> int | None:
    """Calls `function` with the options that were parsed for its parameters."""
    signature = inspect.signature(function)
    bound = signature.bind_partial()
    for name, parameter in signature.parameters.items():
        value = getattr(options, name)
        if isinstance(value, list):  # as argparse gathers words, while the annotation may ask for a tuple
            arms = (parameter.annotation, *get_args(parameter.annotation))
            value = value if list in [get_origin(arm) for arm in arms] else tuple(value)
        bound.arguments[name] = value
    return function(*bound.args, **bound.kwargs)


def _add_flag(parser: argparse.ArgumentParser, parameter: inspect.Parameter, help_text: str) -> None:
    """A switch that is off is turned on by its name; one that is on is turned off by `--no-` and its name."""
    action = argparse.BooleanOptionalAction if parameter.default else "store_true"
    # The default is set afterwards: Python 3.11 and 3.12 would print it a second time.
    option = _option(parameter.name)
    parser.add_argument(option, dest=parameter.name, action=action, default=argparse.SUPPRESS, help=help_text)
    parser.set_defaults(**{parameter.name: parameter.default})


def _add_positional(parser: argparse.ArgumentParser, name: str, keywords: dict[str, Any]) -> None:
    several = keywords.get("nargs") in ("*", "+")
    # "IMAGE [IMAGE ...]" reads better than the plural; a choice shows what may be chosen.
    shown = name.upper().removesuffix("S") if several else name.upper()
    parser.add_argument(name, **(keywords | {"metavar": None if "choices" in keywords else shown}))


def _option(name: str) -> str:
    return "--" + name.rstrip("_").replace("_", "-")


def _default_note(default: object) -> str:
    """What the help says of a default; nothing of one that stands for absence."""
    if default is inspect.Parameter.empty or default is None or default is False or default == ():
        return ""
    if default is True:
        return " (default: on)"
    words = default if isinstance(default, tuple | list) else (default,)
    return f" (default: {' '.join(map(str, words))})".replace("%", "%%")


if __name__ == "__main__":
    sys.exit(main())
