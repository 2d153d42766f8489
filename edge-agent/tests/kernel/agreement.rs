//! Both ways of steering and the route table say the same as a naive reading
//! of the manifest, whatever the apps are.

use std::{
    collections::BTreeSet,
    io::Read,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    num::NonZeroU16,
};

use anyport_edge_agent::kernel::{Desired, Steering};
use anyport_model::{
    disabled::without_disabled,
    ports::PortRange,
    resource::{App, Disable, OriginChoice, Transport},
    route::{RouteTable, conflicts},
    steering::{Claim, claims_of, disjoint_claims},
};
use ipnet::IpNet;
use proptest::{
    prelude::*,
    strategy::ValueTree,
    test_runner::{Config, TestRunner},
};
use socket2::{Domain, Protocol, Socket, Type};

use crate::{
    program::Program,
    support::{Agent, Answer, Edge, Listeners, dial_blocking, on_edge},
};

/// Each takes two changes of the kernel and some hundred questions.
const MANIFESTS: usize = 60;

/// Real ones, for each manifest and way of steering.
const PACKETS: usize = 80;

const PREFIXES: [&str; 2] = ["198.51.100.0/24", "2001:db8:51::/64"];

fn address(v6: bool, host: u8) -> IpAddr {
    if v6 {
        Ipv6Addr::new(0x2001, 0xdb8, 0x51, 0, 0, 0, 0, host.into()).into()
    } else {
        Ipv4Addr::new(198, 51, 100, host).into()
    }
}

/// A small world, so that apps do nest, overlap and touch.
fn any_app() -> impl Strategy<Value = App> {
    let first = prop_oneof![1u16..30, 4090u16..4110, 65_520u16..=65_535, Just(1)];
    let width = prop_oneof![Just(0), 0u16..30, 0u16..5000, Just(u16::MAX)];
    let net = (any::<bool>(), 0u8..10, prop_oneof![Just(24u8), 28u8..=32]);
    let nets = prop::collection::vec(net, 1..4);
    let disable = prop::bool::weighted(0.2);
    (any::<bool>(), nets, first, width, disable).prop_map(|(udp, nets, first, width, disable)| {
        let net = |(v6, host, length): (bool, u8, u8)| {
            let length = if v6 { 96 + length } else { length };
            IpNet::new(address(v6, host), length).unwrap().trunc()
        };
        let ports = PortRange::new(first, first.saturating_add(width)).unwrap();
        let name = "app".parse().unwrap();
        let nets = nets.into_iter().map(net).collect();
        let origin = OriginChoice::Direct(Vec::new());
        let mut app = App::new(name, ports, nets, origin);
        app.transport = if udp { Transport::Udp } else { Transport::Tcp };
        app.disable = disable.then_some(Disable::KeepOpen);
        app
    })
}

/// Those that can be applied together.
fn any_apps() -> impl Strategy<Value = Vec<App>> {
    prop::collection::vec(any_app(), 0..8).prop_map(|apps| {
        let mut kept: Vec<std::sync::Arc<App>> = Vec::new();
        for app in apps {
            kept.push(app.into());
            let all: Vec<_> = kept.iter().collect();
            if !conflicts(&all).is_empty() {
                kept.pop();
            }
        }
        kept.iter().map(|app| (**app).clone()).collect()
    })
}

/// The naive model: the longest network, then the narrowest range.
fn winner(apps: &[App], transport: Transport, to: SocketAddr) -> Option<usize> {
    let claims = apps.iter().enumerate().flat_map(|(index, app)| {
        let nets = app.edge_nets.iter();
        nets.map(move |net| (index, app.transport, *net, app.ports))
    });
    claims
        .filter(|(_, of, net, ports)| {
            *of == transport && net.contains(&to.ip()) && ports.contains(to.port())
        })
        .min_by_key(|(_, _, net, ports)| {
            (
                std::cmp::Reverse(net.prefix_len()),
                ports.last() - ports.first(),
            )
        })
        .map(|(index, ..)| index)
}

fn questions(apps: &[App]) -> Vec<(Transport, SocketAddr)> {
    let ends = apps.iter().flat_map(|app| {
        let (first, last) = (app.ports.first(), app.ports.last());
        [first.saturating_sub(1), first, last, last.saturating_add(1)]
    });
    let mut ports: Vec<_> = ends.filter(|&port| port != 0).chain([1, 4096]).collect();
    ports.sort_unstable();
    ports.dedup();
    let mut all = Vec::new();
    for host in 0..=16 {
        for v6 in [false, true] {
            for &port in &ports {
                let to = SocketAddr::new(address(v6, host), port);
                all.extend([(Transport::Tcp, to), (Transport::Udp, to)]);
            }
        }
    }
    all
}

/// Sockets that take every datagram, and tell by its content where it was sent.
struct Sinks([Socket; 2]);

