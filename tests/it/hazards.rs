//! What SECURITY.md and docs/HAZARDS.md promise is held by tests that are there.

use std::collections::HashSet;
use std::path::Path;

use crate::peers::repository;

fn sources(folder: &Path, found: &mut Vec<String>) {
    for entry in std::fs::read_dir(folder).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() && !path.ends_with("node_modules") {
            sources(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs" || e == "mjs") {
            found.push(std::fs::read_to_string(&path).unwrap());
        }
    }
}

/// Names of the functions that stand under a test attribute.
fn tests(source: &str, names: &mut HashSet<String>) {
    let mut is_test = false;
    for line in source.lines().map(str::trim) {
        is_test |= line == "#[test]" || line.starts_with("#[tokio::test");
        let name = line.strip_prefix("async fn ").or_else(|| line.strip_prefix("fn "));
        if let Some(name) = name.filter(|_| is_test) {
            names.insert(name.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect());
            is_test = false;
        }
    }
}

#[test]
fn every_test_that_a_document_names_exists() {
    let mut texts = Vec::new();
    for folder in ["daemon/src", "daemon/station/test", "tests/it"] {
        sources(&repository().join(folder), &mut texts);
    }
    let mut names = HashSet::new();
    texts.iter().for_each(|text| tests(text, &mut names));
    let mut seen = 0;
    for document in ["SECURITY.md", "docs/HAZARDS.md"] {
        let text = std::fs::read_to_string(repository().join(document)).unwrap();
        for name in text.split('`').skip(1).step_by(2) {
            if let Some(title) = name.strip_prefix("page: ") {
                assert!(
                    texts.iter().any(|t| t.contains(title)),
                    "{document}: the page has no test `{title}`"
                );
                seen += 1;
            } else if let Some((_, last)) = name.rsplit_once("::") {
                assert!(names.contains(last), "{document} names `{name}`, which is no test");
                seen += 1;
            }
        }
    }
    assert!(seen > 40, "only {seen} tests are named");
}
