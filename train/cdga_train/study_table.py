"""A study's tables: as JSON, Markdown, a page of HTML, and on the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from html import escape
from typing import Final

from rich import box
from rich.console import Console
from rich.table import Table as RichTable

from cdga_sdk.errors import counted, one_line
from cdga_train.study import SELECTIONS, Spread, Study

__all__ = ["as_html", "as_markdown", "as_record", "print_study"]

_MISSING: Final = "-"
_SHOWN_COLUMNS: Final = 7  # the study's own class set; the rest is in the files
_MIN_WIDTH: Final = 100  # of the terminal's table: cut numbers are worse than broken lines


@dataclass(frozen=True, kw_only=True)
class _Table:
    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def as_record(study: Study) -> dict[str, object]:
    """Plain values for ``study.json``: every raw number, and the summaries that the tables show."""
    return {
        "family": study.family,
        "command": study.command,
        **study.facts,
        "arms": study.arms,
        "seeds": study.seeds,
        "scored_on": study.scored_on,
        "deltas_against": study.reference,
        "summary": {arm: _arm_record(study, arm) for arm in study.arms},
        "runs": [asdict(r) | {s: r.miou(s, study.classes or "") for s in SELECTIONS} for r in study.results],
        "failures": dict(study.failures),
    }


def as_markdown(study: Study) -> str:
    """``study.md``: a heading, the tables and the notes."""
    parts = [f"# {_heading(study)}"]
    for table in _tables(study):
        lines = [table.header, ("---",) + ("---:",) * (len(table.header) - 1), *table.rows]
        rows = "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
        parts.append(f"{table.title}\n\n{rows}")
    parts.append("\n".join(f"- {note}" for note in _notes(study)))
    parts.append(f"Reproduce with:\n\n```\n{one_line(study.command)}\n```")
    return "\n\n".join(parts) + "\n"


def as_html(study: Study) -> str:
    """``study.html``: the same on one page that needs nothing else."""
    tables = "\n".join(_html_table(table) for table in _tables(study))
    notes = "\n".join(f"<li>{escape(note)}</li>" for note in _notes(study))
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{escape(_heading(study))}</title><style>
body {{ font: 15px/1.5 system-ui, sans-serif; margin: 2rem; color: #222 }}
table {{ border-collapse: collapse; margin: 0 0 1.5rem }}
caption {{ text-align: left; font-weight: 600; padding: .3rem 0 }}
th, td {{ padding: .25rem .7rem; border-bottom: 1px solid #ddd; text-align: right; white-space: nowrap }}
th:first-child, td:first-child {{ text-align: left }}
pre {{ background: #f4f4f4; padding: .7rem; white-space: pre-wrap }}
</style></head><body>
<h1>{escape(_heading(study))}</h1>
{tables}
<ul>
{notes}
</ul>
<p>Reproduce with:</p>
<pre>{escape(one_line(study.command))}</pre>
</body></html>
"""


def print_study(study: Study) -> None:
    """The first table and the notes, on stderr."""
    width = max(Console(stderr=True).width, _MIN_WIDTH)
    console = Console(stderr=True, markup=False, emoji=False, highlight=False, width=width)
    table = _tables(study)[0]
    shown = RichTable(title=table.title, title_justify="left", box=box.SIMPLE)
    for number, column in enumerate(table.header[:_SHOWN_COLUMNS]):
        shown.add_column(column, justify="right" if number else "left", no_wrap=True)
    for row in table.rows:
        shown.add_row(*row[:_SHOWN_COLUMNS])
    console.print(shown)
    for note in _notes(study):
        console.print(note, soft_wrap=True)


def _tables(study: Study) -> list[_Table]:
    return [_miou_table(study), _class_table(study)] if study.classes is not None else [_choice_table(study)]


