"""The whole way on a CPU in under a minute, with nothing downloaded: the miniature, whose small networks know drawn
faces, moves one character by another's performance. Where its weights are missing, untrained ones give texture."""

import logging
import math
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL
from einops import rearrange
from PIL import Image, ImageDraw
from torch import nn
from tqdm import tqdm
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from .config import ModelConfig, MotionEncoderConfig, MotionExtractorConfig, PoseGuiderConfig, UNetConfig
from .keypoints import crop_faces, draw_keypoint_map, retarget, transform_keypoints
from .seeded import COMPONENTS, seeded_state_dict
from .standalone import Pipeline, decoder_of
from .video import VideoWriter
from .weights import MINIATURE, SIZES_FILE, find_weights, meta_networks

log = logging.getLogger(__name__)

SIZE = 128
FRAMES = 24
FRAME_RATE = Fraction(12)
CHARACTER, DRIVER, PERFORMANCE = 12, 7, 8  # seeds that no training take has

TINY = ModelConfig(
    unet=UNetConfig(channels=(32, 64, 128, 128), image_embeds_width=24),
    motion_encoder=MotionEncoderConfig(stem_channels=32, channels=64, attention_width=128),
    motion_extractor=MotionExtractorConfig(depths=(1, 1, 2, 1), widths=(16, 32, 64, 128)),
    pose_guider=PoseGuiderConfig(channels=(8, 16, 24, 32), out_channels=32),
)


def tiny_pipeline() -> Pipeline:
    """Every network small and filled with seeded weights, float32 on the CPU."""
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(32,) * 4,
        latent_channels=4,
    )
    image_encoder = CLIPVisionModelWithProjection(
        CLIPVisionConfig(
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=224,
            patch_size=14,
            projection_dim=TINY.unet.image_embeds_width,
        )
    )
    networks: dict[str, Any] = {name: _filled(name, network) for name, network in meta_networks(TINY).items()}
    vae = _filled("vae", vae)
    return Pipeline(
        **networks,
        vae=vae,
        decoder=decoder_of(vae),
        image_encoder=_filled("image_encoder", image_encoder),
        device=torch.device("cpu"),
    )


def _filled(name: str, network: nn.Module) -> nn.Module:
    network.load_state_dict(seeded_state_dict(COMPONENTS.get(name, name), network), assign=True)
    return network.eval().requires_grad_(False)


def draw_face(yaw: float = 0.0, mouth: float = 0.0, hair: str = "#5a3825", shirt: str = "#3f6f8f") -> np.ndarray:
    """A face, uint8 (256, 256, 3); yaw -1 (left) to 1 (right), mouth 0 (closed) to 1 (open)."""
    scale, shift = 3, yaw * 14  # drawn larger, then made smaller: smooth edges
    image = Image.new("RGB", (256 * scale, 256 * scale), "#cfd8dc")
    draw = ImageDraw.Draw(image)

    def ellipse(x: float, y: float, width: float, height: float, colour: str) -> None:
        draw.ellipse([scale * v for v in (x - width, y - height, x + width, y + height)], fill=colour)

    ellipse(128, 275, 95, 75, shirt)
    ellipse(128, 205, 26, 30, "#d9a583")
    ellipse(128 + shift * 0.3, 100, 72, 78, hair)
    ellipse(128 + shift * 0.6, 120, 58, 74, "#e8b998")
    ellipse(128 + shift * 0.5, 62, 58, 26, hair)
    for side in (-1, 1):
        x = 128 + shift + 24 * side
        ellipse(x, 112, 11, 7.5, "#ffffff")
        ellipse(x + yaw * 4, 112, 5.5, 5.5, "#3b2a20")
        ellipse(x, 97, 12, 2.5, hair)
    ellipse(128 + shift * 1.4, 138, 6, 9, "#d9a080")
    ellipse(128 + shift, 165, 17, 3 + 11 * mouth, "#9c4444")
    return np.asarray(image.resize((256, 256), Image.Resampling.LANCZOS))


def driving_clip() -> list[np.ndarray]:
    """Another face that turns left and right and opens its mouth."""
    phases = [2 * math.pi * i / FRAMES for i in range(FRAMES)]
    return [draw_face(math.sin(p), (1 - math.cos(2 * p)) / 2, hair="#c9a227", shirt="#7d4f50") for p in phases]


