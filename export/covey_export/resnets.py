"""Small residual networks for images, random and frozen from a seed: `covey:resnet8` and `covey:resnet18`.

As FLoCoRA trains them (Grativol et al. 2024, https://arxiv.org/abs/2406.14082): basic blocks (He et al. 2016,
https://arxiv.org/abs/1512.03385) after a 3x3 stem without pooling, group normalisation with two groups, convolutions
drawn from Kaiming's normal distribution (fan-out). Nothing is trained beforehand: the convolutions stay as they were
drawn and get LoRA, norms and head train whole. ResNet-8 has 1,227,594 parameters for ten classes, ResNet-18 11,173,962.
"""

from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

PREFIX = "covey:"
GROUPS = 2


class Shape(NamedTuple):
    """Blocks of each stage, and their widths."""

    blocks: tuple[int, ...]
    widths: tuple[int, ...]


NETWORKS = {
    "resnet8": Shape((1, 1, 1), (64, 128, 256)),
    "resnet18": Shape((2, 2, 2, 2), (64, 128, 256, 512)),
}


def build(name: str, *, channels: int = 3, labels: int = 10, seed: int = 0) -> "ResNet":
    """A network of `NETWORKS`, the same for the same seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ResNet(name, NETWORKS[name], channels, labels).eval()


class ResNet(nn.Module):
    """Takes float32 [B, C, H, W], gives `.logits` float32 [B, labels] and, with labels, `.loss`, as transformers do."""

    base_model_prefix = "backbone"

    def __init__(self, name: str, shape: Shape, channels: int, labels: int):
        super().__init__()
        self.config = SimpleNamespace(
            model_type=name, num_labels=labels, id2label={i: f"LABEL_{i}" for i in range(labels)}, num_channels=channels
        )
        widths = [shape.widths[0], *shape.widths]
        self.stem_conv = _convolution(channels, widths[0], 3)
        self.stem_norm = nn.GroupNorm(GROUPS, widths[0])
        self.stages = nn.ModuleList(
            nn.Sequential(*(Block(before if i == 0 else width, width, 2 if i == 0 and k else 1) for i in range(count)))
            for k, (count, before, width) in enumerate(zip(shape.blocks, widths, shape.widths, strict=False))
        )
        self.classifier = nn.Linear(widths[-1], labels)

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None) -> Any:
        """As the class says."""
        x = F.relu(self.stem_norm(self.stem_conv(pixel_values)))
        for stage in self.stages:
            x = stage(x)
        logits = self.classifier(x.mean((2, 3)))
        loss = None if labels is None else F.cross_entropy(logits, labels)
        return SimpleNamespace(logits=logits, loss=loss)


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut, which is a 1x1 convolution where the shape changes."""

    def __init__(self, inner: int, outer: int, stride: int):
        super().__init__()
        self.conv1 = _convolution(inner, outer, 3, stride)
        self.norm1 = nn.GroupNorm(GROUPS, outer)
        self.conv2 = _convolution(outer, outer, 3)
        self.norm2 = nn.GroupNorm(GROUPS, outer)
        self.short_conv, self.short_norm = None, None
        if stride != 1 or inner != outer:
            self.short_conv, self.short_norm = _convolution(inner, outer, 1, stride), nn.GroupNorm(GROUPS, outer)

    def forward(self, x: Tensor) -> Tensor:
        """[B, inner, H, W] to [B, outer, H / stride, W / stride]."""
        out = F.relu(self.norm1(self.conv1(x)))
        out = self.norm2(self.conv2(out))
        if self.short_conv is not None and self.short_norm is not None:
            x = self.short_norm(self.short_conv(x))
        return F.relu(out + x)


def _convolution(inner: int, outer: int, size: int, stride: int = 1) -> nn.Conv2d:
    conv = nn.Conv2d(inner, outer, size, stride, padding=size // 2, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return conv
