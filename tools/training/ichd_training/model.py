"""The three stages. Dense 3x3 convolutions only: the box runs them with tract, which is slow at depthwise ones."""

import torch
from torch import nn
from torch.nn import functional as F

FEATURES = 256


def conv_bn(c_in: int, c_out: int, stride: int = 1, k: int = 3, dilation: int = 1) -> nn.Sequential:
    pad = dilation * (k // 2)
    return nn.Sequential(nn.Conv2d(c_in, c_out, k, stride, pad, dilation, bias=False), nn.BatchNorm2d(c_out))


class Block(nn.Module):
    """Basic residual block (He et al. 2016); batch norm is folded into the convolutions at export."""

    def __init__(self, c_in: int, c_out: int, stride: int):
        super().__init__()
        self.a, self.b = conv_bn(c_in, c_out, stride), conv_bn(c_out, c_out)
        self.skip = nn.Identity() if c_in == c_out and stride == 1 else conv_bn(c_in, c_out, stride, 1)

    def forward(self, x):
        return F.relu(self.b(F.relu(self.a(x))) + self.skip(x))


class Base(nn.Module):
    """[N, 9, S, S] -> features [N, 256], logits [N, 6], lesion map logits [N, 1, S/8, S/8]."""

    def __init__(self, widths=(24, 40, 72, 128, 224)):
        super().__init__()
        self.stem = conv_bn(9, widths[0], 2, 5)
        self.s4 = Block(widths[0], widths[1], 2)
        self.s8 = nn.Sequential(Block(widths[1], widths[2], 2), Block(widths[2], widths[2], 1))
        self.s16 = nn.Sequential(Block(widths[2], widths[3], 2), Block(widths[3], widths[3], 1))
        self.s32 = nn.Sequential(Block(widths[3], widths[4], 2), Block(widths[4], widths[4], 1))
        self.map = nn.Sequential(conv_bn(widths[2], 48, 1, 3, 2), nn.ReLU(), nn.Conv2d(48, 1, 1))
        self.neck = nn.Linear(2 * widths[4] + 2 * 48, FEATURES)
        self.head = nn.Linear(FEATURES, 6)
        self.drop = nn.Dropout(0.3)

    def forward(self, x):
        x8 = self.s8(self.s4(F.relu(self.stem(x))))
        x32 = self.s32(self.s16(x8))
        m = self.map[1](self.map[0](x8))
        pool = lambda t: [t.mean(dim=(2, 3)), t.flatten(2).amax(dim=2)]
        features = F.relu(self.neck(self.drop(torch.cat(pool(x32) + pool(m), dim=1))))
        return features, self.head(features), self.map[2](m)


class Sequence1(nn.Module):
    """Features [B, T, 256] -> logits [B, T, 6]: FC and a two-layer bidirectional GRU."""

    def __init__(self, hidden: int = 64):
        super().__init__()
        self.fc = nn.Linear(FEATURES, 96)
        self.gru = nn.GRU(96, hidden, num_layers=2, bidirectional=True, batch_first=True, dropout=0.2)
        self.head = nn.Linear(2 * hidden + 96, 6)

    def forward(self, features):
        x = F.relu(self.fc(features))
        return self.head(torch.cat([self.gru(x)[0], x], dim=2))


class Sequence2(nn.Module):
    """[B, T, 13] (base 6, sequence 1 6, spacing 1) -> logits [B, T, 6]: dilated convolutions, GRU, skip.

    The skip starts as the mean of the two stages' own logits, so training can only move away from that for a reason.
    """

    def __init__(self, width: int = 32):
        super().__init__()
        self.c1 = nn.Conv1d(13, width, 3, padding=1)
        self.c2 = nn.Conv1d(width, width, 3, padding=2, dilation=2)
        self.c3 = nn.Conv1d(width, width, 3, padding=4, dilation=4)
        self.gru = nn.GRU(width, width // 2, bidirectional=True, batch_first=True)
        self.head = nn.Linear(2 * width, 6)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        self.mix = nn.Parameter(torch.tensor(0.5))

    def forward(self, x):
        p = x[:, :, :12].clamp(1e-4, 1 - 1e-4)
        logits = torch.log(p) - torch.log(1 - p)
        skip = self.mix * logits[:, :, :6] + (1 - self.mix) * logits[:, :, 6:12]
        h = torch.cat([logits * 0.25, x[:, :, 12:]], dim=2).transpose(1, 2)
        h = F.relu(self.c1(h))
        h = F.relu(self.c3(F.relu(self.c2(h))) + h).transpose(1, 2)
        return skip + self.head(torch.cat([self.gru(h)[0], h], dim=2))
