"""Example Input: the drawn portrait and driving video that come with the miniature."""

from comfy_api.latest import InputImpl, io

from ..personalive_core.media.pictures import read_picture
from ..personalive_core.weights.find import EXAMPLE
from . import compat, convert


class ExampleInput(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PersonaLiveExampleInput",
            display_name="PersonaLive Example Input",
            category="PersonaLive",
            **compat.search_aliases("demo, example portrait, example driving video, miniature"),
            description="A drawn portrait and a drawn driving video, 128 x 128, that come with the nodes, for the "
            "weights 'miniature'.",
            inputs=[],
            outputs=[
                io.Image.Output(display_name="portrait", tooltip="The drawn portrait, 128 x 128."),
                io.Video.Output(
                    display_name="driving", tooltip="The drawn driving video, 128 x 128, for Extract Motion."
                ),
            ],
        )

    @classmethod
    def execute(cls) -> io.NodeOutput:
        portrait = convert.to_image(read_picture(EXAMPLE / "portrait.png")[None])
        return io.NodeOutput(portrait, InputImpl.VideoFromFile(str(EXAMPLE / "driving.mp4")))
