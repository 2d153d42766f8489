#![allow(clippy::unwrap_used)]

use anyport_proto::v1::{self, resource::Kind};
use proptest::prelude::*;

use super::{Document, Manifest};

fn faults(text: &str) -> Vec<String> {
    let manifest = Manifest::read("m.yaml", text);
    manifest.faults().iter().map(ToString::to_string).collect()
}

const WHOLE: &str = r#"
prefixes:
  - cidr: 198.51.100.0/24
  - cidr: 2001:db8:51::/64
monitors:
  - name: quick
    type: tcp
    interval: 1s
    timeout: 500ms
    retries: 1
    consecutive_up: 2
    consecutive_down: 3
    port: 0
    send: "PING\r\n"
    expect: { hex: "2b 50" }
    path: /healthz
    expected_codes: "200,301-302"
    expected_body: "all well"
    service: game.v1.Lobby
pools:
  - name: game
    monitor: quick
    policy: round_robin
    minimum_origins: 1
    fallback_pool: ""
    origins:
      - { name: a, address: "10.0.2.2:7000", weight: 1.0, enabled: true }
      - { name: b, address: "10.0.2.3:7000", weight: 0.5 }
apps:
  - name: minecraft
    protocol: tcp/25565
    edge_ips: [198.51.100.10, 2001:db8:51::10]
    origin_pool: game
    origin_port: 7000
    timeouts: { connect: 5s, idle: 1h, udp_idle: 60s, drain: 2m }
    disable: { close: now }
  - name: range
    protocol: tcp/*
    edge_ips: [198.51.100.11]
    origin_direct: ["tcp://10.0.2.2:3000-4000"]
    origin_port: 3000-4000
    proxy_protocol: v2
    client_ip: transparent
    accept_proxy_protocol: [203.0.113.0/24, "2001:db8:7::1"]
    access: { default: deny, rules: [ { action: allow, source: 203.0.113.0/24 } ] }
    limits: { connections: 9, connections_per_source: 8, new_connections_per_source: 7, bytes_per_second_per_connection: 6 }
"#;

fn seconds(seconds: i64, nanos: i32) -> Option<prost_types::Duration> {
    Some(prost_types::Duration { seconds, nanos })
}

#[test]
fn every_field_arrives_in_its_message() {
    let manifest = Manifest::read("m.yaml", WHOLE);
    assert_eq!(manifest.faults(), []);
    let resources = manifest.resources();
    let [_, _, monitor, pool, app, range] = &resources[..] else {
        panic!("six resources, not {}", resources.len());
    };
    assert_eq!(
        monitor.kind,
        Some(Kind::Monitor(v1::Monitor {
            name: "quick".into(),
            r#type: v1::MonitorType::Tcp.into(),
            interval: seconds(1, 0),
            timeout: seconds(0, 500_000_000),
            retries: 1,
            consecutive_up: 2,
            consecutive_down: 3,
            port: 0,
            send: b"PING\r\n".to_vec(),
            expect: b"+P".to_vec(),
            path: "/healthz".into(),
            expected_codes: "200,301-302".into(),
            expected_body: "all well".into(),
            service: "game.v1.Lobby".into(),
        }))
    );
    let origin = |name: &str, address: &str, weight, enabled| v1::Origin {
        name: name.into(),
        address: address.into(),
        weight: Some(weight),
        enabled,
    };
    assert_eq!(
        pool.kind,
        Some(Kind::Pool(v1::Pool {
            name: "game".into(),
            monitor: "quick".into(),
            policy: v1::Policy::RoundRobin.into(),
            minimum_origins: 1,
            fallback_pool: String::new(),
            origins: vec![
                origin("a", "10.0.2.2:7000", 1.0, Some(true)),
                origin("b", "10.0.2.3:7000", 0.5, None),
            ],
        }))
    );
    assert_eq!(
        app.kind,
        Some(Kind::App(v1::App {
            name: "minecraft".into(),
            protocol: "tcp/25565".into(),
            edge_ips: vec!["198.51.100.10".into(), "2001:db8:51::10".into()],
            origin_pool: "game".into(),
            origin_port: "7000".into(),
            timeouts: Some(v1::Timeouts {
                connect: seconds(5, 0),
                idle: seconds(3600, 0),
                udp_idle: seconds(60, 0),
                drain: seconds(120, 0),
                ..Default::default()
            }),
            disable: Some(v1::Disable {
                close: v1::disable::Close::Now.into(),
            }),
            ..Default::default()
        }))
    );
    let Some(Kind::App(range)) = &range.kind else {
        panic!("an app");
    };
    assert_eq!(range.origin_direct, ["tcp://10.0.2.2:3000-4000"]);
    assert_eq!(range.origin_port, "3000-4000");
    assert_eq!(range.proxy_protocol(), v1::ProxyProtocol::V2);
    assert_eq!(range.client_ip(), v1::ClientIp::Transparent);
    assert_eq!(
        range.accept_proxy_protocol,
        ["203.0.113.0/24", "2001:db8:7::1"]
    );
    assert_eq!(
        range.access,
        Some(v1::Access {
            default: v1::AccessAction::Deny.into(),
            rules: vec![v1::AccessRule {
                action: v1::AccessAction::Allow.into(),
                source: "203.0.113.0/24".into(),
            }],
        })
    );
    assert_eq!(
        range.limits,
        Some(v1::Limits {
            connections: 9,
            connections_per_source: 8,
            new_connections_per_source: 7,
            bytes_per_second_per_connection: 6,
        })
    );
}

#[test]
fn every_fault_is_found_in_one_look() {
    let found = faults(
        r#"
monitors:
  - name: quick
    type: ftp
    interval: 5 parsecs
    timeout: 5
    retries: -1
    port: 70000000000
    expect: { hex: xyz, base64: "" }
pools:
  - name: 5
    policy: fastest
    origins:
      - { name: a, adress: "10.0.2.2:7000", weight: heavy, enabled: yes }
      - b
apps:
  - name: minecraft
    edge_ips: 198.51.100.10
    tls: on
    access: { default: reject, rules: [ { source: 5, to: x }, 203.0.113.0/24 ] }
    limits: { connections: many, bytes_per_second_per_connection: 4294967296 }
  - [a, b]
poools: []
secrets: []
"#,
    );
    let wanted = r#"
m.yaml:4: monitors[0].type: "ftp" is no monitor type; right is tcp, tls, http, https, grpc, udp or icmp
m.yaml:5: monitors[0].interval: "5 parsecs" is no duration; right is 500ms, 2s, 5m, 1h or 30d
m.yaml:6: monitors[0].timeout: 5 has no unit; right is 5ms, 5s, 5m or 5h
m.yaml:7: monitors[0].retries: is the number -1; right is a whole number from 0 to 4294967295
m.yaml:8: monitors[0].port: is the number 70000000000; right is a whole number from 0 to 4294967295
m.yaml:9: monitors[0].expect.hex: "xyz" is no row of hexadecimal bytes; right is "16 03 01"
m.yaml:9: monitors[0].expect.base64: bytes has no field "base64" in this version of Anyport; its fields are hex
m.yaml:11: pools[0].name: is the number 5; right is a text, which here needs quotes
m.yaml:12: pools[0].policy: "fastest" is no policy of this version of Anyport; right is weighted, round_robin, least_connections, latency or hash
m.yaml:14: pools[0].origins[0].weight: is the text "heavy"; right is a number
m.yaml:14: pools[0].origins[0].enabled: is the text "yes"; right is true or false
m.yaml:14: pools[0].origins[0].adress: an origin has no field "adress" in this version of Anyport; did you mean address?
m.yaml:15: pools[0].origins[1]: is the text "b"; right is an origin as a mapping, FIELD: VALUE
m.yaml:18: apps[0].edge_ips: is the text "198.51.100.10"; right is a list: ["198.51.100.10"]
m.yaml:19: apps[0].tls: "on" is no tls mode; right is off, flexible, full or strict
m.yaml:20: apps[0].access.default: "reject" is no access action; right is allow or deny
m.yaml:20: apps[0].access.rules[0].source: is the number 5; right is a text, which here needs quotes
m.yaml:20: apps[0].access.rules[0].to: an access rule has no field "to" in this version of Anyport; its fields are action, source
m.yaml:20: apps[0].access.rules[1]: is the text "203.0.113.0/24"; right is an access rule as a mapping, FIELD: VALUE
m.yaml:21: apps[0].limits.connections: is the text "many"; right is a whole number from 0 to 4294967295
m.yaml:21: apps[0].limits.bytes_per_second_per_connection: is the number 4294967296; right is a whole number from 0 to 4294967295
m.yaml:22: apps[1]: is a list; right is an app as a mapping, FIELD: VALUE
m.yaml:23: poools: a manifest has no field "poools" in this version of Anyport; did you mean pools?
m.yaml:24: secrets: a manifest has no field "secrets" in this version of Anyport; its fields are prefixes, monitors, pools, certificates, apps
"#;
    let wanted: Vec<&str> = wanted.lines().skip(1).collect();
    assert_eq!(found, wanted);
}

#[test]
fn a_name_for_origins_is_read_and_written_alike() {
    let text = r#"
apps:
  - { name: a, origin_dns: { name: game.internal, type: A, ttl: 30s }, origin_port: 7000 }
  - { name: b, origin_dns: { name: game.internal, type: "" }, origin_port: 3000-4000 }
  - { name: c, origin_dns: { name: _game._tcp.internal, type: SRV } }
"#;
    let read = |text: &str| {
        let manifest = Manifest::read("m.yaml", text);
        assert_eq!(manifest.faults(), []);
        manifest.resources()
    };
    let resources = read(text);
    let dns = |name: &str, kind: v1::OriginDnsType, ttl| {
        let name = name.to_owned();
        let r#type = kind.into();
        Some(v1::OriginDns { name, r#type, ttl })
    };
    let found = resources.iter().map(|resource| match &resource.kind {
        Some(Kind::App(app)) => (app.origin_dns.clone(), app.origin_port.as_str()),
        other => panic!("{other:?}"),
    });
    assert_eq!(
        found.collect::<Vec<_>>(),
        [
            (
                dns("game.internal", v1::OriginDnsType::A, seconds(30, 0)),
                "7000"
            ),
            (
                dns("game.internal", v1::OriginDnsType::Unspecified, None),
                "3000-4000"
            ),
            (dns("_game._tcp.internal", v1::OriginDnsType::Srv, None), ""),
        ]
    );
    let written = serde_json::to_string(&Document::new(&resources)).unwrap();
    assert_eq!(read(&written), resources);
    let found = faults("apps: [{ name: a, origin_dns: { name: a.b, type: MX, port: 1 } }]");
    assert_eq!(
        found,
        [
            r#"m.yaml:1: apps[0].origin_dns.type: "MX" is no type of origin_dns; right is "", A, AAAA or SRV"#,
            r#"m.yaml:1: apps[0].origin_dns.port: origin_dns has no field "port" in this version of Anyport; its fields are name, type, ttl"#,
        ]
    );
}

#[test]
fn what_is_no_yaml_is_named_with_its_line() {
    for (text, line, part) in [
        ("apps: []\nprefixes: [\n", 2, ""),
        ("apps:\n  - name: a\n    name: b\n", 3, "duplicate"),
        ("apps: []\napps: []\n", 2, "duplicate"),
        ("apps: []\n---\npools: []\n", 0, "document"),
        ("apps: *nothing\n", 1, ""),
    ] {
        let found = faults(text);
        assert_eq!(found.len(), 1, "{text:?}: {found:?}");
        let place = if line > 0 {
            format!("m.yaml:{line}: ")
        } else {
            "m.yaml".to_owned()
        };
        assert!(found[0].starts_with(&place), "{text:?}: {}", found[0]);
        assert!(
            found[0].to_lowercase().contains(part),
            "{text:?}: {}",
            found[0]
        );
    }
}

#[test]
fn an_alias_bomb_is_refused() {
    let mut text = "a: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
    for level in 1..12 {
        let inner = format!("*a{}, ", level - 1).repeat(10);
        text += &format!("b{level}: &a{level} [{}]\n", inner.trim_end_matches(", "));
    }
    let found = faults(&text);
    assert_eq!(found.len(), 1, "{found:?}");
}

#[test]
fn an_empty_file_declares_nothing() {
    for text in ["", "\n# nothing\n", "---\n", "apps:\n", "{}"] {
        let manifest = Manifest::read("m.yaml", text);
        assert_eq!(manifest.faults(), [], "{text:?}");
        assert!(manifest.resources().is_empty(), "{text:?}");
    }
    assert_eq!(
        faults("- a\n"),
        ["m.yaml:1: is a list; right is a manifest as a mapping, FIELD: VALUE"]
    );
}

#[test]
fn ten_thousand_apps_are_no_problem() {
    let mut text = "apps:\n".to_owned();
    for port in 1..=10_000 {
        text += &format!(
            "  - name: app-{port}\n    protocol: tcp/{port}\n    edge_ips: [198.51.100.10, \"2001:db8:51::10\"]\n    origin_direct: [\"tcp://10.0.2.2:7000\"]\n    timeouts: {{ connect: 5s, idle: 1h }}\n"
        );
    }
    let manifest = Manifest::read("m.yaml", &text);
    assert_eq!(manifest.faults(), []);
    assert_eq!(manifest.resources().len(), 10_000);
}

fn shown(manifest: &Manifest, path: &str) -> Option<String> {
    manifest.place_of(path).map(|place| place.to_string())
}

#[test]
fn a_path_of_the_config_service_leads_to_the_users_line() {
    let manifest = Manifest::read("m.yaml", WHOLE);
    for (path, place) in [
        ("resources[1].prefix.cidr", "m.yaml:4: prefixes[1].cidr"),
        (
            "resources[3].pool.origins[1].weight",
            "m.yaml:28: pools[0].origins[1].weight",
        ),
        (
            "resources[3].pool.origins[0].absent",
            "m.yaml:27: pools[0].origins[0].absent",
        ),
        (
            "resources[4].app.edge_ips[1]",
            "m.yaml:32: apps[0].edge_ips[1]",
        ),
        (
            "resources[4].app.timeouts.idle",
            "m.yaml:35: apps[0].timeouts.idle",
        ),
        ("resources[5].app", "m.yaml:37: apps[1]"),
        ("resources[5]", "m.yaml:37: apps[1]"),
    ] {
        assert_eq!(shown(&manifest, path).as_deref(), Some(place), "{path}");
    }
    for path in [
        "resources[6].app",
        "resources[x]",
        "app[\"other\"].edge_ips",
        "",
    ] {
        assert_eq!(shown(&manifest, path), None, "{path}");
    }
}

#[test]
fn certificates_come_from_files_beside_the_manifest() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("mail.pem"), "the chain").unwrap();
    std::fs::write(directory.path().join("mail.key"), "the key").unwrap();
    let name = directory.path().join("m.yaml").display().to_string();
    let text = "\
certificates:
  - name: mail
    cert_file: mail.pem
    key_file: mail.key
  - { name: inline, cert: x, key: y }
  - { name: absent, cert_file: nowhere.pem, key: y, key_file: mail.key }
";
    let manifest = Manifest::read(&name, text);
    let found: Vec<String> = manifest.faults().iter().map(ToString::to_string).collect();
    let nowhere = directory.path().join("nowhere.pem");
    assert_eq!(
        found,
        [
            format!(
                "{name}:6: certificates[2].cert_file: cannot read {}: No such file or directory \
                 (os error 2)",
                nowhere.display()
            ),
            format!("{name}:6: certificates[2].key_file: is set beside key; one of them is enough"),
        ]
    );
    let resources = manifest.resources();
    let certificate = |index: usize| match &resources[index].kind {
        Some(Kind::Certificate(certificate)) => certificate.clone(),
        other => panic!("{other:?}"),
    };
    assert_eq!(certificate(0).cert, "the chain");
    assert_eq!(certificate(0).key, "the key");
    assert_eq!((&*certificate(1).cert, &*certificate(1).key), ("x", "y"));
    // What the config service says of `cert` is about the file.
    let place = shown(&manifest, "resources[0].certificate.cert").unwrap();
    assert_eq!(place, format!("{name}:3: certificates[0].cert_file"));
    assert!(manifest.is_spoiled(&manifest.place_of("resources[2].certificate.cert").unwrap()));
    let shown = format!("{manifest:?}");
    assert!(!shown.contains("the key"), "{shown}");
}

#[test]
fn a_key_is_written_as_redacted() {
    let resource = v1::Resource {
        kind: Some(Kind::Certificate(v1::Certificate {
            name: "mail".into(),
            cert: "-----BEGIN\n".into(),
            key: "secret".into(),
        })),
    };
    let text = serde_saphyr::to_string(&Document::new([&resource])).unwrap();
    assert!(text.contains("key: redacted"), "{text}");
    assert!(!text.contains("secret"), "{text}");
}

#[test]
fn files_are_counted_apart() {
    let mut manifest = Manifest::read("a.yaml", "apps:\n  - name: a\n");
    manifest.append(Manifest::read(
        "b.yaml",
        "# b\napps:\n  - name: b\n    tls: x\n",
    ));
    assert_eq!(
        shown(&manifest, "resources[1].app.name").as_deref(),
        Some("b.yaml:3: apps[0].name")
    );
    let spoiled = |path: &str| manifest.is_spoiled(&manifest.place_of(path).unwrap());
    assert!(!spoiled("resources[0].app.tls"));
    assert!(spoiled("resources[1].app.tls"));
}

#[test]
fn what_only_follows_from_a_fault_is_known() {
    let manifest = Manifest::read(
        "m.yaml",
        "apps:\n  - { name: a, edge_ips: [5, 198.51.100.1], orign_pool: game }\n",
    );
    let spoiled = |path: &str| manifest.is_spoiled(&manifest.place_of(path).unwrap());
    assert!(spoiled("resources[0].app.edge_ips[0]"));
    assert!(!spoiled("resources[0].app.edge_ips[1]"));
    // Meant by orign_pool, and then one of the three that stand for each other.
    assert!(spoiled("resources[0].app.origin_pool"));
    assert!(!spoiled("resources[0].app.protocol"));
    assert!(!spoiled("resources[0].app.name"));
}

fn any_duration() -> impl Strategy<Value = Option<prost_types::Duration>> {
    let duration = (0..=i64::MAX, 0..1_000_000_000i32)
        .prop_map(|(seconds, nanos)| prost_types::Duration { seconds, nanos });
    prop::option::of(duration)
}

fn any_text() -> impl Strategy<Value = String> {
    // Also what YAML would take for a number, a flag, nothing, or a comment.
    prop_oneof![
        any::<String>(),
        "[0-9a-z.:_/*#~' -]{0,8}",
        prop::sample::select(vec![
            "5", "0x1", "1e3", "true", "no", "null", "~", "- a", "1_000", "007", "<<", ".inf"
        ])
        .prop_map(str::to_owned),
    ]
    .prop_map(|text| text.chars().filter(|c| !c.is_control()).collect())
}

fn any_monitor() -> impl Strategy<Value = Kind> {
    let numbers = (any::<u32>(), any::<u32>(), any::<u32>(), any::<u32>());
    let bytes = (
        any::<Vec<u8>>(),
        any::<String>().prop_map(String::into_bytes),
    );
    (
        any_text(),
        0..8i32,
        any_duration(),
        any_duration(),
        numbers,
        bytes,
        [any_text(), any_text(), any_text(), any_text()],
    )
        .prop_map(
            |(
                name,
                kind,
                interval,
                timeout,
                (retries, consecutive_up, consecutive_down, port),
                (send, expect),
                [path, expected_codes, expected_body, service],
            )| {
                Kind::Monitor(v1::Monitor {
                    name,
                    r#type: kind,
                    interval,
                    timeout,
                    retries,
                    consecutive_up,
                    consecutive_down,
                    port,
                    send,
                    expect,
                    path,
                    expected_codes,
                    expected_body,
                    service,
                })
            },
        )
}

fn any_pool() -> impl Strategy<Value = Kind> {
    let weight = prop::option::of(-1e6..1e6f64);
    let origin = (any_text(), any_text(), weight, any::<Option<bool>>());
    let origins = prop::collection::vec(origin, 0..4);
    (
        any_text(),
        any_text(),
        0..4i32,
        any::<u32>(),
        any_text(),
        origins,
    )
        .prop_map(
            |(name, monitor, policy, minimum_origins, fallback_pool, origins)| {
                let origin = |(name, address, weight, enabled)| v1::Origin {
                    name,
                    address,
                    weight,
                    enabled,
                };
                Kind::Pool(v1::Pool {
                    name,
                    monitor,
                    policy,
                    minimum_origins,
                    fallback_pool,
                    origins: origins.into_iter().map(origin).collect(),
                })
            },
        )
}

fn any_app() -> impl Strategy<Value = Kind> {
    let texts = || prop::collection::vec(any_text(), 0..4);
    let timeouts = prop::option::of((
        any_duration(),
        any_duration(),
        any_duration(),
        any_duration(),
    ));
    let disable = prop::option::of(0..3i32);
    let app = (
        any_text(),
        any_text(),
        texts(),
        any_text(),
        texts(),
        prop::option::of(any_origin_dns()),
        any_text(),
        timeouts,
        disable,
    );
    let identity = (0..5i32, 0..3i32, texts(), any_access(), any_limits());
    let tls = (0..5i32, any_text(), texts(), any_text(), any_duration());
    (app, identity, tls).prop_map(|(app, identity, tls)| {
        let (proxy_protocol, client_ip, accept_proxy_protocol, access, limits) = identity;
        let (tls, certificate, sni, origin_ca, tls_handshake) = tls;
        let (
            name,
            protocol,
            edge_ips,
            origin_pool,
            origin_direct,
            origin_dns,
            origin_port,
            timeouts,
            disable,
        ) = app;
        Kind::App(v1::App {
            name,
            protocol,
            edge_ips,
            origin_pool,
            origin_direct,
            origin_dns,
            origin_port,
            tls,
            certificate,
            sni,
            origin_ca,
            proxy_protocol,
            client_ip,
            accept_proxy_protocol,
            access,
            limits,
            timeouts: timeouts.map(|(connect, idle, udp_idle, drain)| v1::Timeouts {
                connect,
                tls_handshake,
                idle,
                udp_idle,
                drain,
            }),
            disable: disable.map(|close| v1::Disable { close }),
        })
    })
}

fn any_access() -> impl Strategy<Value = Option<v1::Access>> {
    let rule = (0..3i32, any_text()).prop_map(|(action, source)| v1::AccessRule { action, source });
    let rules = prop::collection::vec(rule, 0..4);
    let access = (0..3i32, rules).prop_map(|(default, rules)| v1::Access { default, rules });
    prop::option::of(access)
}

fn any_limits() -> impl Strategy<Value = Option<v1::Limits>> {
    let limits = any::<[u32; 4]>().prop_map(|[open, of_source, new, bytes]| v1::Limits {
        connections: open,
        connections_per_source: of_source,
        new_connections_per_source: new,
        bytes_per_second_per_connection: bytes,
    });
    prop::option::of(limits)
}

fn any_origin_dns() -> impl Strategy<Value = v1::OriginDns> {
    let kind = prop::sample::select(vec![0, 1, 2, 3]);
    (any_text(), kind, any_duration()).prop_map(|(name, r#type, ttl)| v1::OriginDns {
        name,
        r#type,
        ttl,
    })
}

fn any_resources() -> impl Strategy<Value = Vec<v1::Resource>> {
    let kind = prop_oneof![
        any_text().prop_map(|cidr| Kind::Prefix(v1::Prefix { cidr })),
        any_monitor(),
        any_pool(),
        any_app(),
    ];
    let resources = prop::collection::vec(kind, 0..5);
    resources.prop_map(|mut kinds| {
        // As a manifest orders them.
        kinds.sort_by_key(|kind| match kind {
            Kind::Prefix(_) => 0,
            Kind::Monitor(_) => 1,
            Kind::Pool(_) => 2,
            Kind::Certificate(_) => 3,
            Kind::App(_) => 4,
        });
        let resource = |kind| v1::Resource { kind: Some(kind) };
        kinds.into_iter().map(resource).collect()
    })
}

proptest! {
    #[test]
    fn what_is_written_is_read_back(resources in any_resources()) {
        let document = Document::new(&resources);
        let yaml = serde_saphyr::to_string(&document).unwrap();
        let json = serde_json::to_string_pretty(&document).unwrap();
        for text in [yaml, json] {
            let manifest = Manifest::read("m.yaml", &text);
            prop_assert_eq!(manifest.faults(), [], "{}", text);
            prop_assert_eq!(manifest.resources(), resources.clone(), "{}", text);
        }
    }

    #[test]
    fn no_text_panics(text in any::<String>()) {
        let _ = Manifest::read("m.yaml", &text);
    }

    #[test]
    fn nothing_like_yaml_panics(text in "([ab]|apps|pools|origins|name|hex|[ \\n\\t:{}\\[\\],\"'&*!|>#%@~-]|[0-9.]){0,60}") {
        let manifest = Manifest::read("m.yaml", &text);
        for fault in manifest.faults() {
            let _ = fault.to_string();
        }
        for path in ["resources[0].app.timeouts.x", "resources[0].pool.origins[0].name", "resources[0]"] {
            let _ = manifest.place_of(path);
        }
    }
}
