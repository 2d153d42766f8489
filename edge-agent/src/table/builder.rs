//! The entries of one table, app by app.

use std::{collections::BTreeMap, sync::Arc};

use anyport_model::{
    certificate::CertificateError,
    names::PoolName,
    net_set::NetSet,
    resource::{App, OriginChoice, Pool, Resource, ResourceRef},
    state::Resources,
    tls::Tls,
};
use anyport_proto::{convert::write_reference, v1};

use super::{AppEntry, Ports, Snapshot, pool::PoolEntry, writer::TableWriter};
use crate::{stats::PoolId, tls::Termination};

/// What an app lacks to be served.
#[derive(Debug, thiserror::Error)]
pub(super) enum Missing {
    #[error("there is no {0} here; it was not sent or was rejected")]
    Resource(ResourceRef),
    #[error("certificate: {0}")]
    Certificate(#[from] CertificateError),
}

pub(super) fn rejection(app: &App, missing: &Missing) -> v1::Rejection {
    v1::Rejection {
        resource: Some(write_reference(&ResourceRef::App(app.name.clone()))),
        reason: missing.to_string(),
    }
}

/// Makes the entries of one table, each pool once.
pub(super) struct Builder<'a> {
    writer: &'a TableWriter,
    resources: &'a Resources,
    previous: BTreeMap<&'a PoolId, &'a Arc<PoolEntry>>,
    pools: Vec<Arc<PoolEntry>>,
    index: BTreeMap<PoolId, usize>,
}

impl<'a> Builder<'a> {
    /// `previous` are the pools of the table in use.
    pub(super) fn new(
        writer: &'a TableWriter,
        resources: &'a Resources,
        previous: &'a [Arc<PoolEntry>],
    ) -> Self {
        Self {
            writer,
            resources,
            previous: previous.iter().map(|pool| (&pool.id, pool)).collect(),
            pools: Vec::new(),
            index: BTreeMap::new(),
        }
    }

    /// The pools that the apps' entries go by.
    pub(super) fn into_pools(self) -> Vec<Arc<PoolEntry>> {
        self.pools
    }

    fn declared(&self, name: &PoolName) -> Option<&'a Arc<Pool>> {
        match self.resources.get(&ResourceRef::Pool(name.clone())) {
            Some(Resource::Pool(pool)) => Some(pool),
            _ => None,
        }
    }

    fn termination(&self, app: &App) -> Result<Option<Termination>, Missing> {
        let Tls::Terminate {
            certificate,
            origin,
        } = &app.tls
        else {
            return Ok(None);
        };
        let reference = ResourceRef::Certificate(certificate.clone());
        match self.resources.get(&reference) {
            Some(Resource::Certificate(certificate)) => {
                Ok(Some(self.writer.tls().termination(certificate, origin)?))
            }
            _ => Err(Missing::Resource(reference)),
        }
    }

    /// The entry of an app, or what it lacks.
    pub(super) fn app(&mut self, app: &Arc<App>) -> Result<AppEntry, Missing> {
        let tls = self.termination(app)?;
        let (chain, ports) = match &app.origin {
            OriginChoice::Pool { pool, port } => {
                (self.chain(pool)?, port.map_or(Ports::Own, Ports::Mapped))
            }
            OriginChoice::Direct(origins) => {
                let id = PoolId::DirectOf(app.name.clone());
                let entry = |writer: &TableWriter, _: Option<&Arc<PoolEntry>>| {
                    Arc::new(writer.direct(&app.name, origins))
                };
                let ports = origins.iter().map(|origin| origin.port).collect();
                (vec![self.once(id, entry)], Ports::Each(ports))
            }
            OriginChoice::Dns(dns) => {
                let id = PoolId::DirectOf(app.name.clone());
                let entry = |writer: &TableWriter, _: Option<&Arc<PoolEntry>>| {
                    Arc::new(writer.named(&app.name, dns))
                };
                let ports = dns.port().map_or(Ports::Own, Ports::Mapped);
                (vec![self.once(id, entry)], ports)
            }
        };
        let trusted = &app.identity.trusted_senders;
        Ok(AppEntry {
            app: Arc::clone(app),
            stats: self.writer.app_stats(&app.name),
            trusted_senders: (!trusted.is_empty()).then(|| NetSet::new(trusted.iter().copied())),
            chain,
            ports,
            tls,
        })
    }

    /// The entry of an app as it was served, of what is left of its pools, and
    /// where its own is gone, with the pools that it had.
    pub(super) fn as_before(&mut self, old: &AppEntry, previous: &Snapshot) -> AppEntry {
        if let Ok(entry) = self.app(&old.app) {
            return entry;
        }
        let pools = old.chain.iter().filter_map(|&at| previous.pools.get(at));
        let chain = pools.map(|pool| {
            let declared = pool.declared().and_then(|old| self.declared(&old.name));
            self.once(pool.id.clone(), |writer, previous| match declared {
                Some(declared) => writer.pool(declared, previous),
                None => Arc::clone(pool),
            })
        });
        AppEntry {
            app: Arc::clone(&old.app),
            stats: Arc::clone(&old.stats),
            trusted_senders: old.trusted_senders.clone(),
            chain: chain.collect(),
            ports: old.ports.clone(),
            tls: old.tls.clone(),
        }
    }

    /// A pool and its fallbacks. A fallback that is missing ends the chain.
    fn chain(&mut self, first: &PoolName) -> Result<Vec<usize>, Missing> {
        let mut chain = Vec::new();
        let mut next = Some(first);
        while let Some(name) = next {
            let Some(pool) = self.declared(name) else {
                break;
            };
            let id = PoolId::Declared(name.clone());
            let index = self.once(id, |writer, previous| writer.pool(pool, previous));
            if chain.contains(&index) {
                break;
            }
            chain.push(index);
            next = pool.fallback.as_ref();
        }
        if chain.is_empty() {
            return Err(Missing::Resource(ResourceRef::Pool(first.clone())));
        }
        Ok(chain)
    }

    fn once(
        &mut self,
        id: PoolId,
        make: impl FnOnce(&TableWriter, Option<&Arc<PoolEntry>>) -> Arc<PoolEntry>,
    ) -> usize {
        let previous = self.previous.get(&id).copied();
        *self.index.entry(id).or_insert_with(|| {
            self.pools.push(make(self.writer, previous));
            self.pools.len() - 1
        })
    }
}
