"""The library's pipeline, with tiny networks on the CPU."""

import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from graphs import RecordedGraph, record_graphs
from personalive_core.device import pick_dtype
from personalive_core.errors import InputError
from personalive_core.memory import Budget
from personalive_core.sampling.cuda import onload, waiting_bytes
from personalive_core.sampling.keyframes import KeyframeSettings
from personalive_core.sampling.reference import Reference
from personalive_core.sampling.window import Denoiser
from personalive_core.weights.load import meta_networks
from seeded import normal
from streams import motion_of
from tiny import tiny_pipeline


def test_inference_mode_is_off_while_the_caller_has_the_frames():
    pipeline = tiny_pipeline()
    pictures = np.random.default_rng(0).integers(0, 256, (2, 128, 128, 3), np.uint8)
    pieces = []
    for piece in pipeline.animate(pipeline.encode_reference(pictures[0]), pictures[1:], hold=False):
        assert not torch.is_inference_mode_enabled()
        pieces.append(piece)
    assert [len(piece) for piece in pieces] == [1]


def on_meta(pipeline, monkeypatch: pytest.MonkeyPatch, free: int):
    """The pipeline of a device with so many free bytes. The meta device stands in for a GPU."""
    monkeypatch.setattr("personalive_core.pipeline.free_memory", lambda device: free)
    return replace(pipeline, device=torch.device("meta"))


def waiting(pipeline) -> int:
    return waiting_bytes(torch.device("meta"), pipeline.reference_unet, pipeline.vae, pipeline.image_encoder)


def test_the_portraits_networks_stay_on_the_device_where_there_is_room(monkeypatch: pytest.MonkeyPatch):
    pipeline = tiny_pipeline()
    size, reference_unet = waiting(pipeline), pipeline.reference_unet
    assert size > sum(x.nbytes for x in reference_unet.parameters())
    for free, fits in ((size + 1000, True), (size + 999, False)):
        with on_meta(pipeline, monkeypatch, free).onload(spare=1000) as is_resident:
            assert is_resident is fits
            assert waiting(pipeline) == (0 if fits else size)
            with onload(torch.device("meta"), reference_unet):  # as a keyframe does
                assert all(x.is_meta for x in reference_unet.parameters())
            assert waiting(pipeline) == (0 if fits else size)
        assert waiting(pipeline) == size


def test_on_the_cpu_they_always_are():
    with tiny_pipeline().onload() as is_resident:
        assert is_resident


def test_a_portrait_in_stages_is_the_same():
    pipeline, picture = tiny_pipeline(), np.random.default_rng(0).integers(0, 256, (128, 136, 3), np.uint8)
    used = []
    for network in (pipeline.vae.encoder, pipeline.image_encoder, pipeline.reference_unet, pipeline.motion_encoder):
        network.register_forward_hook(lambda network, *_: used.append(network))
    stages, after = pipeline.encode_reference_stages(picture), []
    with pytest.raises(StopIteration) as end:
        while True:
            next(stages)
            assert not torch.is_inference_mode_enabled()
            after.append(len(used))
    assert after == [1, 2, 3] and len(used) == 4
    staged, whole = end.value.value, pipeline.encode_reference(picture)
    assert torch.equal(staged.latents, whole.latents) and torch.equal(staged.image_embeds, whole.image_embeds)
    assert all(torch.equal(x, whole.features[path]) for path, x in staged.features.items())
    assert torch.equal(staged.motion.tokens, whole.motion.tokens)


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> list[RecordedGraph]:
    """Those that are captured, in place of a GPU's."""
    monkeypatch.setattr("personalive_core.pipeline.can_capture", lambda device: True)
    return record_graphs(monkeypatch)


def a_reference(pipeline, name: str = "a", height: int = 5) -> Reference:
    """Smaller than a pipeline encodes them, so that a window takes no time."""
    latents, embeds = normal(f"{name} latents", 1, 4, height, 4), normal(f"{name} embeds", 1, 1, 24)
    features = pipeline._reference_features(latents, embeds)
    return Reference(latents, embeds, features, motion_of(normal(f"{name} portrait", 1, 32, 16)))


def windows(pipeline, *portrait) -> torch.Tensor:
    """The first three of a video. A keyframe joins before the last."""
    reference = a_reference(pipeline, *portrait)
    stream = pipeline.stream(reference, keyframes=KeyframeSettings(limit=1, threshold=0))
    motion = motion_of(normal("driving", 12, 32, 16))
    state = stream.start(motion, seed=1)
    found = [stream.step(state, motion[i : i + 4]) for i in (0, 4, 8)]
    assert len(state.keyframes) == 1
    return torch.cat(found)


