//! Wire to model and back.

#![allow(clippy::unwrap_used)]

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    num::NonZeroU32,
    sync::Arc,
    time::Duration,
};

use anyport_model::{
    access::{Access, Action, Rule},
    check::{Check, Exchange, Request},
    dns::{DnsOrigin, Question, RecordType},
    identity::{ClientIp, Identity, ProxyProtocol},
    limits::Limits,
    ports::{PortMap, PortRange},
    resource::{
        App, DirectOrigin, Disable, Monitor, Origin, OriginChoice, Policy, Pool, Prefix, Resource,
        Thresholds, Timeouts, Transport, Weight,
    },
};
use anyport_proto::{
    convert::{
        read_pool_weights, read_reference, read_resource, read_update, write_redacted,
        write_reference, write_resource,
    },
    v1::{self, resource::Kind},
};
use ipnet::IpNet;
use proptest::prelude::*;
use prost::Message;

fn name() -> impl Strategy<Value = String> {
    "[a-zA-Z0-9][a-zA-Z0-9._-]{0,62}"
}

fn net() -> impl Strategy<Value = IpNet> {
    let v4 = (any::<[u8; 4]>(), 0u8..=32).prop_map(|(ip, len)| (IpAddr::from(ip), len));
    let v6 = (any::<[u8; 16]>(), 0u8..=128).prop_map(|(ip, len)| (IpAddr::from(ip), len));
    prop_oneof![v4, v6].prop_map(|(ip, len)| IpNet::new(ip, len).unwrap().trunc())
}

fn ports() -> impl Strategy<Value = PortRange> {
    let range = (1u16..=u16::MAX, 1u16..=u16::MAX);
    let range = range.prop_map(|(a, b)| PortRange::new(a.min(b), a.max(b)).unwrap());
    let single = (1u16..=u16::MAX).prop_map(|port| PortRange::single(port).unwrap());
    prop_oneof![range, single, Just(PortRange::ALL)]
}

/// A map of `edge` onto one port, or onto as many as it has.
fn port_map(edge: PortRange) -> impl Strategy<Value = PortMap> {
    let last = u16::MAX - u16::try_from(edge.width() - 1).unwrap();
    let range = (1u16..=last).prop_map(move |first| {
        let end = first + u16::try_from(edge.width() - 1).unwrap();
        PortMap::new(edge, PortRange::new(first, end).unwrap()).unwrap()
    });
    let single = (1u16..=u16::MAX)
        .prop_map(move |port| PortMap::new(edge, PortRange::single(port).unwrap()).unwrap());
    prop_oneof![range, single]
}

fn duration(from: Duration, to: Duration) -> impl Strategy<Value = Duration> {
    let nanos = |duration: Duration| u64::try_from(duration.as_nanos()).unwrap();
    (nanos(from)..=nanos(to)).prop_map(Duration::from_nanos)
}

fn prefix() -> impl Strategy<Value = Resource> {
    let routable = net().prop_filter_map("not routable", |net| Prefix::new(net).ok());
    routable.prop_map(Resource::Prefix)
}

fn check() -> impl Strategy<Value = Check> {
    let text = || prop::collection::vec(any::<u8>(), 0..40);
    let exchange = || (text(), text()).prop_map(|(send, expect)| Exchange { send, expect });
    let request = || {
        let codes = "[2-5](xx|[0-9]{2})(,[2-4]00-5[0-9]{2})?";
        ("/[a-z0-9?=%]{0,20}", codes, ".{0,20}").prop_map(|(path, codes, expected_body)| Request {
            path: path.parse().unwrap(),
            expected_codes: codes.parse().unwrap(),
            expected_body,
        })
    };
    prop_oneof![
        exchange().prop_map(Check::Tcp),
        exchange().prop_map(Check::Tls),
        request().prop_map(Check::Http),
        request().prop_map(Check::Https),
        ".{0,20}".prop_map(|service| Check::Grpc { service }),
        exchange().prop_map(Check::Udp),
        Just(Check::Icmp),
    ]
}

fn monitor() -> impl Strategy<Value = Resource> {
    let second = Duration::from_secs(1);
    let threshold = || (1u32..=100).prop_map(|n| NonZeroU32::new(n).unwrap());
    (
        name(),
        check(),
        duration(second / 10, 3600 * second),
        duration(second / 100, 60 * second),
        0u32..=10,
        (threshold(), threshold()),
        prop::option::of(1u16..=u16::MAX),
    )
        .prop_map(
            |(name, check, interval, timeout, retries, (up, down), port)| {
                Resource::Monitor(Arc::new(Monitor {
                    name: name.parse().unwrap(),
                    port: port.filter(|_| check != Check::Icmp),
                    check,
                    interval,
                    timeout,
                    retries,
                    thresholds: Thresholds { up, down },
                }))
            },
        )
}

