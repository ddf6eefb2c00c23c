"""The documents and the program say the same: tests that are named exist, words that an operator meets are explained."""

import pathlib
import re
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[1]
DOCUMENTS = ["SPECIFICATION.md", "SECURITY.md", "docs/HAZARDS.md", "CONFORMANCE.md", "docs/REFERENCE.md", "tools/bench/README.md"]
# Where a crate's modules begin, and what a document calls them.
CRATES = {"daemon/src": "", "tests/it": "it", "tests/fuzz": "fuzz", "tools/gateway/src": "ichd_gateway", "tools/gateway/tests/gateway": "gateway",
          "tools/fleet/src": "ichd_fleet", "tools/phantom/src": "ichd_phantom", "tools/bench/src": "ichd_bench"}
TEST = re.compile(r"#\[(?:tokio::)?test(?:\([^)]*\))?\]\s*(?:#\[[^\]]*\]\s*|//[^\n]*\n\s*)*(?:async )?fn (\w+)|^\s{4,}(?:async )?fn (\w+)\([^)]*\bin\b", re.M)


def rust_tests() -> set[str]:
    """Full names as the documents write them: `module::test`, whatever file beside the module holds its tests."""
    names = set()
    for folder, crate in CRATES.items():
        for file in (ROOT / folder).rglob("*.rs"):
            text = file.read_text()
            parts = [p.removesuffix("_tests") for p in file.relative_to(ROOT / folder).with_suffix("").parts]
            module = [p for p in [crate, *parts] if p not in ("", "mod", "lib", "main", "tests", "stable")]
            found = [a or b for a, b in TEST.findall(text)]
            if crate == "fuzz":
                found += [name for targets in re.findall(r"^target!\((.*)\)", text, re.M) for name in targets.split()]
            names |= {"::".join([*module, name]) for name in found}
    return names


def like(name: str) -> str:
    """A name as a pattern: `...` stands for what was left out, `*` for every test of a module; a module for its tests."""
    return re.escape(name.replace("_tests::", "::")).replace(r"\.\.\.", r"\w+").replace(r"\*", r".+")


