import pytest
import torch

from personalive_core.errors import InputError
from personalive_core.sampling.schedule import Schedule, alphas_cumprod
from tiny import error, golden


def test_ddim_step_golden():
    g, schedule = golden("scheduler"), Schedule(4)
    latents, noise_pred = (g[key].movedim(0, 1)[None] for key in ("sample", "model_output"))  # (1, 4, F, h, w)
    following = [schedule.ladder[schedule.ladder.index(t) + 1] for t in g["timesteps"].tolist()]
    stepped, pred_x0 = schedule.step(latents, noise_pred, g["timesteps"], torch.tensor(following))
    assert error(stepped[0].movedim(1, 0), g["prev_sample"]) < 1e-6
    assert error(pred_x0[0].movedim(1, 0), g["pred_x0"]) < 1e-6
    assert error(schedule.add_noise(latents, noise_pred, g["timesteps"])[0].movedim(1, 0), g["noisy"]) < 1e-6
    assert error(alphas_cumprod(), g["alphas_cumprod"]) < 1e-6


def test_four_steps_are_one_pass_over_the_published_levels():
    assert Schedule(4).ladder == [999, 666, 333, 0, -1]
    assert Schedule(4).timesteps(0).tolist() == [0] * 4 + [333] * 4 + [666] * 4 + [999] * 4
    assert Schedule(4).timesteps(1).tolist() == [-1] * 4 + [0] * 4 + [333] * 4 + [666] * 4
    assert Schedule(4).warm_up_timesteps().tolist() == [0] * 4 + [333] * 4 + [666] * 4


def test_twelve_steps_are_three_passes_that_join_from_window_to_window():
    schedule = Schedule(12)
    assert schedule.passes == 3
    after, before = schedule.timesteps(3), schedule.timesteps(0)
    assert after[4:].tolist() == before[:12].tolist()  # a chunk goes on in the next window where it stopped
    assert after[:4].tolist() == [-1] * 4
    assert before[-1] == 999


def test_timesteps_stay_where_they_are():
    """However many there are: CUDA graphs have their addresses."""
    schedule = Schedule(1000)
    first = [schedule.timesteps(step) for step in range(schedule.passes + 1)]
    assert all(schedule.timesteps(step) is timesteps for step, timesteps in enumerate(first))


@pytest.mark.parametrize("steps", [0, 5, -4, 1004, 10**12])
def test_other_step_counts_are_refused(steps: int):
    with pytest.raises(InputError, match=f"steps is {steps}"):
        Schedule(steps)
