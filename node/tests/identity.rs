//! Who may talk to whom: real handshakes with certificates made for the occasion.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use anyport_node::{
    access::Role,
    drain::Drain,
    identity::{Expiry, Identity, IdentityError, TlsArgs, follow},
    metrics::{Registry, encode},
    ready::Readiness,
    rpc::{Channel, Endpoint, EndpointError, Server, ServerUrl},
};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, IsCa, KeyPair,
    KeyUsagePurpose, date_time_ymd,
};
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tonic::transport::{self, Certificate, ClientTlsConfig};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

/// How long anything may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

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
        self.issue_for(Role::Edge, name, hosts)
    }

    fn issue_for(&self, role: Role, name: &str, hosts: &[&str]) -> TlsArgs {
        let hosts: Vec<String> = hosts.iter().map(|host| (*host).to_owned()).collect();
        let mut params = CertificateParams::new(hosts).expect("good names");
        let subject = &mut params.distinguished_name;
        *subject = DistinguishedName::new();
        subject.push(DnType::CommonName, name);
        subject.push(DnType::OrganizationName, role.organization());
        self.sign(name, params)
    }

    fn sign(&self, name: &str, params: CertificateParams) -> TlsArgs {
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
        tokio::time::timeout(PATIENCE, self.task)
            .await
            .expect("idle connections end with the drain")
            .expect("no panic");
    }
}

/// A call to an edge, or the whole chain of causes why not.
async fn call(url: &ServerUrl, identity: &Identity) -> Result<(), String> {
    let channel = Channel::lazy(url, identity, Role::Edge).map_err(|error| causes(&error))?;
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
    call(&running.url("https"), &client)
        .await
        .expect("accepted");
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
    let refused = call(&running.url("https"), &client).await;
    let error = refused.expect_err("a certificate from elsewhere");
    assert!(
        error.contains("it does not accept the certificate of --tls-cert"),
        "{error}"
    );
    // The server is not impressed.
    let client = fleet.issue("client", &["edge-1"]).load().expect("loads");
    call(&running.url("https"), &client)
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
    let refused = call(&running.url("https"), &client).await;
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
    let refused = call(&running.url("https"), &client).await;
    let error = refused.expect_err("the certificate does not name 127.0.0.1");
    assert!(error.contains("not valid for name"), "{error}");
    running.stop().await;
}

#[tokio::test]
async fn a_server_that_is_something_else_is_refused_before_it_is_told_anything() {
    let fleet = Authority::new("fleet");
    let posing = fleet.issue_for(Role::Viewer, "posing", &["127.0.0.1"]);
    let running = Running::start(&posing.load().expect("loads"));
    let client = fleet.issue("client", &["edge-1"]).load().expect("loads");
    let refused = call(&running.url("https"), &client).await;
    let error = refused.expect_err("a viewer's certificate");
    assert!(
        error.contains(
            "`CN=posing, O=anyport:viewer` is not for the role edge: needs O=anyport:edge"
        ),
        "{error}"
    );
    running.stop().await;
}

#[tokio::test]
async fn whoever_shows_no_certificate_is_told_that_one_is_wanted() {
    let fleet = Authority::new("fleet");
    let server = fleet.issue("server", &["127.0.0.1"]).load().expect("loads");
    let running = Running::start(&server);
    let ca = fs::read_to_string(fleet.file("ca.pem")).expect("written");
    let tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(ca));
    let url = running.url("https").to_string();
    let endpoint = transport::Endpoint::from_shared(url).expect("a URL");
    let channel = endpoint.tls_config(tls).expect("good").connect_lazy();
    let answer = HealthClient::new(channel)
        .check(HealthCheckRequest::default())
        .await;
    let error = causes(&answer.expect_err("nobody"));
    assert!(error.contains("CertificateRequired"), "{error}");
    running.stop().await;
}

#[tokio::test]
async fn a_certificate_without_a_role_may_not_even_ask_for_health() {
    let fleet = Authority::new("fleet");
    let server = fleet.issue("server", &["127.0.0.1"]).load().expect("loads");
    let running = Running::start(&server);
    let mut params = CertificateParams::new(vec!["x".to_owned()]).expect("a name");
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, "ana");
    params
        .distinguished_name
        .push(DnType::OrganizationName, "anyport:admin");
    let client = fleet.sign("ana", params).load().expect("loads");
    let refused = call(&running.url("https"), &client).await;
    let error = refused.expect_err("no role");
    assert!(
        error.contains(
            "the certificate `CN=ana, O=anyport:admin` has no role here: its subject needs \
             O=anyport:ROLE, where ROLE is config-service, balancer, edge, operator or viewer"
        ),
        "{error}"
    );
    running.stop().await;
}

