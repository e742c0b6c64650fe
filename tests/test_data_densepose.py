"""`snugfit data keypoints densepose`: dumps and annotations as DensePose has them, of bodies whose place is known.

The pixels come from the rasterizer, the charts are made by code of its own: each face of the body has a cell of its
part's chart to itself, with its corners in another order.
"""

import json
import sys
import types
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import tiny_import as ti
import torch

from bodies import BodyParameters, PinholeCamera
from datamodules.store import FrameStore
from main import EXIT_USAGE, main
from renderers import make_rasterizer

TRUE = ti.truth(9)
BODY = ti.body()
FACES = BODY.faces.numpy()
#: Rows that are in the tests' files: two in image 0, one in image 2.
SHOWN = {0: 0, 1: 0, 4: 2}


@dataclass(frozen=True)
class Charts:
    """`UV_Processed.mat`, and for each face of the body its part and the U, V of its corners."""

    content: dict[str, np.ndarray]
    part: np.ndarray
    corner_uv: np.ndarray


def make_charts() -> Charts:
    """Parts are consecutive faces; two faces are in no chart, as two of SMPL's are not."""
    rng = np.random.default_rng(0)
    count = len(FACES)
    part = 1 + np.arange(count) * 24 // count
    corner_uv = np.zeros((count, 3, 2))
    for number in range(1, 25):
        (faces,) = np.nonzero(part == number)
        across = int(np.ceil(np.sqrt(len(faces))))
        cell = np.stack(np.divmod(np.arange(len(faces)), across), axis=1) / across
        corner_uv[faces] = cell[:, None] + np.array([[0.05, 0.05], [0.9, 0.1], [0.1, 0.9]]) / across
    charted = np.setdiff1d(np.arange(count), [3, count // 2])
    order = rng.permuted(np.tile([0, 1, 2], (len(charted), 1)), axis=1)
    vertices = np.take_along_axis(FACES[charted], order, axis=1)
    uv = np.take_along_axis(corner_uv[charted], order[..., None], axis=1)
    content = {
        "All_Faces": (1 + np.arange(vertices.size).reshape(-1, 3)).astype(np.uint16),
        "All_FaceIndices": part[charted, None].astype(np.uint8),
        "All_U_norm": uv[..., 0].reshape(-1, 1),
        "All_V_norm": uv[..., 1].reshape(-1, 1),
        "All_vertices": (1 + vertices.reshape(1, -1)).astype(np.uint16),
    }
    return Charts(content, part, corner_uv)


CHARTS = make_charts()


@dataclass(frozen=True)
class Seen:
    """A person as the camera sees them, alone."""

    face: np.ndarray
    """(H, W), -1 beside the body."""
    labels: np.ndarray
    """(H, W), 0 beside the body."""
    uv: np.ndarray
    """(2, H, W)."""
    box: np.ndarray
    """x0, y0, x1, y1 with fractions."""


def see(row: int) -> Seen:
    parts = (torch.tensor(part[[row]]) for part in (TRUE.pose, TRUE.betas, TRUE.transl))
    vertices = BODY(BodyParameters.from_axis_angle(*parts)).vertices
    size, center = torch.tensor([[ti.WIDTH, ti.HEIGHT]]).float(), torch.tensor(ti.CENTER_PX[None]).float()
    camera = PinholeCamera(torch.full((1, 2), ti.FOCAL_PX), center, size)
    fragments = make_rasterizer("cpu")(vertices, BODY.faces, camera, ti.HEIGHT, ti.WIDTH)
    face, barycentric = fragments.triangle_id[0].numpy(), fragments.barycentric[0].numpy()
    uv = (CHARTS.corner_uv[face] * barycentric[..., None]).sum(axis=2) * (face >= 0)[..., None]
    labels = np.where(face >= 0, CHARTS.part[face], 0)
    rows, columns = np.nonzero(labels)
    box = np.array([columns.min() + 0.7, rows.min() + 0.2, columns.max() + 1.4, rows.max() + 1.9])
    return Seen(face, labels, uv.transpose(2, 0, 1), box)


SEEN = {row: see(row) for row in SHOWN}


def result_classes() -> dict[str, type]:
    """detectron2's classes, which are not installed, by name; they can be pickled within `dump`."""

    @dataclass
    class DensePoseChartResultWithConfidences:
        labels: torch.Tensor
        uv: torch.Tensor
        sigma_1: torch.Tensor | None = None
        sigma_2: torch.Tensor | None = None
        kappa_u: torch.Tensor | None = None
        kappa_v: torch.Tensor | None = None
        fine_segm_confidence: torch.Tensor | None = None
        coarse_segm_confidence: torch.Tensor | None = None

    @dataclass
    class DensePoseEmbeddingPredictorOutput:
        embedding: torch.Tensor

    places = {
        DensePoseChartResultWithConfidences: "densepose.structures.chart_result",
        DensePoseEmbeddingPredictorOutput: "densepose.structures.cse",
    }
    for kind, module in places.items():
        kind.__module__, kind.__qualname__ = module, kind.__name__
    return {kind.__name__: kind for kind in places}


CLASSES = result_classes()
CHART_RESULT, CSE_RESULT = CLASSES.values()


def result(row: int, **changes: torch.Tensor) -> object:
    """(h, w) of the whole pixels of the box, from its corner with the fraction cut off."""
    seen = SEEN[row]
    x, y = seen.box[:2].astype(int)
    w, h = np.maximum((seen.box[2:] - seen.box[:2]).astype(int), 1)
    parts = {
        "labels": torch.tensor(seen.labels[y : y + h, x : x + w]).long(),
        "uv": torch.tensor(seen.uv[:, y : y + h, x : x + w]).float(),
        "sigma_1": torch.ones(h, w),
    }
    return CHART_RESULT(**{**parts, **changes})


def entry(image: int, rows: list[int], **changes: object) -> dict[str, object]:
    boxes = torch.tensor(np.array([SEEN[row].box for row in rows]).reshape(-1, 4)).float()
    content = {
        "file_name": f"/data/3DPW/{ti.IMAGE_NAMES[image]}",
        "scores": torch.linspace(0.99, 0.9, len(rows)),
        "pred_boxes_XYXY": boxes,
        "pred_densepose": [result(row) for row in rows],
    }
    return {**content, **changes}


def dump(path: Path, content: object, monkeypatch: pytest.MonkeyPatch, device: str = "cpu", **options: object) -> Path:
    """`torch.save`, with the classes where pickling looks for them."""
    with monkeypatch.context() as patch:
        for name in ("densepose", "densepose.structures"):
            patch.setitem(sys.modules, name, types.ModuleType(name))
        for kind in CLASSES.values():
            module = types.ModuleType(kind.__module__)
            setattr(module, kind.__name__, kind)
            patch.setitem(sys.modules, kind.__module__, module)
        patch.setattr(torch.serialization, "location_tag", lambda storage: device)
        torch.save(content, path, **options)
    return path


def annotation(row: int, number: int = 1, **changes: object) -> dict[str, object]:
    """Sixty points as an annotator gives them, in 256ths of the box."""
    seen = SEEN[row]
    rows, columns = np.nonzero(seen.labels)
    chosen = np.random.default_rng(row).permutation(len(rows))[:60]
    rows, columns = rows[chosen], columns[chosen]
    x, y = seen.box[:2]
    w, h = seen.box[2:] - seen.box[:2]
    return {
        "id": number,
        "image_id": 42 + SHOWN[row],
        "category_id": 1,
        "bbox": [x, y, w, h],
        "dp_masks": [],
        "dp_x": ((columns + 0.5 - x) / w * 256).tolist(),
        "dp_y": ((rows + 0.5 - y) / h * 256).tolist(),
        "dp_I": seen.labels[rows, columns].astype(float).tolist(),
        "dp_U": seen.uv[0, rows, columns].tolist(),
        "dp_V": seen.uv[1, rows, columns].tolist(),
        **changes,
    }


def write_annotations(path: Path, annotations: list[dict[str, object]]) -> Path:
    images = [{"id": 42 + k, "file_name": name, "width": 640, "height": 480} for k, name in enumerate(ti.IMAGE_NAMES)]
    path.write_text(json.dumps({"images": images, "annotations": annotations}))
    return path


@pytest.fixture
def frames(tmp_path):
    scipy.io.savemat(tmp_path / "UV_Processed.mat", CHARTS.content)
    return ti.write_frames(tmp_path / "frames.h5", TRUE)


def add(tmp_path: Path, source: str = "results.pkl", *words: str) -> int:
    files = ["--frames", str(tmp_path / "frames.h5"), "--charts", str(tmp_path / "UV_Processed.mat")]
    return main(["data", "keypoints", "densepose", str(tmp_path / source), *files, *words])


def refused(capsys: pytest.CaptureFixture[str], code: int) -> str:
    assert code == EXIT_USAGE
    error = capsys.readouterr().err.strip()
    assert error.startswith("snugfit: error: ")
    assert "\n" not in error
    return error


def counts(tmp_path: Path) -> list[int]:
    return FrameStore(tmp_path / "frames.h5").column("surface_count").tolist()


def assert_points_are_on_their_body(tmp_path: Path, rows: list[int], atol_px: float) -> None:
    """Each point's place on the true body is seen where the point was found."""
    store = FrameStore(tmp_path / "frames.h5")
    vertices = ti.vertices(TRUE.pose, TRUE.betas, TRUE.transl)
    for row in rows:
        points = store.read_surface(store.read(row))
        assert len(points.triangle) >= 50
        corners = vertices[row][FACES[points.triangle]]
        expected = ti.project((corners * points.barycentric[..., None]).sum(axis=1)[None], ti.FOCAL_PX)[0]
        x, y = points.position_px.astype(int).T
        face = SEEN[row].face[y, x]
        # What shows one of the two faces that are in no chart goes to a vertex nearby.
        charted = ~np.isin(face, [3, len(FACES) // 2])
        assert charted.mean() > 0.95
        np.testing.assert_array_equal(points.triangle[charted], face[charted])
        np.testing.assert_allclose(points.position_px[charted], expected[charted], atol=atol_px)


@pytest.mark.parametrize("form", ["zip", "legacy"])
def test_each_row_gets_the_points_of_its_own_person(tmp_path, frames, monkeypatch, form, capsys):
    """Traps: torch.save, not pickle; people in no order; the box's fraction is cut off; the face's corners turned."""
    options = {"_use_new_zipfile_serialization": form == "zip"}
    dump(tmp_path / "results.pkl", [entry(0, [1, 0]), entry(2, [4])], monkeypatch, **options)
    assert add(tmp_path) == 0
    assert counts(tmp_path) == [500, 500, 0, 0, 500, 0, 0]
    # Perspective-correct coordinates at pixel centres, in single precision.
    assert_points_are_on_their_body(tmp_path, [0, 1, 4], atol_px=0.02)
    assert "3 of 7" in capsys.readouterr().out


def test_trap_tensors_of_a_gpu(tmp_path, frames, monkeypatch):
    dump(tmp_path / "results.pkl", [entry(2, [4])], monkeypatch, device="cuda:0")
    assert add(tmp_path) == 0
    assert counts(tmp_path)[4] == 500


def test_trap_nobody_was_detected_and_weak_detections(tmp_path, frames, monkeypatch, capsys):
    nobody = {"file_name": ti.IMAGE_NAMES[3], "scores": torch.zeros(0), "pred_boxes_XYXY": torch.zeros(0, 4)}
    weak = entry(0, [0, 1], scores=torch.tensor([0.3, 0.7]))
    dump(tmp_path / "results.pkl", [nobody, {**nobody, "pred_densepose": []}, weak], monkeypatch)
    assert add(tmp_path) == 0
    assert counts(tmp_path) == [0, 500, 0, 0, 0, 0, 0]
    assert "person 0 has a score below 0.5" in capsys.readouterr().out
    assert add(tmp_path, "results.pkl", "--min-score", "0.2", "--overwrite", "--points", "60") == 0
    assert counts(tmp_path) == [60, 60, 0, 0, 0, 0, 0]


def test_the_same_points_are_drawn_in_every_run(tmp_path, frames, monkeypatch):
    dump(tmp_path / "results.pkl", [entry(2, [4])], monkeypatch)
    add(tmp_path)
    once = (tmp_path / "frames.h5").read_bytes()
    add(tmp_path, "results.pkl", "--overwrite")
    assert (tmp_path / "frames.h5").read_bytes() == once


def test_annotations_count_in_256ths_of_the_box(tmp_path, frames, capsys):
    """Traps: the grid, people without points, people whose image is not listed."""
    without = {"id": 3, "image_id": 42, "bbox": [0, 0, 9, 9]}
    unlisted = annotation(1, 4, image_id=7)
    empty = annotation(1, 5, **{f"dp_{key}": [] for key in "xyIUV"})
    write_annotations(tmp_path / "densepose.json", [annotation(1, 1), annotation(4, 2), without, unlisted, empty])
    assert add(tmp_path, "densepose.json") == 0
    assert counts(tmp_path) == [0, 60, 0, 0, 60, 0, 0]
    assert_points_are_on_their_body(tmp_path, [1, 4], atol_px=0.02)
    out = capsys.readouterr().out
    assert "annotation 4 is of an image that is not listed" in out
    assert "annotation 5 has no point on the body" in out


def test_a_folder_of_dumps_and_annotations(tmp_path, frames, monkeypatch):
    (tmp_path / "all" / "one").mkdir(parents=True)
    dump(tmp_path / "all" / "one" / "a.pkl", [entry(0, [0])], monkeypatch)
    write_annotations(tmp_path / "all" / "b.json", [annotation(4)])
    assert add(tmp_path, "all") == 0
    assert counts(tmp_path) == [500, 0, 0, 0, 60, 0, 0]


def test_trap_charts_lack_two_faces_and_points_lie_beside_them(tmp_path, frames):
    """A point in no triangle goes to the nearest chart vertex of its part, as in DensePose's own code."""
    part, corner_uv = int(CHARTS.part[3]), CHARTS.corner_uv[3]
    beside = np.array([corner_uv.mean(axis=0), corner_uv.mean(axis=0)])
    kept = annotation(4)
    for key, values in (("I", [part] * 2), ("U", beside[:, 0]), ("V", beside[:, 1])):
        kept[f"dp_{key}"] = [*list(values), *kept[f"dp_{key}"][2:]]
    write_annotations(tmp_path / "densepose.json", [kept])
    assert add(tmp_path, "densepose.json") == 0
    store = FrameStore(tmp_path / "frames.h5")
    points = store.read_surface(store.read(4))
    assert sorted(points.barycentric[0].tolist()) == [0, 0, 1]
    vertex = FACES[points.triangle[0]][points.barycentric[0].argmax()]
    corners = CHARTS.content["All_vertices"][0, CHARTS.content["All_Faces"] - 1] - 1
    uv = np.stack([CHARTS.content[f"All_{axis}_norm"][CHARTS.content["All_Faces"] - 1, 0] for axis in "UV"], axis=-1)
    of_part = CHARTS.content["All_FaceIndices"][:, 0] == part
    distance = np.linalg.norm(uv[of_part] - beside[0], axis=-1)
    assert vertex == corners[of_part].ravel()[distance.argmin()]


def test_points_are_not_overwritten_silently(tmp_path, frames, monkeypatch, capsys):
    dump(tmp_path / "results.pkl", [entry(0, [0]), entry(2, [4])], monkeypatch)
    before = (tmp_path / "frames.h5").read_bytes()
    assert add(tmp_path, "results.pkl", "--dry-run") == 0
    assert (tmp_path / "frames.h5").read_bytes() == before
    assert add(tmp_path) == 0
    once = (tmp_path / "frames.h5").read_bytes()
    assert "surface points already; give --overwrite" in refused(capsys, add(tmp_path))
    assert (tmp_path / "frames.h5").read_bytes() == once
    dump(tmp_path / "results.pkl", [entry(0, [1])], monkeypatch)
    assert add(tmp_path, "results.pkl", "--overwrite") == 0
    assert counts(tmp_path) == [0, 500, 0, 0, 0, 0, 0]


def test_nobody_where_the_points_are(tmp_path, frames, monkeypatch, capsys):
    away = torch.tensor(SEEN[4].box[None] + 300).float()
    dump(tmp_path / "results.pkl", [entry(2, [4], pred_boxes_XYXY=away)], monkeypatch)
    assert "nobody of" in refused(capsys, add(tmp_path))
    dump(tmp_path / "results.pkl", [entry(2, [4], file_name="elsewhere/0.jpg")], monkeypatch)
    assert "no image of" in refused(capsys, add(tmp_path))


NAN = torch.tensor(float("nan"))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"uv": result(4).uv * NAN}, "a number that is not finite"),
        ({"uv": result(4).uv * 255}, "has chart coordinates of"),
        ({"labels": result(4).labels + 24 * (result(4).labels > 0)}, "DensePose counts 1 to 24"),
        ({"labels": result(4).labels * 0}, "has no point on the body"),
        ({"labels": result(4).labels[:9], "uv": result(4).uv[:, :9]}, "which are not those of its box"),
    ],
)
def test_a_person_who_cannot_be_used_is_left_out(tmp_path, frames, monkeypatch, capsys, changes, reason):
    bad = entry(2, [4], pred_densepose=[result(4, **changes)])
    dump(tmp_path / "results.pkl", [bad, entry(0, [0])], monkeypatch)
    assert add(tmp_path, "results.pkl", "--list-file", str(tmp_path / "left.txt")) == 0
    assert counts(tmp_path) == [500, 0, 0, 0, 0, 0, 0]
    assert reason in (tmp_path / "left.txt").read_text()
    capsys.readouterr()


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        ([], "holds nobody who can be used"),
        ({"a": 1}, "not detectron2's dump"),
        ([{"scores": torch.zeros(1)}], "not detectron2's dump"),
        ([{"file_name": "a.jpg"}], "has no scores and pred_boxes_XYXY"),
        ([entry(2, [4], pred_densepose=[])], "has 1 boxes and 0 results of DensePose"),
        ([entry(2, [4], pred_boxes_XYXY=torch.zeros(1, 5))], "has no scores and pred_boxes_XYXY of one length"),
        ([entry(2, [4], pred_densepose=[result(4, uv=torch.zeros(2, 3, 3))])], "has no labels (h, w) and uv (2, h, w)"),
        ([entry(2, [4], pred_densepose=CSE_RESULT(torch.zeros(1)))], "continuous surface embeddings"),
        ([entry(2, [4], pred_densepose=[Path("evil")])], "refused, it names pathlib"),
    ],
)
def test_bad_dumps_are_named(tmp_path, frames, monkeypatch, capsys, content, cause):
    dump(tmp_path / "results.pkl", content, monkeypatch)
    before = (tmp_path / "frames.h5").read_bytes()
    error = refused(capsys, add(tmp_path))
    assert "results.pkl" in error
    assert cause in error
    assert (tmp_path / "frames.h5").read_bytes() == before


