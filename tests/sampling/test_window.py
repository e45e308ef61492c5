"""Denoised windows: as CUDA graphs the same bits, nothing captured twice; the early frames."""

import copy
import gc
import weakref

import pytest
import torch
from torch import Tensor

from graphs import RecordedGraph, record_graphs
from personalive_core.networks.denoising_unet import DenoisingUNet
from personalive_core.sampling.reference import Reference
from personalive_core.sampling.schedule import Schedule, alphas_cumprod
from personalive_core.sampling.stream import Stream
from personalive_core.sampling.window import Denoiser
from seeded import normal
from streams import motion_of, run, small_stream

LIMIT = 2


@pytest.fixture(
    params=[
        "cpu",
        pytest.param(
            "cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU: real graphs")
        ),
    ]
)
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Where graphs are real, or recorded."""
    if request.param == "cpu":
        record_graphs(monkeypatch)
    return request.param


def make_stream(device: str, capture: bool, **settings) -> Stream:
    plain = small_stream(limit=LIMIT, threshold=0.0, **settings)
    denoising_unet, reference_unet, pose_guider = (
        copy.deepcopy(network).to(device)
        for network in (plain.denoiser.denoising_unet, plain.reference_unet, plain.pose_guider)
    )
    return Stream(
        Reference(plain.latents, plain.image_embeds, plain.features, plain.motion),
        denoiser=Denoiser(denoising_unet, plain.schedule, LIMIT, capture),
        reference_unet=reference_unet,
        pose_guider=pose_guider,
        keyframes=plain.keyframes,
        device=device,
    )


def another(stream: Stream, height: int = 5, width: int = 4) -> Stream:
    """The stream of another portrait."""
    latents, image_embeds = normal("another", 1, 4, height, width), normal("another e", 1, 1, 24)
    features = stream.reference_unet(latents.to(stream.device), image_embeds.to(stream.device))
    return stream.with_reference(
        Reference(latents, image_embeds, features, motion_of(normal("another portrait", 1, 32, 16)))
    )


@pytest.fixture(autouse=True)
def early_keyframes(monkeypatch: pytest.MonkeyPatch):
    """They join in the second and third window, so that a test takes a second."""
    monkeypatch.setattr("personalive_core.sampling.stream.FIRST_WINDOW", 1)


def takes(stream: Stream, fresh: bool = False) -> list[Tensor]:
    """Two keyframes join, the portrait returns; then other portraits, of this and another size, and the first again.

    Args:
        fresh: Each with a denoiser of its own.
    """
    motion, found = motion_of(normal("driving", 12, 32, 16)), []
    for each, frames in ((stream, 12), (another(stream), 5), (another(stream, 6, 5), 1), (stream, 1)):
        if fresh:
            each.denoiser = Denoiser(stream.denoiser.denoising_unet, stream.schedule, LIMIT)
        found.append(run(each, motion[:frames], [frames]))
    return found


@torch.inference_mode()
def test_graphed_windows_are_the_plain_ones_bit_for_bit(device: str):
    plain = takes(make_stream(device, capture=False, return_every=12), fresh=True)
    stream = make_stream(device, capture=True, return_every=12)
    stream.prepare()  # after the change of size, windows are captured as they come
    assert all(torch.equal(a, b) for a, b in zip(takes(stream), plain, strict=True))


@torch.inference_mode()
def test_a_prepared_stream_captures_nothing_more(monkeypatch: pytest.MonkeyPatch):
    captured, stream = record_graphs(monkeypatch), make_stream("cpu", capture=True)
    stream.prepare()
    assert len(captured) == 1 + LIMIT
    motion = motion_of(normal("driving", 4, 32, 16))
    run(stream, motion, [4])
    run(another(stream), motion, [4])
    assert len(captured) == 1 + LIMIT


@torch.inference_mode()
def test_the_graphs_share_one_memory_which_the_largest_has_made(monkeypatch: pytest.MonkeyPatch):
    captured, stream = record_graphs(monkeypatch), make_stream("cpu", capture=True)
    run(stream, motion_of(normal("driving", 9, 32, 16)), [9])
    assert len({id(graph.pool()) for graph in captured}) == 1

    def largest(graph: RecordedGraph) -> int:
        return max(x.numel() for *_, x in graph.operations if isinstance(x, Tensor))

    assert [largest(graph) for graph in captured[1:]] == sorted(largest(graph) for graph in captured[1:])
    assert largest(captured[0]) >= max(map(largest, captured))


@torch.inference_mode()
def test_only_new_references_are_written(monkeypatch: pytest.MonkeyPatch):
    stream, written = make_stream("cpu", capture=False), []
    unet, condition = stream.denoiser.denoising_unet, DenoisingUNet.condition
    monkeypatch.setattr(
        DenoisingUNet, "condition", lambda unet, e, features: written.append(features) or condition(unet, e, features)
    )
    state = stream.start(stream.motion, seed=1)
    window = stream._window(state, stream.motion[[0] * 4])
    first, second, third = ({path: i * x for path, x in stream.features.items()} for i in range(3))
    stream._denoise(state, *window)
    written.clear()
    for keyframes, expected in (
        ([], []),
        ([first], [first]),
        ([first, second], [second]),
        ([first, second], []),
        ([third], [third]),
        ([third, second], [second]),
        ([], []),
    ):
        state.keyframes = keyframes
        stream._denoise(state, *window)
        assert [id(x) for x in written] == [id(x) for x in expected]
        conditioning = condition(unet, stream.image_embeds, stream.features)
        for features in keyframes:
            conditioning = unet.add_keyframe(conditioning, features)
        held = stream.denoiser._conditioning(1 + len(keyframes))
        torch.testing.assert_close(vars(held), vars(conditioning), rtol=0, atol=0)
        written.clear()


@torch.inference_mode()
def test_weights_that_moved_are_captured_again(monkeypatch: pytest.MonkeyPatch):
    captured, stream = record_graphs(monkeypatch), make_stream("cpu", capture=True)
    stream.prepare()
    stream.denoiser.set_capture(True)
    motion = motion_of(normal("driving", 3, 32, 16))
    expected = run(stream, motion, [3])
    assert len(captured) == 1 + LIMIT

    weight = stream.denoiser.denoising_unet.conv_out.weight
    weight.data = weight.data.clone()
    stream.denoiser.set_capture(True)
    assert not any(graph.operations for graph in captured)
    assert torch.equal(run(stream, motion, [3]), expected)
    assert len(captured) == 2 * (1 + LIMIT)

    stream.denoiser.set_capture(False)
    assert not any(graph.operations for graph in captured)
    assert torch.equal(run(stream, motion, [3]), expected)
    assert len(captured) == 2 * (1 + LIMIT)


@torch.inference_mode()
def test_another_size_is_allocated_when_the_last_one_is_gone(monkeypatch: pytest.MonkeyPatch):
    captured, stream = record_graphs(monkeypatch), make_stream("cpu", capture=True)
    stream.prepare()
    before = [weakref.ref(x) for pair in stream.denoiser._keys_values.values() for x in pair]
    new_zeros, made = Tensor.new_zeros, []

    def new(x: Tensor, *shape: int) -> Tensor:
        assert not any(graph.operations for graph in captured) and all(x() is None for x in before)
        made.append(new_zeros(x, *shape))
        return made[-1]

    monkeypatch.setattr(Tensor, "new_zeros", new)
    run(another(stream, 6, 5), motion_of(normal("driving", 1, 32, 16)), [1])
    assert len(made) == len(before)


@torch.inference_mode()
def test_graphs_go_with_their_stream(monkeypatch: pytest.MonkeyPatch):
    """At once, and not when Python next looks for cycles: they hold much of the card."""
    captured, stream = record_graphs(monkeypatch), make_stream("cpu", capture=True)
    stream.prepare()
    denoiser = weakref.ref(stream.denoiser)
    gc.disable()
    try:
        del stream
        assert denoiser() is None
        assert not any(graph.operations for graph in captured)
    finally:
        gc.enable()


@pytest.mark.parametrize("steps", [4, 8])
@torch.inference_mode()
def test_early_frames_are_the_predicted_clean_ones(steps: int, monkeypatch: pytest.MonkeyPatch):
    """x0 = (x - sqrt(1 - alpha) noise) / sqrt(alpha), of the second chunk in the last pass."""
    stream, passes = small_stream(steps=steps), []

    def forward(unet: DenoisingUNet, latents: Tensor, *rest: Tensor) -> Tensor:
        passes.append((latents, rest[0], plain(unet, latents, *rest)))
        return passes[-1][-1]

    plain = DenoisingUNet.forward
    monkeypatch.setattr(DenoisingUNet, "forward", forward)
    state = stream.start(stream.motion, seed=1)
    stream.step(state, stream.motion[[0] * 4])
    latents, timesteps, noise = passes[-1]
    assert len(passes) == steps // 4 and len(set(timesteps[4:8].tolist())) == 1
    alpha = alphas_cumprod()[timesteps[4]]
    expected = (latents - (1 - alpha).sqrt() * noise)[:, :, 4:8] / alpha.sqrt()
    torch.testing.assert_close(state.early, expected, rtol=1e-5, atol=1e-5)
    assert Schedule(steps).ladder.index(int(timesteps[4])) == 3 * steps // 4 - 1
