"""The one place that imports OpenCV, so that a bare server's missing libGL is one clear line."""

from __future__ import annotations

from cdga_sdk.errors import ResourceError

__all__ = ["cv2"]

try:
    import cv2
except ImportError as error:  # opencv-python links libGL.so.1, which servers without a desktop lack
    raise ResourceError(
        f"OpenCV cannot be loaded ({error})",
        fix="install the system library (Debian, Ubuntu: apt-get install libgl1), or swap the wheel: "
        "pip uninstall opencv-python && pip install opencv-python-headless",
    ) from error
