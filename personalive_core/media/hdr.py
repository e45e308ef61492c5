"""HDR video (PQ or HLG, BT.2020) as an ordinary picture: tone-mapped to BT.709 primaries and the sRGB curve."""

import tempfile
from functools import lru_cache
from pathlib import Path

import av.filter
import numpy as np

PQ, HLG = 16, 18  # transfer curves by their numbers in H.273
WHITE = 203.0  # luminance of a white sheet in candela per square metre (BT.2408)
HLG_PEAK, HLG_GAMMA = 1000.0, 1.2  # of the reference display (BT.2100)
KNEE = 0.5  # of white: what is darker keeps its light exactly, which is where faces are
LUMA = np.array([0.2627, 0.6780, 0.0593])  # BT.2020
TO_BT709 = np.array([[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]])  # BT.2087
LUT_SIDE = 65


def tone_map(signal: np.ndarray, transfer: int) -> np.ndarray:
    """Map HDR colours to sRGB.

    Light up to half of white stays; above, it bends so that a white sheet comes to three quarters and the brightest
    comes close to 1. The largest of the three channels is bent and the others with it, so that colours keep their hue.

    Args:
        signal: R'G'B' of BT.2020, (..., 3) in [0, 1].
        transfer: Its transfer curve, `PQ` or `HLG`.

    Returns:
        sRGB, (..., 3) in [0, 1].
    """
    light = (_pq if transfer == PQ else _hlg)(signal) / WHITE
    light = (light @ TO_BT709.T).clip(0)
    largest = light.max(-1, keepdims=True)
    excess = (largest - KNEE).clip(0) / (1 - KNEE)
    bent = np.where(largest > KNEE, KNEE + (1 - KNEE) * excess / (1 + excess), largest)
    light = light * bent / largest.clip(1e-9)
    return np.where(light <= 0.0031308, 12.92 * light, 1.055 * light.clip(1e-9) ** (1 / 2.4) - 0.055)


def _pq(signal: np.ndarray) -> np.ndarray:
    """SMPTE ST 2084 -> candela per square metre."""
    m1, m2, c1, c2, c3 = 2610 / 16384, 2523 / 32, 3424 / 4096, 2413 / 128, 2392 / 128
    power = signal ** (1 / m2)
    return 10000 * ((power - c1).clip(0) / (c2 - c3 * power)) ** (1 / m1)


def _hlg(signal: np.ndarray) -> np.ndarray:
    """BT.2100 HLG on its reference display -> candela per square metre."""
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    scene = np.where(signal <= 0.5, signal**2 / 3, (np.exp((signal - c) / a) + b) / 12)
    return HLG_PEAK * scene * (scene @ LUMA)[..., None].clip(1e-9) ** (HLG_GAMMA - 1)


@lru_cache
def _cube(transfer: int) -> str:
    """`tone_map` as a table of 65 x 65 x 65 colours, in the format of FFmpeg's lut3d filter."""
    line = np.linspace(0, 1, LUT_SIDE)
    blue, green, red = np.meshgrid(line, line, line, indexing="ij")
    colours = tone_map(np.stack([red, green, blue], -1).reshape(-1, 3), transfer)
    rows = "\n".join(" ".join(f"{x:.6f}" for x in colour) for colour in colours.tolist())
    return f"LUT_3D_SIZE {LUT_SIDE}\n{rows}\n"


def add_tone_map(graph: av.filter.Graph, transfer: int) -> av.filter.context.FilterContext:
    """Add `tone_map` as a filter, many times faster than the function itself. It agrees to half a level in the mean
    and 5/255 at most; only colours outside BT.709, which are clipped, may be further off.

    Args:
        graph: The graph that the filter becomes a part of.
        transfer: Transfer curve of the input, `PQ` or `HLG`.

    Returns:
        The filter, not yet linked, for 16-bit RGB.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "tone_map.cube")
        file.write_text(_cube(transfer))
        return graph.add("lut3d", file=str(file))  # it has read the file when this returns
