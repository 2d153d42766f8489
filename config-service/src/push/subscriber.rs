//! Who subscribes: the first word of every stream.

use std::time::Duration;

use anyport_model::names::{NodeName, Revision};
use anyport_proto::v1::{self, sync_request::Message};
use tokio_stream::{Stream, StreamExt};
use tonic::Status;

use super::frames::Held;
use crate::{
    nodes::{NodeKey, Role},
    serve::status,
    store::{ObjectId, StoreName},
};

/// A subscriber that has not said who it is by then is none.
pub(super) const FIRST_WORD: Duration = Duration::from_secs(10);

/// Longest region, version and way of steering of a subscriber, in bytes.
const WORD_MAX: usize = 128;
/// Longest address: a URL with a host name of 253 bytes.
const ADDRESS_MAX: usize = 300;

/// Who subscribes, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subscriber {
    pub key: NodeKey,
    pub region: String,
    pub version: String,
    pub steering: String,
    /// URL of its own gRPC service; empty: not told.
    pub address: String,
    /// What it holds already.
    pub held: Option<Held>,
    /// The store that it is from, if that is known.
    pub store: Option<StoreName>,
}

/// Hears who subscribes; `None` where nobody does.
pub(super) async fn first_word<S>(requests: &mut S) -> Result<Option<Subscriber>, Status>
where
    S: Stream<Item = Result<v1::SyncRequest, Status>> + Send + Unpin,
{
    let first = tokio::time::timeout(FIRST_WORD, requests.next()).await;
    let first = first.map_err(|_| {
        Status::deadline_exceeded(format!("no Subscribe within {} s", FIRST_WORD.as_secs()))
    })?;
    match first.transpose()?.map(|request| request.message) {
        None => Ok(None),
        Some(Some(Message::Subscribe(subscribe))) => read_subscribe(subscribe).map(Some),
        Some(_) => Err(Status::invalid_argument(
            "the first message must be a Subscribe",
        )),
    }
}

fn read_subscribe(wire: v1::Subscribe) -> Result<Subscriber, Status> {
    let role = Role::read(wire.role);
    let name = wire.name.parse::<NodeName>();
    let long = |field: &str, text: &str, max: usize| {
        (text.len() > max).then(|| {
            let problem = format!("is {} bytes long; right is at most {max}", text.len());
            (field.to_owned(), problem)
        })
    };
    let no_role = "is neither NODE_ROLE_EDGE nor NODE_ROLE_BALANCER";
    let faults: Vec<(String, String)> = [
        role.is_none()
            .then(|| ("subscribe.role".to_owned(), no_role.to_owned())),
        name.as_ref()
            .err()
            .map(|e| ("subscribe.name".to_owned(), e.to_string())),
        long("subscribe.region", &wire.region, WORD_MAX),
        long("subscribe.version", &wire.version, WORD_MAX),
        long("subscribe.address", &wire.address, ADDRESS_MAX),
        long("subscribe.steering", &wire.steering, WORD_MAX),
    ]
    .into_iter()
    .flatten()
    .collect();
    let (Some(role), Ok(name), []) = (role, name, &faults[..]) else {
        return Err(status::invalid(faults));
    };
    let hash = ObjectId::from_slice(&wire.state_hash);
    Ok(Subscriber {
        key: NodeKey { role, name },
        region: wire.region,
        version: wire.version,
        steering: wire.steering,
        address: wire.address,
        store: StoreName::from_slice(&wire.store),
        // A hash that is none was never one of ours.
        held: hash.map(|hash| Held {
            revision: Revision(wire.revision),
            hash,
        }),
    })
}