@torch.inference_mode()
def test_videos_of_one_pipeline_are_those_of_many(graphs, monkeypatch: pytest.MonkeyPatch):
    """Bit for bit, one after the other. CUDA graphs are captured again only for another size."""
    monkeypatch.setattr("personalive_core.sampling.stream.FIRST_WINDOW", 0)
    portraits, pipeline = (("a", 5), ("b", 5), ("c", 6)), tiny_pipeline()
    captured = [windows(pipeline, *portrait) for portrait in portraits]
    assert len(graphs) == 2 * 2  # sizes, numbers of keyframes
    monkeypatch.setattr("personalive_core.pipeline.can_capture", lambda device: False)
    expected = [windows(tiny_pipeline(), *portrait) for portrait in portraits]
    assert all(map(torch.equal, captured, expected)) and not torch.equal(*expected[:2])
    pipeline = tiny_pipeline()
    assert all(torch.equal(windows(pipeline, *portraits[i]), expected[i]) for i in (0, 1))


def test_a_piece_goes_on_where_it_was_stopped(tmp_path):
    pipeline, motion, states = tiny_pipeline(), motion_of(normal("driving", 90, 32, 16)), []

    def watch(state) -> None:
        states.append(tmp_path / f"{len(states)}.safetensors")
        state.save(states[-1])

    with torch.inference_mode():
        reference = a_reference(pipeline)
    settings: dict = dict(keyframes=KeyframeSettings(limit=1, threshold=0))
    whole = np.concatenate([*pipeline.animate_piece(reference, motion, range(60, 90), watch=watch, **settings)])
    assert len(whole) == 30 and len(states) == 4
    rest = pipeline.animate_piece(reference, motion, range(60, 90), resume=states[2], **settings)
    assert np.array_equal(np.concatenate([*rest]), whole[12:])


@torch.inference_mode()
def test_streams_of_other_settings_replace_the_denoiser(graphs, monkeypatch: pytest.MonkeyPatch):
    """And it is gone before theirs is made, which may need its memory."""
    pipeline, denoisers = tiny_pipeline(), list[weakref.ref]()

    def new(*given) -> Denoiser:
        assert all(denoiser() is None for denoiser in denoisers)
        assert not any(graph.operations for graph in graphs)
        return Denoiser(*given)

    monkeypatch.setattr("personalive_core.pipeline.Denoiser", new)
    one, other = KeyframeSettings(limit=1), KeyframeSettings(limit=1, threshold=9)
    for steps, keyframes in ((4, one), (4, other), (8, other), (8, KeyframeSettings(limit=0))):
        stream = pipeline.stream(a_reference(pipeline), steps, keyframes)
        stream.prepare()
        assert stream.denoiser.schedule.steps == steps and stream.denoiser.keyframes == keyframes.limit
        denoisers.append(weakref.ref(stream.denoiser))
        del stream
    assert [denoisers.index(denoiser) for denoiser in denoisers] == [0, 0, 2, 3]


@torch.inference_mode()
def test_weights_that_moved_between_videos_are_captured_again(graphs):
    pipeline, keyframes = tiny_pipeline(), KeyframeSettings(limit=0)
    reference, weight = a_reference(pipeline), pipeline.denoising_unet.conv_out.weight
    for count in (1, 2):
        pipeline.stream(reference, keyframes=keyframes).prepare()
        assert len(graphs) == count and graphs[-1].operations
        weight.data = weight.data.clone()


def test_streams_need_not_agree_on_inference_mode():
    pipeline = tiny_pipeline()
    reference, chunks = a_reference(pipeline), []
    for mode in (torch.inference_mode, torch.no_grad):
        stream = pipeline.stream(reference)
        with mode():
            chunks.append(stream.step(stream.start(reference.motion, seed=1), reference.motion[[0] * 4]))
    assert torch.equal(*chunks)


def test_a_portraits_networks_take_the_graphs_place_unless_there_is_room_for_both(monkeypatch: pytest.MonkeyPatch):
    picture, reference = np.zeros((128, 128, 3), np.uint8), a_reference(tiny_pipeline())
    for free in (10**12, 0):
        pipeline = on_meta(tiny_pipeline(), monkeypatch, free)
        with pipeline.onload() as is_resident:
            denoiser = weakref.ref(pipeline.stream(reference).denoiser)
            next(pipeline.encode_reference_stages(picture))
            assert (denoiser() is not None) is is_resident


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_are_an_error_in_place_of_a_black_frame(number):
    pipeline = tiny_pipeline()
    pipeline.decoder.conv_out.bias[1] = number
    with pytest.raises(InputError, match=r"decoded video holds numbers that are not finite.*bf16 or fp32"):
        pipeline.decode(torch.zeros(1, 4, 3, 16, 16))


