"""The one exception for what a user can get wrong."""


class InputError(ValueError):
    """Something the user gave cannot be used. The message is one line that names the file and the cause.

    The command line prints it and exits with code 2; from Python it is an ordinary ValueError.
    """


def one_line(error: BaseException) -> str:
    """What an exception says, fit to be quoted in a message of one line; its class if it says nothing."""
    return " ".join(str(error).split()) or type(error).__name__
