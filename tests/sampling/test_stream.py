"""The streaming loop against the recorded stream, and that neither cutting nor saving changes a bit."""

import copy

import pytest
import torch

from personalive_core.errors import InputError
from personalive_core.sampling.reference import Reference
from personalive_core.sampling.stream import Stream, reflected
from personalive_core.sampling.window import Denoiser
from seeded import normal
from streams import make_stream, motion_of, run, small_stream
from tiny import error, golden


@torch.inference_mode()
def test_stream_golden(monkeypatch: pytest.MonkeyPatch):
    g = golden("stream_tiny")
    pose_features = iter([g["pose_features"][:, :, :12], *g["pose_features"][:, :, 12:].split(4, dim=2)])
    noise = iter([g["noise_warmup"], *g["noise"].split(4, dim=2)])
    monkeypatch.setattr(torch, "randn", lambda shape, generator: next(noise))
    stream = make_stream(
        g["reference_motion_tokens"][0],
        g["reference_latents"],
        g["image_embeds"],
        lambda keypoint_map: next(pose_features),
    )

    motion = motion_of(g["motion_tokens"][0])
    state, chunks, keyframe_windows = stream.start(motion, seed=0), [], []
    for window in range(20):
        keyframes = len(state.keyframes)
        chunks.append(stream.step(state, motion[4 * window : 4 * window + 4]))
        if len(state.keyframes) > keyframes:
            keyframe_windows.append(window)

    assert keyframe_windows == g["keyframe_windows"].tolist() == [9, 11, 14]
    latents = torch.cat(chunks, dim=2)
    assert latents.shape == g["x0_latents"].shape
    assert max(error(latents[:, :, i], g["x0_latents"][:, :, i]) for i in range(80)) < 1e-5


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@torch.inference_mode()
def test_graphed_windows_are_the_plain_ones(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    plain, motion = small_stream(), motion_of(normal("driving", 70, 32, 16))
    found = []
    for capture in (False, True):
        denoising_unet = copy.deepcopy(plain.denoiser.denoising_unet).to("cuda")
        stream = Stream(
            Reference(plain.latents, plain.image_embeds, plain.features, plain.motion),
            denoiser=Denoiser(denoising_unet, plain.schedule, plain.keyframes.limit, capture),
            reference_unet=copy.deepcopy(plain.reference_unet).to("cuda"),
            pose_guider=copy.deepcopy(plain.pose_guider).to("cuda"),
            keyframes=plain.keyframes,
            device="cuda",
        )
        found.append(run(stream, motion, [70]).cpu())
    assert error(found[1], found[0]) < 1e-5
    assert error(found[0], run(plain, motion, [70])) < 1e-3


@torch.inference_mode()
def test_cutting_the_input_changes_nothing():
    stream, motion = small_stream(), motion_of(normal("driving", 46, 32, 16))
    whole = run(stream, motion, [46])
    assert whole.shape == (1, 4, 46, 5, 4)
    assert torch.equal(run(stream, motion, [1] * 46), whole)
    assert torch.equal(run(stream, motion, [4] * 11 + [2]), whole)
    assert torch.equal(run(stream, motion, [3, 30, 0, 13]), whole)


@torch.inference_mode()
def test_a_saved_state_goes_on_bit_for_bit(tmp_path):
    stream, motion = small_stream(), motion_of(normal("driving", 62, 32, 16))
    whole = run(stream, motion, [62])
    state = stream.start(motion, seed=1)
    chunks = list(stream.push(state, motion[:49]))
    assert state.keyframes, "the state to save should hold a keyframe"
    state.save(tmp_path / "state.safetensors")

    again = small_stream()
    state = again.resume(tmp_path / "state.safetensors")
    chunks += [*again.push(state, motion[49:]), *again.flush(state)]
    assert torch.equal(torch.cat(chunks, dim=2), whole)


@torch.inference_mode()
def test_a_state_of_another_portrait_is_refused(tmp_path):
    stream, motion = small_stream(), motion_of(normal("driving", 4, 32, 16))
    stream.start(motion, seed=1).save(tmp_path / "state.safetensors")
    stream.motion = motion[:1]
    with pytest.raises(InputError, match="another portrait"):
        stream.resume(tmp_path / "state.safetensors")


@torch.inference_mode()
def test_the_seed_decides():
    stream, motion = small_stream(), motion_of(normal("driving", 5, 32, 16))
    assert torch.equal(run(stream, motion, [5], seed=7), run(stream, motion, [5], seed=7))
    assert error(run(stream, motion, [5], seed=8), run(stream, motion, [5], seed=7)) > 0.1


@pytest.mark.parametrize("steps", [4, 8])
@pytest.mark.parametrize("frames", [1, 2, 5, 16, 18])
@torch.inference_mode()
def test_as_many_frames_out_as_in(frames: int, steps: int):
    stream = small_stream(steps=steps)
    latents = run(stream, motion_of(normal("driving", frames, 32, 16)), [frames])
    assert latents.shape == (1, 4, frames, 5, 4)
    assert latents.isfinite().all()


@pytest.mark.parametrize("frames", [1, 10])
@torch.inference_mode()
def test_every_window_yields_latents_if_only_empty_ones(frames: int):
    stream, motion = small_stream(), motion_of(normal("driving", frames, 32, 16))
    state = stream.start(motion, seed=1)
    counts = [latents.shape[2] for latents in [*stream.push(state, motion), *stream.flush(state)]]
    assert counts == {1: [0, 0, 0, 1], 10: [0, 0, 0, 4, 4, 2]}[frames]


@torch.inference_mode()
def test_the_end_is_driven_by_going_back(monkeypatch: pytest.MonkeyPatch):
    stream, motion = small_stream(), motion_of(normal("driving", 18, 32, 16))
    driven = []
    monkeypatch.setattr(stream, "step", lambda state, m: driven.append(m.tokens) or Stream.step(stream, state, m))
    run(stream, motion, [18])
    order = [*range(18), *range(16, 2, -1)]
    assert torch.equal(torch.cat(driven), motion[order].tokens)


def test_reflection():
    assert [reflected(i, 3) for i in range(9)] == [0, 1, 2, 1, 0, 1, 2, 1, 0]
    assert [reflected(i, 1) for i in range(4)] == [0, 0, 0, 0]


@torch.inference_mode()
def test_without_keyframes_none_are_made():
    stream, motion = small_stream(limit=0), motion_of(normal("driving", 48, 32, 16))
    state = stream.start(motion, seed=1)
    for _ in stream.push(state, motion):
        pass
    assert state.window == 12
    assert not state.keyframes
    assert len(state.bank.tokens) > 1


@torch.inference_mode()
def test_the_portrait_returns_as_a_keyframe():
    """Window 13 takes in frames 52 to 55, the first after frame 50; window 25 frames 100 to 103."""
    stream, motion = small_stream(return_every=50), motion_of(normal("driving", 108, 32, 16))
    plain, state = small_stream().start(motion, seed=1), stream.start(motion, seed=1)
    same = []
    for window in range(27):
        a = small_stream().step(plain, motion[4 * window :][:4])
        same.append(torch.equal(a, stream.step(state, motion[4 * window :][:4])))
        portrait = [features is stream.features for features in state.keyframes]
        assert len(portrait) <= 3
        assert any(portrait) == (window >= 13) and not any(portrait[1:])
        if window in (13, 25):
            assert len(state.bank.tokens) <= 2
    assert same.index(False) == 13


def test_a_return_without_keyframes_is_refused():
    with pytest.raises(InputError, match="at least 1 keyframe"):
        small_stream(limit=0, return_every=25)


def test_any_integer_is_a_seed():
    stream, motion = small_stream(), motion_of(normal("driving", 1, 32, 16))
    first, same, negative, lowest = (stream.start(motion, seed).latents for seed in (7, 7 + 2**70, -1, 2**32 - 1))
    assert torch.equal(first, same) and torch.equal(negative, lowest)
    assert not torch.equal(first, negative)
