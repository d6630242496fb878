"""Segment a video and use the masks: the share of each frame that is road.

python examples/free_space.py ride.mp4 model.cdga
"""

from __future__ import annotations

import sys

from cdga_sdk import Segmenter


def main(video: str, model: str) -> None:
    """Print one line per frame: time, share of road, and of people and riders."""
    with Segmenter(model, conf=0.4) as segmenter:  # pixels less sure than 0.4 become 255 and count as neither
        for result in segmenter.stream(video):
            road = result.is_class("road").mean()
            people = result.is_class("person", "rider").mean()
            print(f"{result.time_s:8.3f} s  road {road:6.1%}  people {people:6.2%}")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python examples/free_space.py VIDEO BUNDLE")
    main(sys.argv[1], sys.argv[2])
