# Makes the crates of a Cargo.lock sources of the recipe, each with the checksum that the lock holds. Read when the
# recipe is parsed, so there is no generated list that could be out of date. The whole lock, not only what the target
# uses: cargo resolves against all of it.
#
#   CARGO_LOCK = "/path/to/Cargo.lock"

def cargo_lock_crates(d):
    import tomllib
    path = d.getVar("CARGO_LOCK")
    bb.parse.mark_dependency(d, path)
    with open(path, "rb") as file:
        packages = tomllib.load(file)["package"]
    crates = []
    for package in packages:
        source = package.get("source")
        if source is None:
            continue
        if not source.startswith("registry+") or "checksum" not in package:
            bb.fatal("%s: %s comes from %s, which no checksum holds" % (path, package["name"], source))
        crates.append((package["name"], package["version"], package["checksum"]))
    return crates

python __anonymous() {
    for name, version, checksum in cargo_lock_crates(d):
        d.appendVar("SRC_URI", " crate://crates.io/%s/%s" % (name, version))
        d.setVarFlag("SRC_URI", "%s-%s.sha256sum" % (name, version), checksum)
}
