//! `EdgeService`: what one agent says of itself.

mod stream;

use std::{pin::Pin, sync::Arc, time::Instant};

use anyport_node::{
    access::{AUDIT, Caller},
    drain::Drain,
};
use anyport_proto::{
    convert::{read_duration, write_duration},
    v1::{self, edge_service_server::EdgeService},
};
use tokio::sync::{mpsc, watch};
use tokio_stream::{Stream, wrappers::ReceiverStream};
use tonic::{Request, Response, Status};

use crate::{
    control::Progress,
    drain::{Drainer, Wanted},
    earlier::{Answer, Earlier},
    events::{Connection, Connections, EventLog, Writer},
    stats::Stats,
};

/// Connections on a page, where the request does not say, and at most.
const PAGE: usize = 500;
const PAGE_MAX: usize = 1000;

/// Events on their way to one reader; more wait in the log.
const ON_THE_WAY: usize = 64;

/// Answers of one agent.
#[derive(Clone)]
pub struct Admin {
    pub writer: Writer,
    pub steering: &'static str,
    pub workers: usize,
    pub started: Instant,
    pub stats: Arc<Stats>,
    pub progress: watch::Receiver<Progress>,
    /// Whether a balancer is followed.
    pub balancer: watch::Receiver<bool>,
    pub connections: Arc<Connections>,
    pub events: Arc<EventLog>,
    pub drain: Drain,
    pub drainer: Drainer,
    pub earlier: Earlier,
}

impl Admin {
    /// Those of earlier agents with it.
    fn open_connections(&self) -> u64 {
        self.stats.open_connections() + self.earlier.open()
    }

    async fn page_of_earlier(
        &self,
        number: u32,
        page_token: String,
        request: v1::ListConnectionsRequest,
    ) -> v1::ListConnectionsResponse {
        let request = v1::ListConnectionsRequest {
            page_token,
            ..request
        };
        let mut page = match self.earlier.list(number, request).await {
            Answer::Said(page) => page,
            Answer::Ended => v1::ListConnectionsResponse::default(),
            Answer::Missing(agent) => v1::ListConnectionsResponse {
                missing: vec![agent],
                ..Default::default()
            },
        };
        page.next_page_token = match page.next_page_token.as_str() {
            "" => self.first_page_after(number),
            token => format!("{number}/{token}"),
        };
        page
    }

    /// The token of what the next earlier agent has; empty: there is none.
    fn first_page_after(&self, number: u32) -> String {
        let next = self.earlier.next(number);
        next.map_or_else(String::new, |number| format!("{number}/"))
    }
}

#[tonic::async_trait]
impl EdgeService for Admin {
    async fn get_status(
        &self,
        _request: Request<v1::GetStatusRequest>,
    ) -> Result<Response<v1::GetStatusResponse>, Status> {
        let progress = self.progress.borrow().clone();
        let open = self.open_connections();
        Ok(Response::new(v1::GetStatusResponse {
            name: self.writer.name.clone(),
            region: self.writer.region.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            steering: self.steering.to_owned(),
            workers: u32::try_from(self.workers).unwrap_or(u32::MAX),
            applied_revision: progress.revision.0,
            applied_hash: progress.state_hash,
            rejections: progress.rejections,
            source: progress.source.as_str().to_owned(),
            config_service_connected: progress.connected,
            balancer_connected: *self.balancer.borrow(),
            open_connections: open,
            uptime: Some(write_duration(self.started.elapsed())),
            drain: self.drainer.state(open).into(),
            transparent_connections: u64::try_from(self.stats.transparent.get()).unwrap_or(0),
        }))
    }

    async fn drain(
        &self,
        request: Request<v1::DrainRequest>,
    ) -> Result<Response<v1::DrainResponse>, Status> {
        let caller = Caller::of(request.extensions());
        let order = request.into_inner();
        let wanted = read_order(&order)?;
        audit(&caller, order.undo);
        if !self.drainer.order(wanted).await {
            return Err(Status::unavailable("this agent is ending"));
        }
        let open = self.open_connections();
        Ok(Response::new(v1::DrainResponse {
            state: self.drainer.state(open).into(),
            open_connections: open,
            grace_left: self.drainer.grace_left().map(write_duration),
        }))
    }

