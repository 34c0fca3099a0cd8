"""Train the digit network and export it with its train-time branches. From the checkout: ``python -m examples.digits.train``.

The network is a small MobileOne (Vasu et al., "MobileOne: An Improved One millisecond Mobile Backbone", CVPR 2023): every convolution
is trained as a sum of parallel branches, which are linear and could be merged into one convolution. The export keeps them apart, each
with its own BatchNormalization: merging them is the compiler's work.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from examples.digits.data import split

MODEL = Path(__file__).with_name("digits.onnx")
_SEED = 0
_EPOCHS = 60
_BATCH = 64


class Branches(nn.Module):
    """``relu(sum of branches)``: ``copies`` of convolution + BatchNorm, a 1x1 scale branch beside larger kernels, and the identity's
    BatchNorm where the shape allows. Maps ``[N, channels_in, H, W]`` to ``[N, channels_out, H / stride, W / stride]``."""

    def __init__(self, channels_in: int, channels_out: int, kernel: int, *, stride: int = 1, groups: int = 1, copies: int = 2) -> None:
        super().__init__()
        kernels = [kernel] * copies + ([1] if kernel > 1 else [])
        self.convolutions = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(channels_in, channels_out, k, stride=stride, padding=k // 2, groups=groups, bias=False),
                nn.BatchNorm2d(channels_out),
            )
            for k in kernels
        )
        self.identity = nn.BatchNorm2d(channels_in) if channels_in == channels_out and stride == 1 else None

    def forward(self, x: Tensor) -> Tensor:
        total = self.convolutions[0](x)
        for branch in self.convolutions[1:]:
            total = total + branch(x)
        if self.identity is not None:
            total = total + self.identity(x)
        return functional.relu(total)


def separable(channels_in: int, channels_out: int, *, stride: int = 1) -> nn.Sequential:
    """A 3x3 depthwise block and a pointwise one."""
    return nn.Sequential(
        Branches(channels_in, channels_in, 3, stride=stride, groups=channels_in),
        Branches(channels_in, channels_out, 1),
    )


class DigitNet(nn.Module):
    """float32 ``[N, 1, 8, 8]`` to ``[N, 10]`` logits."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            Branches(1, 16, 3),
            separable(16, 32),
            separable(32, 64, stride=2),
            separable(64, 64),
            separable(64, 96, stride=2),
        )
        self.classifier = nn.Linear(96, 10)

    def forward(self, x: Tensor) -> Tensor:
        pooled = functional.adaptive_avg_pool2d(self.features(x), 1)
        logits: Tensor = self.classifier(torch.flatten(pooled, 1))
        return logits


def shifted(images: Tensor) -> Tensor:
    """Each image moved by up to one pixel in both directions, at random."""
    padded = functional.pad(images, (1, 1, 1, 1))
    offsets = torch.randint(0, 3, (len(images), 2)).tolist()
    return torch.stack([image[:, y : y + 8, x : x + 8] for image, (y, x) in zip(padded, offsets, strict=True)])


def train(images: Tensor, labels: Tensor) -> DigitNet:
    """A trained network in inference mode."""
    torch.manual_seed(_SEED)
    torch.set_num_threads(1)  # the order of float sums, and with it the result, does not depend on the machine's core count
    net = DigitNet()
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3, weight_decay=0.05)
    steps = _EPOCHS * (len(images) // _BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=6e-3, total_steps=steps)
    for _ in range(_EPOCHS):
        order = torch.randperm(len(images))
        for at in range(0, len(images) - _BATCH + 1, _BATCH):
            picked = order[at : at + _BATCH]
            loss = functional.cross_entropy(net(shifted(images[picked])), labels[picked], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    net.eval()
    return net


def export(net: DigitNet, path: Path) -> None:
    """Write net as ONNX, branches and BatchNormalization nodes kept; the batch dimension is symbolic."""
    torch.onnx.export(
        net,
        (torch.zeros(1, 1, 8, 8),),
        path,
        dynamo=False,
        opset_version=17,
        input_names=["image"],
        output_names=["logits"],
        dynamic_axes={"image": {0: "N"}, "logits": {0: "N"}},
        training=torch.onnx.TrainingMode.PRESERVE,
        do_constant_folding=False,
    )


def main() -> None:
    """Train, report the held-out accuracy, export."""
    train_images, held_images, train_labels, held_labels = map(torch.from_numpy, split())
    net = train(train_images, train_labels)
    with torch.no_grad():
        right = (net(held_images).argmax(1) == held_labels).float().mean().item()
    export(net, MODEL)
    print(f"held-out accuracy {right:.2%}; {MODEL} has {MODEL.stat().st_size / 1024:.0f} KB")


if __name__ == "__main__":
    main()
