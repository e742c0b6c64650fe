"""Adults drawn at random from Anny's phenotypes, in Anny's own rest pose. The one module that imports anny."""

from typing import Final, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float64, Int64
from numpy import ndarray

from bodies.model_data import TextureLayout

Topology = Literal["anny", "notoes_collapse10pc"]

PERSONS: Final = 120
#: Ranges of Anny's phenotype parameters; those not named vary over their whole range, 0 to 1. Ages are about 25 to 65
#: years; the heights make persons of 1.71 m on average with a standard deviation of 0.1 m, both sexes together.
AGE_RANGE: Final = (2 / 3, 2 / 3 + 0.2)
HEIGHT_MEAN_STD: Final = (0.38, 0.07)


class Persons(NamedTuple):
    """Persons on one mesh; x left, y up, z forward, metres."""

    vertices: Float64[ndarray, "batch vertices 3"]
    heads: Float64[ndarray, "batch bones 3"]
    labels: list[str]
    parents: list[int]
    bone_weights: Float64[ndarray, "vertices bones"]
    faces: Int64[ndarray, "faces 3"]
    texture: TextureLayout | None


def draw_persons(topology: Topology, rng: np.random.Generator) -> Persons:
    """Draws `PERSONS` adults.

    Args:
        topology: Anny's name of the mesh.
        rng: Where chance comes from.
    """
    import anny

    # The compact form of Anny's blend shapes comes from a decomposition whose last bits depend on the machine.
    model = anny.Anny(topology=topology, phenotypes="all", phenotype_blendshapes="original", skinning_method="lbs")
    phenotypes = {label: rng.uniform(size=PERSONS) for label in model.phenotype_labels}
    low, high = AGE_RANGE
    mean, std = HEIGHT_MEAN_STD
    phenotypes["age"] = low + (high - low) * phenotypes["age"]
    phenotypes["height"] = np.clip(rng.normal(mean, std, size=PERSONS), mean - 3 * std, mean + 3 * std)
    with torch.no_grad():
        result = model(phenotype_kwargs={label: torch.from_numpy(values) for label, values in phenotypes.items()})
    bone_weights = np.zeros((model.template_vertices.shape[0], model.bone_count))
    rows = np.arange(len(bone_weights))[:, None]
    np.add.at(bone_weights, (rows, model.vertex_bone_indices.numpy()), model.vertex_bone_weights.numpy())
    texture = None
    if model.texture_coordinates is not None:
        texture = TextureLayout(
            model.texture_coordinates.numpy().astype(np.float32),
            model.face_texture_coordinate_indices.numpy().astype(np.int64),
        )
    return Persons(
        vertices=_y_up(result["rest_vertices"].double().numpy()),
        heads=_y_up(result["rest_bone_heads"].double().numpy()),
        labels=list(model.bone_labels),
        parents=[-1 if parent is None else int(parent) for parent in model.bone_parents],
        bone_weights=bone_weights,
        faces=model.faces.numpy().astype(np.int64),
        texture=texture,
    )


def _y_up(points: Float64[ndarray, "batch points 3"]) -> Float64[ndarray, "batch points 3"]:
    """From Anny's axes (x left, y backward, z up)."""
    return np.stack([points[..., 0], points[..., 2], -points[..., 1]], axis=-1)