fn origin_address() -> impl Strategy<Value = SocketAddr> {
    let ip = prop_oneof![
        any::<[u8; 4]>().prop_map(IpAddr::from),
        any::<[u8; 16]>().prop_map(IpAddr::from)
    ];
    (ip, 1u16..=u16::MAX).prop_map(SocketAddr::from)
}

fn pool() -> impl Strategy<Value = Resource> {
    let origin = (origin_address(), 0u32..=1_000_000, any::<bool>());
    let policy = prop::sample::select(Policy::ALL.to_vec());
    (
        name(),
        prop::option::of(name()),
        prop::option::of(name()),
        policy,
        prop::collection::vec(origin, 1..6),
        any::<prop::sample::Index>(),
    )
        .prop_map(|(name, monitor, fallback, policy, origins, minimum)| {
            let minimum = minimum.index(origins.len()) + 1;
            let origins = origins.into_iter().enumerate();
            Resource::Pool(Arc::new(Pool {
                name: name.parse().unwrap(),
                monitor: monitor.map(|name| name.parse().unwrap()),
                policy,
                minimum_origins: u32::try_from(minimum).unwrap(),
                fallback: fallback.map(|name| name.parse().unwrap()),
                origins: origins
                    .map(|(index, (address, weight, enabled))| Origin {
                        name: format!("origin-{index}").parse().unwrap(),
                        address,
                        weight: Weight::new(f64::from(weight) / 1000.0).unwrap(),
                        enabled,
                    })
                    .collect(),
            }))
        })
}

fn origin_choice(edge: PortRange) -> impl Strategy<Value = OriginChoice> {
    let pool = (name(), prop::option::of(port_map(edge))).prop_map(|(pool, port)| {
        let pool = pool.parse().unwrap();
        OriginChoice::Pool { pool, port }
    });
    let direct = (origin_address(), port_map(edge)).prop_map(|(address, port)| DirectOrigin {
        ip: address.ip(),
        port,
    });
    let direct = prop::collection::vec(direct, 1..4).prop_map(OriginChoice::Direct);
    prop_oneof![pool, direct, dns_origin(edge).prop_map(OriginChoice::Dns)]
}

fn dns_origin(edge: PortRange) -> impl Strategy<Value = DnsOrigin> {
    let record = prop::sample::select(vec![
        RecordType::A,
        RecordType::Aaaa,
        RecordType::Addresses,
        RecordType::Srv,
    ]);
    let second = Duration::from_secs(1);
    let ttl = prop::option::of(duration(second, 24 * 3600 * second));
    (
        "_?[a-z][a-z0-9]{0,20}(\\.[a-z]{1,9}){0,4}",
        record,
        ttl,
        port_map(edge),
    )
        .prop_map(|(name, record, ttl, port)| {
            let port = (record != RecordType::Srv).then_some(port);
            let name = name.parse().unwrap();
            DnsOrigin::new(Question { name, record, ttl }, port).unwrap()
        })
}

fn identity(transport: Transport) -> impl Strategy<Value = Identity> {
    let form = prop::sample::select(ProxyProtocol::of(transport));
    // Who sends datagrams is believed by nobody.
    let most = if transport == Transport::Tcp { 3 } else { 1 };
    let senders = prop::collection::btree_set(net(), 0..most);
    let client_ip = prop::sample::select(&[ClientIp::Edge, ClientIp::Transparent]);
    (form, client_ip, senders).prop_map(|(proxy_protocol, client_ip, senders)| Identity {
        proxy_protocol,
        client_ip,
        trusted_senders: senders.into_iter().collect(),
    })
}

fn access() -> impl Strategy<Value = Access> {
    let action = || prop::sample::select(vec![Action::Allow, Action::Deny]);
    let rules = prop::collection::vec((action(), net()), 0..5);
    (action(), rules).prop_map(|(default, rules)| {
        let mut access = Access::new(default);
        for (action, source) in rules {
            // Not the same twice, nor IPv4 in the form of IPv6.
            let _ = access.add(Rule { action, source });
        }
        access
    })
}

fn limits() -> impl Strategy<Value = Limits> {
    let limit = || any::<u32>().prop_map(NonZeroU32::new);
    let limit = || prop_oneof![Just(None), limit()];
    (limit(), limit(), limit(), limit()).prop_map(|(connections, per_source, new, bytes)| Limits {
        connections,
        connections_per_source: per_source,
        new_connections_per_source: new,
        bytes_per_second_per_connection: bytes,
    })
}

