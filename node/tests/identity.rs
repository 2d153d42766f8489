//! Who may talk to whom: real handshakes with certificates made for the occasion.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use anyport_node::{
    drain::Drain,
    identity::{Identity, IdentityError, TlsArgs},
    ready::Readiness,
    rpc::{Channel, EndpointError, Server, ServerUrl},
};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, KeyUsagePurpose,
};
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    files: TempDir,
}

impl Authority {
    fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let key = KeyPair::generate().expect("a key");
        let authority = Self {
            issuer: CertifiedIssuer::self_signed(params, key).expect("a CA"),
            files: TempDir::new().expect("a directory"),
        };
        authority.write("ca.pem", &authority.issuer.pem());
        authority
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.files.path().join(name);
        fs::write(&path, text).expect("written");
        path
    }

    fn file(&self, name: &str) -> PathBuf {
        self.files.path().join(name)
    }

    /// Flags for a process whose certificate names `hosts`.
    fn issue(&self, name: &str, hosts: &[&str]) -> TlsArgs {
        let hosts: Vec<String> = hosts.iter().map(|host| (*host).to_owned()).collect();
        let params = CertificateParams::new(hosts).expect("good names");
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &self.issuer).expect("signed");
        TlsArgs {
            tls_cert: Some(self.write(&format!("{name}.pem"), &certificate.pem())),
            tls_key: Some(self.write(&format!("{name}.key"), &key.serialize_pem())),
            tls_ca: Some(self.file("ca.pem")),
            insecure: false,
        }
    }
}

struct Running {
    address: SocketAddr,
    drain: Drain,
    task: JoinHandle<()>,
}

impl Running {
    fn start(identity: &Identity) -> Self {
        let any_port = SocketAddr::from(([127, 0, 0, 1], 0));
        let server = Server::bind("--listen", any_port, identity).expect("a free port");
        let (address, drain) = (server.address(), Drain::new());
        let task = tokio::spawn({
            let drain = drain.clone();
            async move {
                let served = server.serve(&Readiness::new(), &drain).await;
                served.expect("served well");
            }
        });
        Self {
            address,
            drain,
            task,
        }
    }

    fn url(&self, scheme: &str) -> ServerUrl {
        let url = format!("{scheme}://{}", self.address);
        url.parse().expect("a URL")
    }

    async fn stop(self) {
        self.drain.begin();
        tokio::time::timeout(Duration::from_secs(5), self.task)
            .await
            .expect("idle connections end with the drain")
            .expect("no panic");
    }
}

/// A call, or the whole chain of causes why not.
async fn call(channel: Result<Channel, EndpointError>) -> Result<(), String> {
    let channel = channel.map_err(|error| causes(&error))?;
    let mut client = HealthClient::new(channel);
    let answer = client.check(HealthCheckRequest::default()).await;
    answer.map(drop).map_err(|status| causes(&status))
}

fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(source) = cause {
        text.push_str(": ");
        text.push_str(&source.to_string());
        cause = source.source();
    }
    text
}

#[tokio::test]
async fn both_sides_from_one_authority_understand_each_other() {
    let authority = Authority::new("fleet");
    let server = authority
        .issue("server", &["127.0.0.1"])
        .load()
        .expect("loads");
    let client = authority
        .issue("client", &["edge-1"])
        .load()
        .expect("loads");
    let running = Running::start(&server);
    let channel = Channel::connect(&running.url("https"), &client).await;
    call(channel).await.expect("accepted");
    running.stop().await;
}

#[tokio::test]
async fn a_client_of_another_authority_is_refused() {
    let (fleet, stranger) = (Authority::new("fleet"), Authority::new("stranger"));
    let server = fleet.issue("server", &["127.0.0.1"]).load().expect("loads");
    let running = Running::start(&server);
    // Trusts the server, so that only the server can be the one that refuses.
    let args = TlsArgs {
        tls_ca: Some(fleet.file("ca.pem")),
        ..stranger.issue("client", &["edge-1"])
    };
    let client = args.load().expect("loads");
    let channel = Channel::lazy(&running.url("https"), &client);
    call(channel)
        .await
        .expect_err("a certificate from elsewhere");
    // The server is not impressed.
    let client = fleet.issue("client", &["edge-1"]).load().expect("loads");
    call(Channel::lazy(&running.url("https"), &client))
        .await
        .expect("accepted");
    running.stop().await;
}

#[tokio::test]
async fn a_server_of_another_authority_is_refused() {
    let (fleet, stranger) = (Authority::new("fleet"), Authority::new("stranger"));
    let impostor = TlsArgs {
        tls_ca: Some(fleet.file("ca.pem")),
        ..stranger.issue("server", &["127.0.0.1"])
    };
    let running = Running::start(&impostor.load().expect("loads"));
    let client = fleet.issue("client", &["edge-1"]).load().expect("loads");
    let refused = call(Channel::connect(&running.url("https"), &client).await).await;
    let error = refused.expect_err("an impostor");
    assert!(error.contains("UnknownIssuer"), "{error}");
    running.stop().await;
}

