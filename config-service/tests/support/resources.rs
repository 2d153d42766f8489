//! Resources, in few words.

use anyport_proto::v1::{self, resource::Kind};

fn resource(kind: Kind) -> v1::Resource {
    v1::Resource { kind: Some(kind) }
}

pub fn prefix(cidr: &str) -> v1::Resource {
    resource(Kind::Prefix(v1::Prefix {
        cidr: cidr.to_owned(),
    }))
}

pub fn monitor(name: &str) -> v1::Resource {
    resource(Kind::Monitor(v1::Monitor {
        name: name.to_owned(),
        ..Default::default()
    }))
}

pub fn pool(name: &str, monitor: &str) -> v1::Resource {
    resource(Kind::Pool(v1::Pool {
        name: name.to_owned(),
        monitor: monitor.to_owned(),
        origins: vec![v1::Origin {
            name: "a".to_owned(),
            address: "10.0.2.2:7000".to_owned(),
            ..Default::default()
        }],
        ..Default::default()
    }))
}

/// On one port of 198.51.100.0/24, straight to an origin.
pub fn app(name: &str, port: u16) -> v1::Resource {
    app_on(name, "198.51.100.0/24", port)
}

pub fn app_on(name: &str, net: &str, port: u16) -> v1::Resource {
    resource(Kind::App(v1::App {
        name: name.to_owned(),
        protocol: format!("tcp/{port}"),
        edge_ips: vec![net.to_owned()],
        origin_direct: vec!["tcp://10.0.2.2:7000".to_owned()],
        ..Default::default()
    }))
}

/// One app that goes to a pool.
pub fn app_to(name: &str, port: u16, pool: &str) -> v1::Resource {
    resource(Kind::App(v1::App {
        name: name.to_owned(),
        protocol: format!("tcp/{port}"),
        edge_ips: vec!["198.51.100.0/24".to_owned()],
        origin_pool: pool.to_owned(),
        ..Default::default()
    }))
}

/// A prefix and `count` apps in it.
pub fn many(count: u16) -> Vec<v1::Resource> {
    let apps = (0..count).map(|n| app(&format!("app-{n}"), n + 1));
    [prefix("198.51.100.0/24")]
        .into_iter()
        .chain(apps)
        .collect()
}

pub fn reference(kind: v1::Kind, name: &str) -> v1::ResourceRef {
    v1::ResourceRef {
        kind: kind.into(),
        name: name.to_owned(),
    }
}

/// With its private key.
pub fn certificate(name: &str) -> v1::Resource {
    let made = rcgen::generate_simple_self_signed(vec![format!("{name}.example")]).unwrap();
    resource(Kind::Certificate(v1::Certificate {
        name: name.to_owned(),
        cert: made.cert.pem(),
        key: made.signing_key.serialize_pem(),
    }))
}
