//! The balancer's end of the configuration stream.

use anyport_model::{
    names::Revision,
    replica::{Gap, Replica, Update},
};
use anyport_node::telemetry::{current_traceparent, set_parent};
use anyport_proto::{
    convert::{write_reference, write_rejections},
    sync::{self, Applied, Origin},
    v1,
};
use tonic::Status;
use tracing::Instrument;

use super::Members;
use crate::driver::Handle;

/// Holds the configuration and hands it to the driver.
pub(crate) struct Subscriber {
    replica: Replica,
    driver: Handle,
    /// `None`: not tried yet.
    connected: Option<bool>,
}

impl Subscriber {
    pub(crate) fn new(driver: Handle) -> Self {
        Self {
            replica: Replica::default(),
            driver,
            connected: None,
        }
    }

    async fn take_into_use(&mut self) -> Vec<v1::Rejection> {
        let members = Members::of(&self.replica.resources);
        let mut rejections = write_rejections(&self.replica);
        for rejection in &rejections {
            let resource = rejection.resource.as_ref().map(|r| r.name.as_str());
            tracing::warn!(resource, "rejected: {}", rejection.reason);
        }
        rejections.extend(members.unprobed.iter().map(|(reference, reason)| {
            tracing::warn!(resource = %reference, "{reason}");
            v1::Rejection {
                resource: Some(write_reference(reference)),
                reason: reason.clone(),
            }
        }));
        let (pools, origins) = (members.pools.len(), members.targets.len());
        self.driver.configure(self.replica.revision, members).await;
        tracing::info!(
            revision = self.replica.revision.0,
            pools,
            probed_origins = origins,
            "configuration taken into use"
        );
        rejections
    }
}

impl sync::Subscriber for Subscriber {
    fn held(&self) -> (Revision, Vec<u8>) {
        self.replica.held()
    }

    async fn apply(&mut self, update: Update, origin: Origin) -> Result<Applied, Gap> {
        let revision = update.revision.0;
        let span = tracing::info_span!("apply_revision", revision);
        set_parent(&span, &origin.traceparent);
        async {
            self.replica.apply(update)?;
            let rejections = self.take_into_use().await;
            Ok(Applied {
                rejections,
                traceparent: current_traceparent().unwrap_or_default(),
            })
        }
        .instrument(span)
        .await
    }

    fn connection(&mut self, state: Result<(), &Status>) {
        let was = self.connected.replace(state.is_ok());
        match state {
            Ok(()) => tracing::info!("connected to the config service"),
            // One line for an outage, not one for each attempt.
            Err(status) if was != Some(false) => tracing::warn!(
                code = ?status.code(),
                "no config service, going on with what is known: {}",
                status.message()
            ),
            Err(status) => tracing::debug!(code = ?status.code(), "{}", status.message()),
        }
    }
}
