//! `anyport up`: a whole fleet of one in one process. Config service, balancer
//! and edge agent are the same libraries as in their own processes, on loopback
//! and with an embedded store.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use anyport_balancer::BalancerError;
use anyport_config_service::{ConfigService, RunError, state::StoreKeyArgs, store::StoreUrl};
use anyport_edge_agent::{NameServers, Steering};
use anyport_model::names::NodeName;
use anyport_node::{
    boot,
    drain::{self, Drain},
    identity::TlsArgs,
    listen::ListenError,
    rpc::{ServerUrl, Urls},
};
use tokio::task::JoinSet;
use tracing::Instrument;

use super::{Context, apply, wait};
use crate::{
    console::{Cell, Console},
    failure::{Exit, Failure},
};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// A manifest to apply once everything runs; - reads standard input; may be
    /// given several times
    #[arg(short, long = "file", value_name = "FILE")]
    file: Vec<String>,
    /// Where the configuration is kept
    /// [default: $XDG_STATE_HOME/anyport, or ~/.local/state/anyport]
    #[arg(long, env = "ANYPORT_DATA_DIR", value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Name of this edge and balancer [default: the host's name]
    #[arg(long, env = "ANYPORT_NAME")]
    name: Option<NodeName>,
    /// First port: config service 7400, balancer 7410, edge agent 7420, and the
    /// admin pages of each on the port after it
    #[arg(
        long,
        value_name = "PORT",
        default_value = "7400",
        value_parser = clap::value_parser!(u16).range(1..=65_000)
    )]
    port: u16,
    /// Name servers for origin_dns [default: the system's]
    #[arg(
        long,
        env = "ANYPORT_RESOLVER",
        value_name = "ADDR[,ADDR…]",
        default_value = "",
        hide_default_value = true
    )]
    resolver: NameServers,
    #[command(flatten)]
    store_key: StoreKeyArgs,
}

/// The three services, each until it has drained.
type Services = JoinSet<Result<(), Failure>>;

/// Open connections get this long after the first signal.
const DRAIN_LIMIT: Duration = Duration::from_secs(10);
/// For the edge to connect and to apply the manifest.
const APPLY_LIMIT: Duration = Duration::from_secs(30);

/// Where one service is.
struct Place {
    name: &'static str,
    url: ServerUrl,
    admin: SocketAddr,
}

/// Runs until SIGTERM or SIGINT, and then until what is open has ended.
pub async fn run(args: Args, tls: TlsArgs) -> Result<(), Failure> {
    boot::install_panic_hook();
    boot::raise_nofile();
    let failed = |error| Failure::refused(format_args!("cannot handle signals: {error}"));
    let drain = drain::signalled().map_err(failed)?;
    let mut services = Services::new();
    let begun = async {
        let Some(config) = start(&args, &tls, &drain, &mut services).await? else {
            return Ok(());
        };
        tokio::select! {
            applied = apply_files(args.file, &config, &tls) => applied,
            ended = first_to_end(&mut services) => {
                drain.begin();
                ended
            }
            () = drain.started() => Ok(()),
        }
    };
    let begun = begun.await;
    if begun.is_err() {
        drain.begin();
    }
    begun.and(all_ended(&mut services, &drain).await)
}

/// Starts everything, waits until the config service is ready, and says where
/// all are. `None`: asked to stop meanwhile.
async fn start(
    args: &Args,
    tls: &TlsArgs,
    drain: &Drain,
    services: &mut Services,
) -> Result<Option<ServerUrl>, Failure> {
    let directory = match &args.data_dir {
        Some(directory) => directory.clone(),
        None => default_directory()?,
    };
    let at = |offset: u16| SocketAddr::from(([127, 0, 0, 1], args.port + offset));
    let place = |name, offset| -> Result<Place, Failure> {
        let scheme = if tls.tls_cert.is_some() {
            "https"
        } else {
            "http"
        };
        let url = format!("{scheme}://{}", at(offset)).parse();
        Ok(Place {
            name,
            url: url.map_err(|error| Failure::new(Exit::Usage, error))?,
            admin: at(offset + 1),
        })
    };
    let places = [
        place("config service", 0)?,
        place("balancer", 10)?,
        place("edge agent", 20)?,
    ];
    let [config_place, balancer_place, _] = &places;
    let config_url = config_place.url.clone();

    let config = anyport_config_service::Config {
        listen: at(0),
        admin: at(1),
        store: StoreUrl::Embedded(directory.join("config")),
        retention: Default::default(),
        store_key: args.store_key.clone(),
        tls: tls.clone(),
    };
    let config = ConfigService::bind(&config).await;
    let config = config.map_err(|e| broken("config service", e))?;
    let readiness = config.readiness();
    let running = drain.clone();
    services.spawn(async move {
        let served = Box::pin(config.serve(&running)).await;
        served.map_err(|error| broken("config service", error))
    });

    let balancer = anyport_balancer::Args {
        name: args.name.clone(),
        listen: at(10),
        advertise: None,
        admin: at(11),
        config_service: Urls::from(config_url.clone()),
        tls: tls.clone(),
    };
    let balancer = balancer.resolve().map_err(|e| broken("balancer", e))?;
    let balancer = anyport_balancer::run(balancer, drain.clone());
    services.spawn(async move { balancer.await.map_err(|e| broken("balancer", e)) });

    let edge = anyport_edge_agent::Config {
        name: args.name.clone(),
        region: String::new(),
        listen: at(20),
        admin: at(21),
        config_service: Urls::from(config_url.clone()),
        balancer: Urls::from(balancer_place.url.clone()),
        state_dir: directory.join("edge"),
        resolver: args.resolver.clone(),
        steering: Steering::Auto,
        workers: None,
        drain_timeout: Some(DRAIN_LIMIT),
        // The other services of this process would stay behind.
        hand_over: false,
        advertise: None,
        event_log: None,
        tls: tls.clone(),
    };
    let edge = anyport_edge_agent::run(edge, drain.clone());
    services.spawn(async move { edge.await.map_err(|e| broken("edge agent", e)) });

    tokio::select! {
        () = readiness.ready() => {}
        ended = first_to_end(services) => return ended.map(|()| None),
        () = drain.started() => return Ok(None),
    }
    announce(&places, &directory)?;
    Ok(Some(config_url))
}

