"""Characters that the miniature has not seen, moved by performances that it has not seen, and the right answers."""

from dataclasses import dataclass

import numpy as np

from drawn import Character, Pose, draw, perform, random_character, right_answer
from measure import psnr
from personalive_core.pipeline import Pipeline

SIZE = 128
PORTRAIT_POSE = Pose(smile=0.2)


@dataclass(frozen=True)
class Case:
    """One character moved by another's performance."""

    character: Character
    portrait: np.ndarray
    poses: list[Pose]
    driving: list[np.ndarray]
    answers: list[np.ndarray]

    @classmethod
    def drawn(cls, seed: int, frames: int) -> "Case":
        character, driver = random_character(2 * seed), random_character(2 * seed + 1)
        poses = perform(seed, frames, 12.0)
        return cls(
            character,
            draw(character, PORTRAIT_POSE, SIZE),
            poses,
            [draw(driver, pose, SIZE) for pose in poses],
            [draw(character, right_answer(PORTRAIT_POSE, pose, poses[0]), SIZE) for pose in poses],
        )


def animated(pipeline: Pipeline, case: Case, **settings) -> list[np.ndarray]:
    reference = pipeline.encode_reference(case.portrait)
    return [frame for chunk in pipeline.animate(reference, case.driving, **settings) for frame in chunk]


def score(results: list[np.ndarray], answers: list[np.ndarray]) -> float:
    return psnr(np.stack(results), np.stack(answers))
