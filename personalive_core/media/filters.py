"""FFmpeg's options and filters that the reader, the writer and sound share."""

import av
import av.filter

from .hdr import HLG, PQ, add_tone_map

# Chroma at full resolution and exact rounding: without them swscale is off by 2/255 even on flat colours.
SCALING = "flags=bicubic+accurate_rnd+full_chroma_int"
# Metadata that is not UTF-8 must not stop a video; av 19 no longer has the option.
TOLERANT = {"metadata_errors": "replace"} if int(av.__version__.split(".")[0]) < 19 else {}


def conversion_graph(
    frame: av.VideoFrame, scale: str, pixel_format: str, transfer: int = 0, *, deinterlace: bool = False
) -> av.filter.Graph:
    """Make FFmpeg's scale filter for frames of one kind, with a tone map for HDR. `VideoFrame.reformat` will not do:
    its options mean different things in different PyAV versions.

    Args:
        frame: A frame of the kind, for its size, pixel format, matrix and range.
        scale: Options of the scale filter: "width:height" or "name=value", with colons between them.
        pixel_format: Of the result.
        transfer: Transfer curve of the input by its number in H.273; PQ and HLG are tone-mapped.
        deinterlace: Deinterlace the frames that are marked as interlaced. Each then comes out after the next goes in.

    Returns:
        The graph, to push frames into and pull frames from.
    """
    graph = av.filter.Graph()
    source = graph.add(
        "buffer",
        f"video_size={frame.width}x{frame.height}:pix_fmt={frame.format.name}:time_base=1/1"
        f":colorspace={int(frame.colorspace)}:range={int(frame.color_range)}",
    )
    nodes = [graph.add("bwdif", "mode=send_frame:deint=interlaced")] if deinterlace else []
    nodes.append(graph.add("scale", f"{scale}:{SCALING}"))
    if transfer in (PQ, HLG):
        nodes += [graph.add("format", "rgb48le"), add_tone_map(graph, transfer)]
    nodes += [graph.add("format", pixel_format), graph.add("buffersink")]
    graph.link_nodes(source, *nodes).configure()
    return graph


def display_time(item: av.Packet | av.VideoFrame, container: av.container.InputContainer) -> int | None:
    """When `item` is shown, in its time base; None where the file does not tell. AVI stores no display times, and
    FFmpeg's guesses for B-frames are out of order; its decoding times are in order, and all late by the same."""
    return item.dts if container.format.name == "avi" else item.pts
