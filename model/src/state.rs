//! All resources of one revision, which fit each other.

use std::{collections::BTreeMap, sync::Arc};

use crate::{
    fault::StateFault,
    names::{AppName, MonitorName, PoolName},
    resource::{App, Monitor, Pool, Prefix, Resource, ResourceRef},
    validate,
};

/// Resources by reference: what was declared, not yet held against each other.
pub type Resources = BTreeMap<ResourceRef, Resource>;

/// Resources that fit each other. Made by [`State::validate`] only.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct State {
    resources: Resources,
}

impl State {
    /// Takes the resources if each one fits the others, else says every fault.
    pub fn validate(resources: Resources) -> Result<Self, Vec<StateFault>> {
        let faults = validate::faults(&resources, &Default::default());
        if faults.is_empty() {
            Ok(Self { resources })
        } else {
            Err(faults)
        }
    }

    pub fn resources(&self) -> &Resources {
        &self.resources
    }

    pub fn into_resources(self) -> Resources {
        self.resources
    }

    pub fn len(&self) -> usize {
        self.resources.len()
    }

    pub fn is_empty(&self) -> bool {
        self.resources.is_empty()
    }

    pub fn prefixes(&self) -> impl Iterator<Item = Prefix> {
        prefixes(&self.resources)
    }

    pub fn pools(&self) -> impl Iterator<Item = &Arc<Pool>> {
        self.resources.values().filter_map(|r| match r {
            Resource::Pool(pool) => Some(pool),
            _ => None,
        })
    }

    pub fn apps(&self) -> impl Iterator<Item = &Arc<App>> {
        apps(&self.resources)
    }

    pub fn app(&self, name: &AppName) -> Option<&Arc<App>> {
        match self.resources.get(&ResourceRef::App(name.clone())) {
            Some(Resource::App(app)) => Some(app),
            _ => None,
        }
    }

    pub fn pool(&self, name: &PoolName) -> Option<&Arc<Pool>> {
        pool(&self.resources, name)
    }

    pub fn monitor(&self, name: &MonitorName) -> Option<&Arc<Monitor>> {
        match self.resources.get(&ResourceRef::Monitor(name.clone())) {
            Some(Resource::Monitor(monitor)) => Some(monitor),
            _ => None,
        }
    }
}

pub(crate) fn prefixes(resources: &Resources) -> impl Iterator<Item = Prefix> {
    resources.values().filter_map(|r| match r {
        Resource::Prefix(prefix) => Some(*prefix),
        _ => None,
    })
}

pub(crate) fn apps(resources: &Resources) -> impl Iterator<Item = &Arc<App>> {
    resources.values().filter_map(|r| match r {
        Resource::App(app) => Some(app),
        _ => None,
    })
}

pub(crate) fn pool<'a>(resources: &'a Resources, name: &PoolName) -> Option<&'a Arc<Pool>> {
    match resources.get(&ResourceRef::Pool(name.clone())) {
        Some(Resource::Pool(pool)) => Some(pool),
        _ => None,
    }
}
