"""A checkpoint of the RSNA-2019 winner's published layout -> signed model package, for a site that holds such weights.

One CNN (`se_resnext101_32x4d`, `DenseNet121_change_avg` or `DenseNet169_change_avg` with six outputs, as saved by the
2-D training) and one sequence model trained on the features of that CNN alone. Layout: github.com/SeuTao,
RSNA2019_1st_place_solution. The winner averages ten random views per slice; a package reads the centre view once.
"""

import json
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from .export import arguments, build_package
from .preprocess import Recipe

ARCHITECTURES = ("se_resnext101_32x4d", "DenseNet121_change_avg", "DenseNet169_change_avg")
EMBEDDED_MM = 235.0
"""Field of view that the centre 80 % is taken of: the challenge's images are read without their pixel size."""


def state_of(path: Path) -> dict:
    """The weights of a checkpoint: bare, or under `state_dict`, with or without the `module.` of DataParallel."""
    state = torch.load(path, map_location="cpu", weights_only=False)
    state = state.get("state_dict", state)
    return {name.removeprefix("module."): value for name, value in state.items()}


def part(state: dict, prefix: str) -> dict:
    """The weights below a name, without it."""
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def fill(module: nn.Module, state: dict, file: Path) -> nn.Module:
    """Loads weights, or ends with the first that does not fit."""
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        raise SystemExit(f"{file}: not the layout asked for: {str(error).splitlines()[1].strip()}; check --arch") from error
    return module.eval()


class WinnerBase(nn.Module):
    """[1, 3, S, S] -> features [1, F], probabilities [1, 6], class activation map of `any` [1, 1, S/32, S/32]."""

    def __init__(self, arch: str, file: Path):
        super().__init__()
        state = state_of(file)
        if arch == "se_resnext101_32x4d":
            import timm

            net = timm.create_model("legacy_seresnext101_32x4d", num_classes=6)
            named = {name.replace("last_linear.0.", "last_linear."): value for name, value in part(state, "model_ft.").items()}
            fill(net, named, file)
            self.body, self.head = nn.Sequential(net.layer0, net.pool0, net.layer1, net.layer2, net.layer3, net.layer4), net.last_linear
        else:
            import torchvision

            name = arch.removesuffix("_change_avg").lower()
            self.body = fill(getattr(torchvision.models, name)().features, part(state, f"{name}."), file)
            self.head = fill(nn.Linear(self.body.norm5.num_features, 6), part(state, "mlp."), file)
        self.features = self.head.in_features

    def forward(self, x):
        spatial = F.relu(self.body(x))
        features = spatial.mean(dim=(2, 3))
        return features, torch.sigmoid(self.head(features)), torch.sigmoid(F.conv2d(spatial, self.head.weight[:1, :, None, None], self.head.bias[:1]))


class WinnerSequence1(nn.Module):
    """Features [1, T, F] -> probabilities [1, T, 6]: two fully connected layers, and a bidirectional GRU beside them."""

    def __init__(self, state: dict, features: int, file: Path):
        super().__init__()
        flat = lambda key: state[key].flatten(1)
        wide = flat("fea_conv.1.weight").shape[1]
        if wide < features or state["fea_first_final.0.weight"].shape[1] != 128:
            raise SystemExit(f"{file}: a sequence model of several CNNs or of another one ({wide} features, {features} given): "
                             "train it on the features of the CNN that is packaged")
        self.pad = wide - features  # the winner pads every CNN's features to 2048
        self.layers = nn.Sequential(nn.Conv1d(wide, 512, 1, bias=False), nn.BatchNorm1d(512), nn.ReLU(),
                                    nn.Conv1d(512, 128, 1, bias=False), nn.BatchNorm1d(128), nn.ReLU())
        names = {"fea_conv.1.": "0.", "fea_conv.2.": "1.", "fea_conv.5.": "3.", "fea_conv.6.": "4."}
        fill(self.layers, {new + key: value.squeeze(-1) if key == "weight" and value.dim() == 4 else value
                           for old, new in names.items() for key, value in part(state, old).items()}, file)
        self.head = fill(nn.Linear(128, 6), {"weight": flat("fea_first_final.0.weight"), "bias": state["fea_first_final.0.bias"]}, file)
        self.gru, self.gru_head = recurrent(state, "fea_lstm", 128, file)

    def forward(self, features):
        h = self.layers(F.pad(features, (0, self.pad)).transpose(1, 2)).transpose(1, 2)
        return torch.sigmoid(self.head(h) + self.gru_head(self.gru(h)[0]))


