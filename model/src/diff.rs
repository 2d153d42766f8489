//! What changed between two sets of resources.

use crate::{
    resource::{Resource, ResourceRef},
    state::Resources,
};

/// What has to be done to get from one set of resources to another.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Diff {
    /// New or changed resources.
    pub upserts: Vec<Resource>,
    pub removals: Vec<ResourceRef>,
}

impl Diff {
    pub fn between(old: &Resources, new: &Resources) -> Self {
        let upserts = new
            .iter()
            .filter(|(reference, resource)| old.get(reference) != Some(resource))
            .map(|(_, resource)| resource.clone())
            .collect();
        let removals = old
            .keys()
            .filter(|reference| !new.contains_key(reference))
            .cloned()
            .collect();
        Self { upserts, removals }
    }

    pub fn apply(self, resources: &mut Resources) {
        for reference in self.removals {
            resources.remove(&reference);
        }
        for resource in self.upserts {
            resources.insert(resource.reference(), resource);
        }
    }

    pub fn is_empty(&self) -> bool {
        self.upserts.is_empty() && self.removals.is_empty()
    }
}
