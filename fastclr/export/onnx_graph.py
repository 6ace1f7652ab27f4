"""An encoder as an ONNX graph, with or without the preprocessing of its images."""

import io
import json
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from fastclr.export.counterparts import check_equal, random_images
from fastclr.train.checkpoint import atomic_write

OPSET = 18
"""What torch's exporter writes without converting."""


def write_onnx(
    encoder: nn.Module, images: Mapping[str, Any], out: Path, with_preprocessing: bool, tolerance: float
) -> str:
    """Write the graph, with a batch of any size, after comparing onnxruntime's features with the encoder's.

    Args:
        encoder: in evaluation mode on the CPU.
        images: how its images are made; stored as the graph's metadata, each entry as JSON.
        out: the file.
        with_preprocessing: the graph takes uint8 images of any size, and crops, resizes and normalises them.
        tolerance: largest difference of features, relative to the largest.

    Returns:
        What the graph takes, in words.

    Raises:
        ValueError: a missing package, an encoder that has no ONNX form, or features that differ.
    """
    try:
        import onnx
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ValueError(f"an export to onnx needs {error.name}: pip install 'fastclr[export]'") from None
    size = images["size"]
    with _quiet():
        program = torch.onnx.export(
            encoder,
            (random_images(2, size),),
            dynamo=True,
            verbose=False,
            opset_version=OPSET,
            dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
            input_names=["images"],
            output_names=["features"],
        )
    assert program is not None
    model = program.model_proto
    if with_preprocessing:
        model = _with_preprocessing(model, images)
    del model.metadata_props[:]
    for key, value in images.items():
        model.metadata_props.add(key=key, value=json.dumps(value))
    onnx.checker.check_model(model)
    data = model.SerializeToString()
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    for count in (1, 3):
        given, normalised = _test_images(count, images, with_preprocessing)
        found = torch.from_numpy(session.run(None, {"images": given})[0])
        with torch.no_grad():
            check_equal(found, encoder(normalised), tolerance, "onnxruntime")
    with atomic_write(out) as file:
        file.write(data)
    return "uint8 [B, H, W, 3], RGB" if with_preprocessing else f"float32 [B, 3, {size}, {size}], normalised"


@contextmanager
def _quiet() -> Iterator[None]:
    """Hold back the exporter's progress reports and its advice to developers."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def _test_images(
    count: int, images: Mapping[str, Any], with_preprocessing: bool
) -> tuple[np.ndarray, torch.Tensor]:
    """Return images as the graph takes them, and as the encoder does.

    With preprocessing they are of a size at which nothing is resized: a rounded pixel could be one level off otherwise.
    """
    size = images["size"]
    if not with_preprocessing:
        normalised = random_images(count, size)
        return normalised.numpy(), normalised
    side = next(n for n in range(size, 2 * size + 2) if np.rint(n * images["center_crop_fraction"]) >= size)
    # rounding may skip the size itself; the crop is then resized by one pixel
    pixels = np.random.default_rng(0).integers(0, 256, (count, side, side + 5, 3), dtype=np.uint8)
    crop = int(np.rint(side * images["center_crop_fraction"]))
    top, left = (side - crop) // 2, (side + 5 - crop) // 2
    square = torch.from_numpy(pixels[:, top : top + crop, left : left + crop]).permute(0, 3, 1, 2).float()
    if crop != size:
        square = torch.nn.functional.interpolate(
            square, (size, size), mode="bilinear", antialias=True
        ).round()
    mean, std = (torch.tensor(images[key]).view(3, 1, 1) for key in ("mean", "std"))
    return pixels, (square / 255 - mean) / std


def _with_preprocessing(model: Any, images: Mapping[str, Any]) -> Any:
    """Return the model behind a graph that makes its images from uint8 [B, H, W, 3]."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    constants: list[Any] = []

    def constant(name: str, value: Any, dtype: Any) -> str:
        constants.append(numpy_helper.from_array(np.asarray(value, dtype), name))
        return name

    nodes = []

    def node(kind: str, inputs: list[str], output: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(kind, inputs, [output], **attributes))
        return output

    size = images["size"]
    one, two = constant("one", [1], np.int64), constant("two", [2], np.int64)
    # side of the square, and its upper left corner: pipelines.views.draw computes them in the same way
    shape = node("Shape", ["images"], "shape")
    height = node("Slice", [shape, one, two], "height")
    width = node("Slice", [shape, two, constant("three", [3], np.int64)], "width")
    shorter = node("Cast", [node("Min", [height, width], "shorter")], "shorter_f", to=TensorProto.DOUBLE)
    fraction = constant("fraction", [images["center_crop_fraction"]], np.float64)
    rounded = node("Round", [node("Mul", [shorter, fraction], "side_f")], "side_r")
    side = node("Max", [node("Cast", [rounded], "side_i", to=TensorProto.INT64), one], "side")
    top, left = (
        node("Div", [node("Sub", [length, side], f"{name}_rest"), two], name)
        for length, name in ((height, "top"), (width, "left"))
    )
    start = node("Concat", [top, left], "start", axis=0)
    stop = node("Add", [start, side], "stop")
    crop = node("Slice", ["images", start, stop, constant("axes", [1, 2], np.int64)], "crop")
    planes = node(
        "Transpose", [node("Cast", [crop], "crop_f", to=TensorProto.FLOAT)], "planes", perm=[0, 3, 1, 2]
    )
    # a triangle filter as torch's antialiased one; ONNX's Resize was up to 10 levels off at the edges
    length = node("Cast", [side], "length", to=TensorProto.FLOAT)
    scale = node("Div", [length, constant("size", size, np.float32)], "scale")
    support = node("Max", [scale, constant("one_f", [1], np.float32)], "support")
    centers = node("Mul", [constant("rows", np.arange(size)[:, None] + 0.5, np.float32), scale], "centers")
    zero, step = constant("zero", 0, np.int64), constant("step", 1, np.int64)
    count = node("Squeeze", [side], "count")
    columns = node("Cast", [node("Range", [zero, count, step], "range")], "columns", to=TensorProto.FLOAT)
    positions = node("Add", [columns, constant("half", 0.5, np.float32)], "positions")
    distance = node("Abs", [node("Sub", [positions, centers], "offset")], "distance")
    inside = node("Sub", ["one_f", node("Div", [distance, support], "fraction_of_support")], "inside")
    triangle = node("Relu", [inside], "triangle")
    weights = node("Div", [triangle, node("ReduceSum", [triangle, one], "total", keepdims=1)], "weights")
    across = node("Transpose", [weights], "weights_t", perm=[1, 0])
    resized = node("MatMul", [node("MatMul", [weights, planes], "rows_resized"), across], "resized")
    # views are uint8 until they are normalised
    pixels = node("Div", [node("Round", [resized], "levels"), constant("white", 255, np.float32)], "pixels")
    mean, std = (constant(key, np.reshape(images[key], (3, 1, 1)), np.float32) for key in ("mean", "std"))
    node("Div", [node("Sub", [pixels, mean], "centred"), std], "normalised")

    graph = helper.make_graph(
        nodes,
        "preprocessing",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["batch", "height", "width", 3])],
        [helper.make_tensor_value_info("normalised", TensorProto.FLOAT, ["batch", 3, size, size])],
        constants,
    )
    before = helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)
    inner = onnx.compose.add_prefix(model, "encoder_", rename_outputs=False, rename_functions=False)
    return onnx.compose.merge_models(before, inner, io_map=[("normalised", "encoder_images")])