class WinnerSequence2(nn.Module):
    """[1, T, 13] (CNN 6, sequence 1 6, distance to the slice below / 10 mm) -> probabilities [1, T, 6].

    Convolutions over the slices see three maps of T x 6: the CNN, the distance to the next slice in mm, sequence 1.
    """

    def __init__(self, state: dict, file: Path):
        super().__init__()
        if state["conv_first.0.weight"].shape[1] != 3:
            raise SystemExit(f"{file}: expects {state['conv_first.0.weight'].shape[1]} maps where one CNN with positions gives 3")
        conv = lambda a, b, k, d: nn.Conv2d(a, b, (k, 1), padding=(d * (k // 2), 0), dilation=(d, 1), bias=False)
        # The published code pads by two on either side in both convolutions, and dilates the second one only.
        self.first = fill(nn.Sequential(nn.Conv2d(3, 512, (5, 1), padding=(2, 0), bias=False), nn.BatchNorm2d(512), nn.ReLU(),
                                        conv(512, 256, 3, 2), nn.BatchNorm2d(256), nn.ReLU()), part(state, "conv_first."), file)
        self.second = fill(nn.Sequential(conv(256, 256, 3, 4), nn.BatchNorm2d(256), nn.ReLU(),
                                         conv(256, 256, 3, 2), nn.BatchNorm2d(256), nn.ReLU()), part(state, "conv_res."), file)
        self.direct = fill(nn.Sequential(conv(256, 1, 3, 1)), part(state, "conv_final."), file)
        self.gru, self.gru_head = recurrent(state, "lstm", 256 * 6, file, "final.0.")

    def forward(self, x):
        below = x[:, :, 12:13] * 10.0
        after = torch.cat([below[:, 1:], below[:, -1:]], dim=1)
        maps = torch.stack([x[:, :, :6], after.expand(-1, -1, 6), x[:, :, 6:12]], dim=1)
        h = self.second(self.first(maps))
        direct = self.direct(h)[:, 0]
        return torch.sigmoid(direct + self.gru_head(self.gru(h.permute(0, 2, 1, 3).flatten(2))[0]))


def recurrent(state: dict, name: str, width: int, file: Path, head: str = ""):
    """A two-layer bidirectional GRU and the linear layer on it, which the checkpoint holds as a convolution."""
    hidden = state[f"{name}.weight_hh_l0"].shape[1]
    gru = fill(nn.GRU(width, hidden, num_layers=2, batch_first=True, bidirectional=True), part(state, f"{name}."), file)
    head = head or f"{name}_final.0."
    return gru, fill(nn.Linear(2 * hidden, 6), {"weight": state[f"{head}weight"].flatten(1), "bias": state[f"{head}bias"]}, file)


def load(arch: str, base_file: Path, sequence_file: Path):
    """The three graphs of a package, in evaluation mode."""
    base, state = WinnerBase(arch, base_file).eval(), state_of(sequence_file)
    try:
        return base, WinnerSequence1(state, base.features, sequence_file).eval(), WinnerSequence2(state, sequence_file).eval()
    except KeyError as missing:
        raise SystemExit(f"{sequence_file}: no {missing}: not the winner's sequence model") from missing


def card(version: str, points: dict, package: Path) -> str:
    return f"""# {package.name} {version}

Weights of the RSNA-2019 winner's layout, converted; not trained and not measured by this project. **Not a medical
device.** Read once per slice, centre view, window {points["window"][0]:.0f}/{points["window"][1]:.0f}; the heat map is a class activation map, so side and
volume are rough.

Operating points: {points["provenance"]}.
"""


def main() -> None:
    a = arguments(__doc__.splitlines()[0])
    a.add_argument("--arch", choices=ARCHITECTURES, required=True)
    a.add_argument("--base", type=Path, required=True, help="the CNN's checkpoint (model_epoch_best_0.pth)")
    a.add_argument("--sequence", type=Path, required=True, help="the sequence model's checkpoint (fold_0.pt)")
    a.add_argument("--window", type=float, nargs=2, default=[40, 80], help="level and width the CNN was trained with (HU)")
    a.add_argument("--size-px", type=int, default=256, help="side of the CNN's input")
    a.add_argument("--points", type=Path, help="operating points that the site measured: final, provisional, urgent, provenance (JSON); without them placeholders, with which a package "
                                                      "is refused unless it suspects the golden phantom")
    args = a.parse_args()
    placeholder = "not measured: a placeholder; measure on the site's own studies before use"
    points = {"final": [0.5] * 6, "provisional": [0.9] * 6, "urgent": 0.8, "provenance": placeholder, "provisional_provenance": placeholder}
    if args.points:
        points |= {"provisional_provenance": "given with the final point"} | json.loads(args.points.read_text())
    points |= {"window": args.window, "calibration": ("none", "as the weights came"),
               "training": (f"RSNA-2019 layout, {args.arch}; see whoever trained the weights", "converted, not measured by this project; not a medical device")}
    modules = load(args.arch, args.base, args.sequence)
    recipe = Recipe(args.size_px, EMBEDDED_MM * 0.8, 0.456, 0.224, {"own": tuple(args.window)}, ("next", "self", "prev"), modules[0].features, args.size_px // 32)
    build_package(modules, recipe, points, card, args)


if __name__ == "__main__":
    main()
