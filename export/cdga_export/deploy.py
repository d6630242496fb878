"""How to run a bundle without this project, as texts that go into it.

::

    deploy/run_onnx.py              one image with ONNX Runtime alone: the very file `run_onnx.py` beside this one
    deploy/triton/config.pbtxt      the same graph behind Triton Inference Server
"""

from __future__ import annotations

import json
from importlib import resources

from cdga_sdk.backends.tensorrt_build import graph_precision
from cdga_sdk.bundle import Manifest, graph_file

__all__ = ["deployment_texts", "triton_config", "trtexec_command"]


def deployment_texts(manifest: Manifest) -> dict[str, str]:
    """The texts by their path in the bundle."""
    return {
        "deploy/run_onnx.py": resources.files("cdga_export").joinpath("run_onnx.py").read_text(encoding="utf-8"),
        "deploy/triton/config.pbtxt": triton_config(manifest),
    }


def triton_config(manifest: Manifest) -> str:
    """A model's ``config.pbtxt`` for Triton, and in comments where it goes and how to serve TensorRT instead.

    The batch is the first dimension of every tensor of the graph and open, which is what ``max_batch_size`` above 0
    says; ``dims`` are the ones behind it.
    """
    name = manifest.provenance.model
    height, width = manifest.imgsz_hw
    graphs = [graph_file(precision) for precision in manifest.precisions if precision != "bf16"]  # OpenVINO's alone
    engine_source = graph_file(graph_precision(manifest.precisions))
    lowest, highest = manifest.input.batch_range
    build = trtexec_command(engine_source, "model.plan", manifest.imgsz_hw, (lowest, (lowest + highest) // 2, highest))
    return f"""\
# A model of Triton Inference Server. Its place in a model repository:
#
#   models/{name}/config.pbtxt     this file
#   models/{name}/1/model.onnx     from the bundle: {" or ".join(graphs)}
#
# NVIDIA_TF32_OVERRIDE=0 tritonserver --model-repository=models
#
# The variable keeps float32 as it was proven: TF32 changes labels. The client sends RGB frames resized by
# {manifest.preprocess.resize};
# what the class ids mean is in the bundle's manifest.json.
#
# TensorRT instead: build the engine in the container that serves it, for it loads on no other version or GPU,
#
{"".join(f"#   {line}" + chr(10) for line in build.splitlines())}#
# put model.plan where model.onnx was, and let platform be "tensorrt_plan". max_batch_size is at most that of maxShapes.

name: {json.dumps(name)}
platform: "onnxruntime_onnx"
max_batch_size: {highest}
input [
  {{
    name: "frame"
    data_type: TYPE_UINT8
    dims: [ {height}, {width}, 3 ]
  }}
]
output [
  {{
    name: "mask"
    data_type: TYPE_UINT8
    dims: [ {height}, {width} ]
  }},
  {{
    name: "conf"
    data_type: TYPE_UINT8
    dims: [ {height}, {width} ]
  }}
]
dynamic_batching {{ }}
"""


def trtexec_command(onnx: str, plan: str, imgsz_hw: tuple[int, int], batch: tuple[int, int, int]) -> str:
    """The command of TensorRT's own tool that builds what ``cdga export --trt`` builds, over several lines.

    Precision is in the graph: ``--stronglyTyped`` keeps it so in TensorRT 10, and is how TensorRT 11 always is.

    Args:
        onnx: Name of the graph's file.
        plan: Name of the engine's file.
        imgsz_hw: Height and width of the graph's input.
        batch: Smallest, best and largest.
    """
    height, width = imgsz_hw
    shapes = [
        f"--{bound}Shapes=frame:{size}x{height}x{width}x3"
        for bound, size in zip(("min", "opt", "max"), batch, strict=True)
    ]
    return f"""\
trtexec --onnx={onnx} --saveEngine={plan} --stronglyTyped --noTF32 --skipInference \\
  {" ".join(shapes)}"""
