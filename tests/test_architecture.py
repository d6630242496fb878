"""The rules of the house, held by reading the source."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = {
    "cdga_sdk": ROOT / "cdga_sdk",
    "cdga_train": ROOT / "train/cdga_train",
    "cdga_export": ROOT / "export/cdga_export",
}
MAY_IMPORT = {
    "cdga_sdk": {"cdga_sdk"},
    "cdga_train": {"cdga_sdk", "cdga_train"},
    "cdga_export": {"cdga_sdk", "cdga_train", "cdga_export"},
}
# Reach right inside their command functions, never at import time.
LAZY_REACH = {
    "cdga_sdk/cli.py": {"cdga_train", "cdga_export"},
    "cdga_sdk/info.py": {"cdga_train"},
}
HEAVY_HOMES = {
    "onnxruntime": {
        "cdga_sdk/backends/onnx_runtime.py",
        "export/cdga_export/extra.py",
        "export/cdga_export/lowered.py",
        "export/cdga_export/quantize.py",
        "export/cdga_export/run_onnx.py",
        "export/cdga_export/typed_fp16.py",
    },
    "tensorrt": {"cdga_sdk/backends/tensorrt_build.py"},
    "tensorrt_rtx": {"cdga_sdk/backends/tensorrt_build.py"},
    "cuda": {"cdga_sdk/backends/cuda_device.py"},
    "filelock": {"cdga_sdk/backends/engine_eviction.py", "cdga_sdk/models/kept.py", "train/cdga_train/rounds.py"},
    "openvino": {"cdga_sdk/backends/openvino_cpu.py"},
    "cv2": {"cdga_sdk/opencv.py", "export/cdga_export/run_onnx.py"},
    "av": {
        f"cdga_sdk/video/{name}.py"
        for name in (
            "connection",
            "container",
            "decoder",
            "label_stream",
            "live",
            "partial",
            "sink",
            "source",
            "upright",
            "yuv_overlay",
        )
    },
    "onnx": {
        "export/cdga_export/halved.py",
        "export/cdga_export/lowered.py",
        "export/cdga_export/quantize.py",
        "export/cdga_export/rounded.py",
        "export/cdga_export/to_onnx.py",
        "export/cdga_export/typed_fp16.py",
    },
    "timm": {"train/cdga_train/models/efficientvit.py"},
    "torchvision": {"train/cdga_train/models/deeplabv2.py", "train/cdga_train/models/lraspp.py"},
    "yaml": {"train/cdga_train/config.py"},
}
TORCH_FREE = ("cdga_sdk/", "train/cdga_train/data/", "train/cdga_train/fourier.py", "train/cdga_train/config.py")
MAX_FUNCTION_LINES = 60


def modules() -> Iterator[tuple[str, str, ast.Module]]:
    """Package, path from the root, and tree of every module of the product."""
    for package, folder in PACKAGES.items():
        for path in sorted(folder.rglob("*.py")):
            if any(part.endswith(".cdga") for part in path.parts):
                continue  # the default model's own script, a copy of run_onnx.py
            yield package, path.relative_to(ROOT).as_posix(), ast.parse(path.read_text(encoding="utf-8"))


def imports(tree: ast.AST) -> Iterator[str]:
    """Full names of everything imported below ``tree``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports are not used here"
            yield node.module or ""


def top_level(tree: ast.Module) -> ast.Module:
    """What runs at import: the module without the bodies of its functions and without TYPE_CHECKING blocks."""

    class Strip(ast.NodeTransformer):
        def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
            return None

        def visit_If(self, node: ast.If) -> ast.AST | None:
            return None if "TYPE_CHECKING" in ast.dump(node.test) else self.generic_visit(node)

    stripped = Strip().visit(ast.parse(ast.unparse(tree)))
    assert isinstance(stripped, ast.Module)
    return stripped


def test_arrows_point_to_the_left() -> None:
    for package, path, tree in modules():
        allowed = MAY_IMPORT[package]
        at_import = {name.partition(".")[0] for name in imports(top_level(tree))} & PACKAGES.keys()
        assert at_import <= allowed, f"{path} imports {at_import - allowed}"
        anywhere = {name.partition(".")[0] for name in imports(tree)} & PACKAGES.keys()
        assert anywhere <= allowed | LAZY_REACH.get(path, set()), f"{path} imports {anywhere - allowed}"


def test_heavy_libraries_have_one_home() -> None:
    for _, path, tree in modules():
        for name in {n.partition(".")[0] for n in imports(tree)} & HEAVY_HOMES.keys():
            assert path in HEAVY_HOMES[name], f"{path} imports {name}"


def test_torch_stays_in_the_laboratory() -> None:
    for _, path, tree in modules():
        if path.startswith(TORCH_FREE):
            assert not {n for n in imports(tree) if n.partition(".")[0] in {"torch", "torchvision"}}, path


def test_nobody_imports_examples_tests_or_benchmarks() -> None:
    for _, path, tree in modules():
        assert not {n.partition(".")[0] for n in imports(tree)} & {"examples", "tests", "benchmarks"}, path


def test_only_the_loop_calls_backward() -> None:
    callers = {
        path
        for _, path, tree in modules()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "backward"
    }
    assert callers == {"train/cdga_train/loop.py"}


def test_no_import_cycles() -> None:
    graph = {}
    for package, path, tree in modules():
        name = path.removesuffix(".py").removesuffix("/__init__").removeprefix("train/").removeprefix("export/")
        graph[name.replace("/", ".")] = {
            n for n in imports(top_level(tree)) if n.partition(".")[0] in MAY_IMPORT[package]
        }
    done: set[str] = set()

    def visit(name: str, above: tuple[str, ...]) -> None:
        assert name not in above, f"cycle: {' -> '.join((*above, name))}"
        if name not in done:
            for target in graph.get(name, set()):
                visit(target, (*above, name))
            done.add(name)

    for name in graph:
        visit(name, ())


def test_functions_are_short() -> None:
    for _, path, tree in modules():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno is not None
                length = (
                    node.end_lineno - node.body[0].lineno + 1
                )  # a command's flags are its interface, not its length
                assert length <= MAX_FUNCTION_LINES, f"{path}:{node.lineno} {node.name} has {length} lines"


def test_no_rag_bag_modules() -> None:
    names = {Path(path).stem for _, path, _ in modules()}
    assert not names & {"utils", "util", "helpers", "common", "misc", "manager"}


@pytest.mark.parametrize("statement", ["import cdga_sdk", "import cdga_sdk.cli", "import cdga_train.data.spec"])
def test_import_loads_no_runtime(statement: str) -> None:
    code = f"{statement}\nimport sys; print(' '.join(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "onnx", "onnxruntime", "tensorrt", "tensorrt_rtx", "openvino", "matplotlib"} & set(loaded)


def test_public_names_resolve() -> None:
    import cdga_sdk

    for name in cdga_sdk.__all__:
        made = getattr(cdga_sdk, name)
        assert name == "__version__" or made.__module__ == cdga_sdk._HOMES[name]
    assert {"LiveSource", "RunSummary", "Segmenter", "VideoOptions"} <= set(cdga_sdk.__all__)
    assert dir(cdga_sdk) == sorted(cdga_sdk.__all__)
    with pytest.raises(AttributeError, match="nothing"):
        cdga_sdk.nothing  # noqa: B018