def _miou_table(study: Study) -> _Table:
    """Arms by selections: mIoU, and the difference to the reference arm."""
    own, *others = study.class_sets
    usable = SELECTIONS[:2]  # the oracle is a bound, and gets no difference
    header = ["arm", "seeds", *(title for s in usable for title in (s, f"Δ {s}")), SELECTIONS[2]]
    header += [f"{s} ({c})" for c in others for s in usable]
    rows = []
    for arm in study.arms:
        row = [arm, str(len(study.of_arm(arm)))]
        for selection in usable:
            row.append(_text(study.miou(arm, selection, own)))
            row.append(_text(study.delta(arm, selection, own), signed=True))
        row.append(_text(study.miou(arm, SELECTIONS[2], own)))
        row += [_text(study.miou(arm, s, c)) for c in others for s in usable]
        rows.append(tuple(row))
    return _Table(title=f"mIoU over {own} classes, percent", header=tuple(header), rows=tuple(rows))


def _class_table(study: Study) -> _Table:
    """Arms by classes."""
    rows = tuple(
        (f"{arm}, {selection}", *(_text(study.iou(arm, selection, name), is_short=True) for name in study.class_names))
        for arm in study.arms
        for selection in SELECTIONS[:2]
    )
    return _Table(title="IoU by class, percent, mean over seeds", header=("arm", *study.class_names), rows=rows)


def _choice_table(study: Study) -> _Table:
    """Without labels: what the choice saw."""
    header = ("arm", "seeds", "chosen iteration", "infomax", "mirror agreement")
    rows = []
    for arm in study.arms:
        choices = [r.choice for r in study.of_arm(arm) if r.choice is not None]
        rows.append(
            (
                arm,
                str(len(study.of_arm(arm))),
                ", ".join(str(c.iteration) for c in choices) or _MISSING,
                _text(Spread.of(c.infomax for c in choices), digits=3),
                _text(Spread.of(c.mirror_agreement for c in choices), digits=3),
            )
        )
    title = "Criteria of the checkpoint chosen without labels, 0 to 1, larger is better"
    return _Table(title=title, header=header, rows=tuple(rows))


def _heading(study: Study) -> str:
    runs = counted(len(study.arms) * len(study.seeds), "runs")
    return f"Study of {study.family}: {len(study.results)} of {runs}"


def _notes(study: Study) -> list[str]:
    notes = [f"± is the standard deviation over seeds (n - 1). Seeds asked for: {', '.join(map(str, study.seeds))}."]
    if study.classes is None:
        notes.append("There are no labels to score on: the criteria compare checkpoints of one run, hardly arms.")
    else:
        notes += [
            f"Scored on {one_line(study.scored_on)}.",
            "last: the network after the last iteration. label-free: the checkpoint chosen without labels. oracle: the"
            " best of those kept on the way, by the labels it is scored on: a bound for any choice, and no result.",
        ]
        if study.reference is not None:
            notes.append(f"Δ: mean and spread of the differences to {study.reference}, seed by seed.")
    if {"source_only", "translation"} & set(study.arms):
        notes.append(
            "source_only and translation forward no target image while they train, so their runs choose nothing: the"
            " study chooses for them afterwards, by the same rule on the same target images."
        )
    notes += [one_line(f"{run} could not be finished: {why}") for run, why in study.failures.items()]
    notes.append("; ".join(f"{key}: {value}" for key, value in study.facts.items() if isinstance(value, str)) + ".")
    return notes


def _arm_record(study: Study, arm: str) -> dict[str, object]:
    return {
        selection: {
            "miou": {c: _record(study.miou(arm, selection, c)) for c in study.class_sets},
            "delta": {c: _record(study.delta(arm, selection, c)) for c in study.class_sets},
            "iou": {name: _record(study.iou(arm, selection, name)) for name in study.class_names},
        }
        for selection in SELECTIONS
    }


def _record(spread: Spread | None) -> dict[str, object] | None:
    return None if spread is None else asdict(spread)


def _text(spread: Spread | None, *, digits: int = 1, signed: bool = False, is_short: bool = False) -> str:
    if spread is None:
        return _MISSING
    mean = f"{spread.mean:{'+' if signed else ''}.{digits}f}"
    return mean if spread.sd is None or is_short else f"{mean} ± {spread.sd:.{digits}f}"


def _html_table(table: _Table) -> str:
    def cells(row: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in row) + "</tr>"

    rows = "\n".join(cells(row, "td") for row in table.rows)
    head = f"<caption>{escape(table.title)}</caption><thead>{cells(table.header, 'th')}</thead>"
    return f"<table>{head}<tbody>\n{rows}\n</tbody></table>"
