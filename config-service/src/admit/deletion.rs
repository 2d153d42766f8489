//! How much a write may delete without naming it.
//!
//! A manifest of another fleet, or half a manifest, is as valid as the right one.
//! What gives it away is what would be gone.

use std::fmt;

use anyport_model::{
    resource::{Kind, ResourceRef},
    state::Resources,
};

/// Of more resources than this, deleting more than half is much.
const FEW: usize = 10;

/// So much to be deleted that it has to be asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MassDeletion {
    /// At least one.
    parts: Vec<Part>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Part {
    deleted: usize,
    of: usize,
    /// `None`: resources of whatever kind.
    kind: Option<Kind>,
}

impl MassDeletion {
    /// What is deleted between two states, if that is much: every app or every
    /// prefix, or more than half of more than 10 resources.
    ///
    /// The only app, or prefix, may have another one put in its place.
    pub fn of(present: &Resources, next: &Resources) -> Option<Self> {
        let gone = |reference: &&ResourceRef| !next.contains_key(*reference);
        let every = |kind: Kind| {
            let of_kind = |reference: &&ResourceRef| reference.kind() == kind;
            let of = present.keys().filter(of_kind).count();
            let deleted = present.keys().filter(of_kind).filter(gone).count();
            let replaced = of == 1 && next.keys().any(|reference| reference.kind() == kind);
            (of > 0 && deleted == of && !replaced).then_some(Part {
                deleted,
                of,
                kind: Some(kind),
            })
        };
        let most = || {
            let (deleted, of) = (present.keys().filter(gone).count(), present.len());
            (of > FEW && deleted > of / 2).then_some(Part {
                deleted,
                of,
                kind: None,
            })
        };
        let parts = [every(Kind::App), every(Kind::Prefix), most()];
        let parts: Vec<Part> = parts.into_iter().flatten().collect();
        (!parts.is_empty()).then_some(Self { parts })
    }
}

/// `all 12 apps, 14 of 20 resources`.
impl fmt::Display for MassDeletion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, Part { deleted, of, kind }) in self.parts.iter().enumerate() {
            if index > 0 {
                f.write_str(", ")?;
            }
            let nouns = kind.map_or("resources", Kind::plural);
            match (kind, of) {
                (Some(kind), 1) => write!(f, "the only {}", kind.singular())?,
                _ if deleted == of => write!(f, "all {of} {nouns}")?,
                _ => write!(f, "{deleted} of {of} {nouns}")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use anyport_proto::{convert::read_resource, v1};

    use super::*;

    fn prefix(number: usize) -> v1::resource::Kind {
        v1::resource::Kind::Prefix(v1::Prefix {
            cidr: format!("198.51.{number}.0/24"),
        })
    }

    fn app(number: usize) -> v1::resource::Kind {
        v1::resource::Kind::App(v1::App {
            name: format!("app-{number}"),
            protocol: format!("tcp/{}", number + 1),
            edge_ips: vec!["198.51.0.0/24".to_owned()],
            origin_direct: vec!["tcp://10.0.2.2:7000".to_owned()],
            ..Default::default()
        })
    }

    fn state(
        apps: impl IntoIterator<Item = usize>,
        prefixes: impl IntoIterator<Item = usize>,
    ) -> Resources {
        let kinds = apps.into_iter().map(app);
        let kinds = kinds.chain(prefixes.into_iter().map(prefix));
        kinds
            .map(|kind| read_resource(v1::Resource { kind: Some(kind) }).unwrap())
            .map(|resource| (resource.reference(), resource))
            .collect()
    }

    #[test]
    fn what_is_much_is_said_and_what_is_not_is_not() {
        let one = || state(0..1, 0..1);
        for (present, next, said) in [
            (one(), state([], 0..1), Some("the only app")),
            (one(), state([], []), Some("the only app, the only prefix")),
            (one(), state(1..2, 1..2), None),
            (one(), state(0..9, 0..9), None),
            (state([], []), one(), None),
            (state(0..5, 0..1), state(7..9, 0..1), Some("all 5 apps")),
            (state(0..5, 0..1), state(4..5, 0..1), None),
            (state(0..9, 0..1), state(8..9, 0..1), None),
            (state(0..9, 0..2), state(4..9, 0..1), None),
            (
                state(0..9, 0..2),
                state(5..9, 0..1),
                Some("6 of 11 resources"),
            ),
            (
                state(0..9, 0..2),
                state([], 0..1),
                Some("all 9 apps, 10 of 11 resources"),
            ),
            (
                state(0..9, 0..2),
                state([], []),
                Some("all 9 apps, all 2 prefixes, all 11 resources"),
            ),
        ] {
            let mass = MassDeletion::of(&present, &next);
            let words = mass.map(|mass| mass.to_string());
            assert_eq!(
                words.as_deref(),
                said,
                "{} to {}",
                present.len(),
                next.len()
            );
        }
    }
}
