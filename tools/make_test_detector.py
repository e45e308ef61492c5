"""Makes tests/assets/drawn_faces.onnx: a network of a few weights with YuNet's inputs and outputs, which finds the
faces that tests/face.py draws. OpenCV runs it as it runs YuNet, so that tests need no download.

Needs the package onnx:

    python tools/make_test_detector.py

Where the picture has the colour of drawn skin, the skin around each place is summed up: how much there is says how
large the face is, and its centre of gravity where.
"""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

FILE = Path(__file__).parents[1] / "tests" / "assets" / "drawn_faces.onnx"
STRIDES = 8, 16, 32  # YuNet's; faces come from the first alone
WINDOW = 37  # places of 8 pixels around each, within which its face must lie
# Of the whole head, in sizes of its skin (the root of its area): its side, and how far it reaches above the skin.
HEAD, ABOVE = 1.65, 0.37
OUTPUTS = {"cls": 1, "obj": 1, "bbox": 4, "kps": 10}

weights: list[TensorProto] = []
nodes: list[onnx.NodeProto] = []


def constant(values, dtype=np.float32) -> str:
    weights.append(numpy_helper.from_array(np.array(values, dtype), f"w{len(weights)}"))
    return weights[-1].name


def layer(kind: str, *inputs: str, output: str = "", **options) -> str:
    output = output or f"x{len(nodes)}"
    nodes.append(helper.make_node(kind, inputs, [output], **options))
    return output


def convolution(value: str, kernel, bias=None, **options) -> str:
    kernel = np.asarray(kernel, np.float32)
    inputs = [constant(kernel)] + ([] if bias is None else [constant(bias)])
    return layer("Conv", value, *inputs, kernel_shape=kernel.shape[2:], **options)


def flatten(value: str, channels: int, output: str) -> None:
    """(1, C, h, w) -> (1, h w, C)"""
    value = layer("Transpose", value, perm=[0, 2, 3, 1])
    layer("Reshape", value, constant([1, -1, channels], np.int64), output=output)


def network() -> None:
    half, line = WINDOW // 2, np.arange(WINDOW) - WINDOW // 2
    ones = np.ones(WINDOW)
    # Of 255: bright in red, and more so than in blue. BGR comes in.
    skin = convolution("input", np.array([-1, 0, 2]).reshape(1, 3, 1, 1) / 20, [-270 / 20])
    skin = layer("Clip", skin, constant(0), constant(1))
    skin = layer("AveragePool", skin, kernel_shape=[8, 8], strides=[8, 8])
    sums = convolution(skin, np.stack([ones, line]).reshape(2, 1, 1, WINDOW), pads=[0, half, 0, half])
    down = np.zeros((3, 2, WINDOW, 1))
    down[0, 0, :, 0], down[1, 1, :, 0], down[2, 0, :, 0] = ones, ones, line
    sums = convolution(sums, down, pads=[half, 0, half, 0])
    area, x, y = (convolution(sums, np.eye(3)[i].reshape(1, 3, 1, 1), [1e-3 * (i == 0)]) for i in range(3))
    x, y = layer("Div", x, area), layer("Div", y, area)
    size = layer("Sqrt", area)
    # A face's place is the one near its centre of gravity, in the midst of skin.
    offset = layer("Max", layer("Abs", x), layer("Abs", y))
    near = layer("Clip", layer("Sub", constant(3), offset), constant(0), constant(1))
    midst = layer("AveragePool", skin, kernel_shape=[3, 3], strides=[1, 1], pads=[1, 1, 1, 1])
    midst = layer("Clip", layer("Mul", midst, constant(2)), constant(0), constant(1))
    side = layer("Log", layer("Mul", size, constant(HEAD)))
    top = layer("Sub", y, layer("Mul", size, constant(ABOVE)))
    x, y = (layer("Add", value, constant(0.5)) for value in (x, top))
    found = {"cls": midst, "obj": near, "bbox": layer("Concat", x, y, side, side, axis=1)}
    found["kps"] = convolution(skin, np.zeros((10, 1, 1, 1)))
    for stride in STRIDES:
        for name, channels in OUTPUTS.items():
            value = found[name]
            if stride > 8:
                value = layer("AveragePool", value, kernel_shape=[stride // 8] * 2, strides=[stride // 8] * 2)
                value = layer("Mul", value, constant(0))
            flatten(value, channels, f"{name}_{stride}")


def main() -> None:
    network()
    outputs = [
        helper.make_tensor_value_info(f"{name}_{stride}", TensorProto.FLOAT, [1, None, channels])
        for name, channels in OUTPUTS.items()
        for stride in STRIDES
    ]
    picture = helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, 3, 640, 640])
    graph = helper.make_graph(nodes, "drawn_faces", [picture], outputs, weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.checker.check_model(model)
    FILE.write_bytes(model.SerializeToString())


if __name__ == "__main__":
    main()
