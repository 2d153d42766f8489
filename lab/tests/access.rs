//! Who may call what, of the real processes with real certificates: each method with each role,
//! and with none. Certificates are replaced, and writes leave a trace. Needs root.

#![allow(clippy::unwrap_used)]

use std::fs;

use anyport_lab::cluster::{Cluster, PATIENCE, Plan, Replica, Service, Store, eventually};
use anyport_node::access::{Role, TABLE};
use anyport_node::identity::{Identity, TlsArgs};
use anyport_node::rpc::Channel;
use anyport_proto::v1::{self, balancer_service_client::BalancerServiceClient};
use rcgen::{CertificateParams, DistinguishedName, DnType, Issuer, KeyPair, date_time_ymd};
use tonic::codegen::http::uri::PathAndQuery;
use tonic::{Code, Request, Status};
use tonic_prost::ProstCodec;

anyport_lab::on_both_stores![
    each_method_answers_those_roles_that_the_table_names_and_nobody_else,
    an_edge_asks_a_balancer_under_its_own_name_only,
    strangers_and_those_whose_time_is_over_do_not_get_in,
    a_fleet_in_tls_does_its_work_and_each_write_leaves_a_line,
    certificates_of_another_authority_are_taken_into_use_and_nobody_is_cut_off_for_it,
];

const CONFIG_SERVICE: Service = Service::ConfigService(Replica::First);

const MANIFEST: &str = "
prefixes:
  - cidr: 198.51.100.0/24
