#!/usr/bin/env python3
"""CycloneDX 1.6 bill of what goes into `ichd`, on standard output. Needs Python 3.11 and cargo, nothing else.

    tools/sbom/sbom.py > ichd.cdx.json
"""

import json
import pathlib
import subprocess
import sys
import tomllib
import urllib.parse
import uuid

ROOT = pathlib.Path(__file__).resolve().parents[2]


def locked_crates(lock: str) -> list[dict]:
    """Every crate of a registry, with its checksum. Another source cannot be named by a checksum and is refused."""
    crates = []
    for package in tomllib.loads(lock)["package"]:
        source = package.get("source")
        if source is None:
            continue
        if not source.startswith("registry+") or "checksum" not in package:
            raise SystemExit(f"{package['name']} {package['version']}: source `{source}` has no checksum")
        crates.append(package)
    return crates


def used_packages(metadata: dict, root_name: str) -> tuple[dict, dict[str, list[str]]]:
    """Packages that end up in the program or build it, and who needs whom; development dependencies left out."""
    nodes = {node["id"]: node for node in metadata["resolve"]["nodes"]}
    packages = {package["id"]: package for package in metadata["packages"]}
    root = next(i for i in metadata["workspace_members"] if packages[i]["name"] == root_name)
    needs: dict[str, list[str]] = {}
    todo = [root]
    while todo:
        one = todo.pop()
        if one in needs:
            continue
        kinds = {d["pkg"]: {k["kind"] for k in d["dep_kinds"]} for d in nodes[one]["deps"]}
        needs[one] = sorted(i for i, kind in kinds.items() if kind - {"dev"})
        todo.extend(needs[one])
    return {i: packages[i] for i in needs}, needs | {"root": [root]}


def sbom(metadata: dict, lock: str) -> dict:
    """CycloneDX 1.6. The same lock gives the same bytes: no time stamp, the serial number is derived."""
    checksums = {(c["name"], c["version"]): c["checksum"] for c in locked_crates(lock)}
    used, needs = used_packages(metadata, "ichd")
    (root,) = needs.pop("root")

    def purl(package: dict) -> str:
        return f"pkg:cargo/{package['name']}@{urllib.parse.quote(package['version'], safe='')}"

    def component(package: dict) -> dict:
        entry = {
            "type": "application" if package["id"] == root else "library",
            "bom-ref": purl(package),
            "name": package["name"],
            "version": package["version"],
            "purl": purl(package),
        }
        if package.get("license"):
            # Old crates write "MIT/Apache-2.0" for "or".
            entry["licenses"] = [{"expression": package["license"].replace("/", " OR ")}]
        checksum = checksums.get((package["name"], package["version"]))
        if checksum:
            entry["hashes"] = [{"alg": "SHA-256", "content": checksum}]
        return entry

    libraries = sorted((p for i, p in used.items() if i != root), key=lambda p: (p["name"], p["version"]))
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, lock)}",
        "version": 1,
        "metadata": {"component": component(used[root])},
        "components": [component(p) for p in libraries],
        "dependencies": [
            {"ref": purl(used[i]), "dependsOn": sorted(purl(used[d]) for d in needs[i])}
            for i in sorted(needs, key=lambda i: purl(used[i]))
        ],
    }


def main() -> None:
    command = ["cargo", "metadata", "--format-version=1", "--locked", "--all-features"]
    output = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE).stdout
    json.dump(sbom(json.loads(output), (ROOT / "Cargo.lock").read_text()), sys.stdout, indent=1)
    print()


if __name__ == "__main__":
    main()
