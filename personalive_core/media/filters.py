"""What reader, writer and sound share of FFmpeg."""

import av
import av.filter

from .hdr import HLG, PQ, add_tone_map

# Chroma at full resolution and exact rounding: without them swscale is off by 2/255 even on flat colours.
SCALING = "flags=bicubic+accurate_rnd+full_chroma_int"
# Metadata that is not UTF-8 must not stop a video; av 19 does not ask any more.
TOLERANT = {"metadata_errors": "replace"} if int(av.__version__.split(".")[0]) < 19 else {}


def conversion_graph(frame: av.VideoFrame, scale: str, pixel_format: str, transfer: int = 0) -> av.filter.Graph:
    """FFmpeg's scale filter for frames like `frame`, and a tone map where `transfer` is PQ or HLG. The graph, not
    `VideoFrame.reformat`, because its options mean the same in every PyAV version."""
    graph = av.filter.Graph()
    source = graph.add(
        "buffer",
        f"video_size={frame.width}x{frame.height}:pix_fmt={frame.format.name}:time_base=1/1"
        f":colorspace={int(frame.colorspace)}:range={int(frame.color_range)}",
    )
    nodes = [graph.add("scale", f"{scale}:{SCALING}")]
    if transfer in (PQ, HLG):
        nodes += [graph.add("format", "rgb48le"), add_tone_map(graph, transfer)]
    nodes += [graph.add("format", pixel_format), graph.add("buffersink")]
    graph.link_nodes(source, *nodes).configure()
    return graph


def display_time(item: av.Packet | av.VideoFrame, container: av.container.InputContainer) -> int | None:
    """When `item` is shown, in its time base. AVI stores no display times, and FFmpeg's guesses for B-frames are out
    of order; its decoding times are in order, and late by the same for all frames."""
    return item.dts if container.format.name == "avi" else item.pts