def test_damaged_and_foreign_sources_are_named(tmp_path, frames, monkeypatch, capsys):
    path = dump(tmp_path / "results.pkl", [entry(2, [4])], monkeypatch)
    path.write_bytes(path.read_bytes()[:-2000])
    assert "results.pkl: not a whole file of torch.save" in refused(capsys, add(tmp_path))
    path.write_bytes(b"cos\nsystem\n(S'touch ran'\ntR.")
    assert "results.pkl: " in refused(capsys, add(tmp_path))
    assert not Path("ran").exists()
    assert "there is no such file" in refused(capsys, add(tmp_path, "none.pkl"))
    (tmp_path / "all").mkdir()
    assert "there is no dump" in refused(capsys, add(tmp_path, "all"))
    (tmp_path / "all" / "a_IUV.png").write_bytes(b"")
    assert "IUV images do not tell people apart" in refused(capsys, add(tmp_path, "all"))
    assert "expected was a dump" in refused(capsys, add(tmp_path, "all/a_IUV.png"))


@pytest.mark.parametrize(
    ("changes", "cause"),
    [
        ({"dp_U": [0.5]}, "of different lengths"),
        ({"dp_I": ["a"] * 60}, "not numbers"),
        ({"bbox": [1, 2, 3]}, "a box of other than 4"),
        ({"dp_vertex": [1], "ref_model": "smpl_27554"}, "is about vertices (dp_vertex, CSE)"),
        ({"dp_I": [0] * 60}, "has parts 0 to 0"),
        ({"dp_U": [float("nan")] * 60}, "not finite"),
    ],
)
def test_bad_annotations_are_named(tmp_path, frames, capsys, changes, cause):
    write_annotations(tmp_path / "densepose.json", [annotation(4, **changes)])
    error = refused(capsys, add(tmp_path, "densepose.json"))
    assert "densepose.json: " in error
    assert cause in error


