"""Adjust Motion: how much of the driver the portrait takes, and in which frames, how fast, how often."""

from comfy_api.latest import io

from ..personalive_core.media.audio import trim_audio
from ..personalive_core.motion.performance import (
    MAX_FRAME_RATE,
    MAX_LOOP,
    MAX_SMOOTHING,
    MAX_STRENGTH,
    Adjustment,
    Strength,
)
from . import compat
from .driving import to_rate
from .motion import MotionType, NodeMotion
from .reference import NodeReference, ReferenceType
from .say import say


def _strength(name: str, default: float, tooltip: str) -> io.Float.Input:
    return io.Float.Input(name, default=default, min=0.0, max=MAX_STRENGTH, step=0.05, tooltip=tooltip)


def strength_inputs() -> list[io.Input]:
    """The fields of `Strength`."""
    return [
        _strength("expression", 1.0, "The face: 0 is the portrait's own expression, 1 leaves it as it is."),
        _strength("rotation", 1.0, "Turns of the head: 0 is the portrait's own pose, 1 leaves them alone."),
        _strength("translation", 1.0, "Movement of the head in the picture: 0 is none, 1 leaves it as it is."),
        _strength("scale", 0.0, "Nearer and further: 0 keeps the portrait's own size, as the model does."),
        io.Boolean.Input(
            "relative",
            default=False,
            tooltip="Expression and rotation are the portrait's own plus the driver's change since the neutral frame.",
        ),
    ]


class AdjustMotion(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PersonaLiveAdjustMotion",
            display_name="PersonaLive Adjust Motion",
            category="PersonaLive",
            **compat.search_aliases(
                "expression strength, motion strength, retarget, smooth motion, head movement, loop motion"
            ),
            description="How much of the driver's motion the portrait takes; smoothing, trimming, rate and loops. A "
            "second one acts on what the first one made of it.",
            inputs=[
                MotionType.Input("motion", tooltip="From Extract Motion or Load Motion."),
                *strength_inputs(),
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
                    max=MAX_SMOOTHING,
                    step=0.5,
                    tooltip="Calm a trembling head: average over about so many frames, without lag. 0 is off.",
                ),
                io.Int.Input("start", default=0, min=0, max=10_000_000, tooltip="Frames to cut off at the beginning."),
                io.Int.Input("count", default=0, min=0, max=10_000_000, tooltip="Frames to use at most; 0 is all."),
                io.Float.Input(
                    "frame_rate",
                    default=0.0,
                    min=0.0,
                    max=MAX_FRAME_RATE,
                    step=0.01,
                    tooltip="Frames per second of the result, which stays as long as it is; 0 keeps the motion's own.",
                ),
                io.Int.Input("loop", default=1, min=1, max=MAX_LOOP, tooltip="How many times to play it."),
                io.Boolean.Input("back_and_forth", default=False, tooltip="Play it backwards every second time."),
                ReferenceType.Input(
                    "reference",
                    optional=True,
                    tooltip="From Encode Reference: another portrait, which moves in place of the motion's own.",
                ),
                io.Audio.Input(
                    "audio", optional=True, tooltip="The sound from Extract Motion, to be trimmed with the motion."
                ),
            ],
            outputs=[
                MotionType.Output(
                    display_name="motion",
                    tooltip="The adjusted motion, for Sample, Save Motion or another Adjust Motion.",
                ),
                io.Float.Output(
                    display_name="frame_rate", tooltip="Frames per second of the adjusted motion, for Assemble Video."
                ),
                io.Audio.Output(
                    display_name="audio", tooltip="The sound, trimmed with the motion; none if the motion is looped."
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        motion: NodeMotion,
        expression: float,
        rotation: float,
        translation: float,
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
        adjustment = Adjustment(
            Strength(expression, rotation, translation, scale, relative),
            start=start,
            count=count,
            smoothing=smoothing,
            neutral=None if neutral_frame < 0 else neutral_frame,
            frame_rate=to_rate(frame_rate),
            loop=loop,
            back_and_forth=back_and_forth,
        )
        performance = before.adjusted(adjustment)
        seen = motion.seen and [motion.seen[i] for i in before.nearest_frames(adjustment)]
        if loop > 1 and audio is not None:
            say(f"The motion is played {loop} times: a loop has no sound, and the audio is left out.")
            audio = None
        if audio is not None:
            part = start / before.frame_rate, len(performance.motion) / performance.frame_rate
            audio = {**audio, "waveform": trim_audio(audio["waveform"], audio["sample_rate"], *part)}
        portrait = reference.reference.motion if reference else motion.portrait
        return io.NodeOutput(NodeMotion(performance, portrait, seen), float(performance.frame_rate), audio)
