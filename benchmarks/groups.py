"""Does the grouping network C of CDGA form groups, and do they follow the classes? Runs of studies, target images.

Of the last state of every round of every run with groups, over the pixels of target images; classes are the network's
own, no label is looked at:

*largest*
    mean of each pixel's largest group probability: 1/K where no pixel is decided, 1 where all are;
*entropy*
    mean entropy of a pixel's groups over log K: 1 and 0;
*told*
    how much of the class a group tells, mutual information over the classes' entropy: 0 where each group has the same
    classes, 1 where it tells the class (Theil's uncertainty coefficient).

The committed figures are made by::

    cdga study streets_camvid --arms source_only,self_training,cdga --seeds 0,1,2 --target camvid:PATH rounds=2 \
        --name two_rounds
    cdga study streets_camvid --arms cdga --seeds 0,1 --target camvid:PATH --name sharper optim.grouping_lr=0.1
    python -m benchmarks.groups runs/study/two_rounds runs/study/sharper --json benchmarks/results/groups.json
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
import torch
from torch import Tensor

from benchmarks.protocol import Record, environment
from benchmarks.target_statistics import finished_runs
from cdga_sdk.atomic import write_text
from cdga_train.checkpoint import load_checkpoint
from cdga_train.data.spec import open_unlabelled
from cdga_train.manifest import read_run
from cdga_train.panels import GroupedNetwork
from cdga_train.rounds import round_folders
from cdga_train.run_layout import LAST
from cdga_train.selection import evenly_spaced

NUM_IMAGES: Final = 32


def main(arguments: Sequence[str] | None = None) -> None:
    """Look at the groups of every run of every study, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path, nargs="+")
    parser.add_argument("--json", type=Path, required=True)
    options = parser.parse_args(arguments)
    names = [study.name for study in options.study]
    report: Record = {
        "what": "group probabilities over target images; see benchmarks/groups.py",
        **environment("benchmarks.groups", [*names, "--json", "PATH"], ("torch",), torch.device("cpu")),
        "images": NUM_IMAGES,
        "rounds": [row for study in options.study for folder in finished_runs(study) for row in rows_of(folder)],
    }
    write_text(options.json, json.dumps(report, indent=1) + "\n")


def rows_of(folder: Path) -> list[Record]:
    """The groups of one run after each of its rounds; nothing of an arm without groups."""
    config = read_run(folder)
    if config.arm != "cdga":
        return []
    assert config.target is not None, folder
    target = open_unlabelled(config.target, config.target_split, config.imgsz)
    images_bgr = [target[i].image_bgr for i in evenly_spaced(len(target), NUM_IMAGES)]
    rows: list[Record] = []
    for number, round_folder in enumerate(round_folders(config, folder), 1):
        grouped = GroupedNetwork(load_checkpoint(round_folder / LAST))
        largest, entropy, told = np.mean([figures(*grouped(image_bgr)) for image_bgr in images_bgr], axis=0)
        rows.append(
            {
                "study": folder.parent.name,
                "seed": config.seed,
                "round": number,
                "num_groups": config.num_groups,
                "grouping_lr": config.optim.grouping_lr,
                "largest": round(float(largest), 4),
                "entropy": round(float(entropy), 4),
                "told": round(float(told), 4),
            }
        )
    return rows


def figures(prob_Chw: Tensor, group_Khw: Tensor) -> tuple[float, float, float]:
    """What this module's docstring names, of one image: largest, entropy, told.

    Args:
        prob_Chw: Class probabilities.
        group_Khw: Group probabilities of the same pixels; at least 2 groups.
    """
    num_groups = len(group_Khw)
    largest = float(group_Khw.max(dim=0).values.mean())
    entropy = float(torch.special.entr(group_Khw).sum(dim=0).mean()) / math.log(num_groups)
    joint_KC = torch.einsum("kn,cn->kc", group_Khw.flatten(1).double(), prob_Chw.flatten(1).double())
    joint_KC /= joint_KC.sum()
    of_classes = float(torch.special.entr(joint_KC.sum(dim=0)).sum())
    of_groups = float(torch.special.entr(joint_KC.sum(dim=1)).sum())
    mutual = of_classes + of_groups - float(torch.special.entr(joint_KC).sum())
    return largest, entropy, mutual / of_classes if of_classes > 0 else 0.0


if __name__ == "__main__":
    main()
