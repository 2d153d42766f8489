//! A subscriber whose every word is the test's.

use anyport_proto::{
    sync::UPDATE_MAX,
    v1::{self, discovery_service_client::DiscoveryServiceClient, sync_request::Message},
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming, codec::CompressionEncoding, transport::Channel};

use super::{service::Service, soon};

type Client = DiscoveryServiceClient<Channel>;

pub struct Subscriber {
    requests: mpsc::Sender<v1::SyncRequest>,
    updates: Streaming<v1::SyncResponse>,
}

pub fn edge(name: &str) -> v1::Subscribe {
    v1::Subscribe {
        role: v1::NodeRole::Edge.into(),
        name: name.to_owned(),
        region: "test".to_owned(),
        version: "0".to_owned(),
        ..Default::default()
    }
}

pub fn balancer(name: &str) -> v1::Subscribe {
    v1::Subscribe {
        role: v1::NodeRole::Balancer.into(),
        ..edge(name)
    }
}

impl Subscriber {
    pub async fn connect(service: &Service, subscribe: v1::Subscribe) -> Self {
        Self::connect_by(service, subscribe, |client| client).await
    }

    /// As [`connect`](Self::connect), by a client that takes what is compressed.
    pub async fn connect_compressed(service: &Service, subscribe: v1::Subscribe) -> Self {
        let takes = |client: Client| client.accept_compressed(CompressionEncoding::Gzip);
        Self::connect_by(service, subscribe, takes).await
    }

    async fn connect_by(
        service: &Service,
        subscribe: v1::Subscribe,
        takes: impl FnOnce(Client) -> Client,
    ) -> Self {
        let channel = soon("connect", service.endpoint().connect()).await.unwrap();
        let client = DiscoveryServiceClient::new(channel).max_decoding_message_size(UPDATE_MAX);
        let mut client = takes(client);
        let (requests, outgoing) = mpsc::channel(8);
        let first = v1::SyncRequest {
            message: Some(Message::Subscribe(subscribe)),
        };
        requests.send(first).await.unwrap();
        let updates = soon("sync", client.sync(ReceiverStream::new(outgoing)))
            .await
            .unwrap();
        Self {
            requests,
            updates: updates.into_inner(),
        }
    }

    pub async fn next(&mut self) -> Result<v1::Update, Status> {
        let message = soon("an update", self.updates.message()).await?;
        let message = message.ok_or_else(|| Status::ok("the stream ended"))?;
        Ok(message.update.expect("an update in the response"))
    }

    /// Is there none, although one had the time to come?
    pub async fn nothing_comes(&mut self) -> bool {
        let patience = std::time::Duration::from_millis(300);
        tokio::time::timeout(patience, self.updates.message())
            .await
            .is_err()
    }

    pub async fn say(&self, message: Message) {
        let request = v1::SyncRequest {
            message: Some(message),
        };
        self.requests.send(request).await.unwrap();
    }

    pub async fn ack(&self, update: &v1::Update, rejections: Vec<v1::Rejection>) {
        self.say(Message::Ack(v1::Ack {
            revision: update.revision,
            state_hash: update.state_hash.clone(),
            rejections,
            applied_at: Some(std::time::SystemTime::now().into()),
            traceparent: String::new(),
        }))
        .await;
    }

    /// The next update, acknowledged.
    pub async fn take(&mut self) -> v1::Update {
        let update = self.next().await.expect("an update");
        self.ack(&update, Vec::new()).await;
        update
    }
}
