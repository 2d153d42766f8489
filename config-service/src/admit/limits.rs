//! How large resources may be, and how many there may be. How large all of them
//! together may be is known when they are laid out (`write`).

use anyport_proto::convert::write_resource;
use prost::Message;

use super::{
    Violation,
    intent::{ApplyRead, path_of},
};
use crate::store::OBJECT_MAX;

/// Resources of one revision.
pub const RESOURCES_MAX: usize = 200_000;
/// Bytes of one resource: with what is around it, it is one object of the store.
pub const RESOURCE_MAX: usize = 1_000_000;
const _: () = assert!(RESOURCE_MAX + (16 << 10) < OBJECT_MAX);

/// Every limit that a request exceeds, where it leads to `count` resources.
pub(super) fn exceeded(request: &ApplyRead, count: usize) -> impl Iterator<Item = Violation> {
    let many = (count > RESOURCES_MAX).then(|| Violation {
        path: "resources".to_owned(),
        problem: format!("there would be {count} resources; right is at most {RESOURCES_MAX}"),
    });
    let large = request
        .resources
        .iter()
        .filter_map(|(reference, (index, resource))| {
            let bytes = write_resource(resource).encoded_len();
            (bytes > RESOURCE_MAX).then(|| Violation {
                path: path_of(*index, Some(reference.kind()), ""),
                problem: format!("takes {bytes} bytes; right is at most {RESOURCE_MAX}"),
            })
        });
    many.into_iter().chain(large)
}