apps:
  - { name: game, protocol: tcp/443, edge_ips: [198.51.100.10], origin_direct: [\"tcp://10.0.2.2:7000\"] }
";

fn cluster(store: Store) -> Cluster {
    let plan = Plan {
        tls: true,
        ..Plan::on(store)
    };
    Cluster::start(plan).unwrap()
}

/// Who serves a method, and as what; `None`: nobody does over the network.
fn server_of(path: &str) -> Option<(Service, Role)> {
    let of = |service: &str| path.starts_with(&format!("/anyport.v1.{service}/"));
    if of("BalancerService") {
        Some((Service::Balancer, Role::Balancer))
    } else if of("EdgeService") {
        Some((Service::EdgeAgent, Role::Edge))
    } else if of("FinishingService") {
        None
    } else {
        Some((CONFIG_SERVICE, Role::ConfigService))
    }
}

/// What becomes of an empty request to a method, of whichever kind it is.
fn call(cluster: &Cluster, path: &'static str, tls: &TlsArgs) -> Result<(), Status> {
    let (service, role) = server_of(path).unwrap();
    let url = format!("https://{}", service.listen()).parse().unwrap();
    let identity = tls.load().unwrap();
    let answer = cluster.topology().edge().block_on(async move || {
        let channel = Channel::lazy(&url, &identity, role).unwrap();
        let mut client = tonic::client::Grpc::new(channel);
        client.ready().await.unwrap();
        let request = Request::new(tokio_stream::once(()));
        let path = PathAndQuery::from_static(path);
        let codec = ProstCodec::<(), ()>::default();
        let answer = client.streaming(request, path, codec);
        let answer = tokio::time::timeout(PATIENCE, answer).await;
        answer.expect("an answer in time").map(drop)
    });
    answer.unwrap()
}

/// A certificate of the cluster's authority that the command does not issue.
fn sign(cluster: &Cluster, name: &str, change: impl FnOnce(&mut CertificateParams)) -> TlsArgs {
    let directory = cluster.certificates();
    let text = |name: &str| fs::read_to_string(directory.join(name)).unwrap();
    let key = KeyPair::from_pem(&text("ca.key")).unwrap();
    let issuer = Issuer::from_ca_cert_pem(&text("ca.pem"), key).unwrap();
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    change(&mut params);
    let key = KeyPair::generate().unwrap();
    let certificate = params.signed_by(&key, &issuer).unwrap();
    let tls = cluster.certificate(name);
    fs::write(tls.tls_cert.as_ref().unwrap(), certificate.pem()).unwrap();
    fs::write(tls.tls_key.as_ref().unwrap(), key.serialize_pem()).unwrap();
    tls
}

/// Was it the table that refused?
fn is_turned_away(answer: &Result<(), Status>) -> bool {
    answer.as_ref().is_err_and(|status| {
        status.code() == Code::PermissionDenied
            && (status.message().contains(" may not call ")
                || status.message().contains(" has no role here"))
    })
}

fn each_method_answers_those_roles_that_the_table_names_and_nobody_else(store: Store) {
    let cluster = cluster(store);
    let mut callers: Vec<(Option<Role>, TlsArgs)> = Role::ALL
        .into_iter()
        .map(|role| {
            let name = format!("some-{role}");
            (Some(role), cluster.issue(role.as_str(), &name).unwrap())
        })
        .collect();
    callers.push((None, sign(&cluster, "nobody", |_| {})));
    let mut calls = 0;
    for (path, roles) in TABLE {
        if server_of(path).is_none() {
            continue;
        }
        for (role, tls) in &callers {
            let answer = call(&cluster, path, tls);
            let may = role.is_some_and(|role| roles.contains(&role));
            assert_eq!(
                !is_turned_away(&answer),
                may,
                "{path} by {role:?}: {answer:?}"
            );
            if let Err(status) = &answer {
                let wrong = [
                    Code::Unimplemented,
                    Code::Unauthenticated,
                    Code::Unavailable,
                ];
                assert!(
                    !wrong.contains(&status.code()),
                    "{path} by {role:?}: {status}"
                );
            }
            calls += 1;
        }
    }
    assert_eq!(calls, (TABLE.len() - 1) * 6);
}

fn an_edge_asks_a_balancer_under_its_own_name_only(store: Store) {
    let cluster = cluster(store);
    let identity = cluster.issue("edge", "edge7").unwrap().load().unwrap();
    let url = format!("https://{}", Service::Balancer.listen());
    let url = url.parse().unwrap();
    let asked = cluster.topology().edge().block_on(async move || {
        let channel = Channel::lazy(&url, &identity, Role::Balancer).unwrap();
        let client = BalancerServiceClient::new(channel);
        let mut answers = Vec::new();
        for edge in ["edge7", "edge8"] {
            let (mut watcher, mut reporter) = (client.clone(), client.clone());
            let edge = edge.to_owned();
            let watch = v1::WatchWeightsRequest { edge: edge.clone() };
            let report = v1::ReportOriginsRequest {
                edge,
                ..Default::default()
            };
            let watched = tokio::time::timeout(PATIENCE, watcher.watch_weights(watch));
            answers.push(watched.await.unwrap().map(drop));
            let reported = tokio::time::timeout(PATIENCE, reporter.report_origins(report));
            answers.push(reported.await.unwrap().map(drop));
        }
        answers
    });
    let asked = asked.unwrap();
    assert!(asked[..2].iter().all(Result::is_ok), "{asked:?}");
    for refused in &asked[2..] {
        let status = refused.as_ref().unwrap_err();
        assert_eq!(status.code(), Code::PermissionDenied, "{status}");
        let words = "may not speak as edge `edge8`";
        assert!(status.message().contains(words), "{status}");
    }
}

fn strangers_and_those_whose_time_is_over_do_not_get_in(store: Store) {
    let cluster = cluster(store);
    let elsewhere = cluster.directory().join("elsewhere");
    let elsewhere = elsewhere.to_str().unwrap();
    for arguments in [&["init"][..], &["issue", "operator", "otto"]] {
        let said = cluster.anyport(&[&["certs"], arguments, &["--dir", elsewhere]].concat());
        let said = said.unwrap();
        assert_eq!(said.status, Some(0), "{said}");
    }
    let file = |name: &str| Some(format!("{elsewhere}/{name}").into());
    let stranger = TlsArgs {
        tls_cert: file("otto.pem"),
        tls_key: file("otto.key"),
        ..cluster.certificate("operator")
    };
    let expired = sign(&cluster, "old", |params| {
        let subject = &mut params.distinguished_name;
        subject.push(DnType::OrganizationName, "anyport:operator");
        params.not_before = date_time_ymd(2020, 1, 1);
        params.not_after = date_time_ymd(2021, 1, 1);
    });
    for path in [
        "/anyport.v1.ConfigService/List",
        "/anyport.v1.BalancerService/GetHealth",
        "/anyport.v1.EdgeService/GetStatus",
    ] {
        for (tls, words) in [
            (&stranger, "it trusts another authority"),
            (&expired, "it has expired"),
        ] {
            let refused = call(&cluster, path, tls).unwrap_err();
            assert_eq!(refused.code(), Code::Unauthenticated, "{path}: {refused}");
            assert!(refused.message().ends_with(words), "{path}: {refused}");
        }
    }
    // An edge that poses as a config service or as a balancer is not believed.
    let posing = cluster.certificate("edge1").load().unwrap();
    for role in [Role::ConfigService, Role::Balancer] {
        let refused = health(&cluster, Service::EdgeAgent, role, &posing).unwrap_err();
        assert_eq!(refused.code(), Code::Unauthenticated, "{refused}");
        let words = format!("is not for the role {role}: needs O=anyport:{role}");
        assert!(refused.message().contains(&words), "{refused}");
    }
}

/// Asks for health as if the service had that role.
fn health(
    cluster: &Cluster,
    service: Service,
    role: Role,
    identity: &Identity,
) -> Result<(), Status> {
    let url = format!("https://{}", service.listen()).parse().unwrap();
    let identity = identity.clone();
    let answer = cluster.topology().edge().block_on(async move || {
        let mut client = tonic::client::Grpc::new(Channel::lazy(&url, &identity, role).unwrap());
        client.ready().await.unwrap();
        let path = PathAndQuery::from_static("/grpc.health.v1.Health/Check");
        let codec = ProstCodec::<(), ()>::default();
        client.unary(Request::new(()), path, codec).await.map(drop)
    });
    answer.unwrap()
}

fn a_fleet_in_tls_does_its_work_and_each_write_leaves_a_line(store: Store) {
    let cluster = cluster(store);
    cluster.apply(MANIFEST).unwrap();
    let refused = cluster
        .try_apply("apps: [ { name: x, protocol: tcp/1 } ]", &[])
        .unwrap();
    assert_eq!(refused.status, Some(1), "{refused}");
    let viewer = cluster.issue("viewer", "ana").unwrap();
    let denied = call(&cluster, "/anyport.v1.ConfigService/Apply", &viewer).unwrap_err();
    assert_eq!(
        denied.message(),
        "viewer `ana` may not call ConfigService/Apply: needs operator"
    );
    // The edge itself is asked by the same certificate.
    let asked = cluster
        .anyport(&["connections", "--edge", "edge1"])
        .unwrap();
    assert_eq!(asked.status, Some(0), "{asked}");

    let audit = audit(&cluster, CONFIG_SERVICE);
    let line = |outcome: &str| {
        let line = audit.iter().find(|line| line["outcome"] == outcome);
        line.unwrap_or_else(|| panic!("no {outcome} in {audit:#?}"))
    };
    let committed = line("committed");
    assert_eq!(committed["author"], "operator");
    assert_eq!(committed["roles"], "operator");
    assert_eq!(committed["revision"], 1);
    assert!(
        committed["peer"]
            .as_str()
            .unwrap()
            .starts_with("127.0.0.1:")
    );
    assert!(committed["serial"].as_str().unwrap().contains(':'));
    assert_eq!(line("invalid")["method"], "apply");
    let denied = line("denied");
    assert_eq!(denied["method"], "/anyport.v1.ConfigService/Apply");
    assert_eq!(denied["author"], "ana");

    let asked = cluster.anyport(&["undrain", "edge", "edge1"]).unwrap();
    assert_eq!(asked.status, Some(0), "{asked}");
    let ordered = self::audit(&cluster, Service::EdgeAgent);
    let ordered = ordered.iter().find(|line| line["method"] == "undrain");
    assert_eq!(ordered.unwrap()["author"], "operator");
}

/// What a service logged of writes.
fn audit(cluster: &Cluster, service: Service) -> Vec<serde_json::Value> {
    let log = cluster.log(service);
    let lines = log
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok());
    lines
        .filter(|line: &serde_json::Value| line["target"] == "audit")
        .collect()
}

fn certificates_of_another_authority_are_taken_into_use_and_nobody_is_cut_off_for_it(store: Store) {
    let mut cluster = cluster(store);
    cluster.apply(MANIFEST).unwrap();
    let connected_at = |cluster: &Cluster| {
        let said = cluster
            .anyport(&["get", "edges", "edge1", "-o", "json"])
            .unwrap();
        let edges: serde_json::Value = serde_json::from_str(&said.out).unwrap();
        edges.to_string().split("connected_at").nth(1).unwrap()[..30].to_owned()
    };
    let replicas = cluster.replicas().iter().copied();
    let services: Vec<Service> = replicas
        .map(Service::ConfigService)
        .chain([Service::Balancer, Service::EdgeAgent])
        .collect();
    let expires = |service: &Service| {
        let metrics = cluster.metrics(*service).unwrap();
        metrics.sum("anyport_identity_expires_timestamp_seconds", &[])
    };
    let (before, since) = (
        services.iter().map(expires).collect::<Vec<_>>(),
        connected_at(&cluster),
    );
    // All of it from another authority, the files one after the other.
    let new = cluster.directory().join("new");
    let certs = |arguments: &[&str]| {
        let dir = ["--dir", new.to_str().unwrap()];
        let said = cluster.anyport(&[&["certs"], arguments, &dir].concat());
        assert_eq!(said.as_ref().unwrap().status, Some(0), "{said:?}");
    };
    certs(&["init"]);
    for (role, name) in [
        ("config-service", "config-service"),
        ("config-service", "config-service-2"),
        ("config-service", "etcd"),
        ("balancer", "balancer1"),
        ("edge", "edge1"),
        ("operator", "operator"),
    ] {
        certs(&["issue", role, name, "--days", "366"]);
    }
    for entry in fs::read_dir(&new).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), cluster.certificates().join(entry.file_name())).unwrap();
    }
    for (service, before) in services.iter().zip(before) {
        eventually(PATIENCE, "the renewed certificate is in use", || {
            let now = expires(service);
            if now > before {
                Ok(())
            } else {
                Err(format!("{service}: {now}"))
            }
        });
    }
    // By the new ones, of which the old ones know nothing.
    cluster.apply(&MANIFEST.replace("443", "444")).unwrap();
    let asked = cluster
        .anyport(&["connections", "--edge", "edge1"])
        .unwrap();
    assert_eq!(asked.status, Some(0), "{asked}");
    assert_eq!(connected_at(&cluster), since, "the edge stays connected");

    if store == Store::Etcd {
        // It reads whom it trusts at its start only; the connections to it are new ones then.
        cluster.kill9(Service::Etcd).unwrap();
        cluster.restart(Service::Etcd).unwrap();
        for replica in cluster.replicas() {
            cluster
                .wait_until_ready(Service::ConfigService(*replica))
                .unwrap();
        }
        cluster.apply(&MANIFEST.replace("443", "446")).unwrap();
    }

    let key = cluster.certificate("edge1").tls_key.unwrap();
    fs::write(key, "no key").unwrap();
    eventually(PATIENCE, "what is wrong is said", || {
        let ready = cluster.get(Service::EdgeAgent, "/readyz").unwrap();
        let words = "identity: the new certificates cannot be used, the old ones stay in use: \
                     --tls-key";
        if ready.contains(words) {
            Ok(())
        } else {
            Err(ready)
        }
    });
    cluster.apply(&MANIFEST.replace("443", "445")).unwrap();
}
