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


def bce(logits, labels, smooth: float = 0.02):
    """The challenge's weighted log loss; labels are smoothed, for some of them are wrong."""
    loss = F.binary_cross_entropy_with_logits(logits, labels * (1 - 2 * smooth) + smooth, reduction="none")
    return (loss * torch.tensor([2.0, 1, 1, 1, 1, 1], device=loss.device)).mean()


def trusted(labels, logits, share: float = 0.15):
    """Labels moved some way to what the averaged network thinks (soft bootstrapping, Reed et al. 2015).

    The challenge's labels are noisy and its winner took them as they were. A label that the network comes to
    contradict slide after slide pulls less; one that it has not learned yet pulls almost as before.
    """
    return (1 - share) * labels + share * torch.sigmoid(logits)


class Budget:
    """How far training has come, in slices seen or in minutes: whichever was given."""

    def __init__(self, samples=None, minutes=None):
        self.samples, self.seconds = samples, minutes and minutes * 60
        self.start, self.seen = time.time(), 0

    def done(self) -> float:
        return self.seen / self.samples if self.samples else (time.time() - self.start) / self.seconds


def train_base(slices, budget: Budget, out: Path, device, weights=None, batch: int = 24):
    """One cycle of AdamW; the result is the exponential moving average of the weights over some 12 000 slices."""
    lr = 2e-3 * (batch / 24) ** 0.3
    net = Base().to(device, memory_format=torch.channels_last)
    if weights:
        net.load_state_dict(weights)
    decay = 1 - batch / 12000
    mean = torch.optim.swa_utils.AveragedModel(net, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(decay), use_buffers=True)
    mean.eval()
    optimizer = torch.optim.AdamW(net.parameters(), lr=lr, weight_decay=0.02)
    running, said, step = None, time.time(), 0
    net.train()
    while (done := budget.done()) < 1:
        for g in optimizer.param_groups:
            g["lr"] = lr * (min(done / 0.08, 1.0) * 0.5 * (1 + np.cos(np.pi * max(done - 0.08, 0) / 0.92)) + 1e-3)
        x, y, m, known = slices.sample(batch)
        x, m = data.augment(x, m)
        x = data.to_channels(x).contiguous(memory_format=torch.channels_last)
        with torch.autocast(device.type, torch.bfloat16):  # weights stay in 32 bits
            if done > 0.4:
                with torch.no_grad():
                    y = trusted(y, mean.module(x)[1].float())
            _, logits, map_logits = net(x)
        logits, map_logits = logits.float(), map_logits.float()
        map_loss = F.binary_cross_entropy_with_logits(map_logits, m, reduction="none").mean(dim=(1, 2, 3))
        loss = bce(logits, y) + 2.0 * (map_loss * known).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 2.0)
        optimizer.step()
        mean.update_parameters(net)
        budget.seen += batch
        running = loss.detach() if running is None else running.lerp(loss.detach(), 0.02)
        step += 1
        if time.time() - said > 10:
            rate = budget.seen / (time.time() - budget.start)
            print(f"base {done:4.0%} {budget.seen} slices, {rate:.0f} per s, loss {running.item():.4f}", flush=True)
            said = time.time()
            torch.save(mean.module.state_dict(), out / "base.pt")
    rate = budget.seen / (time.time() - budget.start)
    print(f"base done: {budget.seen} slices, {rate:.0f} per s, loss {running.item():.4f}", flush=True)
    torch.save(mean.module.state_dict(), out / "base.pt")
    return mean.module.eval()


@torch.no_grad()
def read_base(net, planes, device, augmented: bool = False):
    """Planes [T, S, S] -> features [T, 256], probabilities [T, 6]; `augmented` as one other scan of the same head."""
    x = torch.from_numpy(planes).to(device).float()
    t = torch.arange(len(x), device=device)
    x = torch.stack([x[(t - 1).clamp(min=0)], x, x[(t + 1).clamp(max=len(x) - 1)]], dim=1)
    if augmented:
        x, _ = data.augment(x, x[:, :1], together=True)
    parts = [net(data.to_channels(chunk).contiguous(memory_format=torch.channels_last))[:2] for chunk in x.split(64)]
    features, logits = (torch.cat(p) for p in zip(*parts))
    return features, torch.sigmoid(logits)


def sequences(net, studies, device):
    """What the sequence models learn from: each study as it is and as another scanner would show it; real ones more
    often, and with every other slice."""
    rows = []
    for n, study in enumerate(studies):
        real = data.kind(study) == "real"
        views = [(1, False)] + [(1, True)] * (4 if real else 1) + [(2, False), (2, True)] * real
        for thin, augmented in views:
            planes, labels, z = (study[k][::thin] for k in ("planes", "labels", "z_mm"))
            features, probs = read_base(net, planes, device, augmented)
            rows.append((features, probs, torch.from_numpy(step_meta(z)).to(device), torch.from_numpy(labels).to(device), real))
        if n % 50 == 49:
            print(f"features {n + 1}/{len(studies)}", flush=True)
    return rows


