"""The published sizes (arXiv 2512.11253 and its checkpoints), one frozen dataclass a network."""

import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from .errors import InputError

CHUNK = 4  # frames at one noise level
WINDOW = 16  # frames the denoising UNet sees at once: four chunks
WARM_UP = 12  # frames before the first driving frame: three chunks
LATENT_SCALE = 0.18215  # Stable Diffusion 1.x: latents = VAE posterior mean x this
PIXELS_PER_LATENT = 8
MIN_SIDE, MAX_SIDE = 128, 2048  # pixels of the result: width and height are multiples of PIXELS_PER_LATENT


@dataclass(frozen=True)
class UNetConfig:
    """Stable Diffusion 1.x UNet, shared by the reference UNet and the denoising UNet."""

    latent_channels: int = 4
    channels: tuple[int, ...] = (320, 640, 1280, 1280)  # one level each; the last has no transformer
    layers: int = 2  # a level on the way down; one more on the way up
    heads: int = 8
    norm_groups: int = 32
    image_embeds_width: int = 768
    motion_token_width: int = 16

    @property
    def time_embedding_width(self) -> int:
        return 4 * self.channels[0]


@dataclass(frozen=True)
class MotionEncoderConfig:
    """Hourglass face network: a 224 px face crop becomes 32 motion tokens of width 16."""

    image_size: int = 224
    stem_channels: int = 64
    channels: int = 256  # the hourglass; conv2 and conv3 have half
    hourglass_depth: int = 4
    attention_width: int = 1024
    heads: int = 8
    norm_groups: int = 32
    landmarks: int = 68
    tokens: int = 32
    token_width: int = 16


@dataclass(frozen=True)
class MotionExtractorConfig:
    """ConvNeXtV2-tiny: a 256 px frame becomes a head pose and 21 canonical 3D keypoints."""

    image_size: int = 256
    depths: tuple[int, ...] = (3, 3, 9, 3)
    widths: tuple[int, ...] = (96, 192, 384, 768)
    keypoints: int = 21
    angle_bins: int = 66


@dataclass(frozen=True)
class PoseGuiderConfig:
    """Convolutions from the keypoint map to the first channel count of the denoising UNet."""

    channels: tuple[int, ...] = (16, 32, 96, 256)
    out_channels: int = 320


@dataclass(frozen=True)
class ModelConfig:
    """The five networks of one model; the defaults are the published ones."""

    unet: UNetConfig = field(default_factory=UNetConfig)
    motion_encoder: MotionEncoderConfig = field(default_factory=MotionEncoderConfig)
    motion_extractor: MotionExtractorConfig = field(default_factory=MotionExtractorConfig)
    pose_guider: PoseGuiderConfig = field(default_factory=PoseGuiderConfig)

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self), indent=1))

    @classmethod
    def read(cls, path: Path) -> "ModelConfig":
        """What `write` wrote; anything the file leaves out has its published size. InputError if it is not that."""
        try:
            given = json.loads(path.read_text())
            networks: dict[str, Any] = {f.name: f.default_factory for f in fields(cls)}
            return cls(**{name: networks[name](**_tuples(sizes)) for name, sizes in given.items()})
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise InputError(
                f"{path} does not hold the sizes of a model ({error}): remove it or write it anew."
            ) from error


def _tuples(sizes: dict) -> dict:
    """JSON has lists only; frozen sizes are tuples."""
    return {key: tuple(value) if isinstance(value, list) else value for key, value in sizes.items()}
