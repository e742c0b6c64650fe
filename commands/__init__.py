"""The verbs of the `snugfit` command, one file each: parse, call, report.

A module that defines a function of its own name is that function; the public functions of any other module are its
subcommands. `main.py` turns their signatures into arguments and their Google docstrings into help; the first line of
the module's docstring is what `snugfit --help` says of the verb. A function returns its exit code or None for 0, and
raises `bodies.errors.InputError` for what the user got wrong. Helpers, functions
and modules alike, start with an underscore. Nothing else imports this package.
"""
