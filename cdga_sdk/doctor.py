"""``cdga doctor``: can this machine segment, with which runtime, and if not, why not.

Nothing that is found broken stops the rest: libraries are loaded in processes of their own (`cdga_sdk.library_probe`),
and whatever fails is a fact like the others. Which runtime is taken is not decided here: `cdga_sdk.backends.choice` is
asked, as ``cdga segment`` asks it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from cdga_sdk import __version__
from cdga_sdk.backends.choice import Candidate
from cdga_sdk.doctor_facts import (
    TENSORRT_EXTRAS,
    Fact,
    Trial,
    cores_fact,
    cpu_fact,
    engine_cache_fact,
    memory_fact,
    nvidia_fact,
    onnxruntime_fact,
    opencv_fact,
    openvino_fact,
    packages_fact,
    pyav_fact,
    python_fact,
    run_folder_fact,
    segmenting_fact,
    tensorrt_fact,
    torch_fact,
)
from cdga_sdk.errors import CdgaError, ResourceError, one_line
from cdga_sdk.library_probe import LIBRARY_TIMEOUT_S, Answer, Probe, answer_of
from cdga_sdk.machine import cuda_driver, this_machine
from cdga_sdk.models.model_path import model_path

__all__ = ["Report", "examine", "print_report", "refuse_unfit"]

_RUNS: Final = Path("runs/segment")
_MODEL_TIMEOUT_S: Final = 600.0


@dataclass(frozen=True, kw_only=True)
class Report:
    """What ``cdga doctor`` found.

    Attributes:
        model: The bundle that was asked about.
        facts: In an order that does not change.
        trial: With the bundle's float32 graph and its first golden frame, or with a probe graph of two operators where
            no bundle was given; None where it failed, which a fact tells.
    """

    model: str | None
    facts: tuple[Fact, ...]
    trial: Trial | None

    @property
    def can_segment(self) -> bool:
        """Whether ``cdga segment`` works here, with the labels that it should give."""
        return not any(fact.stops for fact in self.facts)

    def as_dict(self) -> dict[str, object]:
        """Plain values that JSON can hold."""
        return {"can_segment": self.can_segment, **asdict(self)}


def examine(model: str | None = None, *, offline: bool = False) -> Report:
    """Look at everything. What fails is in the report; nothing is raised.

    Args:
        model: A bundle to verify and to try, or None; a name is fetched.
        offline: Never ask the network.
    """
    driver = cuda_driver() is not None
    with ExitStack() as held:

        def probe(*words: str) -> Probe:
            return held.enter_context(Probe(*words))

        # All at once: loading a library costs tenths of a second.
        libraries = {name: probe(name) for name in ("onnxruntime", "openvino", "opencv", "pyav")}
        gpus = probe("nvidia") if driver else None
        products = {name: probe("tensorrt", name) for name in TENSORRT_EXTRAS if driver}
        looks: dict[str, Callable[[], Fact]] = {
            "python": python_fact,
            "cpu": lambda: cpu_fact(this_machine()),
            "cores": lambda: cores_fact(this_machine()),
            "memory": lambda: memory_fact(this_machine()),
            "onnxruntime": lambda: onnxruntime_fact(libraries["onnxruntime"].answer(), driver=driver),
            "openvino": lambda: openvino_fact(libraries["openvino"].answer(), driver=driver),
            "nvidia": lambda: nvidia_fact(gpus.answer() if gpus else None),
            "tensorrt": lambda: tensorrt_fact({name: p.answer() for name, p in products.items()}, driver=driver),
            "torch": torch_fact,
            "opencv": lambda: opencv_fact(libraries["opencv"].answer()),
            "pyav": lambda: pyav_fact(libraries["pyav"].answer()),
            "packages": packages_fact,
            "engine_cache": lambda: engine_cache_fact(driver=driver),
            "run_folder": lambda: run_folder_fact(_RUNS),
        }
        facts = [_guarded(name, look) for name, look in looks.items()]
        answer = _tried(model, probe, offline=offline)  # behind the others: it is timed
    trial = None if answer.error else _trial(answer.found)
    gpu = any(fact.name == "nvidia" and fact.details.get("gpus") for fact in facts)
    return Report(model=model, facts=(*facts, segmenting_fact(answer, trial, model, gpu=gpu)), trial=trial)


def _tried(model: str | None, probe: Callable[..., Probe], *, offline: bool) -> Answer:
    if model is None:
        return probe("segmenting").answer(LIBRARY_TIMEOUT_S)
    try:
        place = model_path(model, offline=offline)
    except CdgaError as error:
        return answer_of(error)
    return probe("segmenting", str(place)).answer(_MODEL_TIMEOUT_S)


def refuse_unfit(report: Report) -> None:
    """Exit code 6 where segmenting cannot work, or gives wrong labels.

    Raises:
        ResourceError: A fact stops it.
    """
    stopping = [fact for fact in report.facts if fact.stops]
    if stopping:
        raise ResourceError(
            f"segmenting cannot work here: {'; '.join(fact.text for fact in stopping)}",
            where=report.model,
            fix=stopping[0].fix,
        )


def print_report(report: Report) -> None:
    """Show a report on stderr."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(stderr=True, markup=False, emoji=False, highlight=False)
    styles = {"ok": "green", "note": "yellow", "problem": "red"}
    table = Table("", "what", "found", title=f"cdga-sdk {__version__}", title_justify="left")
    for fact in report.facts:
        found = fact.text + (f"\nfix: {fact.fix}" if fact.fix else "")
        table.add_row(Text(fact.level, styles[fact.level]), fact.name, found)
    console.print(table)
    if report.trial is None:
        return
    title = f"runtimes for {report.model or 'a probe graph'}, in order"
    walk = Table("", "runtime", "why", title=title, title_justify="left")
    for candidate in report.trial.candidates:
        walk.add_row("taken" if candidate.taken else "-", candidate.name, candidate.reason)
    console.print(walk)


def _guarded(name: str, look: Callable[[], Fact]) -> Fact:
    try:
        return look()
    except Exception as error:  # noqa: BLE001 - a fact that cannot be had is one, and the others are still wanted
        text = f"cannot be told ({type(error).__name__}: {one_line(error)[:200]})"
        return Fact(name=name, level="problem", text=text, fix="please report it with what cdga doctor --json prints")


def _trial(found: Mapping[str, Any]) -> Trial:
    candidates = tuple(Candidate(**candidate) for candidate in found["candidates"])
    height, width = found["imgsz_hw"]
    return Trial(**{**found, "candidates": candidates, "imgsz_hw": (height, width)})
