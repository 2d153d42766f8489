//! What a write changed, resource by resource and, for a dry run, field by field.

use std::collections::BTreeMap;

use anyport_model::certificate::Chain;
use anyport_proto::{
    convert,
    v1::{self, change::Action},
};
use serde_json::Value;

use crate::{
    console::{Console, Mood, printable},
    failure::Failure,
    manifest::Entry,
};

/// A line per resource; with `fields`, the differences under it.
pub(super) fn print(
    console: &mut Console,
    changes: &[v1::Change],
    fields: bool,
) -> Result<(), Failure> {
    for change in changes {
        let (word, mood) = match change.action() {
            Action::Created => ("created", Mood::Good),
            Action::Updated => ("updated", Mood::Notable),
            Action::Deleted => ("deleted", Mood::Bad),
            Action::Unchanged => ("unchanged", Mood::Faint),
            Action::Unspecified => ("unknown", Mood::Plain),
        };
        let (kind, name) = described(change.resource.as_ref());
        let word = console.paint(format_args!("{word:<9}"), mood);
        console.line(format_args!("{word}  {kind:<7}  {name}"))?;
        if fields {
            for line in differences(change.before.as_ref(), change.after.as_ref()) {
                console.line(format_args!("             {}", printable(&line)))?;
            }
        }
    }
    Ok(())
}

/// The words for a resource: `app`, `minecraft`.
pub(super) fn described(reference: Option<&v1::ResourceRef>) -> (&'static str, String) {
    let Some(reference) = reference else {
        return ("unknown", String::new());
    };
    let kind = match convert::read_kind(reference.kind) {
        Ok(Some(kind)) => kind.singular(),
        _ => "unknown",
    };
    (kind, printable(&reference.name))
}

/// `field: before → after` for a field that has one value on both sides, else
/// `field: + added` and `field: - removed`. Lists are compared as sets: where
/// only their order differs, that is said instead.
fn differences(before: Option<&v1::Resource>, after: Option<&v1::Resource>) -> Vec<String> {
    let (before, after) = (leaves(before), leaves(after));
    let mut fields: BTreeMap<&str, (Vec<&str>, Vec<&str>)> = BTreeMap::new();
    for leaf in before.iter().filter(|leaf| !after.contains(leaf)) {
        fields.entry(&leaf.0).or_default().0.push(&leaf.1);
    }
    for leaf in after.iter().filter(|leaf| !before.contains(leaf)) {
        fields.entry(&leaf.0).or_default().1.push(&leaf.1);
    }
    if fields.is_empty() && before != after {
        return vec!["only in the order of a list".to_owned()];
    }
    let mut lines = Vec::new();
    for (path, (removed, added)) in fields {
        if let ([old], [new]) = (&removed[..], &added[..]) {
            lines.push(format!("{path}: {old} → {new}"));
            continue;
        }
        lines.extend(removed.iter().map(|old| format!("{path}: - {old}")));
        lines.extend(added.iter().map(|new| format!("{path}: + {new}")));
    }
    lines
}

/// The values of a resource with their paths, in order. Items of a list of
/// mappings are called by their names and not by their positions.
fn leaves(resource: Option<&v1::Resource>) -> Vec<(String, String)> {
    let mut leaves = Vec::new();
    if let Some(v1::resource::Kind::Certificate(certificate)) =
        resource.and_then(|resource| resource.kind.as_ref())
    {
        return certificate_leaves(certificate);
    }
    let entry = resource.and_then(Entry::new);
    // Entries hold nothing that JSON could not.
    if let Some(Ok(value)) = entry.map(serde_json::to_value) {
        collect(String::new(), &value, &mut leaves);
    }
    leaves
}

/// A line each instead of a page of PEM.
fn certificate_leaves(certificate: &v1::Certificate) -> Vec<(String, String)> {
    let lines = certificate.cert.lines();
    let body: Vec<&str> = lines.filter(|line| !line.starts_with("---")).collect();
    let cert = match Chain::from_pem(&certificate.cert) {
        Ok(chain) => {
            let until = prost_types::Timestamp::from(chain.not_after).to_string();
            let names = chain.names.join(", ");
            // The end of its signature tells it from others of that name.
            let end = body.last().copied().unwrap_or_default();
            format!("{names} until {until} (…{end})")
        }
        Err(error) => error.to_string(),
    };
    vec![
        ("cert".to_owned(), cert),
        ("name".to_owned(), certificate.name.clone()),
    ]
}

fn collect(path: String, value: &Value, leaves: &mut Vec<(String, String)>) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                let dot = if path.is_empty() { "" } else { "." };
                collect(format!("{path}{dot}{name}"), value, leaves);
            }
        }
        Value::Array(items) => {
            for item in items {
                let inner = match item.get("name").and_then(Value::as_str) {
                    Some(name) => format!("{path}[{name}]"),
                    None => path.clone(),
                };
                collect(inner, item, leaves);
            }
        }
        Value::String(text) => leaves.push((path, text.clone())),
        other => leaves.push((path, other.to_string())),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::manifest::Manifest;

    fn only(text: &str) -> v1::Resource {
        let manifest = Manifest::read("m.yaml", text);
        assert_eq!(manifest.faults(), []);
        manifest.resources().pop().unwrap()
    }

    fn app(fields: &str) -> v1::Resource {
        only(&format!(
            "apps:\n  - {{ name: a, protocol: tcp/1, {fields} }}\n"
        ))
    }

    #[test]
    fn an_update_is_shown_by_field() {
        let before =
            app("edge_ips: [198.51.100.1, 198.51.100.2], origin_pool: x, timeouts: { idle: 1h }");
        let after = app(
            "edge_ips: [198.51.100.3, 198.51.100.1, 198.51.100.4], origin_pool: y, timeouts: { idle: 5m }",
        );
        assert_eq!(
            differences(Some(&before), Some(&after)),
            [
                "edge_ips: - 198.51.100.2",
                "edge_ips: + 198.51.100.3",
                "edge_ips: + 198.51.100.4",
                "origin_pool: x → y",
                "timeouts.idle: 1h → 5m",
            ]
        );
    }

    #[test]
    fn origins_are_called_by_name() {
        let pool =
            |origins: &str| only(&format!("pools:\n  - name: p\n    origins: [{origins}]\n"));
        let before = pool("{ name: a, weight: 1 }, { name: b, weight: 0.5 }");
        let after = pool("{ name: b, weight: 2 }, { name: a, weight: 1 }");
        assert_eq!(
            differences(Some(&before), Some(&after)),
            ["origins[b].weight: 0.5 → 2.0"]
        );
        let swapped = pool("{ name: b, weight: 0.5 }, { name: a, weight: 1 }");
        assert_eq!(
            differences(Some(&before), Some(&swapped)),
            ["only in the order of a list"]
        );
        assert!(differences(Some(&before), Some(&before)).is_empty());
    }

    #[test]
    fn what_is_created_or_deleted_is_shown_whole() {
        let app = app("edge_ips: [198.51.100.1]");
        assert_eq!(
            differences(None, Some(&app)),
            ["edge_ips: + 198.51.100.1", "name: + a", "protocol: + tcp/1"]
        );
        assert_eq!(differences(Some(&app), None).len(), 3);
    }
}
