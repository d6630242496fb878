"""CARD.md: what a bundle is, for people."""

from __future__ import annotations

from cdga_export.parity import ParityReport
from cdga_sdk.bundle import Manifest

__all__ = ["render_card"]


def render_card(manifest: Manifest, parity: ParityReport, model_size_bytes: int) -> str:
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
    return f"""# {origin.model}, {width}x{height}

Semantic segmentation of driving scenes: {len(manifest.names)} classes ({", ".join(manifest.names)}).

- Made by {origin.made_by} on {origin.made_on}; {trained}.
- Weights sha256 `{origin.weights_sha256}`; `model.onnx` is {model_size_bytes / 1e6:.2f} MB, {manifest.precision}.
- Input `frame`: uint8 RGB, (N, {height}, {width}, 3). Resize first: `{manifest.preprocess.resize}`.
  Normalisation is in the graph.
- Output `mask`: {manifest.outputs.mask}; {manifest.label_space}s, uint8.
- Output `conf`: {manifest.outputs.conf}; uint8.

## Proof

{parity.candidate} against {parity.reference} on {len(parity.frames)} golden frames:
{100 * parity.agreement:.4f} % of pixels have the same class (gate {100 * parity.min_agreement:.2f} % on every frame;
worst frame {parity.worst_frame}). Figures per frame are in `parity.json`.

## Limits

- Parity says that the export is faithful, not that the network is right: score it on labelled footage of your own
  with `cdga evaluate`.
- Not a safety system. Small and distant people, and anything outside the classes, are missed.
- The data that the weights were trained on keeps its own licence.
"""
