//! As much of JSON Schema (draft 7) as `docs/contract` uses. It refuses a keyword that it does not know, so it cannot pass
//! what it did not check. A crate for all of it would bring twenty others and turn on `float_roundtrip` for the daemon
//! under test; the page's tests hold the same files against ajv.

use serde_json::Value;

/// Keywords that say nothing about validity here.
const ABOUT: [&str; 7] = ["$schema", "$id", "title", "description", "format", "default", "definitions"];

/// What is wrong with a document, one line each; empty if nothing is.
pub fn complaints(root: &Value, document: &Value) -> Vec<String> {
    let mut found = Vec::new();
    check(root, root, document, "", &mut found);
    found
}

fn check(root: &Value, schema: &Value, value: &Value, at: &str, found: &mut Vec<String>) {
    let Some(keywords) = schema.as_object() else {
        if schema == &Value::Bool(false) {
            found.push(format!("{at}: nothing is allowed here"));
        }
        return;
    };
    let fits = |schema: &Value| {
        let mut wrong = Vec::new();
        check(root, schema, value, at, &mut wrong);
        wrong.is_empty()
    };
    for (keyword, says) in keywords {
        let list = || says.as_array().cloned().unwrap_or_default();
        let good = match keyword.as_str() {
            "$ref" => {
                let pointer = says.as_str().and_then(|to| to.strip_prefix('#')).unwrap_or("?");
                let target = root.pointer(pointer).unwrap_or_else(|| panic!("{says} leads nowhere"));
                check(root, target, value, at, found);
                true
            }
            "type" => match says {
                Value::Array(types) => types.iter().any(|t| is(value, t)),
                one => is(value, one),
            },
            "const" => value == says,
            "enum" => list().contains(value),
            "allOf" => list().iter().all(fits),
            "anyOf" => list().iter().any(fits),
            "oneOf" => list().iter().filter(|s| fits(s)).count() == 1,
            "minimum" => value.as_f64().is_none_or(|n| says.as_f64().is_some_and(|min| n >= min)),
            "maximum" => value.as_f64().is_none_or(|n| says.as_f64().is_some_and(|max| n <= max)),
            "minLength" => text(value).is_none_or(|n| says.as_u64().is_some_and(|min| n >= min)),
            "maxLength" => text(value).is_none_or(|n| says.as_u64().is_some_and(|max| n <= max)),
            "minItems" => {
                value.as_array().is_none_or(|a| says.as_u64().is_some_and(|min| a.len() as u64 >= min))
            }
            "maxItems" => {
                value.as_array().is_none_or(|a| says.as_u64().is_some_and(|max| a.len() as u64 <= max))
            }
            "required" => {
                let has = |name: &Value| name.as_str().is_some_and(|name| value.get(name).is_some());
                !value.is_object() || list().iter().all(has)
            }
            "properties" => {
                for (name, schema) in says.as_object().into_iter().flatten() {
                    if let Some(value) = value.get(name) {
                        check(root, schema, value, &format!("{at}/{name}"), found);
                    }
                }
                true
            }
            "items" => {
                for (i, item) in value.as_array().into_iter().flatten().enumerate() {
                    check(root, says, item, &format!("{at}/{i}"), found);
                }
                true
            }
            about if ABOUT.contains(&about) => true,
            unknown => panic!("a keyword that these tests do not know: {unknown}"),
        };
        if !good {
            found.push(format!("{at}: {keyword} {says}: {value}"));
        }
    }
}

fn is(value: &Value, name: &Value) -> bool {
    match name.as_str() {
        Some("null") => value.is_null(),
        Some("boolean") => value.is_boolean(),
        Some("string") => value.is_string(),
        Some("array") => value.is_array(),
        Some("object") => value.is_object(),
        Some("number") => value.is_number(),
        Some("integer") => value.is_i64() || value.is_u64(),
        other => panic!("a type that these tests do not know: {other:?}"),
    }
}

fn text(value: &Value) -> Option<u64> {
    value.as_str().map(|text| text.chars().count() as u64)
}