fn app() -> impl Strategy<Value = Resource> {
    let second = Duration::from_secs(1);
    let origin = ports().prop_flat_map(|ports| (Just(ports), origin_choice(ports)));
    (
        name(),
        prop::collection::btree_set(net(), 1..5),
        origin,
        duration(second / 100, 60 * second),
        duration(second, 7 * 24 * 3600 * second),
        duration(second, 7 * 24 * 3600 * second),
        duration(Duration::ZERO, 24 * 3600 * second),
        prop::option::of(prop::sample::select(&[
            Disable::KeepOpen,
            Disable::CloseNow,
        ])),
        prop::sample::select(&Transport::ALL)
            .prop_flat_map(|transport| (identity(transport), Just(transport), access(), limits())),
    )
        .prop_map(
            |(name, nets, (ports, origin), connect, idle, udp_idle, drain, disable, more)| {
                let (identity, transport, access, limits) = more;
                let name = name.parse().unwrap();
                Resource::App(Arc::new(App {
                    identity,
                    access,
                    limits,
                    timeouts: Timeouts {
                        connect,
                        idle,
                        udp_idle,
                        drain,
                        ..Timeouts::default()
                    },
                    transport,
                    disable,
                    ..App::new(name, ports, nets.into_iter().collect(), origin)
                }))
            },
        )
}

fn resource() -> impl Strategy<Value = Resource> {
    prop_oneof![prefix(), monitor(), pool(), app()]
}

/// Texts that come close to what fields hold.
fn text() -> impl Strategy<Value = String> {
    prop_oneof![
        any::<String>(),
        "[a-z0-9./:*\\[\\]-]{0,20}",
        "(tcp|udp)/[0-9*-]{0,12}",
        "(tcp|udp)://[0-9.:\\[\\]-]{0,24}",
        "[0-9]{1,3}\\.[0-9]{1,3}\\.[0-9]{1,3}\\.[0-9]{1,3}/[0-9]{1,3}",
    ]
}

fn wire_duration() -> impl Strategy<Value = Option<prost_types::Duration>> {
    let any = (any::<i64>(), any::<i32>());
    prop::option::of(any.prop_map(|(seconds, nanos)| prost_types::Duration { seconds, nanos }))
}

