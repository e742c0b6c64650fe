"""`bodies.safe_pickle` reads what numpy, scipy and chumpy write, and runs nothing of what anyone else writes."""

import contextlib
import copyreg
import importlib.util
import io
import os
import pickle
import subprocess
import tracemalloc
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse
import tiny

from bodies.errors import InputError
from bodies.safe_pickle import Function, Stub, load_pickle

PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)


class Call:
    """Pickles as a call of `function` with `arguments`."""

    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


def of_objects(*items: object) -> np.ndarray:
    array = np.empty(len(items), dtype=object)
    for index, item in enumerate(items):
        array[index] = item
    return array


ARRAYS = {
    "float64": np.random.default_rng(0).normal(size=(3, 4)),
    "fortran": np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3)),
    "transposed": np.arange(24).reshape(2, 3, 4).transpose(2, 0, 1),
    "big_endian": np.arange(3, dtype=">i4"),
    "uint32": np.array([2**32 - 1, 0], dtype=np.uint32),
    "scalar_array": np.array(2.5),
    "bool": np.array([True, False]),
    "complex": np.array([1 + 2j]),
    "empty": np.zeros((0, 3)),
    "text": np.array(["ab", "ü"]),
    "byte_strings": np.array([b"ab", b"\xff"]),
}


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("kind", ARRAYS)
def test_arrays_come_back_equal_writable_and_in_their_layout(kind, protocol):
    array = ARRAYS[kind]
    read = load_pickle(pickle.dumps(array, protocol))
    assert type(read) is np.ndarray
    assert read.dtype == array.dtype
    assert read.flags.writeable
    assert read.flags.f_contiguous == array.flags.f_contiguous
    np.testing.assert_array_equal(read, array)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_plain_values_come_back_equal(protocol):
    values = {
        "numbers": [1, -(2**70), 2.5, True, None],
        ("a", "tuple"): ({"nested": [()]}, b"", b"\x00\xff", "text"),
        "set": {1, "two"},
        "numpy_scalars": [np.float32(1.5), np.int64(-3), np.bool_(True), np.str_("x")],
        np.int64(7): "a numpy scalar as a key",
        "dtype": np.dtype(">f4"),
    }
    read = load_pickle(pickle.dumps(values, protocol))
    assert read == values
    assert [type(x) for x in read["numpy_scalars"]] == [type(x) for x in values["numpy_scalars"]]


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("layout", ["csc", "csr", "coo"])
def test_sparse_matrices_of_old_and_new_scipy(layout, protocol):
    matrix = scipy.sparse.random(5, 7, 0.4, layout, rng=np.random.default_rng(1))
    matrix = getattr(scipy.sparse, f"{layout}_matrix")(matrix)
    new = f"scipy.sparse._{layout}"
    # A module name has its length before it in protocols 4 and 5, so only the others can be rewritten in place.
    for module in (new, f"scipy.sparse.{layout}") if protocol < 4 else (new,):
        read = load_pickle(pickle.dumps(matrix, protocol).replace(new.encode(), module.encode()))
        assert type(read) is type(matrix)
        np.testing.assert_array_equal(read.toarray(), matrix.toarray())


def test_sparse_matrix_of_old_scipy_with_row_and_col():
    matrix = scipy.sparse.coo_matrix(np.eye(3))
    state = matrix.__dict__ | {"row": matrix.row, "col": matrix.col}
    del state["coords"]
    read = load_pickle(b"\x80\x02cscipy.sparse.coo\ncoo_matrix\n)\x81" + pickle.dumps(state, 2)[2:-1] + b"b.")
    np.testing.assert_array_equal(read.toarray(), np.eye(3))


def test_several_old_sparse_matrices_stay_apart():
    matrices = [scipy.sparse.coo_matrix(np.diag(np.arange(1.0, size + 1))) for size in (3, 4, 5)]
    data = b"\x80\x02]("
    for matrix in matrices:
        state = matrix.__dict__ | {"row": matrix.row, "col": matrix.col}
        del state["coords"]
        data += b"cscipy.sparse.coo\ncoo_matrix\n)\x81" + pickle.dumps(state, 2)[2:-1] + b"b"
    for matrix, read in zip(matrices, load_pickle(data + b"e."), strict=True):
        np.testing.assert_array_equal(read.toarray(), matrix.toarray())


def test_sparse_indices_out_of_range_are_refused():
    matrix = scipy.sparse.csc_matrix(np.eye(3))
    matrix.indices[1] = 10**6
    with pytest.raises(InputError, match="not a whole pickle"):
        load_pickle(pickle.dumps(matrix))


def test_numpy_1_module_names():
    data = pickle.dumps([np.arange(3), np.float32(2)], 2).replace(b"numpy._core.", b"numpy.core.")
    array, scalar = load_pickle(data)
    np.testing.assert_array_equal(array, [0, 1, 2])
    assert scalar == np.float32(2)


