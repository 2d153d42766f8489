//! A client of Anyport's config service, by the generated types of `anyport-proto`.
//!
//! It shows what every program that writes should do: set deadlines, name each write
//! by a request id and repeat it under the same one, read all pages, and tell each
//! fault by its field.

#![allow(clippy::print_stdout, reason = "a command")]

use std::{fs, path::PathBuf, time::Duration};

use anyhow::{Context, anyhow, ensure};
use anyport_proto::{
    sync::UPDATE_MAX,
    v1::{
        self, App, ApplyRequest, DeleteRequest, HistoryRequest, Kind, ListRequest, Resource,
        ResourceRef, WatchRequest, config_service_client::ConfigServiceClient, resource,
    },
};
use clap::{Parser, Subcommand};
use tonic::{
    Code, Request, Response, Status,
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity},
};
use tonic_types::StatusExt;

/// For a call that has one answer.
const DEADLINE: Duration = Duration::from_secs(10);
const ATTEMPTS: usize = 3;
const PAGE: u32 = 100;

/// Reads and writes what a config service of Anyport holds
#[derive(Parser)]
struct Arguments {
    /// The config service; https:// where the fleet is in TLS
    #[arg(
        long,
        env = "ANYPORT_SERVER",
        value_name = "URL",
        default_value = "http://127.0.0.1:7400"
    )]
    server: String,
    #[command(flatten)]
    tls: Tls,
    #[command(subcommand)]
    command: Command,
}

/// All three, or none.
#[derive(clap::Args)]
struct Tls {
    /// Certificate of this program, PEM; its role says what it may: `viewer` reads,
    /// `operator` writes, too
    #[arg(long, env = "ANYPORT_TLS_CERT", value_name = "FILE", requires_all = ["tls_key", "tls_ca"])]
    tls_cert: Option<PathBuf>,
    /// Private key of --tls-cert, PEM
    #[arg(long, env = "ANYPORT_TLS_KEY", value_name = "FILE", requires_all = ["tls_cert", "tls_ca"])]
    tls_key: Option<PathBuf>,
    /// Authority that the server's certificate must come from, PEM. Whoever has one of
    /// it for the host in --server is taken for the server
    #[arg(long, env = "ANYPORT_TLS_CA", value_name = "FILE", requires_all = ["tls_cert", "tls_key"])]
    tls_ca: Option<PathBuf>,
}

#[derive(Subcommand)]
enum Command {
    /// Names of all apps.
    List,
    /// Creates or replaces an app with one origin.
    Apply {
        name: String,
        /// `tcp/25565`.
        protocol: String,
        edge_ip: String,
        /// `tcp://10.0.2.2:7000`.
        origin: String,
    },
    /// Deletes an app.
    Delete { name: String },
    /// Revisions, newest first.
    History,
    /// What changes, until it is stopped.
    Watch,
}

type Client = ConfigServiceClient<Channel>;

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let endpoint = arguments.tls.protect(arguments.server)?;
    let channel = endpoint
        .connect_timeout(DEADLINE)
        .connect()
        .await
        .context("dialling the config service")?;
    // The first answer of a watch is the whole state.
    let client = ConfigServiceClient::new(channel).max_decoding_message_size(UPDATE_MAX);
    run(client, arguments.command).await.map_err(told)
}

impl Tls {
    fn protect(self, server: String) -> anyhow::Result<Endpoint> {
        let https = server.starts_with("https://");
        let endpoint = Endpoint::try_from(server)?;
        let (Some(cert), Some(key), Some(ca)) = (self.tls_cert, self.tls_key, self.tls_ca) else {
            ensure!(!https, "https needs --tls-cert, --tls-key and --tls-ca");
            return Ok(endpoint);
        };
        ensure!(https, "--tls-cert is given, so --server must be https");
        let read =
            |path: PathBuf| fs::read(&path).with_context(|| format!("reading {}", path.display()));
        let tls = ClientTlsConfig::new()
            .identity(Identity::from_pem(read(cert)?, read(key)?))
            .ca_certificate(Certificate::from_pem(read(ca)?));
        Ok(endpoint.tls_config(tls)?)
    }
}

async fn run(client: Client, command: Command) -> Result<(), Status> {
    match command {
        Command::List => list(client).await,
        Command::Apply {
            name,
            protocol,
            edge_ip,
            origin,
        } => {
            let app = App {
                name,
                protocol,
                edge_ips: vec![edge_ip],
                origin_direct: vec![origin],
                ..App::default()
            };
            apply(client, app).await
        }
        Command::Delete { name } => delete(client, name).await,
        Command::History => history(client).await,
        Command::Watch => watch(client).await,
    }
}

