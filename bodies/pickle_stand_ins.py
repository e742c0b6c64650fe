"""What a pickle gets in place of the classes and functions that it names, so that nothing of others is ever called.

Two kinds: a `Stub` keeps the state that the pickle gives to an object and later tells the plain value that it means; a
`Function` is one of ours, written for what the real one is called with. `ADMITTED` says which stands for what. Not even
numpy's own helpers are handed out: a doctored `dtype` state makes numpy take raw bytes for object pointers.

Sources: Python's `pickletools` for the protocols, numpy `_core/src/multiarray/descriptor.c` and `methods.c` for the
states, mattloper/chumpy `ch.py` (`__getstate__`, state key `x`) and `reordering.py` (`Select`).
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pickle import UnpicklingError
from typing import Any, Final, Literal, NoReturn, final

import numpy as np
from scipy.sparse import coo_matrix, csc_matrix, csr_matrix

Resolve = Callable[[Any], Any]


class Stub(ABC):
    """Stands for a class of others while its pickle is read: keeps the state, runs nothing.

    Subclasses say what plain value the state means. They take constructor arguments only if the class they stand for is
    pickled with some, and declare `__slots__`, so that a pickle cannot set anything else on them.
    """

    __slots__ = ("state",)
    __hash__ = None  # type: ignore[assignment]  # a stub cannot hide in a set or among the keys of a dict

    state: Any

    def __setstate__(self, state: object) -> None:
        """Keeps what the pickle says; everything else happens in `plain`."""
        self.state = state

    @abstractmethod
    def plain(self, resolve: Resolve) -> object:
        """The value that this stands for. `resolve` does the same for parts of the state."""


@final
class Function:
    """Stands for a function or class that a pickle may call but on which it may set nothing."""

    __slots__ = ("_call",)
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, call: Callable[..., object]) -> None:
        self._call = call

    def __call__(self, *arguments: object) -> object:
        """What the pickle gets."""
        return self._call(*arguments)

    def __setstate__(self, state: object) -> NoReturn:
        """Refuses."""
        raise UnpicklingError("it sets the state of a function")


Admitted = Mapping[tuple[str, str], type[Stub] | Function]


# numpy

#: Booleans, integers, floats, complex numbers, byte strings, text and objects; no records, no dates.
_DTYPE_CODE: Final = re.compile(r"[biufcSU]\d+|O\d?")


@final
class _Dtype(Stub):
    """`numpy.dtype(code, align, copy)`, then the state (version, byte order, sub-array, names, fields, ...)."""

    __slots__ = ("code",)

    def __init__(self, code: str, *_: object) -> None:
        if not (isinstance(code, str) and _DTYPE_CODE.fullmatch(code)):
            raise UnpicklingError(f"arrays of dtype {code!r} are not supported")
        self.code = "O" if code.startswith("O") else code
        self.state = None

    def plain(self, resolve: Resolve) -> np.dtype[Any]:
        """The dtype."""
        return self.dtype()

    def dtype(self) -> np.dtype[Any]:
        """The dtype. Of the state only the byte order counts; sizes and flags follow from the code."""
        dtype = np.dtype(self.code)
        if self.state is None:
            return dtype
        _, order, *record = self.state[:5]
        if record != [None, None, None] or order not in ("<", ">", "=", "|"):
            raise UnpicklingError("arrays of records are not supported")
        return dtype.newbyteorder(order)


@final
class _Array(Stub):
    """`numpy.ndarray`: the state is (version, shape, dtype, Fortran order, bytes or list)."""

    __slots__ = ()

    def plain(self, resolve: Resolve) -> np.ndarray:
        """The array."""
        *_, shape, dtype, fortran, data = self.state
        order: Literal["C", "F"] = "F" if fortran else "C"
        if not isinstance(data, list):
            return _flat_array(data, dtype).reshape(shape, order=order)
        if not isinstance(dtype, _Dtype) or dtype.code != "O":
            raise UnpicklingError("a list in place of an array's bytes")
        array = np.empty(len(data), dtype=object)
        for index, item in enumerate(data):  # one by one: numpy would unroll items that are sequences
            array[index] = resolve(item)
        return array.reshape(shape, order=order)


@final
class _Buffer(Stub):
    """`_frombuffer(buffer, dtype, shape, order, axes)`, which is how protocol 5 spells an array."""

    __slots__ = ()

    def __init__(self, *arguments: object) -> None:
        self.state = arguments

    def plain(self, resolve: Resolve) -> np.ndarray:
        """The array; `axes` permutes it if the order is "K" (numpy `_core/numeric.py`)."""
        data, dtype, shape, order, *axes = self.state
        array = _flat_array(data, dtype).reshape(shape, order="F" if order == "F" else "C")
        return array.transpose(*axes) if order == "K" and axes else array


def _flat_array(data: object, dtype: object) -> np.ndarray:
    """A writable array of one axis from its bytes."""
    if isinstance(data, str):  # Python 2's bytes
        data = data.encode("latin1")
    if not (isinstance(data, bytes | bytearray) and isinstance(dtype, _Dtype)):
        raise UnpicklingError("an array without bytes or without a dtype")
    # Objects have no bytes: numpy refuses to read them from a buffer.
    return np.frombuffer(data, dtype=dtype.dtype()).copy()


def _new_array(kind: object, *_: object) -> _Array:
    """`_reconstruct(ndarray, (0,), b"b")`: an empty array that waits for its state."""
    if kind is not _NDARRAY:
        raise UnpicklingError("an array of an unknown class")
    return _Array()


def _scalar(dtype: object, data: object) -> object:
    return _flat_array(data, dtype).reshape(())[()]


# scipy and chumpy


def _sparse_stub(matrix: type[Any]) -> type[Stub]:
    """The stub of one sparse class; `matrix` builds it anew, so broken indices do not reach scipy's native code."""

    @final
    class Sparse(Stub):
        __slots__ = ()

        def plain(self, resolve: Resolve) -> object:
            """The matrix."""
            state = self.state
            data, shape = resolve(state["data"]), resolve(state["_shape"])
            if matrix is coo_matrix:
                row, col = state["coords"] if "coords" in state else (state["row"], state["col"])
                return coo_matrix((data, (resolve(row), resolve(col))), shape=shape)
            built = matrix((data, resolve(state["indices"]), resolve(state["indptr"])), shape=shape)
            built.check_format(full_check=True)
            return built

    return Sparse