/// Messages that decode, with anything in them.
fn wire() -> impl Strategy<Value = v1::Resource> {
    let prefix = text().prop_map(|cidr| Kind::Prefix(v1::Prefix { cidr }));
    let texts = [text(), text(), text(), text()];
    let kind = prop_oneof![any::<i32>(), 0..9i32];
    let monitor = (
        text(),
        any::<[i32; 5]>(),
        wire_duration(),
        wire_duration(),
        kind,
        texts,
    )
        .prop_map(|(name, numbers, interval, timeout, kind, texts)| {
            let number = |index: usize| numbers[index].cast_unsigned();
            let [path, expected_codes, expected_body, service] = texts;
            Kind::Monitor(v1::Monitor {
                name,
                r#type: kind,
                interval,
                timeout,
                retries: number(1),
                consecutive_up: number(2),
                consecutive_down: number(3),
                port: number(4),
                path,
                expected_codes,
                expected_body,
                service,
                ..Default::default()
            })
        });
    let origin = (text(), text(), any::<Option<f64>>(), any::<Option<bool>>());
    let origin = origin.prop_map(|(name, address, weight, enabled)| v1::Origin {
        name,
        address,
        weight,
        enabled,
    });
    let pool = (
        text(),
        text(),
        any::<(i32, u32)>(),
        prop::collection::vec(origin, 0..4),
    );
    let pool = pool.prop_map(
        |(name, fallback_pool, (policy, minimum_origins), origins)| {
            Kind::Pool(v1::Pool {
                name,
                policy,
                minimum_origins,
                fallback_pool,
                origins,
                ..Default::default()
            })
        },
    );
    let texts = || prop::collection::vec(text(), 0..4);
    let app = (
        any::<bool>(),
        [text(), text(), text(), text()],
        texts(),
        texts(),
        prop::option::of((text(), any::<i32>(), wire_duration())),
        wire_duration(),
        (-1..6i32, -1..4i32, texts()),
        prop::option::of((-1..4i32, prop::collection::vec((-1..4i32, text()), 0..4))),
    );
    let app = app.prop_map(
        |(
            pooled,
            [name, protocol, pool, origin_port],
            edge_ips,
            direct,
            dns,
            idle,
            identity,
            access,
        )| {
            let (proxy_protocol, client_ip, accept_proxy_protocol) = identity;
            Kind::App(v1::App {
                name,
                protocol,
                edge_ips,
                origin_pool: if pooled { pool } else { String::new() },
                origin_direct: direct,
                origin_dns: dns.map(|(name, r#type, ttl)| v1::OriginDns { name, r#type, ttl }),
                origin_port,
                proxy_protocol,
                client_ip,
                accept_proxy_protocol,
                access: access.map(|(default, rules)| access_of(default, &rules)),
                timeouts: Some(v1::Timeouts {
                    idle,
                    ..Default::default()
                }),
                disable: None,
                ..Default::default()
            })
        },
    );
    let kind = prop::option::of(prop_oneof![prefix, monitor, pool, app]);
    kind.prop_map(|kind| v1::Resource { kind })
}

proptest! {
    #[test]
    fn a_resource_is_the_same_after_the_way_over_the_wire(resource in resource()) {
        let bytes = write_resource(&resource).encode_to_vec();
        let wire = v1::Resource::decode(&bytes[..]).unwrap();
        prop_assert_eq!(read_resource(wire), Ok(resource.clone()));
        let reference = resource.reference();
        prop_assert_eq!(read_reference(&write_reference(&reference)), Ok(reference));
    }

    #[test]
    fn what_is_read_is_written_in_one_form_only(wire in wire()) {
        // And whatever it is, nothing panics.
        match read_resource(wire) {
            Ok(resource) => {
                let written = write_resource(&resource);
                prop_assert_eq!(read_resource(written.clone()), Ok(resource));
            }
            Err(unreadable) => prop_assert!(!unreadable.faults.is_empty()),
        }
    }

    #[test]
    fn no_bytes_make_reading_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        if let Ok(wire) = v1::Resource::decode(&bytes[..]) {
            let _ = read_resource(wire);
        }
        if let Ok(wire) = v1::Update::decode(&bytes[..]) {
            let _ = read_update(wire);
        }
        if let Ok(wire) = v1::ResourceRef::decode(&bytes[..]) {
            let _ = read_reference(&wire);
        }
        if let Ok(wire) = v1::PoolWeights::decode(&bytes[..]) {
            let _ = read_pool_weights(wire);
        }
    }

    #[test]
    fn damaged_bytes_make_no_panic_either(
        resource in resource(),
        at in any::<prop::sample::Index>(),
        byte in any::<u8>(),
    ) {
        let mut bytes = write_resource(&resource).encode_to_vec();
        let at = at.index(bytes.len());
        bytes[at] = byte;
        if let Ok(wire) = v1::Resource::decode(&bytes[..]) {
            let _ = read_resource(wire);
        }
    }

    #[test]
    fn an_update_with_some_bad_resources_keeps_the_good(
        good in prop::collection::vec(resource(), 0..5),
        bad in prop::collection::vec(wire(), 0..5),
    ) {
        let bad: Vec<_> = bad.into_iter().filter(|wire| read_resource(wire.clone()).is_err()).collect();
        let upserts = bad.iter().cloned().chain(good.iter().map(write_resource)).collect();
        let read = read_update(v1::Update { full: true, upserts, ..Default::default() }).unwrap();
        prop_assert_eq!(read.upserts, good);
        let names: BTreeSet<_> = bad.into_iter().map(|wire| read_resource(wire).unwrap_err().reference).collect();
        prop_assert_eq!(read.unreadable.into_keys().collect::<BTreeSet<_>>(), names);
    }
}

use v1::MonitorType as T;

fn of_type(kind: T, change: impl FnOnce(&mut v1::Monitor)) -> Kind {
    a_monitor(|monitor| {
        monitor.r#type = kind.into();
        change(monitor);
    })
}

fn a_request(change: impl FnOnce(&mut v1::Monitor)) -> Kind {
    of_type(T::Https, change)
}

fn a_monitor(change: impl FnOnce(&mut v1::Monitor)) -> Kind {
    let mut monitor = v1::Monitor {
        name: "quick".to_owned(),
        ..Default::default()
    };
    change(&mut monitor);
    Kind::Monitor(monitor)
}

fn a_pool(change: impl FnOnce(&mut v1::Pool)) -> Kind {
    let origin = |name: &str| v1::Origin {
        name: name.to_owned(),
        address: "10.0.2.2:7000".to_owned(),
        ..Default::default()
    };
    let mut pool = v1::Pool {
        name: "game".to_owned(),
        origins: vec![origin("a"), origin("b")],
        ..Default::default()
    };
    change(&mut pool);
    Kind::Pool(pool)
}

fn an_app(change: impl FnOnce(&mut v1::App)) -> Kind {
    let mut app = v1::App {
        name: "web".to_owned(),
        protocol: "tcp/1000-1009".to_owned(),
        edge_ips: vec!["198.51.100.10".to_owned()],
        origin_direct: vec!["tcp://10.0.2.2:7000".to_owned()],
        ..Default::default()
    };
    change(&mut app);
    Kind::App(app)
}

fn dns(name: &str) -> Option<v1::OriginDns> {
    Some(v1::OriginDns {
        name: name.to_owned(),
        ..Default::default()
    })
}

fn a_named_app(change: impl FnOnce(&mut v1::OriginDns, &mut v1::App)) -> Kind {
    an_app(|app| {
        app.origin_direct.clear();
        app.origin_port = "7000".to_owned();
        let mut dns = dns("game.internal").unwrap();
        change(&mut dns, app);
        app.origin_dns = Some(dns);
    })
}

/// Actions as numbers of the wire.
fn access_of(default: i32, rules: &[(i32, String)]) -> v1::Access {
    let rules = rules.iter().map(|(action, source)| v1::AccessRule {
        action: *action,
        source: source.clone(),
    });
    v1::Access {
        default,
        rules: rules.collect(),
    }
}

fn a_guarded_app(default: i32, rules: &[(i32, &str)]) -> Kind {
    let rules: Vec<_> = rules
        .iter()
        .map(|(action, source)| (*action, (*source).to_owned()))
        .collect();
    an_app(|app| app.access = Some(access_of(default, &rules)))
}

fn seconds(seconds: i64) -> Option<prost_types::Duration> {
    Some(prost_types::Duration { seconds, nanos: 0 })
}

fn fields(kind: Kind) -> Vec<String> {
    match read_resource(v1::Resource { kind: Some(kind) }) {
        Ok(_) => Vec::new(),
        Err(unreadable) => unreadable
            .faults
            .into_iter()
            .map(|fault| fault.field)
            .collect(),
    }
}

#[test]
fn the_samples_of_the_next_test_are_right_but_for_the_fault() {
    let guarded = a_guarded_app(0, &[(2, "203.0.113.0/24"), (1, "203.0.113.5"), (2, "::/0")]);
    let apps = [an_app(|_| {}), a_named_app(|_, _| {}), guarded];
    let exchange = |kind| {
        of_type(kind, |m| {
            m.send = b"PING\r\n".into();
            m.expect = b"+PONG".into();
            m.port = 7;
        })
    };
    let monitors = [
        a_monitor(|_| {}),
        exchange(T::Tcp),
        exchange(T::Tls),
        exchange(T::Udp),
        a_request(|m| {
            m.path = "/healthz?full=1".into();
            m.expected_codes = "2xx,301-302".into();
            m.expected_body = "ok".into();
        }),
        of_type(T::Http, |m| m.port = 80),
        of_type(T::Grpc, |m| m.service = "game.v1.Lobby".into()),
        of_type(T::Icmp, |_| {}),
    ];
    for kind in [a_pool(|_| {})].into_iter().chain(monitors).chain(apps) {
        assert_eq!(fields(kind), [""; 0]);
    }
}

#[test]
fn a_field_of_other_monitors_is_refused_with_its_value_and_whose_it_is() {
    let said = |kind| {
        let read = read_resource(v1::Resource { kind: Some(kind) });
        read.unwrap_err().faults[0].problem.to_string()
    };
    assert_eq!(
        said(a_monitor(|m| m.path = "/healthz".into())),
        "\"/healthz\" is for monitors of type http, https, and this one is tcp; right is to leave \
         it out"
    );
    assert_eq!(
        said(a_request(|m| m.send = [&b"\r\n"[..], &[b'x'; 99]].concat())),
        format!(
            "\"\\r\\n{}\"… is for monitors of type tcp, tls, udp, and this one is https; right is to \
             leave it out",
            "x".repeat(38)
        )
    );
    assert_eq!(
        said(of_type(T::Icmp, |m| m.port = 7)),
        "7 is for monitors of type tcp, tls, http, https, grpc, udp, and this one is icmp; right is \
         to leave it out"
    );
}

#[test]
fn every_fault_names_its_field() {
    let prefix = |cidr: &str| {
        Kind::Prefix(v1::Prefix {
            cidr: cidr.to_owned(),
        })
    };
    for (kind, field) in [
        (prefix(""), "cidr"),
        (prefix("198.51.100.0"), "cidr"),
        (prefix("198.51.100.7/24"), "cidr"),
        (prefix("198.51.100.0/33"), "cidr"),
        (prefix("127.0.0.0/8"), "cidr"),
        (a_monitor(|m| m.name = "a b".into()), "name"),
        (a_monitor(|m| m.r#type = 99), "type"),
        (a_monitor(|m| m.interval = seconds(0)), "interval"),
        (a_monitor(|m| m.interval = seconds(3601)), "interval"),
        (a_monitor(|m| m.timeout = seconds(-1)), "timeout"),
        (
            a_monitor(|m| {
                m.timeout = Some(prost_types::Duration {
                    seconds: 1,
                    nanos: -1,
                })
            }),
            "timeout",
        ),
        (a_monitor(|m| m.retries = 11), "retries"),
        (a_monitor(|m| m.consecutive_up = 101), "consecutive_up"),
        (
            a_monitor(|m| m.consecutive_down = u32::MAX),
            "consecutive_down",
        ),
        (a_monitor(|m| m.port = 65_536), "port"),
        (a_monitor(|m| m.send = vec![0; 4097]), "send"),
        (a_monitor(|m| m.expect = vec![0; 4097]), "expect"),
        (a_monitor(|m| m.path = "/healthz".into()), "path"),
        (
            a_monitor(|m| m.expected_codes = "2xx".into()),
            "expected_codes",
        ),
        (
            a_monitor(|m| m.expected_body = "ok".into()),
            "expected_body",
        ),
        (a_monitor(|m| m.service = "game".into()), "service"),
        (a_request(|m| m.send = b"GET".into()), "send"),
        (a_request(|m| m.expect = b"200".into()), "expect"),
        (a_request(|m| m.service = "game".into()), "service"),
        (a_request(|m| m.path = "healthz".into()), "path"),
        (
            a_request(|m| m.expected_codes = "1xx".into()),
            "expected_codes",
        ),
        (
            a_request(|m| m.expected_body = "x".repeat(4097)),
            "expected_body",
        ),
        (of_type(T::Grpc, |m| m.path = "/".into()), "path"),
        (of_type(T::Grpc, |m| m.send = b"x".into()), "send"),
        (of_type(T::Grpc, |m| m.service = "x".repeat(256)), "service"),
        (of_type(T::Icmp, |m| m.port = 7), "port"),
        (of_type(T::Icmp, |m| m.expect = b"x".into()), "expect"),
        (a_pool(|p| p.name = String::new()), "name"),
        (a_pool(|p| p.monitor = "no/name".into()), "monitor"),
        (a_pool(|p| p.policy = 77), "policy"),
        (a_pool(|p| p.minimum_origins = 3), "minimum_origins"),
        (a_pool(|p| p.fallback_pool = "-".into()), "fallback_pool"),
        (a_pool(|p| p.origins.clear()), "origins"),
        (
            a_pool(|p| p.origins = vec![p.origins[0].clone(); 1001]),
            "origins",
        ),
        (
            a_pool(|p| p.origins[1].name = "a".into()),
            "origins[1].name",
        ),
        (
            a_pool(|p| p.origins[1].address = "10.0.2.2".into()),
            "origins[1].address",
        ),
        (
            a_pool(|p| p.origins[0].address = "10.0.2.2:0".into()),
            "origins[0].address",
        ),
        (
            a_pool(|p| p.origins[0].weight = Some(-1.0)),
            "origins[0].weight",
        ),
        (
            a_pool(|p| p.origins[0].weight = Some(f64::NAN)),
            "origins[0].weight",
        ),
        (an_app(|a| a.proxy_protocol = 9), "proxy_protocol"),
        (
            an_app(|a| a.set_proxy_protocol(v1::ProxyProtocol::Simple)),
            "proxy_protocol",
        ),
        (an_app(|a| a.client_ip = 9), "client_ip"),
        (
            an_app(|a| a.accept_proxy_protocol = vec!["203.0.113.7/24".into()]),
            "accept_proxy_protocol[0]",
        ),
        (
            an_app(|a| a.accept_proxy_protocol = vec!["::1".into(), "::1/128".into()]),
            "accept_proxy_protocol[1]",
        ),
        (
            an_app(|a| a.accept_proxy_protocol = vec![String::new(); 1001]),
            "accept_proxy_protocol",
        ),
        (a_guarded_app(3, &[]), "access.default"),
        (
            a_guarded_app(0, &[(0, "203.0.113.5")]),
            "access.rules[0].action",
        ),
        (
            a_guarded_app(0, &[(9, "203.0.113.5")]),
            "access.rules[0].action",
        ),
        (a_guarded_app(0, &[(1, "here")]), "access.rules[0].source"),
        (
            a_guarded_app(0, &[(1, "203.0.113.5/24")]),
            "access.rules[0].source",
        ),
        (
            a_guarded_app(0, &[(1, "203.0.113.5"), (2, "203.0.113.5/32")]),
            "access.rules[1].source",
        ),
        (
            a_guarded_app(0, &[(1, "::ffff:203.0.113.5")]),
            "access.rules[0].source",
        ),
        (a_guarded_app(0, &[(1, "::"); 1001]), "access.rules"),
        (an_app(|a| a.name = "x".repeat(64)), "name"),
        (an_app(|a| a.protocol = "sctp/53".into()), "protocol"),
        // Its origin is one of tcp.
        (an_app(|a| a.protocol = "udp/53".into()), "origin_direct[0]"),
        (an_app(|a| a.protocol = "tcp".into()), "protocol"),
        (an_app(|a| a.protocol = "tcp/0".into()), "protocol"),
        (an_app(|a| a.protocol = "tcp/9-8".into()), "protocol"),
        (an_app(|a| a.edge_ips.clear()), "edge_ips"),
        (
            an_app(|a| a.edge_ips = vec!["198.51.100.1".into(); 1001]),
            "edge_ips",
        ),
        (
            an_app(|a| a.edge_ips.push("198.51.100.10/32".into())),
            "edge_ips[1]",
        ),
        (
            an_app(|a| a.edge_ips[0] = "198.51.100.10/24".into()),
            "edge_ips[0]",
        ),
        (
            an_app(|a| a.edge_ips[0] = "example.org".into()),
            "edge_ips[0]",
        ),
        (an_app(|a| a.origin_direct.clear()), "origin_pool"),
        (an_app(|a| a.origin_pool = "game".into()), "origin_direct"),
        (
            an_app(|a| {
                a.origin_direct.clear();
                a.origin_pool = "a/b".into();
            }),
            "origin_pool",
        ),
        (
            an_app(|a| a.origin_direct[0] = "10.0.2.2:7000".into()),
            "origin_direct[0]",
        ),
        (
            an_app(|a| a.origin_direct[0] = "tcp://game.internal:7000".into()),
            "origin_direct[0]",
        ),
        (
            an_app(|a| a.origin_direct[0] = "tcp://2001:db8::1:7000".into()),
            "origin_direct[0]",
        ),
        (
            an_app(|a| a.origin_direct[0] = "tcp://10.0.2.2:1-9".into()),
            "origin_direct[0]",
        ),
        (
            an_app(|a| a.origin_dns = dns("game.internal")),
            "origin_dns",
        ),
        (
            an_app(|a| {
                a.origin_direct.clear();
                a.origin_pool = "game".into();
                a.origin_dns = dns("game.internal");
            }),
            "origin_dns",
        ),
        (a_named_app(|_, a| a.origin_port.clear()), "origin_port"),
        (a_named_app(|dns, _| dns.r#type = 3), "origin_port"),
        (
            a_named_app(|_, a| a.origin_port = "1-9".into()),
            "origin_port",
        ),
        (a_named_app(|dns, _| dns.r#type = 9), "origin_dns.type"),
        (a_named_app(|dns, _| dns.ttl = seconds(0)), "origin_dns.ttl"),
        (
            a_named_app(|dns, _| dns.ttl = seconds(86_401)),
            "origin_dns.ttl",
        ),
        (a_named_app(|dns, _| dns.name.clear()), "origin_dns.name"),
        (
            a_named_app(|dns, _| dns.name = "10.0.2.2".into()),
            "origin_dns.name",
        ),
        (an_app(|a| a.origin_port = "0".into()), "origin_port"),
        (an_app(|a| a.origin_port = "1-9".into()), "origin_port"),
        (
            an_app(|a| {
                a.timeouts = Some(v1::Timeouts {
                    connect: seconds(61),
                    ..Default::default()
                })
            }),
            "timeouts.connect",
        ),
        (
            an_app(|a| {
                a.timeouts = Some(v1::Timeouts {
                    tls_handshake: seconds(0),
                    ..Default::default()
                })
            }),
            "timeouts.tls_handshake",
        ),
        (an_app(|a| a.tls = 99), "tls"),
        (an_app(|a| a.tls = v1::TlsMode::Full.into()), "certificate"),
        (an_app(|a| a.certificate = "mail".into()), "certificate"),
        (an_app(|a| a.sni = vec!["a b".into()]), "sni[0]"),
        (
            an_app(|a| a.sni = vec!["a.org".into(), "A.org.".into()]),
            "sni[1]",
        ),
        (an_app(|a| ends(a, v1::TlsMode::Flexible, "sni")), "sni"),
        (an_app(|a| ends(a, v1::TlsMode::Full, "ca")), "origin_ca"),
        (an_app(|a| ends(a, v1::TlsMode::Strict, "no")), "origin_ca"),
        (
            an_app(|a| {
                a.timeouts = Some(v1::Timeouts {
                    idle: seconds(0),
                    ..Default::default()
                })
            }),
            "timeouts.idle",
        ),
        (
            an_app(|a| {
                a.timeouts = Some(v1::Timeouts {
                    drain: seconds(24 * 3600 + 1),
                    ..Default::default()
                })
            }),
            "timeouts.drain",
        ),
        (
            an_app(|a| a.disable = Some(v1::Disable { close: 3 })),
            "disable.close",
        ),
    ] {
        assert_eq!(fields(kind.clone()), [field], "{kind:?}");
    }
}

fn ends(app: &mut v1::App, mode: v1::TlsMode, with: &str) {
    app.tls = mode.into();
    app.certificate = "mail".into();
    match with {
        "sni" => app.sni = vec!["a.org".into()],
        "ca" => app.origin_ca = authority(),
        other => app.origin_ca = other.into(),
    }
}

fn authority() -> String {
    let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let key = rcgen::KeyPair::generate().unwrap();
    params.self_signed(&key).unwrap().pem()
}

#[test]
fn tls_is_the_same_after_the_way_over_the_wire() {
    let mut kinds = vec![an_app(|a| {
        a.sni = vec!["*.example.com".into(), "mail.example.com".into()];
    })];
    for mode in [
        v1::TlsMode::Flexible,
        v1::TlsMode::Full,
        v1::TlsMode::Strict,
    ] {
        kinds.push(an_app(|a| ends(a, mode, "")));
    }
    kinds.push(an_app(|a| ends(a, v1::TlsMode::Strict, "ca")));
    for kind in kinds {
        let read = read_resource(v1::Resource { kind: Some(kind) }).unwrap();
        assert_eq!(read_resource(write_resource(&read)), Ok(read));
    }
}

#[test]
fn a_certificate_comes_whole_only_where_it_must() {
    let made = rcgen::generate_simple_self_signed(vec!["mail.example.com".to_owned()]).unwrap();
    let (cert, key) = (made.cert.pem(), made.signing_key.serialize_pem());
    let wire = |cert: &str, key: &str| v1::Resource {
        kind: Some(Kind::Certificate(v1::Certificate {
            name: "mail".to_owned(),
            cert: cert.to_owned(),
            key: key.to_owned(),
        })),
    };
    let read = read_resource(wire(&cert, &key)).unwrap();
    assert_eq!(read_resource(write_resource(&read)), Ok(read.clone()));
    let shown = write_redacted(&read);
    let secret = key.lines().nth(1).unwrap();
    assert!(!format!("{shown:?} {read:?} {:?}", wire(&cert, &key)).contains(secret));
    assert!(
        !shown
            .encode_to_vec()
            .windows(20)
            .any(|part| part == &secret.as_bytes()[..20])
    );
    let Err(refused) = read_resource(shown) else {
        panic!("a redacted key was taken");
    };
    let faults = refused.faults;
    assert_eq!((faults.len(), faults[0].field.as_str()), (1, "key"));
    assert!(faults[0].problem.starts_with("is redacted"), "{faults:?}");
    for (cert, key, field) in [
        ("", key.as_str(), "cert"),
        (&cert, "", "key"),
        (&cert, &cert, "key"),
    ] {
        let faults = read_resource(wire(cert, key)).unwrap_err().faults;
        assert_eq!(
            (faults.len(), faults[0].field.as_str()),
            (1, field),
            "{faults:?}"
        );
    }
}

#[test]
fn all_faults_of_a_resource_are_found_at_once() {
    let many = an_app(|a| {
        a.name = String::new();
        a.protocol = "tcp/x".into();
        a.edge_ips = vec!["bad".into(), "worse".into()];
        a.origin_pool = "also".into();
        a.timeouts = Some(v1::Timeouts {
            connect: seconds(-1),
            idle: seconds(-1),
            udp_idle: seconds(-1),
            drain: seconds(-1),
            ..Default::default()
        });
    });
    assert_eq!(
        fields(many),
        [
            "name",
            "protocol",
            "edge_ips[0]",
            "edge_ips[1]",
            "origin_direct",
            "timeouts.connect",
            "timeouts.idle",
            "timeouts.udp_idle",
            "timeouts.drain"
        ]
    );
}

#[test]
fn a_resource_of_a_kind_from_the_future_is_refused_and_named_nothing() {
    let unreadable = read_resource(v1::Resource { kind: None }).unwrap_err();
    assert_eq!(unreadable.reference, None);
    assert_eq!(unreadable.faults[0].field, "");
}

#[test]
fn what_is_unreadable_is_still_named_where_its_name_can_be_read() {
    let kind = a_pool(|pool| pool.origins.clear());
    let unreadable = read_resource(v1::Resource { kind: Some(kind) }).unwrap_err();
    assert_eq!(unreadable.reference.unwrap().to_string(), "pool \"game\"");
}