    async fn list_connections(
        &self,
        request: Request<v1::ListConnectionsRequest>,
    ) -> Result<Response<v1::ListConnectionsResponse>, Status> {
        let request = request.into_inner();
        let size = match request.page_size {
            0 => PAGE,
            size => usize::try_from(size).map_or(PAGE_MAX, |size| size.min(PAGE_MAX)),
        };
        let after = match read_token(&request.page_token)? {
            Token::Own(after) => after,
            Token::Earlier(number, token) => {
                let page = self.page_of_earlier(number, token, request).await;
                return Ok(Response::new(page));
            }
        };
        let wanted = |connection: &Connection| is_of(connection, &request.application);
        let (page, next) = self.connections.page(after, size, wanted);
        let connections = page.iter().map(|open| self.writer.connection(open));
        Ok(Response::new(v1::ListConnectionsResponse {
            connections: connections.collect(),
            next_page_token: match next {
                Some(id) => id.to_string(),
                None => self.first_page_after(0),
            },
            missing: Vec::new(),
        }))
    }

    type StreamEventsStream =
        Pin<Box<dyn Stream<Item = Result<v1::StreamEventsResponse, Status>> + Send>>;

    async fn stream_events(
        &self,
        request: Request<v1::StreamEventsRequest>,
    ) -> Result<Response<Self::StreamEventsStream>, Status> {
        let request = request.into_inner();
        let (sender, receiver) = mpsc::channel(ON_THE_WAY);
        let admin = self.clone();
        let drain = self.drain.clone();
        tokio::spawn(async move {
            let sent = async {
                // The reader is gone, or the agent is about to be.
                let _ = admin.send_events(&request, &sender).await;
            };
            tokio::select! {
                () = sent => {}
                () = sender.closed() => {}
                () = drain.started(), if request.follow => {}
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
}

/// Whether a connection is of the app of this name, or no name is given.
fn is_of(connection: &Connection, app: &str) -> bool {
    app.is_empty() || connection.learn(|details| details.app.as_str() == app)
}

/// An order is a write, and leaves a line as those at the config service do.
fn audit(caller: &Caller, undo: bool) {
    let method = if undo { "undrain" } else { "drain" };
    let certified = caller.certified.as_deref();
    let author = caller.name().unwrap_or_default();
    let roles = certified.map_or_else(String::new, |certified| certified.roles.to_string());
    let serial = certified.map_or("", |certified| &certified.serial);
    let peer = caller.address.map(|peer| peer.to_string());
    tracing::info!(target: AUDIT, method, author, roles, serial, peer, "write");
}

fn read_order(request: &v1::DrainRequest) -> Result<Wanted, Status> {
    let grace = request.grace.map(read_duration).transpose();
    let grace = grace.map_err(|fault| Status::invalid_argument(format!("grace: {fault}")))?;
    match (request.undo, grace) {
        (true, None) => Ok(Wanted::Serve),
        (true, Some(_)) => Err(Status::invalid_argument("grace: an undo has none")),
        (false, grace) => Ok(Wanted::Drain(grace.unwrap_or_default())),
    }
}

/// Where a page begins.
#[derive(Debug, PartialEq, Eq)]
enum Token {
    /// After this connection of this agent.
    Own(Option<u64>),
    /// `4711/17`: where an earlier agent said.
    Earlier(u32, String),
}

fn read_token(token: &str) -> Result<Token, Status> {
    if token.is_empty() {
        return Ok(Token::Own(None));
    }
    let read = match token.split_once('/') {
        None => token.parse().ok().map(|id| Token::Own(Some(id))),
        Some((number, token)) => {
            let number = number.parse().ok();
            number.map(|number| Token::Earlier(number, token.to_owned()))
        }
    };
    read.ok_or_else(|| {
        let what = format!("page_token: {token:?} is none that this service gave out");
        Status::invalid_argument(what)
    })
}