#[tokio::test]
async fn a_certificate_that_has_expired_is_told_so_on_either_side() {
    let fleet = Authority::new("fleet");
    let expired = |name: &str| {
        let mut params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).expect("a name");
        params.distinguished_name.push(DnType::CommonName, name);
        params
            .distinguished_name
            .push(DnType::OrganizationName, "anyport:edge");
        params.not_before = date_time_ymd(2020, 1, 1);
        params.not_after = date_time_ymd(2021, 1, 1);
        fleet.sign(name, params).load().expect("loads")
    };
    let valid = fleet.issue("valid", &["127.0.0.1"]).load().expect("loads");
    let running = Running::start(&valid);
    let client = expired("client");
    assert!(client.is_expired(SystemTime::now()) && !valid.is_expired(SystemTime::now()));
    let refused = call(&running.url("https"), &client).await;
    let error = refused.expect_err("expired");
    assert!(
        error.contains("it does not accept the certificate of --tls-cert: it has expired"),
        "{error}"
    );
    running.stop().await;
    let running = Running::start(&expired("server"));
    let refused = call(&running.url("https"), &valid).await;
    let error = refused.expect_err("expired");
    assert!(error.contains("certificate expired"), "{error}");
    running.stop().await;
}

#[test]
fn a_process_refuses_a_certificate_that_others_would_refuse() {
    let fleet = Authority::new("fleet");
    let args = fleet.issue("fra-1", &["fra-1"]);
    args.load_as(Role::Edge, Some("fra-1"))
        .expect("it is that edge");
    for (role, name) in [(Role::Edge, "fra-2"), (Role::Balancer, "fra-1")] {
        let error = args.load_as(role, Some(name)).expect_err("something else");
        let error = error.to_string();
        let wanted = format!("{role} `{name}`, who needs O=anyport:{role} and CN={name}");
        assert!(
            error.contains("its subject is `CN=fra-1, O=anyport:edge`") && error.contains(&wanted),
            "{error}"
        );
    }
}

#[tokio::test]
async fn clear_text_does_not_get_into_a_tls_server() {
    let fleet = Authority::new("fleet");
    let server = fleet.issue("server", &["127.0.0.1"]).load().expect("loads");
    let running = Running::start(&server);
    call(&running.url("http"), &Identity::none())
        .await
        .expect_err("the server speaks TLS");
    running.stop().await;
}

#[test]
fn url_and_identity_must_agree() {
    fn endpoint(url: &ServerUrl, identity: &Identity) -> Result<Endpoint, EndpointError> {
        Endpoint::new(url, identity, Role::Edge)
    }
    let fleet = Authority::new("fleet");
    let mut args = fleet.issue("client", &["edge-1"]);
    let https: ServerUrl = "https://127.0.0.1:7400".parse().expect("a URL");
    let http: ServerUrl = "http://127.0.0.1:7400".parse().expect("a URL");
    let error = endpoint(&https, &Identity::none()).expect_err("no identity");
    assert_eq!(
        error.to_string(),
        "https://127.0.0.1:7400: https needs --tls-cert, --tls-key and --tls-ca"
    );
    let error = endpoint(&http, &args.load().expect("loads")).expect_err("clear text");
    assert!(matches!(error, EndpointError::ClearText { .. }), "{error}");
    args.insecure = true;
    endpoint(&http, &args.load().expect("loads")).expect("allowed by name");
}

/// Replaces the files of one identity by those of another.
fn replace(old: &TlsArgs, new: &TlsArgs) {
    for (old, new) in [
        (&old.tls_cert, &new.tls_cert),
        (&old.tls_key, &new.tls_key),
        (&old.tls_ca, &new.tls_ca),
    ] {
        let (old, new) = (old.as_ref().expect("a file"), new.as_ref().expect("a file"));
        let text = fs::read(new).expect("read");
        fs::write(old, text).expect("written");
    }
}

