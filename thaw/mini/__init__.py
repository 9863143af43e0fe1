"""VGG16-mini, the small backbone that Thaw ships: its network, its weights, and how they were pretrained."""

from thaw.mini.network import DRAWINGS_WEIGHTS, build_vgg16_mini

__all__ = ["DRAWINGS_WEIGHTS", "build_vgg16_mini"]
