"""The most that is read of a file from somebody else. Above it there is an InputError before memory is taken."""

PICTURE_PIXELS = 178_956_970  # as many as Pillow reads; other packs in a host may lift its own limit
FRAME_PIXELS = 1 << 26  # of a video: 8192 x 8192
FASTEST_VIDEO = 240  # frames per second; faster rates are not believed, since WebM without a rate reads as 1000
MOTION_FRAMES = 1_000_000  # of a motion file, of a loop or at another rate: all are in memory, 2.4 KB each
MOTION_RATES = 0.001, 1000  # frames per second of a motion file
TEXT_BYTES = 1 << 20  # of a JSON file
TABLE_BYTES = 1 << 26  # of a table of jobs
UPLOAD_BYTES = 1 << 30  # of a file that is sent to `serve`
HEADER_BYTES = 100_000_000  # of a safetensors file, as in the format's own library; of a .pth file's list of weights
SHARED_BYTES = 1 << 31  # of weights in a smaller .pth file, which may use a stored number many times
NETWORK_WIDTH = 8192  # channels or pixels in `sizes.json`; the published model has 1280 at most
NETWORK_DEPTH = 32  # layers, levels or heads in `sizes.json`; the published model has 9 at most

# What portraits and frames are saved as. Pillow reads others by programs that it starts: PostScript by Ghostscript.
PICTURE_FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "AVIF", "HEIF", "GIF", "BMP", "TIFF", "JPEG2000", "PPM")

# FFmpeg's names of the containers that are read. Others, such as playlists (hls, dash, concat, sdp), name more files or
# addresses, which FFmpeg would open.
CONTAINERS = (
    *("mov", "matroska", "avi", "flv", "mpegts", "mpeg", "mpegvideo", "asf", "ogg", "mxf", "nut", "dv", "wtv", "rm"),
    *("swf", "ivf", "obu", "av1", "h261", "h263", "h264", "hevc", "vvc", "m4v", "vc1", "yuv4mpegpipe", "mjpeg"),
    *("gif", "apng", "jpegxl_anim", "image2", "bmp_pipe", "gif_pipe", "j2k_pipe", "jpeg_pipe", "jpegxl_pipe"),
    *("png_pipe", "pgm_pipe", "ppm_pipe", "tiff_pipe", "webp_pipe", "wav", "w64", "mp3", "aac", "ac3", "eac3", "flac"),
    *("aiff", "caf", "au", "amr", "amrnb", "amrwb", "ape", "tta", "wv", "dts", "truehd", "mp2"),
)
