//! `anyport certs`, and what becomes of a command whose certificate is not the
//! right one: the real binary, against a real config service.

#![allow(clippy::unwrap_used)]

use std::{
    fs,
    net::SocketAddr,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Stdio,
};

use anyport_config_service::{Config, ConfigService, store::StoreUrl};
use anyport_node::{drain::Drain, identity::TlsArgs};
use rcgen::{CertificateParams, DnType, Issuer, KeyPair, date_time_ymd};
use tempfile::TempDir;
use tokio::process::Command;

struct Ran {
    code: i32,
    out: String,
    err: String,
}

async fn anyport(args: &[&str]) -> Ran {
    let mut command = Command::new(env!("CARGO_BIN_EXE_anyport"));
    command.args(args).stdin(Stdio::null()).env_clear();
    let output = command.output().await.unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Ran {
        code: output.status.code().unwrap(),
        out: text(output.stdout),
        err: text(output.stderr),
    }
}

/// An authority that the command made.
struct Authority(TempDir);

impl Authority {
    async fn new() -> Self {
        let authority = Self(TempDir::new().unwrap());
        let ran = authority.run(&["init"]).await;
        assert_eq!((ran.code, ran.err.as_str()), (0, ""));
        authority
    }

    fn directory(&self) -> &str {
        self.0.path().to_str().unwrap()
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    async fn run(&self, args: &[&str]) -> Ran {
        let args = [&["certs"], args, &["--dir", self.directory()]].concat();
        anyport(&args).await
    }

    async fn issue(&self, roles: &str, name: &str) -> TlsArgs {
        let ran = self.run(&["issue", roles, name]).await;
        assert_eq!((ran.code, ran.err.as_str()), (0, ""));
        self.tls(name)
    }

    fn tls(&self, name: &str) -> TlsArgs {
        TlsArgs {
            tls_cert: Some(self.file(&format!("{name}.pem"))),
            tls_key: Some(self.file(&format!("{name}.key"))),
            tls_ca: Some(self.file("ca.pem")),
            insecure: false,
        }
    }

    /// One that was valid for the year 2020, which the command does not issue.
    fn issue_expired(&self, name: &str) -> TlsArgs {
        let text = |name| fs::read_to_string(self.file(name)).unwrap();
        let key = KeyPair::from_pem(&text("ca.key")).unwrap();
        let issuer = Issuer::from_ca_cert_pem(&text("ca.pem"), key).unwrap();
        let mut params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
        let subject = &mut params.distinguished_name;
        subject.push(DnType::CommonName, name);
        subject.push(DnType::OrganizationName, "anyport:operator");
        params.not_before = date_time_ymd(2020, 1, 1);
        params.not_after = date_time_ymd(2021, 1, 1);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &issuer).unwrap();
        fs::write(self.file(&format!("{name}.pem")), certificate.pem()).unwrap();
        fs::write(self.file(&format!("{name}.key")), key.serialize_pem()).unwrap();
        self.tls(name)
    }
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[tokio::test]
async fn an_authority_is_made_once_and_its_key_is_for_its_owner() {
    let authority = Authority::new().await;
    let key = authority.file("ca.key");
    assert_eq!(mode(&key), 0o600);
    assert_eq!(mode(&authority.file("ca.pem")), 0o644);
    let before = fs::read(&key).unwrap();
    let again = authority.run(&["init"]).await;
    assert_eq!(again.code, 1);
    assert!(
        again.err.contains("ca.pem is there already"),
        "{}",
        again.err
    );
    assert_eq!(fs::read(&key).unwrap(), before);
    // One half of it is worth keeping, too.
    fs::remove_file(authority.file("ca.pem")).unwrap();
    assert_eq!(authority.run(&["init"]).await.code, 1);
    assert_eq!(fs::read(&key).unwrap(), before);
}

#[tokio::test]
async fn what_is_issued_is_shown() {
    let authority = Authority::new().await;
    authority.issue("viewer", "ana").await;
    authority.issue("balancer+edge", "fra-1").await;
    let given = [
        "--dns",
        "config.internal",
        "--ip",
        "10.0.0.2",
        "--days",
        "3",
    ];
    let ran = authority
        .run(&[&["issue", "config-service", "config"], &given[..]].concat())
        .await;
    assert_eq!((ran.code, ran.err.as_str()), (0, ""));
    assert_eq!(mode(&authority.file("config.key")), 0o600);

    let shown = authority.run(&["show"]).await;
    assert_eq!((shown.code, shown.err.as_str()), (0, ""));
    // A word of its own for each authority.
    let (_, mark) = shown.out.rsplit_once("anyport authority ").unwrap();
    let out = shown.out.replace(mark.trim(), "MARK");
    let line = |name: &str| {
        let name = format!("{name}.pem");
        let line = out.lines().find(|line| line.contains(&name));
        let words = line.unwrap_or_else(|| panic!("{out}"));
        words
            .split_whitespace()
            .skip(1)
            .collect::<Vec<_>>()
            .join(" ")
    };
    assert_eq!(
        line("ana"),
        "ana viewer ana in 364d CN=anyport authority MARK"
    );
    assert_eq!(
        line("fra-1"),
        "fra-1 balancer, edge fra-1 localhost 127.0.0.1 ::1 in 364d CN=anyport authority MARK"
    );
    assert_eq!(
        line("config"),
        "config config-service config config.internal 10.0.0.2 in 2d CN=anyport authority MARK"
    );
    assert_eq!(
        line("/ca"),
        "anyport authority MARK none anyport authority MARK in 3649d CN=anyport authority MARK"
    );

    authority.issue_expired("old");
    let old = authority.file("old.pem");
    let shown = anyport(&["certs", "show", old.to_str().unwrap()]).await;
    assert!(shown.out.contains("EXPIRED"), "{}", shown.out);
    let shown = anyport(&["certs", "show", "-o", "json", old.to_str().unwrap()]).await;
    let json: serde_json::Value = serde_json::from_str(&shown.out).unwrap();
    assert_eq!(json[0]["roles"], "operator");
    assert_eq!(json[0]["expired"], true);
    assert_eq!(json[0]["expires_at"], "2021-01-01T00:00:00Z");
}

#[tokio::test]
async fn what_cannot_be_issued_is_refused_in_words() {
    let authority = Authority::new().await;
    authority.issue("edge", "fra-1").await;
    let before = fs::read(authority.file("fra-1.pem")).unwrap();
    for (args, code, words) in [
        (&["edge", "fra-1"][..], 1, "fra-1.pem is there already"),
        (
            &["operator", "ca"],
            2,
            "the files of the authority are called `ca`",
        ),
        (
            &["admin", "ana"],
            2,
            "\"admin\" is no role; right is config-service, balancer",
        ),
        (&["edge", "a/b"], 2, "\"a/b\" is no name"),
        (
            &["viewer", "ana", "--ip", "10.0.0.1"],
            2,
            "are for what is dialled",
        ),
        (
            &["viewer", "ana", "--days", "4000"],
            1,
            "the authority itself ends in",
        ),
        (
            &["viewer", "ana", "--days", "0"],
            2,
            "0 is not in 1..=36500",
        ),
        (
            &["edge", "fra-2", "--dns", "bücher"],
            2,
            "bücher: is no host name",
        ),
    ] {
        let ran = authority.run(&[&["issue"], args].concat()).await;
        assert_eq!(ran.code, code, "{args:?}: {}", ran.err);
        assert!(ran.err.contains(words), "{args:?}: {}", ran.err);
    }
    assert_eq!(fs::read(authority.file("fra-1.pem")).unwrap(), before);
    assert!(!authority.file("ana.pem").exists() && !authority.file("ana.key").exists());
    let forced = authority.run(&["issue", "edge", "fra-1", "--force"]).await;
    assert_eq!(forced.code, 0, "{}", forced.err);
    assert_ne!(fs::read(authority.file("fra-1.pem")).unwrap(), before);
    let elsewhere = TempDir::new().unwrap();
    let elsewhere = elsewhere.path().to_str().unwrap();
    let ran = anyport(&["certs", "issue", "edge", "fra-1", "--dir", elsewhere]).await;
    assert_eq!(ran.code, 1);
    assert!(ran.err.contains("there is no authority"), "{}", ran.err);
}

/// A config service with TLS, until this is dropped.
struct Service {
    address: SocketAddr,
    drain: Drain,
    _directory: TempDir,
}

impl Service {
    async fn start(tls: TlsArgs) -> Self {
        let directory = TempDir::new().unwrap();
        let any_port: SocketAddr = "127.0.0.1:0".parse().unwrap();
        let config = Config {
            listen: any_port,
            admin: any_port,
            store: StoreUrl::Embedded(directory.path().to_owned()),
            retention: Default::default(),
            store_key: Default::default(),
            tls,
        };
        let service = ConfigService::bind(&config).await.unwrap();
        let (address, drain) = (service.address(), Drain::new());
        let serving = drain.clone();
        tokio::spawn(async move { service.serve(&serving).await });
        Self {
            address,
            drain,
            _directory: directory,
        }
    }

