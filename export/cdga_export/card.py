"""CARD.md: what a bundle is, for people."""

from __future__ import annotations

from collections.abc import Mapping

from cdga_export.parity import ParityReport, openvino_line
from cdga_sdk.bundle import EXTRA, About, ExtraBlock, Manifest, Precision, graph_file
from cdga_sdk.errors import counted, one_line

__all__ = ["render_card"]


def render_card(manifest: Manifest, parity: Mapping[Precision, ParityReport], graphs: Mapping[Precision, bytes]) -> str:
    """The card as Markdown: origin, input and output, proof, limits."""
    origin = manifest.provenance
    height, width = manifest.imgsz_hw
    trained = ", ".join(
        f"{key} {value}"
        for key, value in (
            ("arm", origin.arm),
            ("source", origin.source),
            ("target", origin.target),
            ("iterations", origin.iterations),
            ("seed", origin.seed),
        )
        if value is not None
    )
    batches = manifest.input.batch_range
    fp32 = parity["fp32"]
    rows = "\n".join(
        f"| {precision} | `{graph_file(precision)}` | {len(graphs[precision]) / 1e6:.2f} MB "
        f"| {100 * report.agreement:.4f} % | {100 * report.worst_agreement:.4f} % "
        f"| {100 * report.min_agreement:.2f} % | {100 * report.boundary_agreement:.3f} % "
        f"| {_image_in(report)} |"
        for precision, report in parity.items()
    )
    notes = "".join(_note(precision, report) for precision, report in parity.items())
    return f"""# {origin.model}, {width}x{height}

Semantic segmentation of driving scenes: {len(manifest.names)} classes ({", ".join(manifest.names)}).

- Made by {origin.made_by} on {origin.made_on}; {trained}.
{_about_lines(manifest.about)}- Weights sha256 `{origin.weights_sha256}`.
- Input `frame`: uint8 RGB, (N, {height}, {width}, 3). Resize first: `{manifest.preprocess.resize}`.
  Normalisation is in the graph.
{_extra_lines(manifest.extra)}- Output `mask`: {manifest.outputs.mask}; {manifest.label_space}s, uint8.
- Output `conf`: {manifest.outputs.conf}; uint8.
- Without this project: `deploy/run_onnx.py` (ONNX Runtime alone), `deploy/triton/config.pbtxt`.

## Proof

Pixels that have the same class as {fp32.reference} gives them, on {len(fp32.frames)} golden frames; run by ONNX Runtime
on a CPU{_other_judge(parity)}. Figures per frame and class are in `parity.json`, pictures of the worst frames in
`worst/`.

| precision | file | size | agreement | worst frame | gate, every frame | near boundaries | image in |
|---|---|---|---|---|---|---|---|
{rows}

"Image in" is against torch when torch resizes too, in floating point: what it has less than "agreement" is the
resizing; a dash where all golden frames already had the network's size. Batches of {" and ".join(map(str, batches))}
frames were proven.
{notes}

## Limits

- Parity says that the export is faithful, not that the network is right: score it on labelled footage of your own
  with `cdga evaluate`.
- Not a safety system. Small and distant people, and anything outside the classes, are missed.
- The data that the weights were trained on keeps its own licence.
{_limits_line(manifest.about)}"""


def _image_in(report: ParityReport) -> str:
    return "-" if report.image_agreement is None else f"{100 * report.image_agreement:.3f} %"


def _about_lines(about: About | None) -> str:
    if about is None:
        return ""
    stated = {"Trained on": about.trained_on, "Adapted to": about.adapted_to, "Licence": about.licence}
    return "".join(f"- {title}: {one_line(words)}.\n" for title, words in stated.items() if words)


def _limits_line(about: About | None) -> str:
    return "" if about is None or about.limits is None else f"- {one_line(about.limits)}\n"


def _extra_lines(extra: ExtraBlock | None) -> str:
    if extra is None:
        return ""
    size = f"frames of any size in multiples of {extra.size_multiple}" if extra.size == "dynamic" else "the same frames"
    rules = {"logits": extra.logits, "features": extra.features}
    more = "".join(f", `{name}` {rules[name]}" for name in extra.outputs)
    return f"- `{EXTRA}`, for programs of your own: {size}; `mask`, `conf`{more}.\n"


def _other_judge(parity: Mapping[Precision, ParityReport]) -> str:
    """What bf16 was run by, which depends on the machine that exported."""
    return f", bf16 by {parity['bf16'].candidate}" if "bf16" in parity else ""


def _note(precision: Precision, report: ParityReport) -> str:
    lines = f"\n- {precision}: {report.arithmetic}." if report.arithmetic else ""
    if report.openvino is not None:
        lines += f"\n- {precision}: {openvino_line(report.openvino)}."
    if report.labels is not None:
        found = report.labels
        lines += f"\n- {precision}: mIoU {found.miou:.2f} on {counted(found.frames, 'frames')} of {found.data}"
        lines += "." if precision == "fp32" else f"; fp32 has {found.miou_fp32:.2f}."
    return lines