def test_python_2_strings_are_latin1():
    # Python 2 wrote an array's bytes as a string: {"\xfc": array([1.], '<f8')} by its protocol 2.
    data = (
        b"\x80\x02}U\x01\xfccnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
        b"(K\x01K\x01\x85cnumpy\ndtype\nU\x02f8K\x00K\x01\x87R(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        b"\x89U\x08\x00\x00\x00\x00\x00\x00\xf0?tbs."
    )
    read = load_pickle(data)
    assert list(read) == ["ü"]
    np.testing.assert_array_equal(read["ü"], [1.0])


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_object_arrays_and_shared_objects(protocol):
    shared = np.arange(2.0)
    array = of_objects([shared, "x"], None, shared, {"k": np.float64(1)})
    read = load_pickle(pickle.dumps(array.reshape(2, 2), protocol))
    assert read.shape == (2, 2)
    assert read.dtype == object
    np.testing.assert_array_equal(read[0, 0][0], shared)
    assert read[0, 0][0] is read[1, 0]
    assert read[1, 1] == {"k": 1.0}


def test_a_list_that_holds_itself_is_read():
    loop: list[object] = [np.arange(2)]
    loop.append((loop,))
    read = load_pickle(pickle.dumps(loop))
    assert read[1][0] is read


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_chumpy_arrays_become_numpy_arrays(protocol):
    base = np.random.default_rng(2).normal(size=(4, 3, 12))
    chosen = np.arange(base.size).reshape(base.shape)[..., :10].ravel()
    with tiny.fake_chumpy() as chumpy:
        inner = chumpy.Ch(base)
        data = pickle.dumps(
            {"plain": inner, "chosen": chumpy.Select(inner, chosen, (4, 3, 10)), "flat": chumpy.Select(inner, [5])},
            protocol,
        )
    assert importlib.util.find_spec("chumpy") is None  # neither the classes above nor the real ones are within reach
    read = load_pickle(data)
    assert all(type(value) is np.ndarray for value in read.values())
    np.testing.assert_array_equal(read["plain"], base)
    np.testing.assert_array_equal(read["chosen"], base[..., :10])
    np.testing.assert_array_equal(read["flat"], base.ravel()[[5]])


# What must be refused. Every payload touches the marker file if it is run.


def touch(marker: Path) -> str:
    return f"touch {marker}"


def hidden(call: Call, place: str) -> object:
    match place:
        case "top":
            return call
        case "dict_value":
            return {"v_template": np.zeros((2, 3)), "weights": [call]}
        case "object_array":
            return of_objects(1, call)
        case "dict_key":
            return {call: 1}
        case "argument":
            return Call(np.dtype, Call(eval, f"__import__('os').system({call.arguments[0]!r}) or 'f8'"))
        case _:
            raise AssertionError(place)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("place", ["top", "dict_value", "object_array", "dict_key", "argument"])
def test_os_system_is_refused_by_name_and_not_run(tmp_path, place, protocol):
    marker, file = tmp_path / "marker", tmp_path / "SMPL_NEUTRAL.pkl"
    file.write_bytes(pickle.dumps(hidden(Call(os.system, touch(marker)), place), protocol))
    with pytest.raises(InputError, match=r"SMPL_NEUTRAL\.pkl: refused, it names (posix\.system|\w+\.eval)"):
        load_pickle(file)
    assert not marker.exists()


def test_the_payload_would_run_elsewhere(tmp_path):
    marker = tmp_path / "marker"
    pickle.loads(pickle.dumps(hidden(Call(os.system, touch(marker)), "argument")))
    assert marker.exists()


REFUSED_CALLS = {
    "eval": (eval, "0"),
    "exec": (exec, "0"),
    "getattr": (getattr, "", "join"),
    "import": (__import__, "os"),
    "open": (open, "/dev/null"),
    "popen": (subprocess.Popen, ["true"]),
    "numpy_load": (np.load, "x.npy", None, True),
    "numpy_testing": (np.testing.assert_equal, 1, 1),
    "pickle_itself": (pickle.loads, b"N."),
    "copyreg_extension": (copyreg.add_extension, "os", "system", 240),
    "codecs": (io.open_code, "/dev/null"),
}


@pytest.mark.parametrize("name", REFUSED_CALLS)
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_any_other_function_is_refused(name, protocol):
    with pytest.raises(InputError, match=r"refused, it names .*; nothing was run"):
        load_pickle(pickle.dumps(Call(*REFUSED_CALLS[name]), protocol))


