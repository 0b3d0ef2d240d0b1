"""GPT-2, ResNet-50 and ViT in PyTorch: equals of ours, parameter for parameter, to measure against.

Shapes: B batch, T sequence, H heads, C channels or head size, D width, V vocabulary.
"""

import torch
import torch.nn.functional as F
from torch import nn


class Block(nn.Module):
    """Attention, then an MLP, each after a norm: [B, T, D] -> [B, T, D]."""

    def __init__(
        self,
        width: int,
        heads: int,
        causal: bool = True,
        bias: bool = True,
        gelu: str = 'none',
        epsilon: float = 1e-5,
    ):
        super().__init__()
        self.heads, self.causal, self.gelu = heads, causal, gelu
        self.norms = nn.ModuleList(nn.LayerNorm(width, epsilon, bias=bias) for _ in range(2))
        self.qkv, self.out = (nn.Linear(width, n * width, bias=bias) for n in (3, 1))
        self.up = nn.Linear(width, 4 * width, bias=bias)
        self.down = nn.Linear(4 * width, width, bias=bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, length, width = x.shape
        qkv = self.qkv(self.norms[0](x)).view(batch, length, 3, self.heads, -1)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=self.causal)
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, length, width))
        return x + self.down(F.gelu(self.up(self.norms[1](x)), approximate=self.gelu))


class GPT(nn.Module):
    """GPT-2: logits [B * T, V] of token ids [B, T]; the read-out is the token table.

    gelu: 'none' for the exact one, 'tanh' for GPT-2's own.
    """

    def __init__(
        self,
        vocabulary: int,
        length: int,
        width: int,
        heads: int,
        layers: int,
        bias: bool = True,
        gelu: str = 'tanh',
    ):
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.positions = nn.Embedding(length, width)
        block = {'bias': bias, 'gelu': gelu}
        self.blocks = nn.Sequential(*(Block(width, heads, **block) for _ in range(layers)))
        self.norm = nn.LayerNorm(width, bias=bias)
        for parameter in self.parameters():
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=0.02)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.tokens(ids) + self.positions.weight
        return F.linear(self.norm(self.blocks(x)), self.tokens.weight).flatten(0, 1)


class ViT(nn.Module):
    """Images [B, 3, side, side] to logits, read from a class token. The default is ViT-S/16."""

    def __init__(
        self,
        side: int,
        classes: int,
        width: int = 384,
        heads: int = 6,
        layers: int = 12,
        patch: int = 16,
    ):
        super().__init__()
        self.patches = nn.Conv2d(3, width, patch, patch)
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Parameter(torch.randn(1 + (side // patch) ** 2, width) * 0.02)
        block = {'causal': False, 'epsilon': 1e-6}
        self.blocks = nn.Sequential(*(Block(width, heads, **block) for _ in range(layers)))
        self.norm = nn.LayerNorm(width, 1e-6)
        self.read_out = nn.Linear(width, classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.patches(images).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], dim=1) + self.positions
        return self.read_out(self.norm(self.blocks(x))[:, 0])


class Bottleneck(nn.Module):
    """Convolutions of 1, 3 and 1, and a shortcut; the middle one strides (ResNet v1.5)."""

    def __init__(self, inputs: int, width: int, stride: int):
        super().__init__()
        self.branch = nn.Sequential(
            *convolution(inputs, width, 1, 1),
            nn.ReLU(inplace=True),
            *convolution(width, width, 3, stride),
            nn.ReLU(inplace=True),
            *convolution(width, 4 * width, 1, 1),
        )
        nn.init.zeros_(self.branch[-1].weight)
        same = inputs == 4 * width and stride == 1
        self.shortcut = nn.Sequential(*() if same else convolution(inputs, 4 * width, 1, stride))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.branch(x) + self.shortcut(x), inplace=True)


class ResNet50(nn.Module):
    """Images [B, 3, H, W] to logits."""

    def __init__(self, classes: int, width: int = 64):
        super().__init__()
        stem = [*convolution(3, width, 7, 2), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)]
        blocks, inputs = [], width
        for stage, count in enumerate((3, 4, 6, 3)):
            for i in range(count):
                stride = 2 if stage > 0 and i == 0 else 1
                blocks.append(Bottleneck(inputs, width * 2**stage, stride))
                inputs = 4 * width * 2**stage
        self.layers = nn.Sequential(*stem, *blocks)
        self.read_out = nn.Linear(inputs, classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.read_out(self.layers(images).mean((2, 3)))


def convolution(inputs: int, outputs: int, kernel: int, stride: int) -> tuple[nn.Module, ...]:
    """Of images [B, C, H, W], without a bias, and its batch norm."""
    conv = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode='fan_out', nonlinearity='relu')
    return conv, nn.BatchNorm2d(outputs)
