"""The streaming loop: takes driving motion as it comes, and yields finished latents three windows later."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from ..config import CHUNK, PIXELS_PER_LATENT, WARM_UP, WINDOW
from ..device import to_device
from ..errors import InputError
from ..motion.keypoints import draw_keypoint_map, transform_keypoints, warm_up_poses
from ..motion.motion import Motion
from ..motion.performance import PUBLISHED, Strength, retarget_motion
from ..networks.head_pose import HeadPose
from ..networks.pose_guider import PoseGuider
from ..networks.reference_unet import ReferenceFeatures
from ..tensor_file import write_safetensors
from .keyframes import FIRST_WINDOW, KeyframeBank, KeyframeSettings, keyframe_windows
from .reference import Reference
from .window import DenoisedWindow, Denoiser

FLUSH = WARM_UP  # frames that push the last driving frames out
LEAD = 8  # frames that settle before the first one that counts, where a stream begins in the middle


@dataclass
class StreamState:
    """All that changes from window to window. `Stream.start` makes it, and every later call takes it."""

    generator: torch.Generator
    neutral: Motion  # the driver's motion that counts as normal, one frame
    latents: Tensor  # (1, 4, 12, h, w), scaled, float32, oldest first
    motion_tokens: Tensor  # (12, 32, 16) in float32, on the CPU
    pose_features: Tensor  # (1, 320, 12, h, w) in the network's dtype
    bank: KeyframeBank
    keyframes: list[ReferenceFeatures]
    recent: Motion  # of the last driving frames, at most 16
    frames: int = 0  # driving frames taken in
    window: int = 0  # windows done
    early: Tensor | None = None  # of the last window, see `DenoisedWindow`; no file has it

    def save(self, path: Path) -> None:
        """Writes a file for `Stream.resume`."""
        write_safetensors(self.tensors(), path)

    def tensors(self) -> dict[str, Tensor]:
        """What `save` writes, on the CPU: everything that the next window needs."""
        tensors = {
            "generator": self.generator.get_state(),
            "latents": self.latents,
            "motion_tokens": self.motion_tokens,
            "pose_features": self.pose_features,
            "bank": self.bank.tokens,
            "counts": torch.tensor([self.frames, self.window, len(self.keyframes)]),
        }
        for name, motion in (("neutral", self.neutral), ("recent", self.recent)):
            tensors |= {f"{name}.{key}": value for key, value in motion.tensors().items()}
        for i, features in enumerate(self.keyframes):
            tensors |= {f"keyframes.{i}.{key}": value for key, value in features.items()}
        return {key: value.cpu().contiguous() for key, value in tensors.items()}


def reflected(index: int, frames: int) -> int:
    """The frame at `index` when a clip of `frames` frames plays forwards and backwards in turn."""
    if frames == 1:
        return 0
    index %= 2 * frames - 2
    return min(index, 2 * frames - 2 - index)


def lead_windows(keyframes: Sequence[int], window: int) -> Iterator[range]:
    """The windows that `Stream.start_at` runs before the one that it begins with.

    Args:
        keyframes: Windows that are run to sample a keyframe, as `keyframe_windows` finds them.
        window: The one that it begins with.

    Yields:
        Those up to each keyframe's, and those before `window`. What lies between them is not run, if it saves any.
    """
    done = 0
    for lead, stop in [*((keyframe, keyframe + 1) for keyframe in keyframes), (window, window)]:
        begin = lead - (WARM_UP + LEAD) // CHUNK
        yield range(begin if begin - done >= WARM_UP // CHUNK else done, stop)
        done = stop


class Stream:
    """Animates one reference with one set of settings. Each driving video has its own `StreamState`.

    Args:
        reference: The portrait.
        denoiser: Denoises the windows; made for at least as many keyframes as `keyframes` allows.
        reference_unet: Called with latents (1, 4, h, w) and image embeds (1, 1, 768), for each new keyframe.
        pose_guider: On the device.
        keyframes: When a frame becomes a keyframe.
        device: Where the networks run.
        strength: How strongly each part of the driver's motion is passed on.

    Raises:
        InputError: A setting makes no sense.
    """

    def __init__(
        self,
        reference: Reference,
        *,
        denoiser: Denoiser,
        reference_unet: Callable[[Tensor, Tensor], ReferenceFeatures],
        pose_guider: PoseGuider,
        keyframes: KeyframeSettings,
        device: torch.device | str,
        strength: Strength = PUBLISHED,
    ):
        keyframes.check()
        strength.check()
        self.strength, self.keyframes = strength, keyframes
        self.denoiser, self.reference_unet, self.pose_guider = denoiser, reference_unet, pose_guider
        self.schedule = denoiser.schedule
        self.device, self.dtype = torch.device(device), denoiser.denoising_unet.get_dtype()
        self.latents = reference.latents.to(self.device)
        self.image_embeds = self._to_network(reference.image_embeds)
        self.motion = reference.motion
        self.features = {path: self._to_network(value) for path, value in reference.features.items()}

    def with_reference(self, reference: Reference) -> "Stream":
        """A stream of another portrait with these networks and settings. It captures no CUDA graph again."""
        return Stream(
            reference,
            denoiser=self.denoiser,
            reference_unet=self.reference_unet,
            pose_guider=self.pose_guider,
            keyframes=self.keyframes,
            device=self.device,
            strength=self.strength,
        )

    def prepare(self) -> None:
        """Captures the CUDA graphs for every number of keyframes, so that no frame has to wait for one."""
        if not self.denoiser.capture:
            return
        state, limit = self.start(self.motion, seed=0), self.keyframes.limit
        window = self._window(state, self.motion[[0] * CHUNK])
        for keyframes in (0, *range(limit, -1, -1)):  # the first call captures nothing
            state.keyframes = [self.features] * keyframes
            self._denoise(state, *window)

    def start(self, first: Motion, seed: int, neutral: Motion | None = None) -> StreamState:
        """Fills the window with three warm-up chunks, moving from the portrait to the first driving frame.

        Args:
            first: Motion whose first frame is the first driving frame.
            seed: Of the noise: any integer, of which PyTorch's generator uses the lowest 32 bits.
            neutral: The driver's motion that counts as normal, one frame; None takes that of `first`, as published.
        """
        generator = torch.Generator().manual_seed(seed % 2**64)
        neutral = first[:1] if neutral is None else neutral
        recent = first[:0]
        first = retarget_motion(self.motion, first[:1], neutral, self.strength)
        weights = torch.arange(WARM_UP)[:, None, None] / WARM_UP
        return StreamState(
            generator=generator,
            neutral=neutral,
            latents=self._noised(self._noise(generator, WARM_UP), self.schedule.warm_up_timesteps(self.device)),
            motion_tokens=torch.lerp(self.motion.tokens, first.tokens, weights),
            pose_features=self._pose_features(warm_up_poses(self.motion.pose, first.pose)),
            bank=KeyframeBank(self.motion.tokens),
            keyframes=[],
            recent=recent,
        )

    def start_at(self, frame: int, motion: Motion, seed: int, neutral: Motion | None = None) -> StreamState:
        """Begins in the middle, so that the next window finishes the chunk from `frame` on.

        Every frame gets the noise and the motion that it has in a whole stream. `LEAD` frames settle first, and so they
        do before each keyframe that was found by then, which is sampled again. Without a leap the result is exact.

        Args:
            frame: A multiple of 4.
            motion: The driver's from the beginning to 12 frames past `frame` or further.
            seed: As `start` takes it.
            neutral: Likewise.

        Returns:
            A state that has taken in the frames up to 12 past `frame`.
        """
        state, end = self.start(motion, seed, neutral), (frame + WARM_UP) // CHUNK
        tokens = self._retargeted(state, motion[::CHUNK]).tokens
        keyframes = keyframe_windows(self.keyframes, self.motion.tokens, tokens, end)[-1]
        for windows in lead_windows(keyframes, end):
            if windows.start > state.window:
                self._leap(windows.start, state, motion, tokens)
            for _ in self.push(state, motion[state.frames : CHUNK * windows.stop]):
                pass
        return state

    def _leap(self, window: int, state: StreamState, motion: Motion, tokens: Tensor) -> None:
        """Goes on at a later window: its frames begin anew, and all else is as if those between had been run."""
        noise = deque[Tensor](maxlen=WARM_UP // CHUNK)
        while state.window < window:
            self._bank(state, tokens[state.window - WARM_UP // CHUNK])
            noise.append(self._noise(state.generator, CHUNK))
            state.window += 1
        state.frames = CHUNK * window
        state.recent = motion[max(0, state.frames - WINDOW) : state.frames]
        inside = self._retargeted(state, state.recent[-WARM_UP:])
        state.latents = self._noised(torch.cat([*noise], dim=2), self.schedule.warm_up_timesteps(self.device))
        state.motion_tokens, state.pose_features = inside.tokens, self._pose_features(inside.pose)

    def resume(self, path: Path) -> StreamState:
        """Reads what `StreamState.save` wrote, for the same reference and settings.

        Raises:
            InputError: It was saved with another portrait or size.
        """
        # Copied, because on a CPU the last bit of a result depends on a tensor's alignment, which varies in a file.
        saved = {key: value.clone() for key, value in load_file(path).items()}
        if not torch.equal(saved["bank"][:1], self.motion.tokens):
            raise InputError(f"{path} was saved with another portrait: resume it with its own.")
        if saved["latents"].shape[-2:] != self.latents.shape[-2:]:
            height, width = (PIXELS_PER_LATENT * side for side in saved["latents"].shape[-2:])
            raise InputError(f"{path} was saved at {width} x {height}: encode the reference at that size.")

        def group(prefix: str) -> dict[str, Tensor]:
            return {key.removeprefix(prefix): value for key, value in saved.items() if key.startswith(prefix)}

        frames, window, keyframes = saved["counts"].tolist()
        generator = torch.Generator()
        generator.set_state(saved["generator"])
        return StreamState(
            generator=generator,
            neutral=Motion.of_tensors(group("neutral.")),
            latents=saved["latents"].to(self.device),
            motion_tokens=saved["motion_tokens"],
            pose_features=self._to_network(saved["pose_features"]),
            bank=KeyframeBank(saved["bank"]),
            keyframes=[
                {path: self._to_network(x) for path, x in group(f"keyframes.{i}.").items()} for i in range(keyframes)
            ],
            recent=Motion.of_tensors(group("recent.")),
            frames=frames,
            window=window,
        )

    def push(self, state: StreamState, motion: Motion) -> Iterator[Tensor]:
        """Takes in any number of driving frames, and runs a window for every four of them.

        Frames that do not fill a chunk wait for the next call.

        Yields:
            The finished frames of each window: scaled latents (1, 4, F, h, w) in float32. F is 4, or 0 in the first
            three windows, which finish only warm-up frames.
        """
        while len(motion):
            count = CHUNK - state.frames % CHUNK
            state.recent = Motion.cat([state.recent, motion[:count]])[-WINDOW:]
            state.frames += len(motion[:count])
            motion = motion[count:]
            if state.frames % CHUNK == 0:
                yield self._driven(state, self.step(state, state.recent[-CHUNK:]))

    def flush(self, state: StreamState) -> Iterator[Tensor]:
        """Finishes the frames that are still inside after the last driving frame; the state is of no use afterwards.

        The motion that pushes them out is the driving video's, played backwards.

        Yields:
            As `push`; F is below 4 in the last window if the driving frames do not fill a chunk.
        """
        frames = state.frames
        begun = state.recent[len(state.recent) - frames % CHUNK :]
        known = frames - len(state.recent)  # the driving index of the oldest that is still known
        total = -(-frames // CHUNK) * CHUNK + FLUSH
        filling = state.recent[[reflected(j, frames) - known for j in range(frames, total)]]
        rest = Motion.cat([begun, filling])
        while len(rest):
            yield self._driven(state, self.step(state, rest[:CHUNK]))
            rest = rest[CHUNK:]

    def step(self, state: StreamState, motion: Motion) -> Tensor:
        """Runs one window with the motion of four new frames.

        Returns:
            The finished oldest chunk, scaled latents (1, 4, 4, h, w). In the first three windows these are warm-up
            frames, which a live stream may show.
        """
        latents, motion_tokens, pose_features = self._window(state, motion)
        is_new = self._bank(state, motion_tokens[0])
        denoised = self._denoise(state, latents, motion_tokens, pose_features)
        latents, state.early = denoised.latents, denoised.early

        if is_new and len(state.keyframes) < self.keyframes.limit:
            oldest = self._to_network(latents[:, :, 0])
            state.keyframes.append(self.reference_unet(oldest, self.image_embeds))

        state.latents = latents[:, :, CHUNK:]
        state.motion_tokens = motion_tokens[CHUNK:]
        state.pose_features = pose_features[:, :, CHUNK:]
        state.window += 1
        return latents[:, :, :CHUNK]

    def _driven(self, state: StreamState, chunk: Tensor) -> Tensor:
        """Of the last window's finished chunk, the driving frames, without warm-up and reflected ones."""
        first = CHUNK * (state.window - 1) - WARM_UP
        return chunk[:, :, max(0, -first) : max(0, state.frames - first)]

    def _bank(self, state: StreamState, oldest: Tensor) -> bool:
        """Before a window: returns to the portrait if that is due, and banks the motion tokens of the window's oldest
        frame; whether they are new."""
        if self.keyframes.returns(state.window):
            state.bank, state.keyframes = KeyframeBank(self.motion.tokens), [self.features]
        return state.window >= FIRST_WINDOW and state.bank.admit(oldest, self.keyframes.threshold)

    def _window(self, state: StreamState, motion: Motion) -> tuple[Tensor, Tensor, Tensor]:
        """Latents (1, 4, 16, h, w), motion tokens (16, 32, 16) and pose features (1, 320, 16, h, w) with the motion of
        four new frames."""
        newest = self._noised(self._noise(state.generator, CHUNK), self.schedule.timesteps(0, self.device)[-CHUNK:])
        motion = self._retargeted(state, motion)
        return (
            torch.cat([state.latents, newest], dim=2),
            torch.cat([state.motion_tokens, motion.tokens]),
            torch.cat([state.pose_features, self._pose_features(motion.pose)], dim=2),
        )

    def _denoise(
        self, state: StreamState, latents: Tensor, motion_tokens: Tensor, pose_features: Tensor
    ) -> DenoisedWindow:
        references = [self.features, *state.keyframes]
        tokens = self._to_network(motion_tokens[None])
        return self.denoiser(self.image_embeds, references, latents, tokens, pose_features)

    def _retargeted(self, state: StreamState, motion: Motion) -> Motion:
        return retarget_motion(self.motion, motion, state.neutral, self.strength)

    def _noise(self, generator: torch.Generator, frames: int) -> Tensor:
        """The next (1, 4, F, h, w): drawn in the same order on every device, so that each frame has its own."""
        _, channels, height, width = self.latents.shape
        return torch.randn((1, channels, frames, height, width), generator=generator)

    def _noised(self, noise: Tensor, timesteps: Tensor) -> Tensor:
        """The reference latents at F noise levels, (1, 4, F, h, w)."""
        return self.schedule.add_noise(self.latents[:, :, None], to_device(noise, self.device), timesteps)

    def _pose_features(self, poses: HeadPose) -> Tensor:
        """F head poses -> (1, 320, F, h, w)."""
        height, width = (PIXELS_PER_LATENT * side for side in self.latents.shape[-2:])
        keypoint_map = draw_keypoint_map(to_device(transform_keypoints(poses), self.device), height, width)
        return self.pose_guider(self._to_network(keypoint_map))

    def _to_network(self, x: Tensor) -> Tensor:
        return to_device(x, self.device, self.dtype)
