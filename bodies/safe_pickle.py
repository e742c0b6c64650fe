"""Reads data out of pickles of others without running anything that they name.

A pickle is a program: it may name any importable function and call it. Here a name is looked up in a short table by
exact (module, name) and in nothing else, and the table holds no foreign class or function, only stand-ins (see
`bodies.pickle_stand_ins`). Whatever the table lacks is refused before any part of it is imported.

What comes out is plain: dict, list, tuple, set, str, bytes, numbers, numpy arrays and scalars, numpy dtypes and scipy
sparse matrices. Chumpy's arrays, which the official SMPL files hold, come out as numpy arrays.
"""

import io
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from types import MappingProxyType
from typing import Any, NoReturn

from bodies.errors import InputError, one_line
from bodies.pickle_stand_ins import ADMITTED, Admitted, Function, Stub

__all__ = ["Admitted", "Function", "Stub", "load_pickle"]


def load_pickle(
    source: Path | bytes | io.BufferedIOBase,
    *,
    name: str = "",
    admit: Admitted = MappingProxyType({}),
) -> Any:
    """Reads one pickle, of any protocol; Python 2's strings are decoded as latin1.

    Args:
        source: A file, its bytes, or a stream that stands at the start of a pickle.
        name: What messages call the source; by default the path.
        admit: Stand-ins for further (module, name) pairs, for formats that hold more than arrays. Nothing is read
            ahead: when a stub's state is set, the stream stands right behind that opcode, or behind its frame.

    Returns:
        Plain values, see the module's description.

    Raises:
        InputError: If the file is missing, is not a whole pickle, or names anything that is not admitted. Nothing that
            the file names has been imported or run.
    """
    name = name or (str(source) if isinstance(source, Path) else "the pickle")
    try:
        data = source.read_bytes() if isinstance(source, Path) else source
        stream = io.BytesIO(data) if isinstance(data, bytes) else data
        return _resolved(_DataUnpickler(stream, name, admit).load())
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"{name}: cannot be read ({error.strerror or error})") from error
    except Exception as error:  # damaged opcodes and states raise nearly anything
        cause = "it ends too early" if isinstance(error, EOFError) else one_line(error)
        raise InputError(f"{name}: not a whole pickle of arrays ({cause})") from error


class _Opcodes(dict[int, Callable[[Any], None]]):
    def __missing__(self, code: int) -> NoReturn:
        raise pickle.UnpicklingError(f"byte {code:#04x} is no opcode")


class _WholeReads:
    """A stream that gives what is asked for or raises EOFError, and reads nothing ahead."""

    def __init__(self, stream: io.BufferedIOBase) -> None:
        self._stream = stream

    def read(self, size: int) -> bytes:
        """Exactly `size` bytes."""
        data = self._stream.read(size)
        if len(data) < size:
            raise EOFError
        return data

    def readline(self) -> bytes:
        """A line with its end."""
        line = self._stream.readline()
        if not line.endswith(b"\n"):
            raise EOFError
        return line


class _DataUnpickler(pickle._Unpickler):
    """Python's unpickler with each of its doors to code shut or, `find_class`, led into a table.

    It is the one written in Python, not its twin in C, which reserves memory for as many entries or bytes as a damaged
    file claims to have. Files of arrays have few opcodes, so the time goes into reading all the same.
    """

    read: Callable[[int], bytes]
    append: Callable[[object], None]

    def __init__(self, stream: io.BufferedIOBase, name: str, admit: Admitted) -> None:
        super().__init__(_WholeReads(stream), encoding="latin1")
        self._name = name
        self._table = {**ADMITTED, **admit}

    def find_class(self, module: str, name: str) -> type[Stub] | Function:
        """Looks the pair up; never imports, never follows dots, never falls back to Python's own look-up."""
        try:
            return self._table[module, name]
        except KeyError:
            raise InputError(
                f"{self._name}: refused, it names {module}.{name}, which such a file does not need; nothing was run"
            ) from None

    def get_extension(self, code: int) -> NoReturn:
        """Refuses: copyreg's registry would be a second way to names, with a cache that outlives this file."""
        raise pickle.UnpicklingError(f"it names a class by the number {code}")

    def _load_bytearray(self) -> None:
        (size,) = struct.unpack("<Q", self.read(8))
        self.append(bytearray(self.read(size)))

    dispatch = _Opcodes({**pickle._Unpickler.dispatch, pickle.BYTEARRAY8[0]: _load_bytearray})


def _resolved(root: object) -> Any:
    """Replaces stubs by what they stand for, in place within lists and dicts, keeping shared objects shared."""
    done: dict[int, tuple[object, object]] = {}  # by id, with the object itself, or its id might be given out again
    begun: set[int] = set()

    def resolve(value: Any) -> Any:
        if isinstance(value, Function | type):
            raise pickle.UnpicklingError("it holds a bare class")
        if not isinstance(value, dict | list | tuple | Stub):
            return value
        if id(value) in done:
            return done[id(value)][1]
        if isinstance(value, dict | list):
            done[id(value)] = value, value
            for key, item in value.items() if isinstance(value, dict) else enumerate(value):
                value[key] = resolve(item)
            return value
        if id(value) in begun:
            raise pickle.UnpicklingError("an array holds itself")
        begun.add(id(value))
        plain = value.plain(resolve) if isinstance(value, Stub) else tuple(map(resolve, value))
        done[id(value)] = value, plain
        return plain

    return resolve(root)