fn announce(places: &[Place], directory: &Path) -> Result<(), Failure> {
    let mut console = Console::stdout();
    let rows = places.iter().map(|place| {
        let admin = format!("http://{}", place.admin);
        vec![
            Cell::from(place.name),
            Cell::from(&place.url),
            Cell::from(admin),
        ]
    });
    console.table("", &["SERVICE", "GRPC", "ADMIN"], rows.collect())?;
    let directory = directory.display();
    console.line(format_args!(
        "configuration in {directory}; Ctrl-C ends it all"
    ))?;
    Ok(())
}

/// Applies the manifest and waits until the edge has it.
async fn apply_files(files: Vec<String>, config: &ServerUrl, tls: &TlsArgs) -> Result<(), Failure> {
    if files.is_empty() {
        return Ok(());
    }
    let mut context = Context::new(&config.clone().into(), tls)?;
    let span = tracing::info_span!("command", otel.name = "anyport up: apply");
    let apply = async {
        let args = apply::Args::of_files(files);
        let revision = apply::apply(&args, &mut context).await?;
        wait::until_applied(&mut context, revision, APPLY_LIMIT, wait::Edges::OneAtLeast).await
    };
    apply.instrument(span).await
}

/// How the service that ends first ended.
async fn first_to_end(services: &mut Services) -> Result<(), Failure> {
    match services.join_next().await {
        Some(Ok(outcome)) => outcome,
        Some(Err(error)) => Err(Failure::refused(format_args!(
            "a service broke off: {error}"
        ))),
        None => Ok(()),
    }
}

/// The first failure, once all have ended; where one ends, the others do too.
async fn all_ended(services: &mut Services, drain: &Drain) -> Result<(), Failure> {
    let mut outcome = Ok(());
    while !services.is_empty() {
        let ended = first_to_end(services).await;
        drain.begin();
        outcome = outcome.and(ended);
    }
    outcome
}

/// With all its causes, each a reason of the one before.
fn broken(service: &str, error: impl Into<anyhow::Error>) -> Failure {
    let error = error.into();
    match listen_error(&error) {
        // It names a flag that the service has by itself, and `up` has not.
        Some(ListenError::Bind {
            address, source, ..
        }) => Failure::refused(format_args!(
            "{service}: cannot listen on {address}: {source}"
        ))
        .remedy("end what listens there, or let all ports start elsewhere with --port"),
        _ => Failure::refused(format_args!("{service}: {error:#}")),
    }
}

fn listen_error(error: &anyhow::Error) -> Option<&ListenError> {
    if let Some(RunError::Listen(error)) = error.downcast_ref() {
        return Some(error);
    }
    if let Some(BalancerError::Listen(error)) = error.downcast_ref() {
        return Some(error);
    }
    error.downcast_ref()
}

/// Where programs keep what should outlive them, for this user.
/// <https://specifications.freedesktop.org/basedir-spec/>
fn default_directory() -> Result<PathBuf, Failure> {
    let set = |name: &str| std::env::var_os(name).map(PathBuf::from);
    let absolute = |path: &PathBuf| path.is_absolute();
    let state = set("XDG_STATE_HOME").filter(absolute);
    let home = || set("HOME").filter(absolute);
    let state = state.or_else(|| Some(home()?.join(".local/state")));
    match state {
        Some(state) => Ok(state.join("anyport")),
        None => Err(Failure::new(
            Exit::Usage,
            "there is no home directory to keep the configuration in",
        )
        .remedy("name a directory with --data-dir")),
    }
}
