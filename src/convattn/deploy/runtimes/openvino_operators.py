"""Operators of torchvision that OpenVINO's reader of exported programs lacks, in OpenVINO's own."""

from typing import Any

import numpy as np

from convattn.extras import require

__all__ = ["extensions"]

_LEAST = np.float32(-3e38)  # any score may be compared


def extensions() -> list[Any]:
    """For `openvino.convert_model`."""
    extension = require("openvino.frontend.pytorch", "deploy").ConversionExtension
    return [extension("torchvision.nms.default", _nms)]


def _nms(context: Any) -> list[Any]:
    """Boxes (n, 4), scores (n,), the IoU above which the less sure of two goes -> numbers of those that stay."""
    ops = require("openvino", "deploy").opset13
    overlap = ops.constant(np.float32(context.get_values_from_const_input(2)))
    boxes = ops.reshape(context.get_input(0), ops.constant(np.array([1, -1, 4], np.int64)), False)
    scores = ops.reshape(context.get_input(1), ops.constant(np.array([1, 1, -1], np.int64)), False)
    most = ops.gather(ops.shape_of(scores, "i64"), ops.constant(np.int64(2)), ops.constant(np.int64(0)))
    kept = ops.non_max_suppression(
        *(boxes, scores, most, overlap, ops.constant(_LEAST)),
        box_encoding="corner",
        sort_result_descending=False,
        output_type="i64",
    )
    # A row has the number of the image, of the class and of the box.
    return [ops.gather(kept.output(0), ops.constant(np.int64(2)), ops.constant(np.int64(1))).output(0)]