def stack_global(module: str, name: str) -> bytes:
    """Protocol 4's opcode, which follows dots in the name when Python itself looks it up."""
    return b"\x80\x04" + b"".join(b"\x8c" + bytes([len(x)]) + x.encode() for x in (module, name)) + b"\x93"


HAND_WRITTEN = {
    "dotted_name": stack_global("numpy", "os.system") + b"\x8c\x04true\x85R.",
    "dotted_core": stack_global("numpy", "core.multiarray.scalar.__class__") + b".",
    "dotted_admitted": stack_global("numpy._core.multiarray", "_reconstruct.__globals__") + b".",
    "name_of_other_module": stack_global("os", "ndarray") + b".",
    "empty_name": stack_global("numpy", "") + b".",
    "old_instance": b"(S'true'\nios\nsystem\n.",
    "object_call": b"(cos\nsystem\nS'true'\no.",
}


@pytest.mark.parametrize("name", HAND_WRITTEN)
def test_hand_written_names_are_refused(name):
    with pytest.raises(InputError, match="refused, it names"):
        load_pickle(HAND_WRITTEN[name])


NDARRAY = b"cnumpy._core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85C\x01b\x87R"
OBJECT_DTYPE = b"cnumpy\ndtype\nX\x02\x00\x00\x00O8\x89\x88\x87R"
FLAGS_CLEARED = b"(K\x03X\x01\x00\x00\x00|NNNK\x08K\x08K\x00tb"

MISUSED = {
    # Bytes as the pointers of an object array: numpy itself takes these if the dtype's flags have been cleared.
    "pointers": NDARRAY + b"(K\x01K\x01\x85" + OBJECT_DTYPE + FLAGS_CLEARED + b"\x89C\x08AAAAAAAAtb.",
    "pointers_protocol_5": b"cnumpy._core.numeric\n_frombuffer\n(C\x08AAAAAAAA"
    + OBJECT_DTYPE
    + b"K\x01\x85X\x01\0\0\0CtR.",
    "object_scalar": b"cnumpy._core.multiarray\nscalar\n" + OBJECT_DTYPE + b"C\x08AAAAAAAA\x86R.",
    "list_as_numbers": NDARRAY + b"(K\x01K\x01\x85cnumpy\ndtype\nX\x02\0\0\0f8\x89\x88\x87R\x89](K\x01etb.",
    "array_of_itself": NDARRAY + b"q\x00(K\x01K\x01\x85" + OBJECT_DTYPE + b"\x89](h\x00etb.",
    "record_dtype": pickle.dumps(np.zeros(2, dtype=[("a", "f8"), ("b", "O")])),
    "date_dtype": pickle.dumps(np.zeros(2, dtype="M8[s]")),
    "too_few_bytes": NDARRAY + b"(K\x01K\x05\x85cnumpy\ndtype\nX\x02\0\0\0f8\x89\x88\x87R\x89C\x08AAAAAAAAtb.",
    "huge_shape": NDARRAY
    + b"(K\x01\x8a\x07\0\0\0\0\0\0\x01\x85cnumpy\ndtype\nX\x02\0\0\0f8\x89\x88\x87R\x89C\x08AAAAAAAAtb.",
    "other_array_class": b"cnumpy._core.multiarray\n_reconstruct\ncnumpy\ndtype\nK\x00\x85C\x01b\x87R.",
    "array_called": b"cnumpy\nndarray\n(K\x02tR.",
    "array_without_state": NDARRAY + b".",
    "bare_class": b"cnumpy\nndarray\n.",
    "bare_stub": b"]cchumpy.ch\nCh\na.",
    "state_of_function": b"c_codecs\nencode\n}b.",
    "slots_of_function": b"c_codecs\nencode\nN}X\x05\0\0\0_callK\x01s\x86b.",
    "state_of_class": b"cchumpy.ch\nCh\n}X\x05\0\0\0plainK\x01sb.",
    "slots_of_class": b"cchumpy.ch\nCh\nN}X\x05\0\0\0plainK\x01s\x86b.",
    "state_of_stub": b"\x80\x02cchumpy.ch\nCh\n)\x81}X\x09\0\0\0__class__K\x01sb.",
    "chumpy_without_x": b"\x80\x02cchumpy.ch\nCh\n)\x81}b.",
    "reconstructor_of_function": b"ccopyreg\n_reconstructor\n(c_codecs\nencode\ncbuiltins\nobject\nNtR.",
    "reconstructor_of_other_base": b"ccopyreg\n_reconstructor\n(cchumpy.ch\nCh\ncchumpy.ch\nCh\nNtR.",
    "other_encoding": b"c_codecs\nencode\n(X\x01\0\0\0aX\x0a\0\0\0zlib_codectR.",
    "bytes_of_size": b"cbuiltins\nbytes\n(J\0\0\0\x7ftR.",
    "set_of_text": b"cbuiltins\nset\n(X\x01\0\0\0atR.",
    "array_as_key": b"}" + NDARRAY + b"K\x01s.",
    "persistent_id": b"Pos.system\n.",
    "unregistered_extension": b"\x80\x02\x82\xf0.",
}