class Documents(unittest.TestCase):
    maxDiff = None

    def test_every_test_that_a_document_names_exists(self):
        rust = rust_tests()
        pages = "\n".join(f.read_text() for f in (ROOT / "daemon/station/test").rglob("*.mjs"))
        scripts = "\n".join(f.read_text() for folder in ("tests", "tools/training") for f in (ROOT / folder).glob("test_*.py"))
        missing, seen = [], 0
        for document in DOCUMENTS:
            for name in re.findall(r"`([^`\n]+)`", (ROOT / document).read_text()):
                if name.startswith("page: "):
                    there = name.removeprefix("page: ").removesuffix("...") in pages
                elif re.fullmatch(r"test_\w+", name):
                    there = f"def {name}(" in scripts
                elif re.fullmatch(r"(\w+::)+([a-z][\w.]*|\*)", name):
                    there = any(re.fullmatch(like(name) + "(::.+)?", test) for test in rust)
                else:
                    continue
                seen += 1
                missing += [] if there else [f"{document}: {name}"]
        self.assertEqual(missing, [])
        self.assertGreater(seen, 200)

    def test_every_link_inside_the_repository_leads_somewhere(self):
        """A file, and in Markdown the heading behind `#`, as GitHub writes it."""
        documents = [f for f in ROOT.rglob("*.md") if not {"target", "node_modules", "build", ".venv"} & set(f.relative_to(ROOT).parts)]
        anchors = {f: {re.sub(r"[^\w\- ]", "", re.sub(r"\]\([^)]*\)", "", title)).strip().lower().replace(" ", "-")
                       for title in re.findall(r"^#+ (.*)$", f.read_text(), re.M)} for f in documents}
        broken, seen = [], 0
        for document in documents:
            for link in re.findall(r"\]\(([^)\s]+)\)", document.read_text()):
                if re.match(r"\w+:", link):
                    continue
                path, _, anchor = link.partition("#")
                there = (document.parent / path).resolve() if path else document
                seen += 1
                broken += [] if there.exists() and (not anchor or anchor in anchors.get(there, ())) else [f"{document.relative_to(ROOT)}: {link}"]
        self.assertEqual(broken, [])
        self.assertGreater(seen, 60)

    def test_the_pages_for_the_ward_name_what_the_station_page_shows(self):
        words = (ROOT / "daemon/station/src/i18n.ts").read_text()
        for page in ["docs/WARD.md", "docs/WARD.zh.md"]:
            cells = "\n".join(re.findall(r"^\| ([^|]*) \|", (ROOT / page).read_text(), re.M))
            named = [a or b or c for a, b, c in re.findall(r'\*\*([^*]+)\*\*|"([^"]+)"|“([^”]+)”', cells)]
            self.assertGreater(len(named), 12)
            self.assertEqual([name for name in named if f'"{name.removesuffix(" …")}' not in words], [], page)

    def test_every_credential_that_is_named_is_one_that_the_unit_hands_over(self):
        for unit, places in {"ichd": ["daemon/ichd.toml", "daemon/src/enrol/device.rs", "docs/INSTALL.md", "daemon/src/cli/enrol.rs"],
                             "ichd-gateway": ["tools/gateway/gateway.toml", "docs/GATEWAY.md"]}.items():
            text = "\n".join((ROOT / place).read_text() for place in places)
            file = next(ROOT.glob(f"*/{unit}.service"), None) or next(ROOT.glob(f"*/*/{unit}.service"))
            handed = set(re.findall(r"^LoadCredential=([\w.-]+)$", file.read_text(), re.M))
            named = set(re.findall(rf"/run/credentials/{unit}\.service/([a-z][\w.-]*)", text))
            self.assertGreater(len(named), 2)
            self.assertEqual(named - handed, set(), unit)
            self.assertEqual(re.findall(r'^#? ?(?:key|keys|password-file|token-file) = "/etc/[^"]*"', text, re.M), [], "the daemon may not read root's own files")

    def test_every_reason_and_every_flag_is_explained_and_said_on_the_page(self):
        reasons = set(re.findall(r'Why::\w+ => "(\w+)"', (ROOT / "daemon/src/decide/mod.rs").read_text()))
        declared = re.search(r"pub enum Flag \{(.*?)\n\}", (ROOT / "daemon/src/assemble/mod.rs").read_text(), re.S).group(1)
        flags = {re.sub(r"(?<!^)([A-Z])", r"_\1", name).lower() for name in re.findall(r"^    (\w+),$", declared, re.M)}
        self.assertGreater(min(len(reasons) - 10, len(flags)), 8)
        rows = lambda text, begin: {w for row in re.findall(r"^\| (.*?) \|", text.split(begin)[1].split("\n## ")[0], re.M)
                                    for w in re.findall(r"`(\w+)`", row)}
        reference, operations = ((ROOT / f).read_text() for f in ["docs/REFERENCE.md", "docs/OPERATIONS.md"])
        self.assertEqual(rows(reference, "\n## Reason codes\n"), reasons)
        self.assertEqual(rows(operations, "\n## Why a series has no verdict\n"), reasons)
        self.assertEqual(rows(reference, "\n## Quality flags\n"), flags)
        words = re.findall(r"\bflag_(\w+):", (ROOT / "daemon/station/src/i18n.ts").read_text())
        self.assertEqual(sorted(words), sorted([*flags, *flags]), "in two languages")

    def test_every_word_that_the_program_warns_with_is_explained(self):
        source = "\n".join(re.split(r"#\[cfg\(test\)\]\s*mod \w+ \{", f.read_text())[0]
                           for f in (ROOT / "daemon/src").rglob("*.rs") if "test" not in f.stem)
        events = re.findall(r'log::(?:warn|error)!\(\s*event = "(\w+)"', source)
        # Where a name is a constant of each queue.
        queues = [name for names in re.findall(r'Events \{ failed: "(\w+)", given_up: "(\w+)" \}', source) for name in names]
        events += queues
        reasons = re.findall(r'reasons\.push\("(\w+)"|\bsay\("(\w+)"\)|format!\("(stage_silent|certificate_expires|backend_failed|station_role):|"(certificate_expired)"|reasons: vec!\["(\w+)"', source)
        broker = re.findall(r'=> Some\("(\w+)"\)', (ROOT / "daemon/src/alert/publisher.rs").read_text())
        technical = re.findall(r'(?:raise|set)_technical\((?:tx, )?"(\w+)"', source) + ["update_failed"]
        refusals = [a or b for f in ["association.rs", "upper.rs", "mod.rs"] for a, b in
                    re.findall(r'reason: "(\w+)"|UpperError::\w+(?:\(_\))? => "(\w+)"', (ROOT / "daemon/src/receive" / f).read_text())]
        refusals += re.findall(r'closed\("(\w+)"\)', source)
        self.assertGreater(min(len(events) // 10, len(queues), len(reasons), len(technical), len(refusals) // 3), 3)
        words = {*events, *(w for found in reasons for w in found if w), *broker, *technical, *refusals}
        explained = set(re.findall(r"`(\w+)", (ROOT / "docs/OPERATIONS.md").read_text()))
        self.assertEqual(sorted(words - explained), [])
        words |= set(re.findall(r'Why::\w+ => "(\w+)"', (ROOT / "daemon/src/decide/mod.rs").read_text()))
        said = {w for row in re.findall(r"^\| (`[^|]*)\|", (ROOT / "docs/OPERATIONS.md").read_text(), re.M) for w in re.findall(r"`(\w+)[:`]", row)}
        self.assertEqual(sorted(said - words - {"ichd", "reason"}), [], "explained, and nowhere said")
