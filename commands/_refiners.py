"""How `snugfit refine` refines the people of a photo, and the way that needs keypoints alone."""

import math
from dataclasses import dataclass, replace
from typing import Final, Literal, Protocol

from bodies import BodyModel, BodyParameters, InputError, load_body_model
from commands._photos import Photo
from fitting import (
    FROM_REST_SCHEDULE,
    Adam,
    FitResult,
    FromRest,
    KeypointTargets,
    LevenbergMarquardt,
    Smplify,
    fit_from_rest,
)
from lightning_modules.fitting_settings import FittingSettings
from lightning_modules.rounds import Round

SolverName = Literal["lm", "adam"]
SOLVERS: Final[dict[SolverName, LevenbergMarquardt | Adam]] = {"lm": LevenbergMarquardt(), "adam": Adam()}
#: What is fitted without a checkpoint, unless the command line says otherwise.
BODY: Final = "standin"
#: How strongly a fit to keypoints holds to an estimate that is given (`TermWeights.initial_pose`). On synthetic people
#: with errors like PARE's on 3DPW, or half of them, and keypoints off by 0.5 to 3.5 % of the person's height, every
#: weight from 10 to 200 left smaller errors than none, and 100 less than 50.
HOLD: Final = 100.0


@dataclass(frozen=True)
class Refined:
    """What became of the people of a photo."""

    body: BodyModel
    """Their body model."""
    initial: BodyParameters
    """What is shown as the initial bodies: the estimate that was given, or what was found without one."""
    fits: tuple[FitResult, ...]
    """The fits, each from what the one before it accepted; the last one's bodies are the refined ones."""
    from_rest: FitResult | None = None
    """Of people without an initial estimate who are refined with the network: how `initial` was fitted."""
    rounds: tuple[Round, ...] = ()
    """What the network said before each of `fits`; none without it."""

    @property
    def parameters(self) -> BodyParameters:
        """The refined bodies; the initial one of whom no fit was accepted."""
        return self.fits[-1].parameters

    def decisive(self, person: int) -> int:
        """The fit that a person's body is from: the last one that was accepted, or the first if none was."""
        accepted = [number for number, fit in enumerate(self.fits) if fit.status[person].accepted]
        return accepted[-1] if accepted else 0


class Refiner(Protocol):
    """A way to refine the people of a photo."""

    def __call__(self, photo: Photo) -> Refined:
        """Refines them.

        Raises:
            InputError: If something that the photo came with cannot be used.
        """
        ...


@dataclass(frozen=True)
class KeypointRefiner:
    """Fits bodies to keypoints, from an initial estimate or from rest."""

    fit: Smplify
    """The fit."""
    settings: FittingSettings
    """Weights of its terms."""

    def __call__(self, photo: Photo) -> Refined:
        """See `Refiner`."""
        if photo.initial is None:
            result = from_rest(photo, self.fit, self.settings)
        else:
            photo.check_in_front(self.fit.body)
            result = FromRest(
                photo.initial, self.fit(photo.initial, photo.camera(), keypoint_targets(photo, self.settings))
            )
        return Refined(self.fit.body, result.initial, (result.fit,))


def from_rest(photo: Photo, fit: Smplify, settings: FittingSettings) -> FromRest:
    """Fits standing bodies at eight headings to the keypoints of people without an initial estimate."""
    (targets,) = keypoint_targets(photo, settings)
    return fit_from_rest(fit.with_schedule(FROM_REST_SCHEDULE), photo.camera(), targets)


def keypoint_refiner(
    body: str | None, prior: str | None, solver: SolverName | None, hold: float | None = None
) -> KeypointRefiner:
    """The fit to keypoints alone; it does not hold to a body that was found from rest, whatever `hold`.

    Raises:
        InputError: If the body model or the prior cannot be loaded, or `hold` is negative.
    """
    settings = held(FittingSettings(solver=SOLVERS[solver or "lm"]), HOLD if hold is None else hold)
    settings = settings if prior is None else replace(settings, prior=prior)
    return KeypointRefiner(settings.fit(load_body_model(body or BODY), settings.load_prior()), settings)


def held(settings: FittingSettings, hold: float) -> FittingSettings:
    """The same fit, held to its initial estimate with this weight.

    Raises:
        InputError: If it is negative or not finite.
    """
    if not (math.isfinite(hold) and hold >= 0):
        raise InputError(f"--hold {hold:g}: must be 0 or more")
    return replace(settings, weights=replace(settings.weights, initial_pose=hold))


def keypoint_targets(photo: Photo, settings: FittingSettings) -> tuple[KeypointTargets, ...]:
    """The keypoints of a photo's people as targets; none if it has none."""
    keypoints = photo.fitted_keypoints()
    return () if keypoints is None else (settings.keypoints.targets(keypoints),)
