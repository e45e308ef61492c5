"""How much memory the networks' activations take, for the host's accounting: measured in half precision, rounded up."""

GIB = 2**30
MEASURED_PIXELS = 512 * 512


def reference(width: int, height: int) -> int:
    """Bytes for one run of the reference UNet and of the motion networks."""
    return int(0.75 * GIB * max(1.0, width * height / MEASURED_PIXELS))


def motion(width: int, height: int) -> int:
    """Bytes for four driving frames in the motion networks."""
    return int(0.5 * GIB + 4 * 12 * 4 * width * height)


def window(width: int, height: int) -> int:
    """Bytes for one window of 16 frames in the denoising UNet."""
    return int(2.5 * GIB * width * height / MEASURED_PIXELS)
