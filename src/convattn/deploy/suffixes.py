"""The suffix of each format's files, from which its runtime takes it; help names them without importing a runtime."""

__all__ = ["SUFFIXES"]

SUFFIXES = {
    "onnx": ".onnx",
    "torch_export": ".pt2",
    "aot_inductor": ".pt2",
    "openvino": ".xml",
    "core_ml": ".mlpackage",
    "executorch": ".pte",
    "tensor_rt": ".engine",
}