impl Sinks {
    fn open() -> Self {
        let open = |address: SocketAddr| {
            let domain = Domain::for_address(address);
            let socket = Socket::new(domain, Type::DGRAM, Some(Protocol::UDP)).unwrap();
            if address.is_ipv4() {
                socket.set_ip_transparent_v4(true).unwrap();
            } else {
                socket.set_ip_transparent_v6(true).unwrap();
            }
            socket.bind(&address.into()).unwrap();
            socket.set_nonblocking(true).unwrap();
            socket
        };
        Self(["127.0.0.1:0", "[::1]:0"].map(|address| open(address.parse().unwrap())))
    }

    fn join(&self, wish: &mut Desired) {
        let port = |socket: &Socket| {
            let address = socket.local_addr().unwrap().as_socket().unwrap();
            NonZeroU16::new(address.port()).unwrap()
        };
        let Self([v4, v6]) = self;
        wish.listeners.v4.udp = port(v4);
        wish.listeners.v6.as_mut().unwrap().udp = port(v6);
        wish.sockets.add(v4).unwrap();
        wish.sockets.add(v6).unwrap();
    }

    /// All that have come. The cable delivers while it sends, so whoever sent
    /// before has been heard.
    fn take(&self) -> BTreeSet<SocketAddr> {
        let mut taken = BTreeSet::new();
        let mut datagram = [0; 64];
        for mut socket in &self.0 {
            while let Ok(length) = socket.read(&mut datagram) {
                let text = std::str::from_utf8(&datagram[..length]).unwrap();
                taken.insert(text.parse().unwrap());
            }
        }
        taken
    }
}

type Question = (Transport, SocketAddr);

/// Where of `questions` a packet that comes in by the cable is steered.
async fn steered_of(edge: &Edge, sinks: &Sinks, questions: &[Question]) -> BTreeSet<Question> {
    let client = edge.client();
    let asked = questions.to_vec();
    let asking = move || {
        let udp = ["0.0.0.0:0", "[::]:0"].map(|any| UdpSocket::bind(any).unwrap());
        let mut steered = BTreeSet::new();
        for (transport, to) in asked {
            let [v4, v6] = &udp;
            let socket = if to.is_ipv4() { v4 } else { v6 };
            match transport {
                Transport::Udp => {
                    socket.send_to(to.to_string().as_bytes(), to).unwrap();
                }
                Transport::Tcp => match dial_blocking(to) {
                    Answer::Steered(seen) => {
                        assert_eq!(seen, to);
                        steered.insert((transport, to));
                    }
                    answer => assert_eq!(answer, Answer::Refused, "{to}"),
                },
            }
        }
        steered
    };
    let dialled = tokio::task::spawn_blocking(move || client.run(asking).unwrap());
    let mut steered = dialled.await.unwrap();
    steered.extend(sinks.take().into_iter().map(|to| (Transport::Udp, to)));
    steered
}

#[test]
fn table_and_both_ways_of_steering_say_what_a_naive_reading_says() {
    on_edge(async |edge| {
        let by_table = Listeners::open(Steering::Tproxy);
        let by_program = Listeners::open(Steering::SkLookup);
        let sinks = Sinks::open();
        let agent = Agent::start();
        let mut runner = TestRunner::new(Config::default());
        for _ in 0..MANIFESTS {
            let apps = any_apps().new_tree(&mut runner).unwrap().current();
            let claims: Vec<Claim> = without_disabled(
                disjoint_claims(apps.iter().flat_map(claims_of)),
                apps.iter(),
            );
            let routes = RouteTable::new(apps.iter().cloned().map(Into::into).collect());
            let mut wish = by_program.wants(&PREFIXES, &claims);
            sinks.join(&mut wish);
            agent.apply(wish).await;

            let program = Program::of(&edge);
            let questions = questions(&apps);
            let mut wanted = BTreeSet::new();
            for &(transport, to) in &questions {
                let naive = winner(&apps, transport, to);
                let route = routes.lookup(transport, to).map(|route| route.index);
                assert_eq!(route, naive, "{transport:?} {to} of {apps:#?}");
                let claimed = naive.is_some_and(|index| apps[index].disable.is_none());
                let steers = program.steers(transport, to);
                assert_eq!(steers, claimed, "{transport:?} {to} of {apps:#?}");
                if claimed {
                    wanted.insert((transport, to));
                }
            }

            // Packets take longer than a question to the program.
            let some = prop::sample::subsequence(questions.clone(), PACKETS.min(questions.len()));
            let some = some.new_tree(&mut runner).unwrap().current();
            wanted.retain(|question| some.contains(question));
            let found = steered_of(&edge, &sinks, &some).await;
            assert_eq!(found, wanted, "sk_lookup, of {apps:#?}");
            let mut wish = by_table.wants(&PREFIXES, &claims);
            sinks.join(&mut wish);
            agent.apply(wish).await;
            let found = steered_of(&edge, &sinks, &some).await;
            assert_eq!(found, wanted, "tproxy, of {apps:#?}");
        }
    });
}