class NoFP8(TorchDispatchMode):
    """What Apple's devices do."""

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        if torch.float8_e4m3fn in (kwargs or {}).values():
            raise TypeError("Trying to convert Float8_e4m3fn to a backend without it")
        return operation(*args, **(kwargs or {}))


def test_a_device_without_fp8_is_one_sentence():
    assert pick_dtype("fp8", torch.device("cpu")) == torch.float32
    with NoFP8(), pytest.raises(InputError, match=r"cpu cannot hold weights in fp8 \(Trying.*: try --dtype fp16"):
        pick_dtype("fp8", torch.device("cpu"))


SMALL = Budget(128, 128, keyframes=3)


def fitted(monkeypatch: pytest.MonkeyPatch, free: int, budget: Budget = SMALL):
    """The pipeline of a device with so many free bytes, after `fit`. The meta device stands in for a GPU."""
    monkeypatch.setattr("personalive_core.pipeline.usable_memory", lambda device, gigabytes: free)
    monkeypatch.setattr("personalive_core.pipeline.CudaCopies", lambda device: None)
    pipeline = replace(tiny_pipeline(), device=torch.device("meta"))
    pipeline.fit(budget)
    return pipeline


def test_what_fits_of_the_denoising_unet_stays_on_the_device(monkeypatch: pytest.MonkeyPatch):
    """All of it; all of it, without what CUDA graphs hold; a part; or an error that says how much is needed."""
    meta, unet = torch.device("meta"), tiny_pipeline().denoising_unet
    size, blocks = waiting_bytes(meta, unet), [sum(x.nbytes for x in own) for _, own in unet.blocks()]
    parts = tiny_pipeline()
    largest = max(waiting_bytes(meta, x) for x in (parts.reference_unet, parts.vae, parts.image_encoder))
    whole = size + SMALL.whole(torch.float32, largest)
    least = SMALL.streamed(torch.float32, largest) + size - sum(blocks) + 2 * max(blocks)
    assert least < least + sum(blocks) < whole

    pipeline = fitted(monkeypatch, whole)
    assert not pipeline.is_streamed and pipeline.placement.endswith("stays there")
    assert waiting_bytes(meta, pipeline.denoising_unet) == 0

    pipeline = fitted(monkeypatch, whole - 1)
    assert pipeline.is_streamed and pipeline.placement.endswith("it works without CUDA graphs")
    assert waiting_bytes(meta, pipeline.denoising_unet) == 0

    for kept in (0, sum(blocks) // 2):
        pipeline = fitted(monkeypatch, least + kept)
        waits = waiting_bytes(meta, pipeline.denoising_unet)
        assert 0 <= waits - (sum(blocks) - kept) <= max(blocks)
        assert f": {kept / sum(blocks):.0%} of it stays there, and each window copies the rest" in pipeline.placement
        assert pipeline.decoder_stream is None and not pipeline._can_capture()

    with pytest.raises(InputError, match=r"GB more at 128 x 128: use a smaller -W and -H, or --dtype fp8"):
        fitted(monkeypatch, least - 1)


def test_the_sums_are_near_the_measured_peaks():
    """Of docs/memory.md, in 10^9 bytes: the published sizes at 512 x 512 in fp16."""
    weights = {name: sum(x.numel() for x in network.parameters()) * 2 for name, network in meta_networks().items()}
    there = sum(weights.values()) - weights["reference_unet"] + 49_490_199 * 2 + weights["motion_extractor"]
    for keyframes, peak in ((0, 7.53e9), (3, 9.11e9)):
        found = there + Budget(512, 512, keyframes).whole(torch.float16, weights["reference_unet"])
        assert found == pytest.approx(peak, rel=0.05)
    least = Budget(512, 512, 3).streamed(torch.float16, weights["reference_unet"])
    assert there - weights["denoising_unet"] + least < 5e9


def test_memory_grows_with_the_picture_and_with_keyframes():
    sums = [Budget(*size).whole(torch.float16, 10**9) for size in ((256, 256, 0), (512, 512, 0), (512, 512, 3))]
    assert sums == sorted(sums)
    assert Budget(512, 512, 3).streamed(torch.float16, 10**9) < sums[-1]
