"""A stream that begins in the middle, and how a video is divided."""

import pytest
import torch

from personalive_core.errors import InputError
from personalive_core.motion.motion import Motion
from personalive_core.sampling.keyframes import keyframe_windows
from personalive_core.sampling.split import lead_frames, split_frames, split_motion
from personalive_core.sampling.stream import Stream
from personalive_core.sampling.window import DenoisedWindow
from seeded import normal
from streams import motion_of, run, small_stream
from tiny import error


@pytest.mark.parametrize("frames, pieces, lead", [(1531, 4, 92), (200, 3, 44), (97, 2, 20), (1001, 7, 20), (5, 1, 20)])
def test_the_pieces_are_the_video_and_take_the_same_time(frames: int, pieces: int, lead: int):
    parts = split_frames(frames, pieces, lambda seam: lead if seam else 12)
    assert [i for part in parts for i in part] == list(range(frames))
    assert all(part.stop % 4 == 0 for part in parts[:-1])
    work = [len(part) + (lead if part.start else 12) for part in parts]
    assert len(parts) == pieces
    assert max(work) - min(work) <= 8


def test_a_video_is_not_split_into_more_than_it_can_be():
    with pytest.raises(InputError, match="too few for 6 pieces: split them into 5"):
        split_frames(100, 6, lambda seam: 20 if seam else 12)
    assert min(map(len, split_frames(100, 5, lambda seam: 20 if seam else 12))) >= 16
    with pytest.raises(InputError, match="too few for 2 pieces: make them in one"):
        split_frames(100, 2, lambda seam: 10 * seam)


def driving(frames: int) -> Motion:
    return motion_of(normal("driving", frames, 32, 16))


def undenoised_stream(**settings) -> Stream:
    """A quick one, whose windows take the noise of each frame down and mix nothing."""
    stream = small_stream(**settings)
    stream.denoiser = lambda embeds, references, latents, *rest: DenoisedWindow(latents / 2, latents[:, :, 4:8])
    stream.reference_unet = lambda latents, embeds: {"latents": latents}
    return stream


SETTINGS = [{}, {"limit": 0}, {"limit": 1, "threshold": 31}, {"return_every": 50}]


@pytest.mark.parametrize("settings", SETTINGS)
@torch.inference_mode()
def test_where_a_piece_begins_changes_neither_noise_nor_motion_nor_bank(settings):
    stream, motion = undenoised_stream(**settings), driving(152)
    whole = stream.start(motion, seed=1)
    for frame in (0, 4, 36, 92, 136):
        for _ in stream.push(whole, motion[whole.frames : frame + 12]):
            pass
        piece = stream.start_at(frame, motion, seed=1)
        assert (piece.frames, piece.window) == (whole.frames, whole.window) == (frame + 12, frame // 4 + 3)
        assert torch.equal(piece.generator.get_state(), whole.generator.get_state())
        assert torch.equal(piece.motion_tokens, whole.motion_tokens)
        assert torch.equal(piece.pose_features, whole.pose_features)
        assert torch.equal(piece.bank.tokens, whole.bank.tokens)
        assert torch.equal(piece.recent.tokens, whole.recent.tokens)
        assert torch.equal(piece.latents, whole.latents)
        assert [x is stream.features for x in piece.keyframes] == [x is stream.features for x in whole.keyframes]


@pytest.mark.parametrize("settings", SETTINGS)
@torch.inference_mode()
def test_keyframes_are_known_before_anything_is_sampled(settings):
    stream, motion = undenoised_stream(**settings), driving(152)
    state, first_seen = stream.start(motion, seed=1), list[tuple[object, int]]()
    for window in range(38):
        stream.step(state, motion[4 * window :][:4])
        first_seen += [(x, window) for x in state.keyframes if not any(x is known for known, _ in first_seen)]
        in_use = [w for x, w in first_seen if x is not stream.features and any(x is y for y in state.keyframes)]
        assert keyframe_windows(stream.keyframes, stream.motion.tokens, motion.tokens[::4], window + 1)[-1] == in_use
    assert bool(in_use) == bool(stream.keyframes.limit)


@pytest.mark.parametrize(
    "settings, changes",
    [
        ({"limit": 0}, (0,)),
        ({}, (0, 48, 52, 56)),
        ({"limit": 4}, (0, 70, 140, 210)),
        ({"limit": 5, "return_every": 150}, (0, 70, 140, 210)),
    ],
)
@torch.inference_mode()
def test_all_pieces_run_as_many_windows(monkeypatch: pytest.MonkeyPatch, settings, changes):
    """The driver's face changes in these frames, which makes them keyframes."""
    stream, faces = undenoised_stream(**settings), normal("faces", 4, 32, 16)
    motion = motion_of(faces[[sum(frame >= change for change in changes) - 1 for frame in range(400)]])
    windows = list[int]()

    def step(state, motion):
        windows.append(state.window)
        return Stream.step(stream, state, motion)

    monkeypatch.setattr(stream, "step", step)
    work = []
    for piece in split_motion(stream.motion, motion, 4, keyframes=stream.keyframes):
        state = stream.start_at(piece.start, motion, seed=1)
        limit = lead_frames(len([x for x in state.keyframes if x is not stream.features]))
        assert 4 * len(windows) <= limit if piece.start else len(windows) == 3
        for _ in stream.push(state, motion[state.frames : piece.stop + 12]):
            pass
        if piece.stop == len(motion):
            list(stream.flush(state))
        work.append(len(windows))
        windows.clear()
    assert max(work) - min(work) <= (6 if "return_every" in settings else 2)  # where the seam's lead jumps


@torch.inference_mode()
def test_the_noise_of_a_leap_is_the_frames_own(monkeypatch: pytest.MonkeyPatch):
    stream, motion = undenoised_stream(), driving(112)
    drawn = list[torch.Tensor]()
    monkeypatch.setattr(stream, "_noise", lambda *a: drawn.append(Stream._noise(stream, *a)) or drawn[-1])
    state = stream.start(motion, seed=1)
    stream._leap(20, state, motion, motion.tokens[::4])
    own = torch.cat(drawn[1:][17:20], dim=2)  # of frames 68 to 79, the newest of windows 17 to 19
    clean, timesteps = stream.latents[:, :, None], stream.schedule.warm_up_timesteps()
    assert torch.equal(state.latents, stream.schedule.add_noise(clean, own, timesteps))


@torch.inference_mode()
def test_a_piece_is_nearer_to_the_whole_than_another_seed():
    stream, motion = small_stream(), driving(32)
    whole, other = (run(stream, motion, [32], seed)[:, :, 20:] for seed in (1, 2))
    state = stream.start_at(20, motion, seed=1)
    piece = torch.cat([*stream.push(state, motion[state.frames :]), *stream.flush(state)], dim=2)
    assert piece.shape == whole.shape
    assert 0 < error(piece, whole) < error(other, whole) / 2
