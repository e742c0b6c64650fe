"""`snugfit refine` on pictures made by code: what it writes, and what it says of bad input."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import roma
import torch
import trimesh

from bodies import PinholeCamera, load_body_model
from commands._fit_cases import draw_people
from datamodules.estimates import read_estimate, write_estimate
from main import main

SIZE = (320, 400)
PROJECT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def body():
    return load_body_model("standin-tiny")


@pytest.fixture
def scene(tmp_path: Path, body):
    """A photo of two people with their true keypoints, and where they really are."""
    truth = draw_people(2, seed=4)
    truth.transl[:, 2] += 1
    camera = PinholeCamera.from_image_size(torch.tensor([list(map(float, SIZE))]))
    points = camera.expand(2).project(body.keypoints(body(truth), "openpose25")).numpy()
    people = [
        {"pose_keypoints_2d": np.concatenate([person, np.full((25, 1), 0.9)], axis=1).flatten().tolist()}
        for person in points
    ]
    picture = np.random.default_rng(0).integers(0, 255, (SIZE[1], SIZE[0], 3), dtype=np.uint8)
    cv2.imwrite(str(tmp_path / "two.png"), picture)
    write_keypoints(tmp_path / "two_keypoints.json", people)
    write_estimate(tmp_path / "two.npz", truth, camera, body.name)
    return tmp_path, truth, camera, people


def write_keypoints(path: Path, people: list) -> Path:
    path.write_text(json.dumps({"version": 1.3, "people": people}))
    return path


def run(*words: object) -> int:
    return main(["refine", *map(str, words), "--body", "standin-tiny"])


def test_writes_everything_for_everyone_and_the_result_is_a_start(scene, body, capsys):
    folder, _, _, people = scene
    arguments = (folder / "two.png", "--keypoints", folder / "two_keypoints.json")
    assert run(*arguments, "--out", folder / "out") == 0
    for person in range(2):
        place = folder / "out" / "two" / f"person_{person}"
        assert sorted(f.name for f in place.iterdir()) == ["mesh.glb", "overlay.png", "parameters.npz", "report.json"]
        report = json.loads((place / "report.json").read_text())
        assert report["accepted"]
        assert report["final_error_px"] < report["initial_error_px"]
        assert report["final_objective"] < report["initial_objective"]
        assert report["final_error_px"] < 8
        picture = cv2.imread(str(place / "overlay.png"))
        assert picture.shape[1] > picture.shape[0]
        estimate = read_estimate(place / "parameters.npz")
        vertices = body(estimate.parameters).vertices[0].numpy() * (1, -1, -1)
        mesh = trimesh.load(place / "mesh.glb", force="mesh", process=False)
        assert np.allclose(mesh.vertices, vertices, atol=1e-5)
        with np.load(place / "parameters.npz") as amass:
            assert amass["poses"].shape == (1, 72)
            assert amass["trans"].shape == (1, 3)
    assert "overlay.png" in capsys.readouterr().out
    # The result of the first person, refined alone, stays where it is.
    write_keypoints(folder / "one.json", people[:1])
    first = folder / "out" / "two" / "person_0" / "parameters.npz"
    assert run(folder / "two.png", "--keypoints", folder / "one.json", "--init", first, "--out", folder / "again") == 0
    report = json.loads((folder / "again" / "two" / "person_0" / "report.json").read_text())
    assert report["initial_error_px"] == pytest.approx(report["final_error_px"], rel=0.05)


def test_keypoints_alone_do_not_wait_for_what_a_network_needs():
    script = "import sys, commands.refine\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=PROJECT)
    modules = set(done.stdout.split())
    assert "fitting.smplify" in modules
    assert not modules & {"lightning", "albumentations", "torchmetrics", "wandb", "h5py"}


def test_true_initial_estimate_is_kept(scene, body):
    folder, truth, _, _ = scene
    arguments = (folder / "two.png", "--keypoints", folder / "two_keypoints.json", "--init", folder / "two.npz")
    assert run(*arguments, "--out", folder / "out") == 0
    for person in range(2):
        refined = read_estimate(folder / "out" / "two" / f"person_{person}" / "parameters.npz").parameters
        meshes = [body(refined), body(truth[[person]])]
        centred = [mesh.vertices - mesh.joints[:, :1] for mesh in meshes]
        # The priors pull at a pose and a shape that explain the keypoints perfectly; size and depth trade places.
        assert torch.linalg.vector_norm(centred[0] - centred[1], dim=-1).mean() < 0.06
        assert (meshes[0].joints[:, 0] - meshes[1].joints[:, 0]).abs().max() < 0.4


def _mean_distance_m(body, path, truth):
    meshes = [body(read_estimate(path).parameters), body(truth)]
    centred = [mesh.vertices - mesh.joints[:, :1] for mesh in meshes]
    return float(torch.linalg.vector_norm(centred[0] - centred[1], dim=-1).mean())


def test_noisy_keypoints_do_not_undo_a_good_estimate(scene, body):
    folder, truth, _, people = scene
    rng, noisy = np.random.default_rng(3), []
    for person in people:
        points = np.array(person["pose_keypoints_2d"]).reshape(25, 3)
        points[:, :2] += 0.02 * np.ptp(points[:, 1]) * rng.standard_normal((25, 2))
        noisy.append({"pose_keypoints_2d": points.flatten().tolist()})
    keypoints = write_keypoints(folder / "noisy.json", noisy)
    arguments = (folder / "two.png", "--keypoints", keypoints, "--init", folder / "two.npz")
    errors = {}
    for hold in ([], ["--hold", 0], ["--hold", 1000]):
        out = folder / "-".join(map(str, ["out", *hold]))
        assert run(*arguments, *hold, "--out", out) == 0
        files = [out / "two" / f"person_{person}" / "parameters.npz" for person in range(2)]
        errors[out.name] = sum(_mean_distance_m(body, file, truth[[p]]) for p, file in enumerate(files))
    assert errors["out"] < 0.8 * errors["out---hold-0"]
    assert errors["out---hold-1000"] < errors["out"]


def test_a_limb_that_is_wrong_is_moved_all_the_same(scene, body):
    """A quarter turn of one shoulder, which good keypoints contradict."""
    folder, truth, camera, _ = scene
    wrong = truth.rotations.clone()
    wrong[:, 16] = wrong[:, 16] @ roma.rotvec_to_rotmat(torch.tensor([0.0, 0.0, torch.pi / 2]))
    write_estimate(folder / "wrong.npz", replace(truth, rotations=wrong), camera, body.name)
    arguments = (folder / "two.png", "--keypoints", folder / "two_keypoints.json", "--init", folder / "wrong.npz")
    assert run(*arguments, "--out", folder / "out") == 0
    for person in range(2):
        refined = read_estimate(folder / "out" / "two" / f"person_{person}" / "parameters.npz").parameters
        joints = [
            body(parameters).joints[0]
            for parameters in (refined, truth[[person]], replace(truth, rotations=wrong)[[person]])
        ]
        # From the shoulder to the wrist; how far along the line of sight no keypoint says.
        now, true, before = (joint[20, :2] - joint[16, :2] for joint in joints)
        assert torch.linalg.vector_norm(now - true) < 0.1 * torch.linalg.vector_norm(before - true)


@pytest.mark.parametrize("words", [["--hold", "-1"], ["--hold", "nan"]])
def test_a_hold_that_makes_no_sense_is_refused(scene, capsys, words):
    folder, *_ = scene
    arguments = (folder / "two.png", "--keypoints", folder / "two_keypoints.json", "--init", folder / "two.npz")
    assert run(*arguments, *words, "--out", folder / "out") == 2
    assert "--hold" in capsys.readouterr().err
    assert not (folder / "out").exists()


def test_a_hold_without_an_estimate_is_refused(scene, capsys):
    folder, *_ = scene
    assert run(folder / "two.png", "--keypoints", folder / "two_keypoints.json", "--hold", 5) == 2
    assert "--init" in capsys.readouterr().err


def test_adam_solves_it_too(scene):
    folder, *_ = scene
    arguments = (folder / "two.png", "--keypoints", folder / "two_keypoints.json", "--init", folder / "two.npz")
    assert run(*arguments, "--solver", "adam", "--out", folder / "out") == 0
    report = json.loads((folder / "out" / "two" / "person_1" / "report.json").read_text())
    assert report["status"] == "steps_used"


def bad_cases(folder: Path, people: list) -> dict[str, tuple[list[object], str]]:
    image, keypoints = folder / "two.png", folder / "two_keypoints.json"
    good = dict(np.load(folder / "two.npz"))

    def init(name: str, **changes: object) -> Path:
        np.savez(folder / f"{name}.npz", **{key: value for key, value in (good | changes).items() if value is not None})
        return folder / f"{name}.npz"

    def json_of(name: str, text: str) -> Path:
        (folder / name).write_text(text)
        return folder / name

    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff nonsense")
    (folder / "empty.jpg").write_bytes(b"")
    silent = [{"pose_keypoints_2d": [1.0, 2.0, 0.0] * 25}]
    not_finite = json.dumps({"people": [{"pose_keypoints_2d": [1.0] * 74 + [float("nan")]}]})
    few = [{"pose_keypoints_2d": [1.0, 2.0, 0.9] * 2 + [0.0] * 69}]
    not_rotations = np.ones((2, 24, 3, 3), np.float32)
    return {
        "no image": ([folder / "absent.jpg", "--keypoints", keypoints], "absent.jpg: cannot be read: No such file"),
        "broken image": ([folder / "broken.jpg", "--keypoints", keypoints], "broken.jpg: is not an image"),
        "empty image": ([folder / "empty.jpg", "--keypoints", keypoints], "empty.jpg: is not an image"),
        "no keypoints": ([image, "--keypoints", folder / "no.json"], "no.json: cannot be read"),
        "no json": ([image, "--keypoints", json_of("n.json", "{")], "n.json: is not JSON"),
        "no list": ([image, "--keypoints", json_of("l.json", "[]")], "l.json: has no list 'people'"),
        "no people": ([image, "--keypoints", write_keypoints(folder / "p.json", [])], "p.json: holds no people"),
        "coco": (
            [image, "--keypoints", write_keypoints(folder / "c.json", [{"pose_keypoints_2d": [1.0] * 54}])],
            "c.json: person 0 has 18 keypoints (COCO-18), BODY_25 has 25",
        ),
        "silent": (
            [image, "--keypoints", write_keypoints(folder / "s.json", silent)],
            "s.json: all confidences of person 0 are zero",
        ),
        "not finite": (
            [image, "--keypoints", json_of("f.json", not_finite)],
            "f.json: person 0 has keypoints that are",
        ),
        "few": ([image, "--keypoints", write_keypoints(folder / "w.json", few)], "w.json: person 0 has 2 keypoints"),
        "nan init": (
            [image, "--keypoints", keypoints, "--init", init("a", trans=np.full((2, 3), np.nan))],
            "a.npz: 'trans' holds numbers that are not finite",
        ),
        "shape of init": (
            [image, "--keypoints", keypoints, "--init", init("b", poses=np.zeros((2, 70)))],
            "b.npz: 'poses' has shape (2, 70), expected (2, 72)",
        ),
        "missing part": (
            [image, "--keypoints", keypoints, "--init", init("m", betas=None)],
            "m.npz: has no 'betas'",
        ),
        "people of init": (
            [image, "--keypoints", write_keypoints(folder / "one.json", people[:1]), "--init", folder / "two.npz"],
            "two.npz: has 2 people",
        ),
        "behind": (
            [image, "--keypoints", keypoints, "--init", init("h", trans=np.float32([[0, 0, -2], [0, 0, 4]]))],
            "h.npz: person 0 is behind the camera",
        ),
        "focal of init": (
            [image, "--keypoints", keypoints, "--init", init("z", focal_px=np.zeros(2))],
            "z.npz: the focal length must be positive",
        ),
        "two focals": (
            [image, "--keypoints", keypoints, "--init", folder / "two.npz", "--focal", 300],
            "two.npz: was made with focal length",
        ),
        "no rotations": (
            [image, "--keypoints", keypoints, "--init", init("r", rotations=not_rotations)],
            "r.npz: 'rotations' holds matrices that are no rotations",
        ),
        "no npz": ([image, "--keypoints", keypoints, "--init", image], "two.png: is not an .npz of named arrays"),
        "focal": ([image, "--keypoints", keypoints, "--focal", 0], "--focal: the focal length must be positive"),
        "body": ([image, "--keypoints", keypoints, "--prior", folder / "gmm_08.pkl"], "gmm_08.pkl: no such file"),
        "file for many": ([image, folder / "broken.jpg", "--keypoints", keypoints], "--keypoints must be a folder"),
        "nothing": (["--keypoints", keypoints], "no image was given"),
    }


def test_bad_input_is_one_line_with_file_and_cause_and_writes_nothing(scene, capsys):
    folder, _, _, people = scene
    for name, (words, message) in bad_cases(folder, people).items():
        code = run(*words, "--out", folder / "out")
        captured = capsys.readouterr()
        assert code == 2, name
        assert message in captured.err, f"{name}: {captured.err}"
        assert captured.err.count("\n") == 1, name
        assert not (folder / "out").exists(), name


def test_pickled_initial_estimate_is_refused_without_running_it(scene, capsys):
    folder, *_ = scene
    np.savez(
        folder / "evil.npz", poses=np.array([_Touch(folder / "ran")], dtype=object), trans=np.zeros(3), betas=[0.0]
    )
    code = run(folder / "two.png", "--keypoints", folder / "two_keypoints.json", "--init", folder / "evil.npz")
    assert code == 2
    assert "evil.npz: is not an .npz of plain arrays" in capsys.readouterr().err
    assert not (folder / "ran").exists()


class _Touch:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def test_folder_run_skips_the_bad_photo_and_says_so(scene, capsys):
    folder, _, _, people = scene
    photos = folder / "photos"
    photos.mkdir()
    for name in ("a", "b"):
        cv2.imwrite(str(photos / f"{name}.png"), np.zeros((SIZE[1], SIZE[0], 3), np.uint8))
        write_keypoints(photos / f"{name}_keypoints.json", people[:1])
    (photos / "bad.jpg").write_bytes(b"nothing")
    assert run(photos, "--keypoints", photos, "--out", folder / "out") == 1
    output = capsys.readouterr().out
    assert "bad.jpg: is not an image" in output
    assert "1 of 3 photos were skipped" in output
    assert sorted(p.name for p in (folder / "out").iterdir()) == ["a", "b"]


def test_interrupted_write_leaves_the_former_result(scene, monkeypatch):
    folder, *_ = scene
    arguments = (folder / "two.png", "--keypoints", folder / "two_keypoints.json", "--init", folder / "two.npz")
    assert run(*arguments, "--out", folder / "out") == 0
    place = folder / "out" / "two" / "person_0"
    before = {file.name: file.read_bytes() for file in place.iterdir()}

    def fail(*_: object) -> bool:
        raise OSError("no space left on device")

    monkeypatch.setattr(cv2, "imwrite", fail)
    with pytest.raises(OSError, match="no space"):
        run(*arguments, "--out", folder / "out")
    assert {file.name: file.read_bytes() for file in place.iterdir()} == before
    assert [p.name for p in (folder / "out" / "two").iterdir() if p.name.startswith(".")] == []


def test_real_photo_of_a_lunge_if_it_is_here(tmp_path):
    """A real detection, when the development data lie beside the checkout."""
    photo = Path(__file__).resolve().parents[2] / "shared" / "data" / "photo"
    if not photo.is_dir():
        pytest.skip("the photo is not part of the project")
    words = ["refine", photo / "lunge.jpg", "--keypoints", photo / "lunge_keypoints.json", "--out", tmp_path]
    assert main([str(word) for word in words]) == 0
    report = json.loads((tmp_path / "lunge" / "person_0" / "report.json").read_text())
    assert report["sure_keypoints_mean_error_px"]["refined"] < 10
    root = read_estimate(tmp_path / "lunge" / "person_0" / "parameters.npz").parameters.rotations[0, 0]
    assert root[2, 2] > 0.5  # he faces away: the body's forward axis points away from the camera