def train_sequences(rows, epochs: int, rng, device, batch: int = 12):
    """Sequence 1, then sequence 2 with it, on random crops and reversals; loss on both outputs.

    Features of training slices look better than those of new people; dropout and noise on them keep both models honest.
    """
    s1, s2 = Sequence1().to(device), Sequence2().to(device)
    both = [*s1.parameters(), *s2.parameters()]
    optimizer = torch.optim.AdamW(both, lr=2e-3, weight_decay=0.05)
    weight = np.asarray([2.0 if r[4] else 1.0 for r in rows])
    steps = max(epochs * len(rows) // batch, 1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps, pct_start=0.1)
    lengths = np.asarray([len(r[0]) for r in rows])
    running = 0.0
    for step in range(steps):
        s1.train(), s2.train()
        # A batch shares one length, so that no padding is learned: neighbours in order of length, cropped alike.
        order = np.argsort(lengths + rng.uniform(-3, 3, len(lengths)))
        at = int(rng.integers(len(order)))
        near = order[max(at - 40, 0) : at + 40]
        picks = rng.choice(near, batch, p=weight[near] / weight[near].sum())
        span = max(int(lengths[picks].min() * rng.uniform(0.7, 1.0)), 1)
        cuts = []
        for i in picks:
            lo = int(rng.integers(0, lengths[i] - span + 1))
            cut = [t[lo : lo + span] for t in rows[i][:4]]
            cuts.append([t.flip(0) for t in cut] if rng.random() < 0.5 else cut)
        features, probs, meta, labels = (torch.stack(p) for p in zip(*cuts))
        f = F.dropout(features, 0.3) * (1 + 0.1 * torch.randn_like(features))
        noisy = torch.sigmoid(torch.logit(probs.clamp(1e-4, 1 - 1e-4)) + 0.5 * torch.randn_like(probs))
        l1 = s1(f)
        l2 = s2(torch.cat([noisy, torch.sigmoid(l1), meta], dim=2))
        loss = bce(l1, labels) + bce(l2, labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(both, 1.0)
        optimizer.step()
        schedule.step()
        running = loss.detach() if step == 0 else running.lerp(loss.detach(), 0.02)
        if step % 200 == 199:
            print(f"sequences {step + 1}/{steps} loss {running.item():.4f}", flush=True)
    return s1.eval(), s2.eval()


def main() -> None:
    a = argparse.ArgumentParser(description=__doc__)
    a.add_argument("--cache", type=Path, required=True, help="folder written by prepare")
    a.add_argument("--out", type=Path, required=True, help="checkpoint folder")
    budget = a.add_mutually_exclusive_group()
    budget.add_argument("--minutes", type=float, default=60, help="wall time for the base CNN")
    budget.add_argument("--samples", type=int, help="slices the base CNN is to see, instead of a time")
    a.add_argument("--epochs", type=int, default=12, help="for the sequence models")
    a.add_argument("--fold", type=int, help="hold out this fifth of the people instead of the shipped split")
    a.add_argument("--no-generator", action="store_true", help="real heads only")
    a.add_argument("--label-noise", type=float, default=0.0, help="share of real slices that get another's labels")
    a.add_argument("--resume", action="store_true", help="go on from the base of --out")
    a.add_argument("--sequences-only", action="store_true", help="keep the base of --out")
    a.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    a.add_argument("--batch", type=int, help="slices per step [24 on a CPU, 128 on a GPU]")
    a.add_argument("--threads", type=int, default=2)
    a.add_argument("--seed", type=int, default=1)
    args = a.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    torch.backends.cudnn.benchmark = True
    device, rng = torch.device(args.device), np.random.default_rng(args.seed)
    train, kept = data.load(args.cache, args.fold)
    seen = data.seen(args.cache, train, kept)
    if args.no_generator:
        train = [s for s in train if data.kind(s) == "real"]
    if args.label_noise:
        data.spoil(train, args.label_noise, args.seed)
    if not train:
        raise SystemExit("nothing to train on")
    print(f"{len(train)} studies, {sum(len(s['planes']) for s in train)} slices, on {device}", flush=True)
    allowed = Budget(samples=args.samples) if args.samples else Budget(minutes=args.minutes)
    if args.sequences_only:
        net = Base().to(device)
        net.load_state_dict(torch.load(args.out / "base.pt", map_location=device))
        net.eval()
    else:
        weights = torch.load(args.out / "base.pt", map_location=device) if args.resume else None
        batch = args.batch or (128 if device.type == "cuda" else 24)
        net = train_base(data.Slices(train, device), allowed, args.out, device, weights, batch)
    s1, s2 = train_sequences(sequences(net, train, device), args.epochs, rng, device)
    cpu = lambda module: {k: v.cpu() for k, v in module.state_dict().items()}
    torch.save({"base": cpu(net), "seq1": cpu(s1), "seq2": cpu(s2),
                "split": "shipped" if args.fold is None else f"fold {args.fold}",
                "seen": seen | {"slices": allowed.seen}}, args.out / "model.pt")


if __name__ == "__main__":
    main()
