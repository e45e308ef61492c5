"""Adjust Motion: how much of the driver the portrait takes, and in which frames, how fast, how often."""

from fractions import Fraction

from comfy_api.latest import io

from ..personalive_core.motion.performance import Strength, loop_order, nearest_frames
from .motion import MotionType, NodeMotion
from .reference import NodeReference, ReferenceType


def _strength(name: str, default: float, tooltip: str) -> io.Float.Input:
    return io.Float.Input(name, default=default, min=0.0, max=3.0, step=0.05, tooltip=tooltip)


class AdjustMotion(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PersonaLiveAdjustMotion",
            display_name="Adjust Motion",
            category="PersonaLive",
            description="How much of the driver's motion the portrait takes; smoothing, trimming, rate and loops.",
            inputs=[
                MotionType.Input("motion", tooltip="From Extract Motion or Load Motion."),
                _strength("expression", 1.0, "The face: 0 is the portrait's own expression, 1 the driver's."),
                _strength("rotation", 1.0, "Turns of the head: 0 is the portrait's own, 1 the driver's."),
                _strength("shift", 1.0, "Movement of the head in the picture: 0 is none, 1 as the model has it."),
                _strength("scale", 0.0, "Nearer and further: 0 is the portrait's own size, as the model has it."),
                io.Boolean.Input(
                    "relative",
                    default=False,
                    tooltip="Expression and rotation are the portrait's own plus the driver's change since the neutral "
                    "frame.",
                ),
                io.Int.Input(
                    "neutral_frame",
                    default=-1,
                    min=-1,
                    max=10_000_000,
                    tooltip="The frame, after trimming, in which the driver counts as neutral. -1 is the first, or the "
                    "one chosen before.",
                ),
                io.Float.Input(
                    "smoothing",
                    default=0.0,
                    min=0.0,
                    max=100.0,
                    step=0.5,
                    tooltip="Calm a trembling head: average over about so many frames, without lag. 0 is off.",
                ),
                io.Int.Input("start", default=0, min=0, max=10_000_000, tooltip="Frames to cut off at the beginning."),
                io.Int.Input("count", default=0, min=0, max=10_000_000, tooltip="Frames to use at most; 0 is all."),
                io.Float.Input(
                    "frame_rate",
                    default=0.0,
                    min=0.0,
                    max=240.0,
                    step=0.01,
                    tooltip="Frames per second of the result, which stays as long as it is; 0 keeps the motion's own.",
                ),
                io.Int.Input("loop", default=1, min=1, max=10_000, tooltip="How many times to play it."),
                io.Boolean.Input("back_and_forth", default=False, tooltip="Play it backwards every second time."),
                ReferenceType.Input(
                    "reference",
                    optional=True,
                    tooltip="From Encode Reference: another portrait, which shall move in place of the motion's own.",
                ),
                io.Audio.Input("audio", optional=True, tooltip="From Extract Motion: is trimmed with the motion."),
            ],
            outputs=[
                MotionType.Output(display_name="motion"),
                io.Float.Output(display_name="frame_rate"),
                io.Audio.Output(display_name="audio"),
            ],
        )

    @classmethod
    def execute(
        cls,
        motion: NodeMotion,
        expression: float,
        rotation: float,
        shift: float,
        scale: float,
        relative: bool,
        neutral_frame: int,
        smoothing: float,
        start: int,
        count: int,
        frame_rate: float,
        loop: int,
        back_and_forth: bool,
        reference: NodeReference | None = None,
        audio: dict | None = None,
    ) -> io.NodeOutput:
        before = motion.performance
        performance = before.adjusted(
            Strength(expression, rotation, shift, scale, relative),
            start=start,
            count=count,
            neutral=None if neutral_frame < 0 else neutral_frame,
            smoothing=smoothing,
            frame_rate=Fraction(frame_rate).limit_denominator(1001) if frame_rate else None,
            times=loop,
            back_and_forth=back_and_forth,
        )
        seen = motion.seen[start : start + count if count else None]
        if seen:
            used = len(seen)
            nearest = nearest_frames(used, before.frame_rate, performance.frame_rate)
            seen = [seen[nearest[i]] for i in loop_order(len(nearest), loop, back_and_forth)]
        if audio is not None:
            audio = _trimmed(audio, start / before.frame_rate, len(performance.motion) / performance.frame_rate, loop)
        portrait = reference.reference.motion if reference else motion.portrait
        return io.NodeOutput(NodeMotion(performance, portrait, seen), float(performance.frame_rate), audio)


def _trimmed(audio: dict, begin: Fraction, length: Fraction, loop: int) -> dict | None:
    """A loop has no sound."""
    if loop > 1:
        return None
    rate = audio["sample_rate"]
    return {
        "waveform": audio["waveform"][..., round(begin * rate) : round((begin + length) * rate)],
        "sample_rate": rate,
    }