async fn until(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let wait = async {
        while !is_so().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let waited = tokio::time::timeout(PATIENCE, wait).await;
    assert!(waited.is_ok(), "{what}: not in time");
}

#[tokio::test]
async fn replaced_files_are_used_for_new_connections_and_open_ones_stay() {
    let (old, new) = (Authority::new("old"), Authority::new("new"));
    let host = &["127.0.0.1"];
    let server_args = old.issue("server", host);
    let client_args = TlsArgs {
        // Of its own: the two are replaced one after the other.
        tls_ca: Some(old.write("client-ca.pem", &old.issuer.pem())),
        ..old.issue("client", host)
    };
    let (server, client) = (
        server_args.load().expect("loads"),
        client_args.load().expect("loads"),
    );
    let (registry, readiness) = (Registry::new(), Readiness::new());
    let expiry = Expiry::register(&server, &registry).expect("registered");
    let expires = || {
        let text = encode(&registry).expect("metrics");
        let line = text
            .lines()
            .find(|line| line.starts_with("anyport_identity_expires_"));
        line.expect("the metric").to_owned()
    };
    let remark = readiness.remark("identity");
    tokio::spawn(follow(server.clone(), expiry, remark));
    tokio::spawn(follow(
        client.clone(),
        None,
        Readiness::new().remark("identity"),
    ));
    let running = Running::start(&server);
    let url = running.url("https");
    let open = Channel::lazy(&url, &client, Role::Edge).expect("a URL");
    let ask = async || {
        let mut health = HealthClient::new(open.clone());
        health.check(HealthCheckRequest::default()).await
    };
    ask().await.expect("answered");
    let before = expires();

    // Only the certificate: it does not fit the key.
    let replacement = new.issue("server", host);
    let cert = server_args.tls_cert.as_ref().expect("a file");
    fs::copy(replacement.tls_cert.as_ref().expect("a file"), cert).expect("copied");
    until("what is wrong is said", async || {
        let report = readiness.report();
        assert!(report.is_ready(), "{report}");
        report.remarks.iter().any(|remark| {
            remark.starts_with("identity: the new certificates cannot be used, the old ones stay")
        })
    })
    .await;
    call(&url, &client).await.expect("the old one stays in use");
    assert_eq!(expires(), before);

    replace(&server_args, &replacement);
    let stranger = client_args.load().expect("loads");
    until("the new one is shown", async || {
        let refused = call(&url, &stranger).await.err();
        refused.is_some_and(|error| error.contains("UnknownIssuer"))
    })
    .await;
    assert!(
        readiness.report().remarks.is_empty(),
        "{}",
        readiness.report()
    );
    replace(&client_args, &new.issue("client", host));
    until("both have the new authority", async || {
        call(&url, &client).await.is_ok()
    })
    .await;
    // The connection that was open is the same all the while.
    ask().await.expect("answered");
    assert_eq!(
        server.certified().map(|new| new.issuer),
        Some("CN=new".to_owned())
    );
    drop(open);
    running.stop().await;
}

#[tokio::test]
async fn files_of_another_role_are_not_taken_into_use() {
    let fleet = Authority::new("fleet");
    let args = fleet.issue("fra-1", &["127.0.0.1"]);
    let identity = args.load_as(Role::Edge, Some("fra-1")).expect("loads");
    let readiness = Readiness::new();
    let following = follow(identity.clone(), None, readiness.remark("identity"));
    tokio::spawn(following);
    replace(&args, &fleet.issue_for(Role::Viewer, "ana", &["127.0.0.1"]));
    until("what is wrong is said", async || {
        let remarks = readiness.report().remarks;
        remarks
            .iter()
            .any(|remark| remark.contains("CN=ana, O=anyport:viewer"))
    })
    .await;
    assert_eq!(
        identity.certified().map(|own| own.name),
        Some("fra-1".to_owned())
    );
}

#[tokio::test]
async fn a_certificate_that_has_expired_is_remarked() {
    let fleet = Authority::new("fleet");
    let mut params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).expect("a name");
    params.not_before = date_time_ymd(2020, 1, 1);
    params.not_after = date_time_ymd(2021, 1, 1);
    let identity = fleet.sign("old", params).load().expect("loads");
    let registry = Registry::new();
    let expiry = Expiry::register(&identity, &registry).expect("registered");
    let text = encode(&registry).expect("metrics");
    assert!(
        text.contains("anyport_identity_expires_timestamp_seconds 1609459200"),
        "{text}"
    );
    let readiness = Readiness::new();
    tokio::spawn(follow(identity, expiry, readiness.remark("identity")));
    until("it is remarked", async || {
        let remarks = readiness.report().remarks;
        remarks.iter().any(|remark| remark.ends_with("has expired"))
    })
    .await;
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
