"""A bundle of published weights, made by ``cdga export`` in a process of its own: no torch comes into this one."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

from cdga_sdk.atomic import atomic_folder, error_from_os
from cdga_sdk.bundle import About, Bundle
from cdga_sdk.errors import CdgaError, GateError, InputError, ModelError, ResourceError, UsageError, one_line
from cdga_sdk.models.catalogue import NamedModel

__all__ = ["CONVERT_S", "convert"]

CONVERT_S: Final = 600.0
# Imports what this process would: neither the folder it runs in nor a site of its own comes first.
_CODE: Final = "import json, sys; sys.path[:] = json.loads(sys.argv.pop(1)); from cdga_sdk.cli import main; main()"
_KINDS: Final = {kind.exit_code: kind for kind in (UsageError, InputError, ModelError, ResourceError, GateError)}


def convert(model: NamedModel, weights: bytes, place: Path, *, limit_s: float = CONVERT_S) -> None:
    """Make the bundle of a model at ``place``, whole or not at all; one that is there is replaced.

    Args:
        model: Of the catalogue.
        weights: Its file, verified: these bytes are converted, and nothing that lies elsewhere.
        place: Where; its folder exists.
        limit_s: Seconds after which the process is ended.

    Raises:
        ModelError: Nothing can be made of the weights, or not what the catalogue states.
        ResourceError: Not in time, no memory, or the disk is full.
        CdgaError: As ``cdga export`` ends.
    """
    try:
        # All that the process writes lies in here, so that nothing is left wherever it is ended.
        with tempfile.TemporaryDirectory(dir=place.parent, prefix=f".{place.name}.") as temporary:
            made = Path(temporary, "made.cdga")
            _export(model, weights, made, limit_s)
            if not model.is_described_by(Bundle.open(made).manifest):
                raise ModelError(f"{model.name} becomes another bundle than the catalogue states", where=model.file)
            with atomic_folder(place, overwrite=True) as folder:
                shutil.copytree(made, folder, dirs_exist_ok=True)
    except OSError as error:
        raise error_from_os(error, place) from error


def _export(model: NamedModel, weights: bytes, made: Path, limit_s: float) -> None:
    file, about = made.with_name(model.file), made.with_name("about.toml")
    file.write_bytes(weights)
    about.write_text(_toml(model.about), encoding="utf-8")
    size = ",".join(map(str, model.imgsz_hw))
    search = json.dumps([place for place in sys.path if isinstance(place, str)])  # whatever a program has put there
    words: list[str | Path] = ["--weights", file, "--model", model.network, "--imgsz", size, "--about", about]
    with subprocess.Popen(  # noqa: S603 - this very interpreter
        [sys.executable, "-c", _CODE, search, "export", *words, "-o", made, "--quiet"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
    ) as process:
        try:
            log = process.communicate(timeout=limit_s)[1]
        except subprocess.TimeoutExpired as error:
            what = f"{model.name} is not converted within {limit_s:g} s"
            raise ResourceError(what, fix="try again when the machine is idle") from error
        finally:  # Ctrl-C too
            process.kill()
            process.wait()
    if process.returncode != 0:
        raise _told(model, process.returncode, log.replace(f"{made.parent}/", ""))


def _toml(about: About) -> str:
    """JSON's strings are TOML's too."""
    stated = about.model_dump(exclude_none=True)
    return "".join(f"{key} = {json.dumps(words, ensure_ascii=False)}\n" for key, words in stated.items())


def _told(model: NamedModel, returncode: int, log: str) -> CdgaError:
    """What ``cdga export`` said last, as an error of this process."""
    if returncode < 0:
        what = f"the process that converts {model.name} was killed (signal {-returncode})"
        return ResourceError(what, fix="see that there is enough memory, then try again")
    last = one_line("".join(log.splitlines()[-1:])).partition("]: ")
    kind = _KINDS.get(returncode, ModelError)
    return kind(f"{model.name} cannot be converted: {last[2] or last[0] or f'exit code {returncode}'}")