def run_demo(output: Path) -> None:
    """Write the video to `output` and a picture of how it came about beside it (`.png`)."""
    if (MINIATURE / SIZES_FILE).is_file():
        _run_miniature(output)
    else:
        _run_untrained(output)


def _run_miniature(output: Path, weights: Path = MINIATURE) -> None:
    """The sheet's rows: the portrait (first) and the driver, the result, the right answer, which is drawn."""
    from . import drawn  # needs OpenCV

    character, driver = drawn.random_character(CHARACTER), drawn.random_character(DRIVER)
    portrait_pose, poses = drawn.Pose(smile=0.3), drawn.perform(PERFORMANCE, FRAMES, float(FRAME_RATE))
    portrait = drawn.draw(character, portrait_pose, SIZE)
    driving = [drawn.draw(driver, pose, SIZE) for pose in poses]
    answers = [drawn.draw(character, drawn.right_answer(portrait_pose, pose, poses[0]), SIZE) for pose in poses]
    pipeline = Pipeline.load(find_weights(weights), "cpu")
    results = []
    with VideoWriter(output, SIZE, SIZE, FRAME_RATE) as video, tqdm(total=FRAMES, unit="frame") as bar:
        for chunk in pipeline.animate(pipeline.encode_reference(portrait), driving):
            for pixels in chunk:
                video.write(pixels, len(results) / FRAME_RATE)
                results.append(pixels)
                bar.update()
    shown = range(0, FRAMES, FRAMES // 8)
    blank = np.full_like(portrait, 255)
    rows = [[left, *(row[i] for i in shown)] for left, row in ((portrait, driving), (blank, results), (blank, answers))]
    sheet = output.with_suffix(".png")
    Image.fromarray(drawn.contact_sheet(rows)).save(sheet)
    print(f"{output}: {len(results)} frames of {SIZE} x {SIZE}; {sheet}: portrait and driver, result, right answer.")
    print("This is the miniature, which knows drawn faces alone: `download` has the weights for real ones.")


def _run_untrained(output: Path) -> None:
    driving = driving_clip()
    strip = output.with_suffix(".png")
    pipeline = tiny_pipeline()
    portrait = np.asarray(Image.fromarray(draw_face()).resize((SIZE, SIZE), Image.Resampling.LANCZOS))
    reference = pipeline.encode_reference(portrait)
    with VideoWriter(output, SIZE, SIZE, FRAME_RATE) as video:
        animated = []
        for chunk in pipeline.animate(reference, driving):
            for pixels in chunk:
                video.write(pixels, len(animated) / FRAME_RATE)
                animated.append(pixels)
    _draw_stages(pipeline, reference, portrait, driving, animated).save(strip)
    print(f"{output}: {len(animated)} frames of {SIZE} x {SIZE}; {strip}: portrait, driving, keypoints, face, result.")
    print("The networks are small and untrained, so the result is texture, not a likeness: `download` has the weights.")


def _draw_stages(pipeline, reference, portrait, driving, animated) -> Image.Image:
    """Rows: driving frames, keypoint maps, face crops, results; the portrait stands at the left."""
    shown = list(range(0, FRAMES, FRAMES // 6))
    frames = np.stack([driving[i] for i in shown])
    motion = pipeline.extract_motion(frames)
    poses = retarget(reference.motion.pose, motion.pose, motion.pose[:1])
    keypoint_map = draw_keypoint_map(transform_keypoints(poses), SIZE, SIZE)[0]
    pixels = torch.from_numpy(frames).permute(0, 3, 1, 2) / 255
    faces = crop_faces(pixels, motion.boxes, SIZE) / 2 + 0.5
    rows: list[Iterable[np.ndarray]] = [
        [np.asarray(Image.fromarray(frame).resize((SIZE, SIZE))) for frame in frames],
        (rearrange(keypoint_map, "c f h w -> f h w c") * 255).byte().numpy(),
        (rearrange(faces, "f c h w -> f h w c") * 255).byte().numpy(),
        [animated[i] for i in shown],
    ]
    sheet = Image.new("RGB", (SIZE * (len(shown) + 1), SIZE * len(rows)), "white")
    sheet.paste(Image.fromarray(portrait), (0, 0))
    for y, row in enumerate(rows):
        for x, tile in enumerate(row):
            sheet.paste(Image.fromarray(np.ascontiguousarray(tile)), (SIZE * (x + 1), SIZE * y))
    return sheet