async fn list(client: Client) -> Result<(), Status> {
    let mut page_token = String::new();
    loop {
        let page = ListRequest {
            kind: Kind::App.into(),
            page_size: PAGE,
            page_token,
        };
        let answer = call(&client, page, async |mut client, page| {
            client.list(page).await
        })
        .await?;
        for resource in &answer.resources {
            println!("{}", name(resource));
        }
        page_token = answer.next_page_token;
        if page_token.is_empty() {
            return Ok(());
        }
    }
}

async fn apply(client: Client, app: App) -> Result<(), Status> {
    let kind = Some(resource::Kind::App(app));
    let write = ApplyRequest {
        resources: vec![Resource { kind }],
        request_id: request_id(),
        ..ApplyRequest::default()
    };
    let answer = call(&client, write, async |mut client, write| {
        client.apply(write).await
    })
    .await?;
    for change in &answer.changes {
        let action = change.action().as_str_name().to_ascii_lowercase();
        let named = change.resource.as_ref().map_or("", |named| &named.name);
        println!("{named}: {}", action.trim_start_matches("action_"));
    }
    println!("revision {}", answer.revision);
    Ok(())
}

async fn delete(client: Client, name: String) -> Result<(), Status> {
    let write = DeleteRequest {
        resource: Some(ResourceRef {
            kind: Kind::App.into(),
            name,
        }),
        request_id: request_id(),
        ..DeleteRequest::default()
    };
    let answer = call(&client, write, async |mut client, write| {
        client.delete(write).await
    })
    .await?;
    println!("revision {}", answer.revision);
    Ok(())
}

async fn history(client: Client) -> Result<(), Status> {
    let mut page_token = String::new();
    loop {
        let page = HistoryRequest {
            page_size: PAGE,
            page_token,
        };
        let answer = call(&client, page, async |mut client, page| {
            client.history(page).await
        });
        let answer = answer.await?;
        for record in answer.revisions {
            let v1::RevisionRecord {
                revision,
                author,
                message,
                ..
            } = record;
            println!("{revision} {author} {message}");
        }
        page_token = answer.next_page_token;
        if page_token.is_empty() {
            return Ok(());
        }
    }
}

async fn watch(mut client: Client) -> Result<(), Status> {
    let answers = client.watch(WatchRequest::default()).await?;
    let mut answers = answers.into_inner();
    while let Some(answer) = answers.message().await? {
        println!("revision {}", answer.revision);
        for resource in &answer.upserts {
            println!("+ {}", name(resource));
        }
        for reference in &answer.removals {
            println!("- {}", reference.name);
        }
    }
    Ok(())
}

/// One call with a deadline, again where it is not known whether it was done. A write
/// has a request id, so it is done once, however often it is sent.
async fn call<Q: Clone, A>(
    client: &Client,
    wire: Q,
    send: impl AsyncFn(Client, Request<Q>) -> Result<Response<A>, Status>,
) -> Result<A, Status> {
    let mut attempt = 1;
    loop {
        let mut request = Request::new(wire.clone());
        request.set_timeout(DEADLINE);
        match send(client.clone(), request).await {
            Ok(answer) => return Ok(answer.into_inner()),
            // tonic's own clock says `Cancelled`.
            Err(status)
                if attempt < ATTEMPTS
                    && matches!(
                        status.code(),
                        Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled
                    ) => {}
            Err(status) => return Err(status),
        }
        attempt += 1;
    }
}

fn request_id() -> String {
    format!("{:032x}", rand::random::<u128>())
}

/// `app/minecraft`.
fn name(resource: &Resource) -> String {
    use resource::Kind::{App, Certificate, Monitor, Pool, Prefix};
    match &resource.kind {
        Some(Prefix(prefix)) => format!("prefix/{}", prefix.cidr),
        Some(Monitor(monitor)) => format!("monitor/{}", monitor.name),
        Some(Pool(pool)) => format!("pool/{}", pool.name),
        Some(Certificate(certificate)) => format!("certificate/{}", certificate.name),
        Some(App(app)) => format!("app/{}", app.name),
        // Of a server that knows more kinds.
        None => "another kind".to_owned(),
    }
}

/// What google.rpc says about an error: each field, and what is wrong with it.
fn told(status: Status) -> anyhow::Error {
    let mut text = format!("{:?}: {}", status.code(), status.message());
    for violation in status
        .get_details_bad_request()
        .into_iter()
        .flat_map(|bad| bad.field_violations)
    {
        text += &format!("\n  {}: {}", violation.field, violation.description);
    }
    anyhow!(text)
}