def test_registered_extensions_are_refused_and_not_cached():
    copyreg.add_extension("numpy", "dtype", 241)
    try:
        with pytest.raises(InputError, match="names a class by the number 241"):
            load_pickle(b"\x80\x02\x82\xf1.")
        assert 241 not in copyreg._extension_cache
    finally:
        copyreg.remove_extension("numpy", "dtype", 241)


@pytest.mark.parametrize("name", MISUSED)
def test_admitted_names_cannot_be_misused(name):
    with pytest.raises(InputError, match="not a whole pickle of arrays"):
        load_pickle(MISUSED[name])


def test_misuse_leaves_no_trace():
    for data in MISUSED.values():
        with contextlib.suppress(InputError):
            load_pickle(data)
    test_chumpy_arrays_become_numpy_arrays(2)
    assert load_pickle(pickle.dumps(b"x", 2)) == b"x"


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_every_truncation_is_refused(protocol):
    data = pickle.dumps({"a": np.arange(3), "b": "text"}, protocol)
    for length in range(len(data)):
        with pytest.raises(InputError, match="not a whole pickle"):
            load_pickle(data[:length])


def test_every_changed_byte_gives_data_or_an_input_error():
    data = pickle.dumps({"a": np.arange(3.0), "o": of_objects("x", [1]), "s": np.float32(1)}, 2)
    loaded = 0
    changes = [(place, value) for place in range(len(data)) for value in (0x2E, data[place] ^ 1, 0xFF)]
    for place, value in changes:
        with contextlib.suppress(InputError):  # any other error, or a crash, fails the test
            load_pickle(data[:place] + bytes([value]) + data[place + 1 :])
            loaded += 1
    # Some bytes are values, some are structure: both ways out were taken.
    assert 0 < loaded < len(changes)


@pytest.mark.parametrize(
    "claim",
    [
        b"\x96" + b"\0\0\0\0\0\1\0\0" + b"x.",  # BYTEARRAY8 of 1 TiB
        b"\x8e" + b"\0\0\0\0\0\1\0\0" + b"x.",  # BINBYTES8 of 1 TiB
        b"\x95" + b"\0\0\0\0\0\1\0\0" + b"x.",  # a frame of 1 TiB
        b"X\xff\xff\xff\x7fx.",  # BINUNICODE of 2 GiB
    ],
)
def test_a_claim_of_more_than_there_is_reserves_no_memory(claim):
    tracemalloc.start()
    with pytest.raises(InputError, match="it ends too early"):
        load_pickle(b"\x80\x05" + claim)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**22


def test_a_high_memo_index_reserves_no_memory():
    tracemalloc.start()
    assert load_pickle(b"\x80\x02K\x01r\xff\xff\xff\x7f.") == 1
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**22


@pytest.mark.parametrize("content", [b"", b"version https://git-lfs.github.com/spec/v1\n", b"PK\x03\x04", b"<html>"])
def test_other_files_are_refused_by_name(tmp_path, content):
    (tmp_path / "gmm_08.pkl").write_bytes(content)
    with pytest.raises(InputError, match=r"gmm_08\.pkl: not a whole pickle"):
        load_pickle(tmp_path / "gmm_08.pkl")


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(InputError, match=r"none\.pkl: cannot be read \(No such file"):
        load_pickle(tmp_path / "none.pkl")
    with pytest.raises(InputError, match="cannot be read"):
        load_pickle(tmp_path)


def test_nesting_beyond_reason_is_refused():
    with pytest.raises(InputError, match="not a whole pickle"):
        load_pickle(b"]" * 10**4 + b"a" * (10**4 - 1) + b".")


class Interval(Stub):
    """An admitted class for the next test."""

    __slots__ = ()

    def plain(self, resolve):
        return {key: resolve(value) for key, value in self.state.items()}


def test_further_classes_can_be_admitted():
    data = b"\x80\x02cpandas\nInterval\n)\x81" + pickle.dumps({"left": np.arange(2)}, 2)[2:-1] + b"b."
    with pytest.raises(InputError, match=r"a dump: refused, it names pandas\.Interval"):
        load_pickle(data, name="a dump")
    read = load_pickle(io.BytesIO(data), admit={("pandas", "Interval"): Interval})
    np.testing.assert_array_equal(read["left"], [0, 1])
    ordered = pickle.dumps(OrderedDict(a=1), 2)
    assert load_pickle(ordered, admit={("collections", "OrderedDict"): Function(dict)}) == {"a": 1}
