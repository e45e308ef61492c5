"""The program that trains the miniature: it learns, from what is right, and goes on exactly where it was."""

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tiny import error

pytest.importorskip("cv2", reason="faces are drawn by OpenCV (opencv-python-headless)")
PROGRAM = Path(__file__).resolve().parents[2] / "tools" / "train_miniature.py"
if not PROGRAM.is_file():
    pytest.skip("tools/ is not here", allow_module_level=True)
specification = importlib.util.spec_from_file_location("train_miniature", PROGRAM)
train = sys.modules["train_miniature"] = importlib.util.module_from_spec(specification)
specification.loader.exec_module(train)

from personalive_core.motion.keypoints import crop_faces, draw_keypoint_map, transform_keypoints  # noqa: E402
from personalive_core.networks.temporal import TemporalModule  # noqa: E402
from personalive_core.pipeline import Pipeline  # noqa: E402
from personalive_core.weights.find import find_weights  # noqa: E402

TAKES = 2
SMALL_VAE = {**train.VAE, "block_out_channels": (32,) * 4}  # a quarter of the work


class DrawnHere:
    """The pools of `train.Drawing`, drawn in this process."""

    def __init__(self, kept: int = train.FRAMES):
        self.kept = kept

    def pool(self, number: int):
        takes = train.Takes(TAKES, self.kept)
        for index in range(TAKES):
            takes.draw(index, train.FIRST_SEED + number * TAKES + index)
        return takes


def only(name: str, steps: int, **changes) -> "train.Plan":
    """A plan with one stage, on few pictures."""
    stage = next(stage for stage in train.Plan().stages if stage.name == name)
    return train.Plan((replace(stage, **{"steps": steps, "pools": 1, "batch": 2} | changes),))


