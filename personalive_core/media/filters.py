"""What the reader, the writer and sound share: opening a file with FFmpeg, and its filters."""

import errno
from pathlib import Path

import av
import av.filter

from ..errors import InputError
from ..files import check_file
from ..limits import CONTAINERS
from .hdr import HLG, PQ, add_tone_map

# Chroma at full resolution and exact rounding: without them swscale is off by 2/255 even on flat colours.
SCALING = "flags=bicubic+accurate_rnd+full_chroma_int"
# Metadata that is not UTF-8 must not stop a video; av 19 no longer has the option.
_TOLERANT = {"metadata_errors": "replace"} if int(av.__version__.split(".")[0]) < 19 else {}
_OWN_FILE = {"format_whitelist": ",".join(CONTAINERS), "protocol_whitelist": "file"}


def open_container(path: str | Path, kind: str) -> av.container.InputContainer:
    """Open a file that holds video or sound itself: no playlist, no address.

    Args:
        path: Of the file.
        kind: "video" or the like, for the message.

    Raises:
        InputError: There is no such file, or it is of another kind than `CONTAINERS`.
        av.FFmpegError: FFmpeg cannot read it.
    """
    check_file(path, kind)
    try:  # absolute, so that FFmpeg takes no part of the name for a protocol
        return av.open(str(Path(path).absolute()), options=_OWN_FILE, **_TOLERANT)
    except av.FFmpegError as error:
        if error.errno != errno.EINVAL:
            raise
        raise InputError(
            f"{path} is a playlist or of another kind that is not read; give a complete {kind}."
        ) from error


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