    async fn anyport(&self, tls: &TlsArgs, args: &[&str]) -> Ran {
        let server = format!("https://{}", self.address);
        let path = |path: &Option<PathBuf>| path.as_ref().unwrap().to_str().unwrap().to_owned();
        let (cert, key, ca) = (path(&tls.tls_cert), path(&tls.tls_key), path(&tls.tls_ca));
        let connection = [
            "--server",
            &server,
            "--tls-cert",
            &cert,
            "--tls-key",
            &key,
            "--tls-ca",
            &ca,
        ];
        anyport(&[args, &connection].concat()).await
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.drain.begin();
    }
}

#[tokio::test]
async fn a_certificate_that_is_not_the_right_one_is_refused_in_words_with_exit_status_1() {
    let (fleet, stranger) = (Authority::new().await, Authority::new().await);
    let service = Service::start(fleet.issue("config-service", "config").await).await;
    let viewer = fleet.issue("viewer", "ana").await;
    let operator = fleet.issue("operator", "otto").await;

    // While the store is read for the first time, the answer is another.
    while service.anyport(&viewer, &["history"]).await.code == 3 {}
    let seen = service.anyport(&viewer, &["get", "apps"]).await;
    assert_eq!((seen.code, seen.err.as_str()), (0, ""));
    let manifest = fleet.file("manifest.yaml");
    fs::write(&manifest, "prefixes: [ { cidr: 198.51.100.0/24 } ]").unwrap();
    let apply = &["apply", "-f", manifest.to_str().unwrap()][..];
    let refused = service.anyport(&viewer, apply).await;
    assert_eq!(refused.code, 1, "{}", refused.err);
    assert!(
        refused
            .err
            .contains("viewer `ana` may not call ConfigService/Apply: needs operator"),
        "{}",
        refused.err
    );
    let applied = service.anyport(&operator, apply).await;
    assert_eq!(applied.code, 0, "{}", applied.err);
    let history = service.anyport(&viewer, &["history"]).await;
    assert!(history.out.contains("otto"), "{}", history.out);

    // Trusts the server, so that only the server can be the one that refuses.
    let foreign = TlsArgs {
        tls_ca: Some(fleet.file("ca.pem")),
        ..stranger.issue("operator", "otto").await
    };
    let untrusting = stranger.tls("otto");
    let expired = fleet.issue_expired("old");
    for (tls, words) in [
        (
            &foreign,
            "it does not accept the certificate of --tls-cert: it trusts another authority",
        ),
        (&untrusting, "invalid peer certificate: UnknownIssuer"),
        (
            &expired,
            "the certificate of --tls-cert, `CN=old, O=anyport:operator`, has expired",
        ),
    ] {
        let refused = service.anyport(tls, &["status"]).await;
        assert_eq!(refused.code, 1, "{words}: {}", refused.err);
        assert!(refused.err.contains(words), "{}", refused.err);
    }

    // Whoever is dialled has to be what is wanted there.
    let server = format!("https://{}", service.address);
    let refused = service
        .anyport(&operator, &["connections", "--edge", &server])
        .await;
    assert_eq!(refused.code, 1, "{}", refused.err);
    assert!(
        refused
            .err
            .contains("is not for the role edge: needs O=anyport:edge"),
        "{}",
        refused.err
    );
    let none = anyport(&["--server", &server, "status"]).await;
    assert_eq!(none.code, 2);
    assert!(
        none.err
            .contains("https needs --tls-cert, --tls-key and --tls-ca"),
        "{}",
        none.err
    );
}
