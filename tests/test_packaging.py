"""What can be known of installing without a network: extras, and images without docker."""

from __future__ import annotations

import importlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import pytest
from packaging.requirements import Requirement

from cdga_sdk import __version__
from cdga_sdk.backends.tensorrt_build import PRODUCTS

ROOT: Final = Path(__file__).parents[1]
PROJECT: Final[dict[str, Any]] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS: Final[dict[str, list[str]]] = PROJECT["optional-dependencies"]
IMAGES: Final = {path.stem: path.read_text(encoding="utf-8") for path in sorted((ROOT / "docker").glob("*.Dockerfile"))}
PACKAGES: Final = ("cdga_sdk", "cdga_train", "cdga_export")


# --- extras


def names_in(requirements: list[str]) -> set[str]:
    return {Requirement(text).name for text in requirements}


def test_errors_name_extras_that_exist() -> None:
    sources = [path for folder in ("cdga_sdk", "train", "export") for path in (ROOT / folder).rglob("*.py")]
    text = "\n".join(path.read_text(encoding="utf-8") for path in sources)
    named = {*re.findall(r"cdga-sdk\[([a-z-]+)\]", text), *re.findall(r'MissingExtraError\("\w+", "(.+?)"\)', text)}
    assert {"trt", "trt-rtx", "export", "openvino"} <= named <= set(EXTRAS)


@pytest.mark.parametrize("product", PRODUCTS)
def test_the_extras_of_tensorrt(product: str) -> None:
    """What is imported as ``tensorrt_rtx`` is installed as ``tensorrt-rtx``, and ``cuda`` as ``cuda-bindings``."""
    extra = {"tensorrt": "trt", "tensorrt_rtx": "trt-rtx"}[product]
    assert names_in(EXTRAS[extra]) == {product.replace("_", "-"), "cuda-bindings", "filelock"}


def test_tensorrt_10_and_11_are_allowed() -> None:
    (tensorrt,) = [Requirement(text) for text in EXTRAS["trt"] if Requirement(text).name == "tensorrt"]
    assert all(tensorrt.specifier.contains(version) for version in ("10.3.0", "10.16.1.11", "11.4.0.106"))
    assert not tensorrt.specifier.contains("9.3.0")


def test_pyav_has_what_is_imported_of_it() -> None:
    """``ColorPrimaries`` and ``ColorTrc`` came with 17.0.0."""
    (pyav,) = [Requirement(text) for text in PROJECT["dependencies"] if Requirement(text).name == "av"]
    assert not pyav.specifier.contains("16.1.0")
    assert pyav.specifier.contains("17.0.0")


# --- images


def instructions(image: str) -> Iterator[tuple[str, list[str]]]:
    """Each instruction's keyword and words, over lines that are continued, without comments."""
    text = re.sub(r"^\s*#.*\n", "", IMAGES[image], flags=re.MULTILINE).replace("\\\n", " ")
    for line in filter(None, text.splitlines()):
        keyword, _, rest = line.partition(" ")
        yield keyword, shlex.split(rest.strip("[]").replace(",", " ") if rest.startswith("[") else rest)


def words_of(image: str, keyword: str) -> list[list[str]]:
    return [words for found, words in instructions(image) if found == keyword]


def copied(image: str) -> dict[str, str]:
    """What is copied from the repository: source to place."""
    pairs: dict[str, str] = {}
    for words in words_of(image, "COPY"):
        *sources, place = words
        if not words[0].startswith("--from="):
            pairs |= dict.fromkeys(sources, place)
    return pairs


def installed(image: str) -> list[str]:
    """The words that ``pip install`` is given, options aside."""
    commands = [command for words in words_of(image, "RUN") for command in " ".join(words).split(" && ")]
    pips = [command.split() for command in commands if re.search(r"/pip\s+install ", command)]
    return [word for pip in pips for word in pip[2:] if not word.startswith("-")]


def test_the_images() -> None:
    assert list(IMAGES) == ["cpu", "gpu"]


@pytest.mark.parametrize("image", IMAGES)
def test_an_image_copies_what_there_is(image: str) -> None:
    kept = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    assert (ROOT / ".dockerignore").read_text().splitlines()[1] == "*"
    assert sorted(copied(image)) == sorted(kept)
    for source, place in copied(image).items():
        assert (ROOT / source).exists(), source
        assert place == (source if (ROOT / source).is_dir() else "./")


@pytest.mark.parametrize("image", IMAGES)
def test_an_image_installs_extras_that_exist(image: str) -> None:
    here, *others = installed(image)
    (extra,) = re.findall(r"^\.\[(\w+)\]$", here)
    assert extra == {"cpu": "openvino", "gpu": "trt"}[image]
    assert extra in EXTRAS
    base = names_in(PROJECT["dependencies"])
    for other in others:
        assert other in base or other.removesuffix("-headless") in base, other


@pytest.mark.parametrize("image", IMAGES)
def test_an_image_is_pinned_and_runs_cdga_as_nobody_special(image: str) -> None:
    bases = [words[0] for words in words_of(image, "FROM")]
    assert len(bases) == 2
    assert all(re.fullmatch(r"[a-z/]+:\d+\.\d+[\w.-]*", base) for base in bases), bases
    ((user,),) = words_of(image, "USER")
    assert f"useradd --create-home {user}" in IMAGES[image]
    assert user != "root"
    ((program,),) = words_of(image, "ENTRYPOINT")
    module, _, function = PROJECT["scripts"][Path(program).name].partition(":")
    assert callable(getattr(importlib.import_module(module), function))


@pytest.mark.skipif(find_spec("hatchling") is None, reason="needs hatchling, which .[dev] brings")
@pytest.mark.parametrize("image", IMAGES)
def test_what_an_image_copies_is_enough_to_install(image: str, tmp_path: Path) -> None:
    source, place = tmp_path / "source", tmp_path / "place"
    source.mkdir()
    for name in copied(image):
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, source / name)
    offline = ["--no-index", "--no-deps", "--no-build-isolation", "--disable-pip-version-check", "--quiet"]
    subprocess.run([sys.executable, "-m", "pip", "install", *offline, "--target", place, source], check=True)

    def output(*command: str | Path) -> str:
        # Without coverage, which would count the copy in `place` as lines that no test runs.
        kept = {name: value for name, value in os.environ.items() if not name.startswith("COV")}
        environment = kept | {"PYTHONPATH": str(place)}
        done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=True)
        return done.stdout

    assert output(place / "bin/cdga", "--version") == f"cdga-sdk {__version__}\n"
    code = f"import {', '.join(PACKAGES)}; print(*(m.__path__[0] for m in ({', '.join(PACKAGES)})))"
    assert output(sys.executable, "-c", code).split() == [str(place / package) for package in PACKAGES]
    files = {path.relative_to(place).as_posix() for path in place.rglob("*")}
    in_wheel = {
        path.relative_to(ROOT / folder).as_posix()
        for folder in ("", "train", "export")
        for package in PACKAGES
        for path in (ROOT / folder / package).rglob("*.py")
    }
    assert {"cdga_sdk/py.typed", "cdga_export/run_onnx.py"} <= files
    assert in_wheel <= files
    told = json.loads(output(place / "bin/cdga", "info", "default", "--json"))
    assert told["path"] == str(place / "cdga_sdk/models/default.cdga")