@final
class _ChumpyArray(Stub):
    """`chumpy.ch.Ch`: the state's `x` is the array."""

    __slots__ = ()

    def plain(self, resolve: Resolve) -> np.ndarray:
        """The array."""
        return np.asarray(resolve(self.state["x"]))


@final
class _ChumpySelection(Stub):
    """`chumpy.reordering.Select`: entries `idxs` of the flattened `a`, in `preferred_shape` if there is one."""

    __slots__ = ()

    def plain(self, resolve: Resolve) -> np.ndarray:
        """The selected entries."""
        chosen = np.asarray(resolve(self.state["a"])).ravel()[resolve(self.state["idxs"])]
        shape = resolve(self.state.get("preferred_shape"))
        return chosen if shape is None else chosen.reshape(shape)


# Python's own helpers of protocols 0 to 2


def _encode(text: object, encoding: object) -> bytes:
    """`_codecs.encode(text, "latin1")`, which is how protocol 2 spells bytes."""
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise UnpicklingError(f"text in the encoding {encoding!r}")
    return text.encode("latin1")


def _empty_bytes() -> bytes:
    """`bytes()`, which is how protocol 2 spells them; of arguments it takes none."""
    return b""


def _set(items: object = ()) -> set[object]:
    if not isinstance(items, list | tuple):
        raise UnpicklingError("a set made from something else than a list")
    return set(items)


def _new_object(kind: object, base: object, state: object) -> Stub:
    """`copyreg._reconstructor(class, object, None)`, which is how protocols 0 and 1 make an instance."""
    if not (isinstance(kind, type) and issubclass(kind, Stub)) or base is not _OBJECT or state is not None:
        raise UnpicklingError("an object made in an unknown way")
    return kind()


def _only_named(*_: object) -> NoReturn:
    raise UnpicklingError("a call of a class that is only an argument")


_NDARRAY: Final = Function(_only_named)
_OBJECT: Final = Function(_only_named)

#: By the module names of old and new versions: Python 2 and 3, numpy 1 and 2, scipy before and after 1.8.
ADMITTED: Final[Admitted] = {
    **{
        (python, name): stand_in
        for python in ("__builtin__", "builtins")
        for name, stand_in in (("set", Function(_set)), ("bytes", Function(_empty_bytes)), ("object", _OBJECT))
    },
    **{(module, "_reconstructor"): Function(_new_object) for module in ("copy_reg", "copyreg")},
    ("_codecs", "encode"): Function(_encode),
    ("numpy", "ndarray"): _NDARRAY,
    ("numpy", "dtype"): _Dtype,
    **{
        (f"numpy.{core}.{module}", name): stand_in
        for core in ("core", "_core")
        for module, name, stand_in in (
            ("multiarray", "_reconstruct", Function(_new_array)),
            ("multiarray", "scalar", Function(_scalar)),
            ("numeric", "_frombuffer", _Buffer),
        )
    },
    **{
        (f"scipy.sparse.{underscore}{layout}", f"{layout}_matrix"): _sparse_stub(matrix)
        for layout, matrix in (("csc", csc_matrix), ("csr", csr_matrix), ("coo", coo_matrix))
        for underscore in ("", "_")
    },
    ("chumpy.ch", "Ch"): _ChumpyArray,
    ("chumpy.reordering", "Select"): _ChumpySelection,
}