#[tokio::test]
async fn a_server_with_another_name_is_refused() {
    let fleet = Authority::new("fleet");
    let server = fleet
        .issue("server", &["config.internal"])
        .load()
        .expect("loads");
    let running = Running::start(&server);
    let client = fleet.issue("client", &["edge-1"]).load().expect("loads");
    let refused = call(Channel::connect(&running.url("https"), &client).await).await;
    let error = refused.expect_err("the certificate does not name 127.0.0.1");
    assert!(error.contains("not valid for name"), "{error}");
    running.stop().await;
}

#[tokio::test]
async fn clear_text_does_not_get_into_a_tls_server() {
    let fleet = Authority::new("fleet");
    let server = fleet.issue("server", &["127.0.0.1"]).load().expect("loads");
    let running = Running::start(&server);
    call(Channel::lazy(&running.url("http"), &Identity::none()))
        .await
        .expect_err("the server speaks TLS");
    running.stop().await;
}

#[tokio::test]
async fn url_and_identity_must_agree() {
    let fleet = Authority::new("fleet");
    let mut args = fleet.issue("client", &["edge-1"]);
    let https: ServerUrl = "https://127.0.0.1:7400".parse().expect("a URL");
    let http: ServerUrl = "http://127.0.0.1:7400".parse().expect("a URL");
    let error = Channel::lazy(&https, &Identity::none()).expect_err("no identity");
    assert_eq!(
        error.to_string(),
        "https://127.0.0.1:7400: https needs --tls-cert, --tls-key and --tls-ca"
    );
    let error = Channel::lazy(&http, &args.load().expect("loads")).expect_err("clear text");
    assert!(matches!(error, EndpointError::ClearText { .. }), "{error}");
    args.insecure = true;
    Channel::lazy(&http, &args.load().expect("loads")).expect("allowed by name");
}

#[test]
fn without_flags_only_loopback_may_be_listened_on() {
    let identity = TlsArgs::default().load().expect("no flags are fine");
    for address in [
        "127.0.0.1:7400",
        "127.9.9.9:1",
        "[::1]:7400",
        "[::ffff:127.0.0.1]:1",
    ] {
        identity
            .check_listen("--listen", address.parse().expect("an address"))
            .expect(address);
    }
    for address in ["0.0.0.0:7400", "[::]:7400", "198.51.100.1:7400"] {
        let error = identity
            .check_listen("--listen", address.parse().expect("an address"))
            .expect_err(address)
            .to_string();
        assert!(
            error.starts_with(&format!("--listen {address}: ")),
            "{error}"
        );
        assert!(error.contains("--tls-cert"), "says what to do: {error}");
    }
}

#[test]
fn insecure_or_tls_opens_the_other_addresses() {
    let everywhere = SocketAddr::from(([0, 0, 0, 0], 7400));
    let insecure = TlsArgs {
        insecure: true,
        ..TlsArgs::default()
    };
    let insecure = insecure.load().expect("loads");
    insecure
        .check_listen("--listen", everywhere)
        .expect("asked for");
    insecure
        .check_clear_text("--admin", everywhere)
        .expect("asked for");
    let tls = Authority::new("fleet")
        .issue("server", &["a"])
        .load()
        .expect("loads");
    tls.check_listen("--listen", everywhere).expect("TLS");
    tls.check_clear_text("--admin", everywhere)
        .expect_err("the admin server has no TLS");
}

#[test]
fn an_incomplete_set_of_flags_is_refused_and_completed_in_words() {
    let args = TlsArgs {
        tls_cert: Some("server.pem".into()),
        tls_ca: Some("ca.pem".into()),
        ..TlsArgs::default()
    };
    let error = args.load().expect_err("no key").to_string();
    assert!(
        error.starts_with("--tls-cert and --tls-ca given without --tls-key: "),
        "{error}"
    );
}

#[test]
fn files_that_are_missing_or_something_else_are_named_with_their_flag() {
    let fleet = Authority::new("fleet");
    let good = fleet.issue("server", &["a"]);
    let missing = TlsArgs {
        tls_key: Some(Path::new("/nonexistent/server.key").into()),
        ..good.clone()
    };
    let error = missing.load().expect_err("no such file").to_string();
    assert!(
        error.starts_with("--tls-key /nonexistent/server.key: cannot be read: "),
        "{error}"
    );
    let swapped = TlsArgs {
        tls_key: good.tls_cert.clone(),
        ..good.clone()
    };
    let error = swapped.load().expect_err("a certificate is no key");
    assert!(
        matches!(
            error,
            IdentityError::NotPem {
                flag: "--tls-key",
                wanted: "PRIVATE KEY",
                ..
            }
        ),
        "{error}"
    );
}

#[test]
fn a_key_that_belongs_to_another_certificate_is_refused_at_start() {
    let fleet = Authority::new("fleet");
    let (one, other) = (fleet.issue("one", &["a"]), fleet.issue("other", &["a"]));
    let mixed = TlsArgs {
        tls_key: other.tls_key,
        ..one
    };
    let error = mixed.load().expect_err("they do not fit together");
    assert!(matches!(error, IdentityError::Unusable { .. }), "{error}");
}

#[test]
fn debug_output_holds_no_key() {
    let fleet = Authority::new("fleet");
    let identity = fleet.issue("server", &["a"]).load().expect("loads");
    assert_eq!(
        format!("{identity:?}"),
        "Identity { tls: true, insecure: false }"
    );
}
