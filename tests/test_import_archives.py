"""joblib files and .npz with object arrays are read as their own libraries read them, and run nothing."""

import pickle

import numpy as np
import pytest

from bodies import InputError
from datamodules.convert import mapped_npz
from datamodules.convert.archives import read_joblib, read_npz

joblib = pytest.importorskip("joblib")

CONTENT = {
    1: {
        "c": np.arange(24, dtype=np.float32).reshape(2, 3, 4),
        "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "big_endian": np.arange(4, dtype=">f8"),
        "none": None,
        "empty": np.zeros((0, 4), np.float32),
        "scalar": np.float32(2.5),
        "zero_axes": np.array(7),
        "text": np.array(["a", "bc"]),
        "objects": np.array(["a", None], dtype=object),
        "flags": np.array([True, False]),
    },
    2: [np.int64(3), "x", 2.0, (1, 2)],
}


def assert_same(got: object, want: object) -> None:
    if isinstance(want, dict):
        assert got.keys() == want.keys()
        for key in want:
            assert_same(got[key], want[key])
    elif isinstance(want, np.ndarray):
        assert got.shape == want.shape
        assert got.dtype.newbyteorder("=") == want.dtype.newbyteorder("=")  # joblib itself swaps, we need not
        assert got.tolist() == want.tolist()
    else:
        assert got == want


@pytest.mark.parametrize("compress", [0, 3, ("zlib", 9), ("gzip", 3), ("bz2", 3), ("xz", 1), ("lzma", 1)])
@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_joblib_files_are_read_as_joblib_reads_them(tmp_path, compress, protocol):
    path = tmp_path / "a.pkl"
    joblib.dump(CONTENT, path, compress=compress, protocol=protocol)
    assert_same(read_joblib(path), CONTENT)
    assert_same(joblib.load(path), CONTENT)


def test_files_of_joblib_before_1_2_have_no_padding(tmp_path, monkeypatch):
    original = joblib.numpy_pickle.NumpyArrayWrapper.__init__

    def without_padding(self, *args, **kwargs):
        original(self, *args, **{**kwargs, "numpy_array_alignment_bytes": None})

    monkeypatch.setattr(joblib.numpy_pickle.NumpyArrayWrapper, "__init__", without_padding)
    joblib.dump(CONTENT, tmp_path / "old.pkl")
    assert_same(read_joblib(tmp_path / "old.pkl"), CONTENT)


def test_plain_pickles_are_read_too(tmp_path):
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(CONTENT))
    assert_same(read_joblib(tmp_path / "a.pkl"), CONTENT)


class Evil:
    def __reduce__(self):
        return print, ("run",)


def test_nothing_that_a_file_names_is_run(tmp_path, capsys):
    for content in (Evil(), {"a": np.array([Evil()], dtype=object)}):
        joblib.dump(content, tmp_path / "evil.pkl")
        with pytest.raises(InputError, match=r"evil.pkl: refused, it names builtins.print"):
            read_joblib(tmp_path / "evil.pkl")
        np.savez(tmp_path / "evil.npz", smpl=np.array(content, dtype=object))
        with pytest.raises(InputError, match=r"evil.npz .*refused, it names builtins.print"):
            read_npz(tmp_path / "evil.npz", ("smpl",))
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("compress", [0, 3, ("gzip", 3), ("bz2", 3), ("xz", 1)])
def test_damaged_files_are_named(tmp_path, compress):
    path = tmp_path / "a.pkl"
    joblib.dump({"a": np.arange(1000.0), "b": np.arange(9)}, path, compress=compress)
    whole = path.read_bytes()
    for end in range(1, len(whole) - 1, max(1, len(whole) // 60)):
        path.write_bytes(whole[:end])
        with pytest.raises(InputError, match=r"a.pkl"):
            read_joblib(path)
    with pytest.raises(InputError, match=r"absent.pkl: cannot be read"):
        read_joblib(tmp_path / "absent.pkl")


def test_an_array_that_claims_to_be_huge_is_refused_without_reserving_memory(tmp_path):
    path = tmp_path / "a.pkl"
    joblib.dump(np.zeros((77, 3)), path)
    data = path.read_bytes()
    shape = pickle.BININT1 + bytes([77]) + pickle.BININT1 + bytes([3]) + pickle.TUPLE2
    assert data.count(shape) == 1
    # 4 bytes longer, so the frame's length is wrong too; either way the file is not whole.
    path.write_bytes(data.replace(shape, pickle.BININT1 + bytes([255]) + pickle.BININT1 + bytes([255]) + pickle.TUPLE2))
    with pytest.raises(InputError, match="ends too early"):
        read_joblib(path)


def test_npz_with_objects_gives_the_objects(tmp_path):
    smpl = {"betas": np.ones((2, 10), np.float32), "body_pose": np.zeros((2, 23, 3))}
    np.savez_compressed(
        tmp_path / "a.npz", smpl=np.array(smpl, dtype=object), image_path=["a.jpg", "b.jpg"], config="pw3d"
    )
    got = read_npz(tmp_path / "a.npz", ("smpl", "image_path", "config", "absent"))
    assert set(got) == {"smpl", "image_path", "config"}
    assert_same(got["smpl"], smpl)
    assert got["image_path"].tolist() == ["a.jpg", "b.jpg"]


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_large_arrays_stay_on_disk(tmp_path, monkeypatch, save):
    """The same numbers in any order of memory, behind another member, and none is changed by accident."""
    monkeypatch.setattr(mapped_npz, "MAPPED_BYTES", 999)
    rng = np.random.default_rng(0)
    large, turned, small = rng.normal(size=(50, 3, 2)), np.asfortranarray(rng.integers(0, 9, (40, 30))), np.arange(5)
    save(tmp_path / "a.npz", small=small, large=large, turned=turned)
    got = read_npz(tmp_path / "a.npz", ("large", "turned", "small", "absent"), mapped=True)
    assert {name: isinstance(array, np.memmap) for name, array in got.items()} == {
        "large": True,
        "turned": True,
        "small": False,
    }
    for name, want in (("large", large), ("turned", turned), ("small", small)):
        assert got[name].dtype == want.dtype
        np.testing.assert_array_equal(got[name], want)
    with pytest.raises(ValueError, match="read-only"):
        got["large"][0] = 0


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_a_large_array_that_is_damaged_is_named(tmp_path, monkeypatch, save):
    monkeypatch.setattr(mapped_npz, "MAPPED_BYTES", 999)
    save(tmp_path / "a.npz", large=np.random.default_rng(0).normal(size=(500, 3)))
    data = bytearray((tmp_path / "a.npz").read_bytes())
    data[len(data) // 2] ^= 255
    (tmp_path / "a.npz").write_bytes(data)
    with pytest.raises(InputError, match=r"a\.npz: is not a whole \.npz"):
        read_npz(tmp_path / "a.npz", ("large",), mapped=True)
