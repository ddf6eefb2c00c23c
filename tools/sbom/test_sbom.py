"""Tests of sbom.py: python3 -m unittest discover -s tools/sbom -p 'test_*.py'"""

import unittest

import sbom

LOCK = """
version = 4
[[package]]
name = "ichd"
version = "0.1.0"
[[package]]
name = "a"
version = "1.0.0+x"
source = "registry+https://github.com/rust-lang/crates.io-index"
checksum = "aa"
"""


def package(name, version, licence):
    return {"id": name, "name": name, "version": version, "license": licence}


def dependency(name, kind):
    return {"pkg": name, "dep_kinds": [{"kind": kind}]}


METADATA = {
    "workspace_members": ["ichd"],
    "packages": [package("ichd", "0.1.0", "Apache-2.0"), package("a", "1.0.0+x", "MIT/Apache-2.0"), package("dev", "1.0.0", "MIT")],
    "resolve": {
        "nodes": [
            {"id": "ichd", "deps": [dependency("a", None), dependency("dev", "dev")]},
            {"id": "a", "deps": []},
            {"id": "dev", "deps": []},
        ]
    },
}


class Bill(unittest.TestCase):
    def test_a_git_source_is_refused(self):
        with self.assertRaises(SystemExit):
            sbom.locked_crates(LOCK.replace("registry+", "git+"))

    def test_the_bill_holds_what_is_shipped_and_not_what_tests_need(self):
        bill = sbom.sbom(METADATA, LOCK)
        self.assertEqual([c["name"] for c in bill["components"]], ["a"])
        (a,) = bill["components"]
        self.assertEqual(a["purl"], "pkg:cargo/a@1.0.0%2Bx")
        self.assertEqual(a["licenses"], [{"expression": "MIT OR Apache-2.0"}])
        self.assertEqual(a["hashes"], [{"alg": "SHA-256", "content": "aa"}])
        self.assertEqual(bill["dependencies"][1], {"ref": "pkg:cargo/ichd@0.1.0", "dependsOn": [a["purl"]]})

    def test_the_same_lock_gives_the_same_bytes(self):
        self.assertEqual(sbom.sbom(METADATA, LOCK), sbom.sbom(METADATA, LOCK))


if __name__ == "__main__":
    unittest.main()