@pytest.fixture
def begin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A run in a folder; no sheets and a small VAE, which take longest."""
    monkeypatch.setattr(train.Run, "sheet", lambda *_: None)
    monkeypatch.setattr(train, "VAE", SMALL_VAE)

    def begin(plan, folder: str = "run"):
        (tmp_path / folder).mkdir(exist_ok=True)
        return train.Run(tmp_path / folder, plan, torch.device("cpu"))

    return begin


def steps(count: int):
    """Asks for a stop after so many."""
    left = iter(range(count))
    return lambda: next(left, None) is None


@pytest.fixture(scope="module")
def pool():
    takes = DrawnHere().pool(0)
    return train.Pool(*map(torch.from_numpy, vars(takes).values()))


def test_crops_are_those_of_inference():
    random = torch.Generator().manual_seed(0)
    frames = torch.rand(40, 3, 128, 128, generator=random)
    corner = torch.randint(0, 400, (40, 2), generator=random)
    boxes = torch.cat([corner, corner + torch.randint(1, 112, (40, 2), generator=random)], 1)
    boxes[0] = torch.tensor([0, 0, 512, 512])
    assert torch.allclose(train.crop_squares(frames, boxes, 96), crop_faces(frames, boxes, 96), atol=1e-4)


def test_a_take_shows_two_people_and_the_right_answers(pool):
    picture = torch.arange(2 + 2 * train.FRAMES)
    keypoints = transform_keypoints(pool.true_heads(torch.zeros_like(picture), picture))
    answers, portrait = keypoints[pool.first_answer :], keypoints[0]
    assert (pool.poses[:, 0, 5:6] == pool.poses[:, pool.first_answer :, 5]).all()  # the portrait's scale is kept
    assert not torch.equal(answers[-1], portrait)
    assert draw_keypoint_map(keypoints, 128, 128).flatten(3).sum(3).gt(0).all()
    assert (pool.pictures[0, 0] != pool.pictures[0, 1]).any()


def test_a_take_that_keeps_few_frames_is_the_same_take(pool):
    few = DrawnHere(kept=5).pool(0)
    for take in range(TAKES):
        frames = torch.from_numpy(few.kept[take])
        pictures = torch.cat([torch.arange(2), 2 + frames, 2 + train.FRAMES + frames])
        assert len(set(frames.tolist())) == 5
        assert torch.equal(torch.from_numpy(few.pictures[take]), pool.pictures[take, pictures])
        assert torch.equal(torch.from_numpy(few.poses[take]), pool.poses[take, pictures])


def test_the_important_places_are_eyes_and_mouth(pool):
    heads = pool.true_heads(torch.tensor([0]), torch.tensor([0]))
    weights = train.importance(heads, 64)[0, 0]
    x, y = ((transform_keypoints(heads)[0, 3, :2] + 1) * 32).long().tolist()
    assert weights[y, x] > 3 and weights[0, 0] < 1.05


def test_folding_the_scale_of_latents_keeps_the_pictures(monkeypatch):
    monkeypatch.setattr(train, "VAE", SMALL_VAE)
    vae = train.build()["vae"].eval()
    pixels = torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        means = vae.encode(pixels).latent_dist.mean
        before = vae.decode(means).sample
        train.fold_latent_scale(vae, means)
        latents = vae.encode(pixels).latent_dist.mean
        after = vae.decode(latents).sample
    assert torch.allclose(before, after, atol=1e-3)
    scaled = latents * train.LATENT_SCALE
    assert torch.allclose(scaled.mean((0, 2, 3)), torch.zeros(4), atol=1e-3)
    assert torch.allclose(scaled.std((0, 2, 3)), torch.ones(4), atol=1e-2)


@pytest.mark.quality
@pytest.mark.parametrize(
    ("stage", "rate", "value", "steps"), [("motion", 4e-3, "points", 30), ("windows", 1.5e-2, "loss", 16)]
)
def test_it_learns(begin, stage: str, rate: float, value: str, steps: int):
    run = begin(only(stage, 400, rate=rate))
    pool = run.load(DrawnHere().pool(0))
    losses = [float(run.train_step(pool)[value]) for _ in range(steps)]
    assert sum(losses[-3:]) < 0.5 * sum(losses[1:4])  # the first windows are of right answers under noise


@pytest.mark.quality
@pytest.mark.parametrize("stage", ["single_pictures", "windows"])
def test_all_but_what_the_model_does_not_use_has_a_gradient(begin, stage: str):
    """One image embedding needs no queries and keys, and nothing follows the last reference features."""
    run = begin(only(stage, 400))
    run.networks["denoising_unet"].conv_out.weight.data.normal_(std=0.1)
    pool = run.load(DrawnHere().pool(0))
    for _ in range(4):  # branches that begin as nothing pass gradients on a step later, and they are nested
        run.train_step(pool)
    last = "up_blocks.1.attentions.1"
    trained = run._parameters(run.networks)
    unused = [
        key
        for key, parameter in zip(trained, run.optimizer.running, strict=True)
        if (parameter.grad is None or not parameter.grad.any())
        and not any(part in key for part in (".attn2.to_q", ".attn2.to_k", "transformer_blocks.0.norm2"))
    ]
    kept = (f"reference_unet.{last}.norm", f"reference_unet.{last}.proj_in")
    of_the_unet = [key for key in trained if key.startswith("denoising_unet.")]
    assert of_the_unet and {".temporal_modules." in key for key in of_the_unet} == {stage == "windows"}
    assert [key for key in unused if not key.startswith(f"reference_unet.{last}") or key.startswith(kept)] == []


@torch.no_grad()
def test_the_generator_is_the_networks_as_inference_runs_them(begin, pool):
    """Two windows at once are those of two portraits; so are single pictures, whose frames do not see each other."""
    run = begin(only("windows", 400))
    random = torch.Generator().manual_seed(0)
    for parameter in run.optimizer.parameters:
        parameter.add_(torch.randn(parameter.shape, generator=random), alpha=0.02)
    unet, reference_unet, pose_guider, image_encoder = (
        run.networks[name].eval() for name in ("denoising_unet", "reference_unet", "pose_guider", "image_encoder")
    )
    pool = run.load(DrawnHere().pool(0))
    take, timesteps = torch.arange(2), run.schedule.timesteps(0)
    window = run.window(pool, take, torch.tensor([[4], [8]]) + run.frames, torch.tensor([[3], [30]]))
    latents = torch.randn(window.answers.shape, generator=random)
    together = run.predict(window, latents, timesteps)

    def alone(i: int, frames: slice = slice(None)) -> torch.Tensor:
        embeds = image_encoder(window.portraits[[i]]).image_embeds[:, None]
        portrait, keyframe = (reference_unet(x[[i]], embeds) for x in window.references)
        conditioning = unet.add_keyframe(unet.condition(embeds, portrait), keyframe)
        pose_features = pose_guider(window.keypoint_map[:, :, 16 * i : 16 * i + 16][:, :, frames])
        tokens = window.motion_tokens[[i]][:, frames]
        return unet(latents[[i]][:, :, frames], timesteps[frames], conditioning, tokens, pose_features)

    for i in range(2):
        assert error(together[[i]], alone(i)) < 1e-4

    for module in unet.modules():
        if isinstance(module, TemporalModule):
            module.temporal_transformer.proj_out.weight.zero_()
            module.temporal_transformer.proj_out.bias.zero_()
    single = train.Window(
        window.portraits,
        window.references,
        window.keypoint_map[:, :, [5, 16 + 13]],
        window.motion_tokens[[0, 1], [5, 13]][None],
        *(None,) * 4,
    )
    noise = run.predict(single, latents[[0, 1], :, [5, 13]].movedim(0, 1)[None], timesteps[[5, 13]])
    for i, frame in enumerate((5, 13)):
        assert error(noise[:, :, [i]], alone(i, slice(frame, frame + 1))) < 1e-4


@pytest.mark.quality
@torch.no_grad()
def test_what_a_graph_writes_to_is_nobody_elses(begin, monkeypatch: pytest.MonkeyPatch):
    """Each replay copies its inputs to where those were that it was captured with."""

    def capture(generator, given, **_):
        forward = generator.forward

        def replay(*inputs):
            for mine, x in zip(given, inputs, strict=True):
                mine.copy_(x)
            return forward(*given)

        generator.forward = replay

    monkeypatch.setattr(torch.cuda, "make_graphed_callables", capture)
    run = begin(only("windows", 400))
    pool, take = run.load(DrawnHere().pool(0)), torch.arange(2)
    window = run.window(pool, take, torch.zeros_like(take)[:, None] + run.frames, torch.zeros(2, 0, dtype=torch.long))
    run.device = SimpleNamespace(type="cuda")
    four, eight = (train.Schedule(steps).timesteps(0) for steps in (4, 8))
    before = [x.clone() for x in (window.answers, four)]
    run.predict(window, window.answers, four)
    run.predict(window, torch.zeros_like(window.answers), eight)
    assert all(map(torch.equal, before, (window.answers, four)))


@torch.no_grad()
def test_it_begins_with_giving_back_the_noise(monkeypatch: pytest.MonkeyPatch):
    """Nearly exactly: at the first level an error is one in the picture that is 66 times as large."""
    monkeypatch.setattr(train, "VAE", SMALL_VAE)
    generator, random = train.Generator(train.build()), torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=random)

    latents, timesteps = normal(1, 4, 16, 16, 16), train.Schedule().timesteps(0)
    noise = generator(normal(1, 3, 224, 224), normal(1, 1, 4, 16, 16), normal(1, 3, 16, 128, 128),
                      normal(1, 16, 32, 16), latents, timesteps)  # fmt: skip
    assert error(noise, latents) < 2e-3


@pytest.mark.quality
def test_single_pictures_go_on_from_what_was_made_of_them(begin):
    """From the portrait under noise down all levels, an eighth of them in eight steps; then others take their place.
    The four of a portrait go together, and most are spared the last level."""
    run = begin(only("single_pictures", 400, batch=8))
    pool = run.load(DrawnHere().pool(0))
    steps, ends, spared, last = torch.tensor([8, *[4] * 7]), 0, 0, 0
    for run.step in range(10):
        before = run.streams
        pictures = run._next_pictures(pool, torch.Generator().manual_seed(run.step), steps)
        for i in range(8):
            if before is None:
                assert 1 <= pictures.left[i] <= steps[i]
            elif before.left[i] == 0:
                ends += 1
                assert pictures.left[i] == steps[i]
                portrait = pool.latents[pictures.take[i], 0][:, None]
                noise = pictures.latents[i] - run.alphas[999].sqrt() * portrait
                assert noise.mean().abs() < 0.2 and 0.9 < noise.std() < 1.1
            else:
                assert pictures.left[i] == before.left[i] and torch.equal(pictures.latents[i], before.latents[i])
        levels = run._levels(steps, pictures.left)
        assert [level in train.Schedule(int(n)).ladder for n, level in zip(steps, levels, strict=True)] == [True] * 8
        run.single_pictures(pool, torch.Generator().manual_seed(run.step))
        is_spared = run.streams.left != pictures.left - 1
        assert (pictures.left[is_spared] == 2).all() and not run.streams.left[is_spared].any()
        spared, last = spared + is_spared.sum(), last + (pictures.left == 1).sum()
        assert not torch.equal(run.streams.latents, pictures.latents)
    assert ends > 8 and spared > 2 * last > 0


@pytest.mark.quality
@torch.no_grad()
def test_single_pictures_leave_out_only_what_does_nothing(begin):
    run, random = begin(only("single_pictures", 400)), torch.Generator().manual_seed(0)
    for kept, running in zip(run.optimizer.parameters, run.optimizer.running, strict=True):
        running.copy_(kept.add_(torch.randn(kept.shape, generator=random), alpha=0.02))
    pool, slots = run.load(DrawnHere().pool(0)), torch.arange(4).expand(2, -1)
    window = run.window(pool, torch.arange(2), slots, slots[:, :0])
    given = (window.portraits, window.references, window.keypoint_map, window.motion_tokens, window.answers)
    whole = train.Generator(run.networks)(*given, torch.full((4,), 333))
    assert error(run.predict(window, window.answers, torch.full((4,), 333)), whole) < 1e-5
    assert not any(".temporal_modules." in name for name, _ in run.running["denoising_unet"].named_parameters())


def parameters_of(*shapes: tuple[int, ...]) -> dict[str, torch.nn.Parameter]:
    random = torch.Generator().manual_seed(0)
    return {f"layer{i}": torch.nn.Parameter(torch.randn(shape, generator=random)) for i, shape in enumerate(shapes)}


def give_gradients(parameters: list[torch.nn.Parameter], step: int, scale: float = 1.0) -> None:
    random = torch.Generator().manual_seed(100 + step)
    for parameter in parameters:
        parameter.grad = scale * torch.randn(parameter.shape, generator=random)


def test_vectors_and_first_and_last_layers_learn_by_adamw_on_clipped_gradients():
    names = ("bias", "conv_in.weight", "other.bias", "conv_out.weight")
    ours, theirs = (
        dict(zip(names, parameters_of((3,), (5, 4), (3,), (2, 3, 3, 3)).values(), strict=True)) for _ in range(2)
    )
    optimizer = train.Optimizer(ours, list(ours.values()), scale=8.0)
    expected = torch.optim.AdamW(theirs.values(), lr=0.01, betas=(0.9, 0.99), weight_decay=0.01)
    averages = [parameter.detach().clone() for parameter in theirs.values()]
    for step in range(5):
        give_gradients(list(ours.values()), step, scale=8.0)
        give_gradients(list(theirs.values()), step)
        torch.nn.utils.clip_grad_norm_(theirs.values(), 1.0)
        optimizer.step(0.01)
        expected.step()
        for average, parameter in zip(averages, theirs.values(), strict=True):
            average.lerp_(parameter.detach(), 1 - (step + 2) / (step + 11))
    for name in ours:
        assert error(ours[name].data, theirs[name].data) < 1e-5
    optimizer.use_average()
    for average, parameter in zip(averages, ours.values(), strict=True):
        assert error(parameter.data, average) < 1e-5


def test_muon_learns_in_all_directions_alike():
    """The gradient has one direction a hundred times as strong as the others; the step has not."""
    left, right = (torch.linalg.qr(torch.randn(n, 8, generator=torch.Generator().manual_seed(n)))[0] for n in (8, 12))
    sizes = torch.tensor([100.0, *[1.0] * 7])
    parameters = parameters_of((8, 3, 2, 2))
    (weight,) = parameters.values()
    before = weight.data.clone()
    optimizer = train.Optimizer(parameters, [weight], scale=1.0)
    weight.grad = ((left * sizes) @ right.T).reshape(weight.shape)
    optimizer.step(0.01)
    change = (before * (1 - 0.1 * 0.01) - weight.data).flatten(1) / (0.6 * 0.01)
    assert 0.7 < change.square().mean().sqrt() < 1.1
    found = torch.linalg.svdvals(change)
    assert found.max() / found.min() < 2


def test_gradients_that_overflowed_count_as_none():
    parameters = parameters_of((3,), (5, 4))
    optimizer = train.Optimizer(parameters, list(parameters.values()), scale=1.0)
    before = {name: parameter.data.clone() for name, parameter in parameters.items()}
    give_gradients(list(parameters.values()), 0)
    parameters["layer0"].grad[1] = torch.inf
    optimizer.step(0.0)
    for name, parameter in parameters.items():
        assert torch.equal(parameter.data, before[name])
    give_gradients(list(parameters.values()), 1)
    optimizer.step(0.01)
    assert all(parameter.isfinite().all() for parameter in parameters.values())


@pytest.mark.quality
def test_streams_go_on_and_make_room_for_others(begin, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(train, "SHORTEST", 2)
    run = begin(only("windows", 400))
    pool, begun, begins = run.load(DrawnHere().pool(0)), [], 0
    random = torch.Generator().manual_seed(0)
    for run.step in range(12):
        before, streams = run.streams, run._next_streams(pool, random, run.schedule)
        for i in range(2):
            if before is None or before.left[i] == 0:
                begins += 1
                assert streams.start[i] == 0 and 1 <= streams.left[i] <= 4
            else:
                assert streams.start[i] == before.start[i] and torch.equal(streams.latents[i], before.latents[i])
        run.windows(pool, random)
        begun.append(run.streams.start.clone())
    assert begins > 2 and any((start > train.CHUNK).any() for start in begun)


@pytest.mark.quality
def test_in_every_fourth_pool_a_window_takes_two_passes(begin):
    run = begin(only("windows", 16, pools=4))
    pool, random, seen = run.load(DrawnHere().pool(0)), torch.Generator().manual_seed(0), []
    for run.step in range(8, 16):
        run.windows(pool, random)
        seen.append((int(run.streams.start[0]), run.streams.latents.shape[2]))
    assert seen == [(4, 12), (8, 12), (12, 12), (16, 12), (0, 16), (4, 12), (4, 16), (8, 12)]


@pytest.mark.quality
@pytest.mark.parametrize("stage", ["single_pictures", "windows"])
def test_it_goes_on_exactly_where_it_was(begin, stage: str):
    plan, drawing = only(stage, 4), DrawnHere()
    whole = begin(plan, "whole")
    whole.train(drawing, lambda: False, lambda text: None)

    first = begin(plan, "parts")
    first.train(drawing, steps(2), lambda text: None)
    assert first.step == 2
    second = begin(plan, "parts")
    for network in second.networks.values():
        for parameter in network.parameters():
            parameter.data.zero_()
    second.resume()
    second.train(drawing, lambda: False, lambda text: None)

    assert whole.is_done and second.is_done
    for name, network in whole.networks.items():
        for key, value in network.state_dict().items():
            assert torch.equal(value, second.networks[name].state_dict()[key]), f"{name}.{key}"


def test_what_it_writes_is_a_set_of_weights(tmp_path: Path):
    pytest.importorskip("diffusers", reason="the standalone pipeline needs diffusers")
    train.export(train.build(), tmp_path)
    weights = find_weights(tmp_path)
    assert weights.config == train.CONFIG
    pipeline = Pipeline.load(weights, "cpu")
    assert pipeline.decode(torch.zeros(1, 4, 2, 16, 16)).shape == (2, train.SIZE, train.SIZE, 3)
    assert sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()) < 12e6