def test_annotation_files_of_another_form_are_named(tmp_path, frames, capsys):
    path = tmp_path / "densepose.json"
    lacking = annotation(4)
    del lacking["dp_V"]
    write_annotations(path, [lacking])
    assert "annotation 1 lacks dp_V" in refused(capsys, add(tmp_path, path.name))
    for text, cause in (("{", "is not JSON"), ("[1]", "COCO's form"), ('{"images": []}', "COCO's form")):
        path.write_text(text)
        assert cause in refused(capsys, add(tmp_path, path.name))


def test_charts_that_cannot_be_used_are_named(tmp_path, frames, monkeypatch, capsys):
    dump(tmp_path / "results.pkl", [entry(2, [4])], monkeypatch)
    path = tmp_path / "UV_Processed.mat"

    def cause(**changes: np.ndarray | None) -> str:
        content = {**CHARTS.content, **changes}
        scipy.io.savemat(path, {key: value for key, value in content.items() if value is not None})
        return refused(capsys, add(tmp_path))

    faces, vertices = (CHARTS.content[key].astype(int) for key in ("All_Faces", "All_vertices"))
    assert "it lacks All_V_norm" in cause(All_V_norm=None)
    assert "All_Faces is int64 of shape" in cause(All_Faces=faces[:, :2])
    assert "All_U_norm is float64 of shape" in cause(All_U_norm=np.zeros((4, 1)))
    assert "All_Faces points at 0 to" in cause(All_Faces=faces - 1)
    assert "All_FaceIndices points at" in cause(All_FaceIndices=CHARTS.content["All_FaceIndices"] + 1)
    assert "not SMPL" in cause(All_vertices=vertices + 5000)
    assert "triangles are none of the body model's: it is not SMPL" in cause(All_vertices=vertices[:, ::-1] % 999 + 1)
    path.write_bytes(path.read_bytes()[:200])
    assert "not a whole MATLAB file" in refused(capsys, add(tmp_path))
    path.unlink()
    assert "densepose_uv_data.tar.gz" in refused(capsys, add(tmp_path))
    words = ["data", "keypoints", "densepose", str(tmp_path / "results.pkl"), "--frames", str(tmp_path / "frames.h5")]
    assert "--charts" in refused(capsys, main(words))
    assert "hflip" in refused(capsys, main([*words, "--charts", str(path), "--mirrored"]))
    assert "points 0" in refused(capsys, main([*words, "--charts", str(path), "--points", "0"]))


def test_the_charts_are_found_in_the_folder_of_the_archive(tmp_path, frames, monkeypatch):
    dump(tmp_path / "results.pkl", [entry(2, [4])], monkeypatch)
    (tmp_path / "UV_data").mkdir()
    (tmp_path / "UV_Processed.mat").rename(tmp_path / "UV_data" / "UV_Processed.mat")
    words = ["densepose", str(tmp_path / "results.pkl"), "--frames", str(tmp_path / "frames.h5")]
    assert main(["data", "keypoints", *words, "--charts", str(tmp_path)]) == 0
    assert counts(tmp_path)[4] == 500
