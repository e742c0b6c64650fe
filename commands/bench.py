"""Measures the fit, the rasterizer, the loader and the converters on this machine."""

import os
import platform
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal, get_args

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from bodies import BodyModel, InputError, PinholeCamera, load_body_model
from bodies.safe_write import whole_file
from commands._conversion_speed import IMAGES, SOURCES, ConversionSpeed, measure_conversion
from commands._fit_cases import WholeMeshPoints, draw_people, make_fit_cases
from commands._peak_memory import peak_memory
from datamodules.store_speed import measure_store_speed
from datamodules.synthetic import synthesize
from datamodules.synthetic_frames import SyntheticSettings
from fitting import Adam, FitProblem, GmmPrior, LevenbergMarquardt, Smplify
from fitting.body_points import VertexPoints
from fitting.smplify import mean_error_px
from fitting.solution import Solution, Solver
from renderers import make_rasterizer

FIT_BATCHES = (1, 32, 256)
RASTER_BATCHES = (1, 8, 32)
RASTER_PX = 256
VISIBLE_VERTICES = 600
LOADER_FRAMES = 160
LOADER_IMAGE_PX = (640, 480)
LOADER_CROPS_PX = (128, 256)
CONVERTED_FRAMES = 500
SolverName = Literal["Adam, whole mesh", "Adam, chosen vertices", "Levenberg-Marquardt"]
SOLVERS: tuple[SolverName, ...] = get_args(SolverName)


@dataclass(frozen=True)
class FitRow:
    """One solver at one batch size."""

    solver: SolverName
    """Its name."""
    batch: int
    """People fitted at once."""
    seconds: float
    """Median of the repeats."""
    objective: float
    """Mean objective reached."""
    initial_objective: float
    """Mean objective at the start."""
    error_px: float
    """Mean pixel error reached."""
    peak_mb: float
    """Peak memory over that before the fit."""


def bench(out: Path | None = None, body: str = "standin", repeats: int = 3) -> None:
    """Times fitting, rasterizing, loading and converting, in one run on this machine.

    The fit: ground-truth displacements of 600 visible vertices, all unknowns at once, the same problem and the same
    start for all solvers: Levenberg-Marquardt until it converges, against 100 Adam steps, once with the whole mesh
    evaluated in each step as SPIN's SMPLify does, once with the chosen vertices alone. Each case runs in a process of
    its own. Where there is a GPU, its rows follow. Of conversions it is CPU time that is measured.

    Args:
        out: Also write the tables there, as Markdown.
        body: Body model.
        repeats: Times each case but the largest is run; the median counts.
    """
    if repeats < 1:
        raise InputError(f"--repeats: at least 1, got {repeats}")
    console = Console()
    tables = [
        _fit_table(_fit_rows(body, repeats, "cpu", console)),
        _raster_table(body, repeats, "cpu", console),
        _loader_table(console),
        _conversion_table(_conversion_rows(repeats, console)),
    ]
    if torch.cuda.is_available():
        tables += [_fit_table(_fit_rows(body, repeats, "cuda", console)), _raster_table(body, repeats, "cuda", console)]
    for table in tables:
        console.print(table)
    if out is not None:
        with whole_file(out) as temporary:
            temporary.write_text(_markdown(tables), encoding="utf-8")
        console.print(f"wrote {out}")


