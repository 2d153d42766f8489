//! The side of the agent that finishes.

use std::{
    fs, io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use anyport_model::names::AppName;
use anyport_proto::{
    convert::read_duration,
    sync::UPDATE_MAX,
    v1::{
        self,
        edge_service_server::EdgeServiceServer,
        finishing_service_server::{FinishingService, FinishingServiceServer},
    },
};
use tokio::{net::UnixListener, task::AbortHandle};
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{Request, Response, Status, transport};

use super::{
    obeyed::{Change, Obeyed},
    socket_of,
};
use crate::{
    admin::Admin,
    live::{Begins, Drained, Live, NamedWindows, OrderId, Ordered, Windows},
    tcp::Service,
};

/// Answers the agent that took over, until it is dropped.
pub struct Finishing {
    path: PathBuf,
    task: AbortHandle,
}

impl Finishing {
    /// `about` says what there still is, `live` reaches it.
    pub fn start(
        directory: &Path,
        about: Admin,
        live: Live,
        service: Arc<Service>,
    ) -> io::Result<Self> {
        let path = socket_of(directory, std::process::id());
        // Under its own name only once it listens: until then it would look like
        // that of an agent that died, and be cleared away.
        let unheard = directory.join("earlier.new");
        match fs::remove_file(&unheard) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = std::os::unix::net::UnixListener::bind(&unheard)?;
        // Nobody else comes into the directory.
        fs::set_permissions(&unheard, fs::Permissions::from_mode(0o600))?;
        fs::rename(&unheard, &path)?;
        listener.set_nonblocking(true)?;
        let incoming = UnixListenerStream::new(UnixListener::from_std(listener)?);
        let obeyed = Obeyed::own(&live.ordered().borrow());
        let obedient = Obedient {
            live,
            service,
            obeyed: Mutex::new(obeyed),
        };
        let obedient = FinishingServiceServer::new(obedient);
        let server = transport::Server::builder()
            .add_service(EdgeServiceServer::new(about))
            .add_service(obedient.max_decoding_message_size(UPDATE_MAX))
            .serve_with_incoming(incoming);
        let task = tokio::spawn(async move {
            if let Err(error) = server.await {
                tracing::error!(%error, "this agent no longer hears the one that took over");
            }
        });
        Ok(Self {
            path,
            task: task.abort_handle(),
        })
    }
}

impl Drop for Finishing {
    fn drop(&mut self) {
        self.task.abort();
        // What is left is found to be nobody's.
        let _ = fs::remove_file(&self.path);
    }
}

struct Obedient {
    live: Live,
    service: Arc<Service>,
    /// Held while an order is carried out: they come at any time, in any order.
    obeyed: Mutex<Obeyed>,
}

#[tonic::async_trait]
impl FinishingService for Obedient {
    async fn obey(
        &self,
        request: Request<v1::ObeyRequest>,
    ) -> Result<Response<v1::ObeyResponse>, Status> {
        let Ordered { id, close, drain } = read_orders(request.into_inner())?;
        let mut obeyed = self.obeyed.lock().unwrap_or_else(PoisonError::into_inner);
        let change = obeyed.take(id, drain.as_ref().map(|drain| drain.since));
        let change = change.map_err(|late| Status::aborted(late.to_string()))?;
        let table = self.service.table.load();
        // Who waits for a name belongs to no app when what is open is closed, and
        // asks when it has one.
        for app in table.app_stats() {
            app.set_closed_by_order(close.contains(app.name()));
        }
        let to_close = table.apps().filter(|(name, _)| close.contains(*name));
        self.live
            .close(to_close.map(|(name, key)| (key, name.clone())).collect());
        if matches!(change, Change::End | Change::BeginAnew) {
            self.live.undrain();
        }
        if matches!(change, Change::Begin | Change::BeginAnew) {
            let named = drain.unwrap_or_default().windows;
            let of_apps = table.apps().filter_map(|(name, key)| {
                let window = named.of_apps.get(name)?;
                Some((key, *window))
            });
            let windows = Windows {
                of_apps: of_apps.collect(),
                limit: named.limit,
            };
            self.live.drain(windows, named, Begins::Now);
        }
        Ok(Response::new(v1::ObeyResponse {}))
    }
}

fn read_orders(wire: v1::ObeyRequest) -> Result<Ordered, Status> {
    let v1::ObeyRequest { close, drain, id } = wire;
    let close = close.iter().map(|name| name.parse());
    Ok(Ordered {
        id: OrderId(id),
        close: close.collect::<Result<_, _>>().map_err(unreadable)?,
        drain: drain.map(read_drain).transpose()?,
    })
}

fn read_drain(wire: v1::DrainWindows) -> Result<Drained, Status> {
    let v1::DrainWindows { apps, limit, since } = wire;
    let of_app = |(name, window): (String, _)| {
        let name: AppName = name.parse().map_err(unreadable)?;
        Ok((name, read_duration(window).map_err(unreadable)?))
    };
    let windows = NamedWindows {
        of_apps: apps
            .into_iter()
            .map(of_app)
            .collect::<Result<_, Status>>()?,
        limit: limit.map(read_duration).transpose().map_err(unreadable)?,
    };
    Ok(Drained {
        since: (since != 0).then_some(OrderId(since)),
        windows,
    })
}

fn unreadable(fault: impl std::fmt::Display) -> Status {
    Status::invalid_argument(fault.to_string())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::tcp;

    #[tokio::test]
    async fn the_latest_order_says_whose_connections_are_closed() {
        let (_table, service) = tcp::service();
        let service = Arc::new(service);
        let (live, _orders) = Live::of_workers(1);
        let obeyed = Obeyed::own(&live.ordered().borrow());
        let obedient = Obedient {
            live,
            service: Arc::clone(&service),
            obeyed: Mutex::new(obeyed),
        };
        let table = service.table.load_full();
        let app = table.app_stats().next().unwrap();
        for (id, close, is_closed) in [
            (u64::MAX - 2, vec!["web", "unknown"], true),
            (u64::MAX - 3, vec![], true),
            (u64::MAX - 1, vec!["unknown"], false),
        ] {
            let order = v1::ObeyRequest {
                id,
                close: close.into_iter().map(str::to_owned).collect(),
                ..Default::default()
            };
            // One that comes late is refused.
            let _ = obedient.obey(Request::new(order)).await;
            assert_eq!(app.is_closed_by_order(), is_closed, "{id}");
        }
    }
}
