"""Trains base CNN, then sequence 1 on its features, then sequence 2 on both; checkpoints as it goes."""

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from . import data
from .model import Base, Sequence1, Sequence2
from .preprocess import channels, step_meta

CLASS_WEIGHT = torch.tensor([2.0, 1.0, 1.0, 1.0, 1.0, 1.0])


def bce(logits, labels, smooth: float = 0.02):
    """The challenge's weighted log loss; labels are smoothed, for some of them are wrong."""
    loss = F.binary_cross_entropy_with_logits(logits, labels * (1 - 2 * smooth) + smooth, reduction="none")
    return (loss * CLASS_WEIGHT).mean()


def train_base(slices, minutes: float, out: Path, rng, generator, weights=None, batch: int = 24, lr: float = 2e-3):
    """One-cycle over a fixed wall time, so that the result fits the machine; exponential moving average of weights."""
    net = Base().to(memory_format=torch.channels_last)
    if weights:
        net.load_state_dict(weights)
    mean = torch.optim.swa_utils.AveragedModel(net, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.998), use_buffers=True)
    optimizer = torch.optim.AdamW(net.parameters(), lr=lr, weight_decay=0.02)
    start, step, running = time.time(), 0, 0.0
    while (done := (time.time() - start) / (minutes * 60)) < 1:
        for g in optimizer.param_groups:
            g["lr"] = lr * (min(done / 0.08, 1.0) * 0.5 * (1 + np.cos(np.pi * max(done - 0.08, 0) / 0.92)) + 1e-3)
        x, y, m, known = slices.sample(batch, rng)
        x, m = data.augment(x, m, generator)
        net.train()
        with torch.autocast("cpu", torch.bfloat16):  # twice as fast where the CPU has it; weights stay in 32 bits
            _, logits, map_logits = net(data.to_channels(x).contiguous(memory_format=torch.channels_last))
        logits, map_logits = logits.float(), map_logits.float()
        map_loss = F.binary_cross_entropy_with_logits(map_logits, m, reduction="none").mean(dim=(1, 2, 3))
        loss = bce(logits, y) + 2.0 * (map_loss * known).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 2.0)
        optimizer.step()
        mean.update_parameters(net)
        running, step = 0.98 * running + 0.02 * loss.item(), step + 1
        if step % 100 == 0:
            print(f"base step {step} {done:4.0%} loss {running:.4f}", flush=True)
        if step % 500 == 0:
            torch.save(mean.module.state_dict(), out / "base.pt")
    torch.save(mean.module.state_dict(), out / "base.pt")
    return mean.module.eval()


@torch.no_grad()
def read_base(net, planes, flip: bool = False):
    """Planes [T, S, S] -> features [T, 256], probabilities [T, 6], map [T, M, M]."""
    x = torch.from_numpy(channels(planes[:, :, ::-1].copy() if flip else planes))
    parts = [net(chunk) for chunk in x.split(16)]
    features, logits, maps = (torch.cat(p) for p in zip(*parts))
    return features, torch.sigmoid(logits), torch.sigmoid(maps[:, 0])


def sequences(net, studies):
    """What the sequence models learn from: each study as it is; real ones also mirrored and every other slice."""
    rows = []
    for n, study in enumerate(studies):
        views = [(study["planes"], study["labels"], study["z_mm"], False)]
        if study["name"].startswith("ct-ich"):
            # Real heads are few: they come mirrored and thinned out as well.
            views.append((*views[0][:3], True))
            views.append((study["planes"][::2], study["labels"][::2], study["z_mm"][::2], False))
        for planes, labels, z, flip in views:
            features, probs, _ = read_base(net, planes, flip)
            rows.append((features, probs, torch.from_numpy(step_meta(z)), torch.from_numpy(labels), study["name"]))
        print(f"\rfeatures {n + 1}/{len(studies)}", end="", flush=True)
    print()
    return rows


def train_sequences(rows, epochs: int, rng):
    """Sequence 1, then sequence 2 with it, on random crops and reversals; loss on both outputs.

    Features of training slices look better than those of new people; dropout and noise on them keep both models honest.
    """
    s1, s2 = Sequence1(), Sequence2()
    optimizer = torch.optim.AdamW([*s1.parameters(), *s2.parameters()], lr=1.5e-3, weight_decay=0.05)
    weight = np.asarray([1.0 if r[4].startswith("phantom") else 2.5 for r in rows])
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    for epoch in range(epochs):
        s1.train(), s2.train()
        total = 0.0
        for i in rng.choice(len(rows), len(rows), p=weight / weight.sum()):
            features, probs, meta, labels, _ = rows[i]
            lo = int(rng.integers(0, max(len(features) // 4, 1)))
            hi = len(features) - int(rng.integers(0, max(len(features) // 4, 1)))
            cut = [t[lo:hi] for t in (features, probs, meta, labels)]
            if rng.random() < 0.5:
                cut = [t.flip(0) for t in cut]
            features, probs, meta, labels = cut
            f = F.dropout(features, 0.3) * (1 + 0.1 * torch.randn_like(features))
            noisy = torch.sigmoid(torch.logit(probs.clamp(1e-4, 1 - 1e-4)) + 0.5 * torch.randn_like(probs))
            l1 = s1(f[None])
            l2 = s2(torch.cat([noisy, torch.sigmoid(l1[0]), meta], dim=1)[None])
            loss = bce(l1[0], labels) + bce(l2[0], labels)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_([*s1.parameters(), *s2.parameters()], 1.0)
            optimizer.step()
            total += loss.item()
        schedule.step()
        print(f"sequence epoch {epoch + 1}/{epochs} loss {total / len(rows):.4f}", flush=True)
    return s1.eval(), s2.eval()


def main() -> None:
    a = argparse.ArgumentParser(description=__doc__)
    a.add_argument("--cache", type=Path, required=True, help="folder written by prepare")
    a.add_argument("--out", type=Path, required=True, help="checkpoint folder")
    a.add_argument("--minutes", type=float, default=60, help="wall time for the base CNN")
    a.add_argument("--epochs", type=int, default=12, help="for the sequence models")
    a.add_argument("--fold", type=int, help="hold out this fifth of the people instead of the shipped split")
    a.add_argument("--no-generator", action="store_true", help="real heads only")
    a.add_argument("--resume", action="store_true", help="go on from the base of --out for another --minutes")
    a.add_argument("--sequences-only", action="store_true", help="keep the base of --out")
    a.add_argument("--threads", type=int, default=2)
    a.add_argument("--seed", type=int, default=1)
    args = a.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    rng, generator = np.random.default_rng(args.seed), torch.Generator().manual_seed(args.seed)
    held = data.hold_out if args.fold is None else lambda g: data.fold_of(g) == args.fold
    train, _ = data.load(args.cache, held)
    if args.no_generator:
        train = [s for s in train if s["name"].startswith("ct-ich")]
    print(f"{len(train)} studies, {sum(len(s['planes']) for s in train)} slices", flush=True)
    if args.sequences_only:
        net = Base()
        net.load_state_dict(torch.load(args.out / "base.pt"))
        net.eval()
    else:
        weights = torch.load(args.out / "base.pt") if args.resume else None
        net = train_base(data.Slices(train), args.minutes, args.out, rng, generator, weights)
    s1, s2 = train_sequences(sequences(net, train), args.epochs, rng)
    torch.save({"base": net.state_dict(), "seq1": s1.state_dict(), "seq2": s2.state_dict(),
                "split": "shipped" if args.fold is None else f"fold {args.fold}"}, args.out / "model.pt")


if __name__ == "__main__":
    main()