def machine_line() -> str:
    """The machine, in words."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    versions = f"Python {platform.python_version()}, torch {torch.__version__}"
    return f"{model}, {os.cpu_count()} cores, {torch.get_num_threads()} threads{gpu}; {versions}"


def _fit_rows(body: str, repeats: int, device: str, console: Console) -> list[FitRow]:
    rows = []
    context = get_context("spawn")
    for batch in FIT_BATCHES:
        for solver in SOLVERS:
            with (
                console.status(f"{solver}, batch {batch}, {device}"),
                ProcessPoolExecutor(1, mp_context=context) as process,
            ):
                # The largest batch is a repetition in itself: it is fitted in chunks.
                times = repeats if batch < max(FIT_BATCHES) else 1
                rows.append(process.submit(_time_fit, body, solver, batch, times, device).result())
    return rows


def _time_fit(body_name: str, solver: SolverName, batch: int, repeats: int, device: str) -> FitRow:
    body = load_body_model(body_name)
    cases = make_fit_cases(body, batch, seed=11, max_vertices=VISIBLE_VERTICES)
    body, prior = body.to(device), GmmPrior.load("standin").to(device)
    initial, camera, targets = cases.initial.to(device), cases.camera.to(device), cases.targets.to(device)
    chosen: Solver = LevenbergMarquardt() if solver == "Levenberg-Marquardt" else Adam(steps=100)
    fit = Smplify(body, prior, chosen)

    def run(people: slice) -> tuple[FitProblem, Solution]:
        problem = fit.problem(initial[people], camera[people], [targets[people]])
        if solver == "Adam, whole mesh":
            (evidence,) = problem.evidence
            assert isinstance(evidence.points, VertexPoints)
            points = WholeMeshPoints(body, evidence.points)
            problem = replace(problem, evidence=(replace(evidence, points=points),))
        return problem, chosen.minimize(problem, initial[people], "all")

    run(slice(2))  # compiles and warms up
    seconds = []
    with peak_memory(device) as memory:
        for _ in range(repeats):
            _synchronize(device)
            began = time.perf_counter()
            parts = [run(slice(start, start + fit.chunk_size)) for start in range(0, batch, fit.chunk_size)]
            _synchronize(device)
            seconds.append(time.perf_counter() - began)
    return FitRow(
        solver=solver,
        batch=batch,
        seconds=statistics.median(seconds),
        objective=float(torch.cat([solution.value for _, solution in parts]).mean()),
        initial_objective=_mean([p.objective(initial[_part(i, p)]) for i, (p, _) in enumerate(parts)]),
        error_px=_mean([mean_error_px(problem, solution.parameters) for problem, solution in parts]),
        peak_mb=memory.peak_mb,
    )


def _part(index: int, problem: FitProblem) -> slice:
    size = Smplify(problem.body).chunk_size
    return slice(index * size, index * size + len(problem.scale))


def _mean(values: list[Tensor]) -> float:
    return float(torch.cat(values).detach().mean())


def _synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def _fit_table(rows: list[FitRow]) -> Table:
    names = ("solver", "batch", "seconds", "ms per person", "objective", "pixel error", "peak memory", "time / LM")
    table = Table(*names, title=f"Fit, {VISIBLE_VERTICES} visible vertices per person")
    ours = {row.batch: row.seconds for row in rows if row.solver == "Levenberg-Marquardt"}
    for row in rows:
        table.add_row(
            row.solver,
            str(row.batch),
            f"{row.seconds:.3f}",
            f"{1e3 * row.seconds / row.batch:.1f}",
            f"{row.initial_objective:.0f} -> {row.objective:.1f}",
            f"{row.error_px:.2f} px",
            f"+{row.peak_mb:.0f} MB",
            f"{row.seconds / ours[row.batch]:.1f} x",
        )
    return table


def _raster_table(body_name: str, repeats: int, device: str, console: Console) -> Table:
    body: BodyModel = load_body_model(body_name)
    name: Literal["cpu", "nvdiffrast"] = "cpu" if device == "cpu" else "nvdiffrast"
    names = ("rasterizer", "batch", "ms", "ms per image")
    table = Table(*names, title=f"Rasterizer, {body.num_vertices} vertices, {RASTER_PX} x {RASTER_PX}")
    draw = make_rasterizer(name)
    for batch in RASTER_BATCHES:
        cases = make_fit_cases(body, batch, seed=12, max_vertices=1)
        vertices, faces = body(draw_people(batch, 12)).vertices.to(device), body.faces.to(device)
        camera = cases.camera.to(device)

        def run(vertices: Tensor = vertices, faces: Tensor = faces, camera: PinholeCamera = camera) -> None:
            draw(vertices, faces, camera, RASTER_PX, RASTER_PX)
            _synchronize(device)

        with console.status(f"rasterizer, batch {batch}, {device}"):
            seconds = _median_seconds(run, max(repeats, 10))
        table.add_row(name, str(batch), f"{1e3 * seconds:.2f}", f"{1e3 * seconds / batch:.2f}")
    return table


def _loader_table(console: Console) -> Table:
    """Crops out of a synthetic frames file that is made for the purpose."""
    settings = SyntheticSettings(frames=LOADER_FRAMES, subjects=8, body="standin-tiny", image_size=LOADER_IMAGE_PX)
    with console.status("loader"), TemporaryDirectory() as folder:
        store = synthesize(Path(folder) / "frames.h5", settings, quiet=True)
        speeds = [measure_store_speed(store, crop_px=crop, workers=2) for crop in LOADER_CROPS_PX]
    width, height = LOADER_IMAGE_PX
    names = ("crop", "samples per second", "ms per sample in one process", "of it JPEG decoding")
    table = Table(*names, title=f"Loader, {width} x {height} images, 2 workers, batches of 8")
    for speed in speeds:
        decoding = f"{speed.decode_ms:.2f} ms ({100 * speed.decode_fraction:.0f} %)"
        table.add_row(f"{speed.crop_px} px", f"{speed.samples_per_s:.0f}", f"{speed.sample_ms:.2f}", decoding)
    return table


def _conversion_rows(repeats: int, console: Console) -> list[ConversionSpeed]:
    rows = []
    for source in SOURCES:
        with console.status(f"converting {source}"):
            rows.append(measure_conversion(source, CONVERTED_FRAMES, repeats))
    return rows


def _conversion_table(rows: list[ConversionSpeed]) -> Table:
    """CPU time, so that it can be told where there is one; shares are of the whole conversion."""
    parts = ("decoding, encoding", "undistorting", "storing the bytes", "reading body models", "the rest")
    names = ("data set", "CPU ms per image", *parts, "images in all", "of a long conversion", "again", "as a command")
    table = Table(*names, title=f"Conversion of {rows[0].frames} images, CPU time")
    for row in rows:
        images_s = (row.coding_s, row.warping_s, row.storing_s)
        rest_s = row.total_s - sum(images_s) - row.models_s
        table.add_row(
            f"{row.source} ({IMAGES[row.source]})",
            f"{1e3 * row.total_s / row.frames:.2f}",
            *(f"{100 * part_s / row.total_s:.0f} %" for part_s in (*images_s, row.models_s, rest_s)),
            f"{100 * row.image_share:.0f} %",
            f"{100 * row.share_of_a_long_one:.0f} %",
            f"{1e3 * row.again_s:.0f} ms",
            f"{row.command_s:.1f} s",
        )
    return table


def _median_seconds(run: Callable[[], None], repeats: int) -> float:
    run()
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


def _markdown(tables: list[Table]) -> str:
    lines = ["# Benchmarks", "", f"Measured by `make bench` on: {machine_line()}.", ""]
    for table in tables:
        cells = [list(column.cells) for column in table.columns]
        lines += [f"## {table.title}", "", "| " + " | ".join(str(c.header) for c in table.columns) + " |"]
        lines.append("|" + " --- |" * len(cells))
        lines += ["| " + " | ".join(str(c) for c in row) + " |" for row in zip(*cells, strict=True)]
        lines.append("")
    return "\n".join(lines)
