//! What the fleet is given: apps, each on a port and an address of its own, each to a place of its
//! own.

use anyport_proto::v1::{self, resource::Kind};

/// Apps of one address: few enough that 203.0.113.0/24 holds a hundred thousand.
const PORTS: usize = 500;

/// The prefix that all are in.
pub fn prefix() -> v1::Resource {
    let prefix = v1::Prefix {
        cidr: "203.0.113.0/24".to_owned(),
    };
    v1::Resource {
        kind: Some(Kind::Prefix(prefix)),
    }
}

/// The app of a number, which goes to `port` of its origin.
pub fn app(number: usize, port: u16) -> v1::Resource {
    let (address, edge_port) = (number / PORTS, number % PORTS + 1000);
    let app = v1::App {
        name: format!("app-{number:06}"),
        protocol: format!("tcp/{edge_port}"),
        edge_ips: vec![format!("203.0.113.{address}")],
        origin_direct: vec![format!(
            "tcp://10.{}.{}.{}:{port}",
            number >> 16,
            (number >> 8) & 0xff,
            number & 0xff
        )],
        ..Default::default()
    };
    v1::Resource {
        kind: Some(Kind::App(app)),
    }
}

/// The prefix and the first `count` apps, at most 127,500.
pub fn apps(count: usize) -> Vec<v1::Resource> {
    let apps = (0..count).map(|number| app(number, 7000));
    [prefix()].into_iter().chain(apps).collect()
}
