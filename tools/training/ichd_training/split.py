"""Who is learned from and who is kept: everything made from one person goes one way. Needs numpy at most."""

TEST_PEOPLE = (54, 70, 71, 84, 91)
"""Of CT-ICH; also the project's DICOM test series. The weights that ship never train on them."""

ABOUT = "about"
"""Name, in a file of predictions, of what is no study: the groups, and what the run learned from."""

FOLDS = 5
PHANTOM_SHARE = 8


def kind(name: str) -> str:
    """`painted` or `phantom`; any other study is of a person as the scanner saw them, `real`."""
    return next((k for k in ("painted", "phantom") if name.startswith(k)), "real")


def held_out(groups, fold: int | None = None) -> set[str]:
    """The groups that a training run does not see: one fold, or (`None`) what the weights that ship are checked on.

    Groups are `person-<n>` (CT-ICH), `phantom-<n>` and `site-<n>` (a hospital's own). A site's people are dealt out in
    order of their digest, so that folds are of one size and a fifth, at least one person, is kept from the weights
    that ship.
    """
    groups = set(groups)
    place = {g: i for i, g in enumerate(sorted(g for g in groups if g.startswith("site-")))}

    def number(group: str) -> int:
        return place[group] if group in place else int(group.rpartition("-")[2])

    def is_held(group: str) -> bool:
        if fold is not None:
            return number(group) % FOLDS == fold
        if group in place:
            return number(group) % FOLDS == 0
        return number(group) in TEST_PEOPLE if group.startswith("person-") else number(group) % PHANTOM_SHARE == 0

    return {g for g in groups if is_held(g)}


def seen(train, kept, sources: dict) -> dict:
    """What a run learned from and what was kept from it, for report, card and manifest. `train`, `kept`: (name, group)
    of every study; `sources`: words on the data by kind of group (`prepare`)."""
    real = lambda studies, prefix="": [g for n, g in studies if kind(n) == "real" and g.startswith(prefix)]
    count = lambda studies, what: sum(kind(n) == what for n, _ in studies)
    used = []
    for prefix, words in sources.items():
        groups = real(train, prefix)
        if groups:
            used.append(words | {"people": len(set(groups)), "series": len(groups)})
    return {"sources": used, "people": len(set(real(train))), "painted": count(train, "painted"), "phantoms": count(train, "phantom"),
            "kept_people": sorted(set(real(kept))), "kept_phantoms": count(kept, "phantom")}
