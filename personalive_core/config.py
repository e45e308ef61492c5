"""The published sizes (arXiv 2512.11253 and its checkpoints), one frozen dataclass a network."""

import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from .errors import InputError
from .files import read_json
from .limits import NETWORK_DEPTH, NETWORK_WIDTH

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
        given = read_json(path)
        try:
            networks: dict[str, Any] = {f.name: f.default_factory for f in fields(cls)}
            config = cls(**{name: networks[name](**_tuples(sizes)) for name, sizes in given.items()})
            config._check()
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise InputError(
                f"{path} does not hold the sizes of a model ({error}): remove it or write it anew."
            ) from error
        return config

    def _check(self) -> None:
        """ValueError where a size is none, or sizes do not go together."""
        for network, published in ((getattr(self, name), default) for name, default in vars(ModelConfig()).items()):
            for name, usual in vars(published).items():
                value, most = getattr(network, name), NETWORK_DEPTH if name in _DEPTHS else NETWORK_WIDTH
                sizes = value if isinstance(usual, tuple) else (value,)
                is_size = isinstance(sizes, tuple) and all(type(size) is int and 1 <= size <= most for size in sizes)
                if not is_size or not 1 <= len(sizes) <= NETWORK_DEPTH:
                    raise ValueError(f"{name} is {value!r:.40}, and sizes are from 1 to {most}")
        unet, encoder, extractor = self.unet, self.motion_encoder, self.motion_extractor
        head = encoder.tokens, encoder.token_width, unet.motion_token_width, extractor.keypoints
        rules = {
            "the UNets' channels must be multiples of their heads and norm groups": all(
                channels % parts == 0 for channels in unet.channels for parts in (unet.heads, unet.norm_groups)
            ),
            "the motion encoder's channels must be a multiple of 8 and of twice its norm groups": (
                encoder.channels % 8 == encoder.channels % (2 * encoder.norm_groups) == 0
            ),
            "the motion encoder's attention width must be a multiple of 16 and of its heads": (
                encoder.attention_width % 16 == encoder.attention_width % encoder.heads == 0
            ),
            "the motion encoder's picture must be a multiple of 32 and large enough for its hourglass": (
                encoder.image_size % 32 == 0 and encoder.image_size >= 4 << encoder.hourglass_depth
            ),
            "motion must be 32 tokens of width 16 and 21 keypoints": head == (32, 16, 16, 21),
            "the motion extractor must have four levels and a picture that is a multiple of 32": (
                extractor.image_size % 32 == 0 and len(extractor.widths) == len(extractor.depths) == 4
            ),
            "the pose guider must end at the UNet's first channels": self.pose_guider.out_channels == unet.channels[0],
        }
        for rule, holds in rules.items():
            if not holds:
                raise ValueError(rule)


_DEPTHS = ("layers", "heads", "depths", "hourglass_depth")  # counts of what is built, others are widths


def _tuples(sizes: dict) -> dict:
    """JSON has lists only; frozen sizes are tuples."""
    return {key: tuple(value) if isinstance(value, list) else value for key, value in sizes.items()}
