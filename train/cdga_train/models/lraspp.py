"""LR-ASPP on MobileNetV3-Large: 3.2 M parameters, every operation at home on small devices, logits at stride 8.

Source: Howard et al., "Searching for MobileNetV3", ICCV 2019 (arXiv 1905.02244), section 6.4. Network and head are
torchvision's, whose pooling in the head is global.
"""

from __future__ import annotations

from typing import ClassVar, Final

from cdga_sdk.errors import MissingExtraError
from cdga_train.models.base import SegmentationNetwork
from cdga_train.models.published import PublishedNames

try:
    from torchvision.models.segmentation import lraspp_mobilenet_v3_large
except ImportError as error:
    raise MissingExtraError("torchvision", "train") from error

__all__ = ["PUBLISHED", "LRASPPMobileNetV3"]

# The whole network as torchvision's lraspp_mobilenet_v3_large, or the backbone of its mobilenet_v3_large.
PUBLISHED: Final = PublishedNames(
    of="LR-ASPP or MobileNetV3-Large",
    fix="give a state of torchvision's lraspp_mobilenet_v3_large, or of its mobilenet_v3_large",
    renames=(
        (r"(?:backbone|features)\.", r"backbone."),
        (r"classifier\.(cbr|scale|low_classifier|high_classifier)\.", r"head.\1."),
    ),
    left_out=r"classifier\.[03]\.(weight|bias)",
    class_axis="head.low_classifier.weight",
)


class LRASPPMobileNetV3(SegmentationNetwork):
    """LR-ASPP on MobileNetV3-Large with random weights: torchvision's network without its last upsampling.

    Args:
        num_classes: At least 1.
    """

    output_stride: ClassVar[int] = 8
    size_multiple: ClassVar[int] = 16

    def __init__(self, num_classes: int) -> None:
        network = lraspp_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=num_classes)
        super().__init__(network.backbone, network.classifier, num_classes)
