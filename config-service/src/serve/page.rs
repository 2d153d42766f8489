//! Lists in pages, all of them of the revision of the first.

use std::ops::Bound;

use anyport_model::{
    names::Revision,
    resource::{Kind, Resource, ResourceRef},
    state::Resources,
};
use anyport_proto::{
    convert::{read_reference, write_redacted},
    v1,
};
use prost::Message;

/// Resources of a page.
const SIZE: usize = 500;
const SIZE_MAX: usize = 1_000;
/// Bytes of a page, beside the last resource: most clients take messages of
/// 4 MiB.
const BYTES_MAX: usize = 2 << 20;

/// Where a page begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Token {
    pub(super) revision: Revision,
    /// The last resource of the page before.
    after: ResourceRef,
}

/// A text that is no [`Token`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} did not come from a response before")]
pub(super) struct TokenError(String);

#[derive(Debug, Default)]
pub(super) struct Page {
    pub(super) resources: Vec<v1::Resource>,
    pub(super) next: Option<Token>,
}

/// `REVISION/KIND/NAME`; a CIDR has a slash of its own, and is the last part.
impl Token {
    pub(super) fn read(text: &str) -> Result<Self, TokenError> {
        let wrong = || TokenError(text.chars().take(100).collect());
        let mut parts = text.splitn(3, '/');
        let mut part = || parts.next().ok_or_else(wrong);
        let revision = part()?.parse().map_err(|_| wrong())?;
        let kind = part()?.parse().map_err(|_| wrong())?;
        let name = part()?.to_owned();
        let after = read_reference(&v1::ResourceRef { kind, name }).map_err(|_| wrong())?;
        Ok(Self {
            revision: Revision(revision),
            after,
        })
    }

    pub(super) fn write(&self) -> String {
        let wire = anyport_proto::convert::write_reference(&self.after);
        format!("{}/{}/{}", self.revision, wire.kind, wire.name)
    }
}

/// The page of `resources`, which are those of `revision`, after `token`.
pub(super) fn page(
    revision: Revision,
    resources: &Resources,
    kind: Option<Kind>,
    token: Option<&Token>,
    size: u32,
) -> Page {
    let size = match size as usize {
        0 => SIZE,
        size => size.min(SIZE_MAX),
    };
    let from = token.map_or(Bound::Unbounded, |token| Bound::Excluded(&token.after));
    let wanted = |resource: &&Resource| kind.is_none_or(|kind| resource.kind() == kind);
    let mut rest = resources
        .range((from, Bound::Unbounded))
        .map(|(_, resource)| resource)
        .filter(wanted)
        .peekable();
    let mut page = Page::default();
    let mut bytes = 0;
    while let Some(resource) = rest.next() {
        let wire = write_redacted(resource);
        bytes += wire.encoded_len();
        page.resources.push(wire);
        if rest.peek().is_some() && (page.resources.len() == size || bytes >= BYTES_MAX) {
            page.next = Some(Token {
                revision,
                after: resource.reference(),
            });
            break;
        }
    }
    page
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyport_model::resource::Prefix;

    fn prefixes(count: u8) -> Resources {
        (0..count)
            .map(|n| {
                let net = format!("198.51.{n}.0/24").parse().expect("a network");
                let prefix = Resource::Prefix(Prefix::new(net).expect("routable"));
                (prefix.reference(), prefix)
            })
            .collect()
    }

    #[test]
    fn pages_together_are_the_list() {
        let resources = prefixes(23);
        for size in [1, 5, 22, 23, 24, 0] {
            let mut seen = Vec::new();
            let mut token: Option<Token> = None;
            loop {
                let page = page(Revision(3), &resources, None, token.as_ref(), size);
                assert!(!page.resources.is_empty(), "no page is empty");
                seen.extend(page.resources);
                match page.next {
                    None => break,
                    Some(next) => {
                        assert_eq!(next.revision, Revision(3));
                        token = Some(Token::read(&next.write()).expect("its own token"));
                    }
                }
            }
            let all: Vec<_> = resources.values().map(write_redacted).collect();
            assert_eq!(seen, all, "pages of {size}");
        }
    }

    #[test]
    fn a_kind_that_is_not_there_makes_one_empty_page() {
        let page = page(Revision(1), &prefixes(3), Some(Kind::App), None, 1);
        assert!(page.resources.is_empty() && page.next.is_none());
    }

    #[test]
    fn tokens_from_elsewhere_are_refused() {
        for text in [
            "x",
            "1",
            "1/1",
            "1/1/x",
            "1/9/198.51.0.0/24",
            "-1/1/198.51.0.0/24",
        ] {
            assert!(Token::read(text).is_err(), "{text}");
        }
    }
}
