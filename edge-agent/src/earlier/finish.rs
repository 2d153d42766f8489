//! The side of the agent that finishes.

use std::{
    collections::BTreeSet,
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

use super::socket_of_this_process;
use crate::{
    admin::Admin,
    live::{Live, NamedWindows, Windows},
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
        let path = socket_of_this_process(directory);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = std::os::unix::net::UnixListener::bind(&path)?;
        // Nobody else comes into the directory.
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
        listener.set_nonblocking(true)?;
        let incoming = UnixListenerStream::new(UnixListener::from_std(listener)?);
        let is_drained = live.ordered().borrow().drain.is_some();
        let obedient = Obedient {
            live,
            service,
            is_drained: Mutex::new(is_drained),
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
    is_drained: Mutex<bool>,
}

#[tonic::async_trait]
impl FinishingService for Obedient {
    async fn obey(
        &self,
        request: Request<v1::ObeyRequest>,
    ) -> Result<Response<v1::ObeyResponse>, Status> {
        let v1::ObeyRequest { close, drain } = request.into_inner();
        let close = close.iter().map(|name| name.parse());
        let close: BTreeSet<AppName> = close.collect::<Result<_, _>>().map_err(unreadable)?;
        let drain = drain.map(read_windows).transpose()?;
        let table = self.service.table.load();
        let to_close = table.apps().filter(|(name, _)| close.contains(*name));
        self.live
            .close(to_close.map(|(name, key)| (key, name.clone())).collect());
        let mut is_drained = self
            .is_drained
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        match drain {
            // Told again after a further upgrade, its time goes on.
            Some(named) if !*is_drained => {
                let of_apps = table.apps().filter_map(|(name, key)| {
                    let window = named.of_apps.get(name)?;
                    Some((key, *window))
                });
                let windows = Windows {
                    of_apps: of_apps.collect(),
                    limit: named.limit,
                };
                *is_drained = true;
                self.live.drain(windows, named);
            }
            None if *is_drained => {
                *is_drained = false;
                self.live.undrain();
            }
            _ => {}
        }
        Ok(Response::new(v1::ObeyResponse {}))
    }
}

fn read_windows(wire: v1::DrainWindows) -> Result<NamedWindows, Status> {
    let v1::DrainWindows { apps, limit } = wire;
    let of_app = |(name, window): (String, _)| {
        let name: AppName = name.parse().map_err(unreadable)?;
        Ok((name, read_duration(window).map_err(unreadable)?))
    };
    Ok(NamedWindows {
        of_apps: apps
            .into_iter()
            .map(of_app)
            .collect::<Result<_, Status>>()?,
        limit: limit.map(read_duration).transpose().map_err(unreadable)?,
    })
}

fn unreadable(fault: impl std::fmt::Display) -> Status {
    Status::invalid_argument(fault.to_string())
}
