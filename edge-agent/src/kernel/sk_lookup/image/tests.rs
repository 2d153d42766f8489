//! The image is read as the program reads it, and compared with the claims.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyport_model::{resource::Transport, steering::Claim};
use proptest::prelude::*;

use super::*;

const TCP: u8 = 6;
const UDP: u8 = 17;

impl Image {
    /// What `bpf/steer.bpf.c` does.
    fn claims(&self, protocol: u8, address: IpAddr, port: u16) -> bool {
        let full = key(protocol, IpNet::from(address));
        let covers = |key: &[u8; Image::KEY_SIZE]| {
            let bits = u32::from_ne_bytes(key[..4].try_into().expect("four bytes")) as usize;
            (0..bits).all(|bit| {
                let of = |key: &[u8; Image::KEY_SIZE]| key[4 + bit / 8] >> (7 - bit % 8) & 1;
                of(key) == of(&full)
            })
        };
        let covering = self.networks.iter().filter(|(key, _)| covers(key));
        let longest =
            covering.max_by_key(|(key, _)| u32::from_ne_bytes(key[..4].try_into().expect("four")));
        let Some((_, root)) = longest else {
            return false;
        };
        let port = u32::from(port);
        let first = self.nodes[*root as usize];
        let second = self.nodes[first[(port >> 12 & 15) as usize] as usize];
        let last = self.nodes[second[(port >> 8 & 15) as usize] as usize];
        last[(port >> 4 & 15) as usize] >> (port & 15) & 1 == 1
    }
}

/// An element does not know its protocol.
const TRANSPORT: Transport = Transport::Tcp;

fn claim(net: &str, ports: &str) -> Claim {
    Claim {
        transport: TRANSPORT,
        net: net.parse().expect("a network"),
        ports: ports.parse().expect("ports"),
    }
}

fn image(claims: &[(u8, Claim)]) -> Image {
    let elements = claims
        .iter()
        .map(|(protocol, claim)| (*protocol, Element::from(claim)));
    Image::of(elements)
}

#[test]
fn nothing_is_claimed_by_nothing() {
    let image = image(&[]);
    assert_eq!(image.networks(), 0);
    assert!(!image.claims(TCP, IpAddr::V4(Ipv4Addr::LOCALHOST), 80));
}

#[test]
fn an_inner_network_has_what_is_claimed_around_it() {
    let image = image(&[
        (TCP, claim("198.51.100.0/24", "50-60")),
        (TCP, claim("198.51.100.10/32", "1-49")),
        (UDP, claim("198.51.100.10/32", "53")),
    ]);
    let inner = "198.51.100.10".parse().expect("an address");
    let outer = "198.51.100.11".parse().expect("an address");
    for (protocol, address, port, claimed) in [
        (TCP, inner, 1, true),
        (TCP, inner, 60, true),
        (TCP, inner, 61, false),
        (TCP, outer, 49, false),
        (TCP, outer, 50, true),
        (UDP, inner, 53, true),
        (UDP, inner, 50, false),
        (UDP, outer, 53, false),
    ] {
        let found = image.claims(protocol, address, port);
        assert_eq!(found, claimed, "{protocol} {address} {port}");
    }
}

#[test]
fn the_same_ports_on_many_networks_are_stored_once() {
    let claims: Vec<_> = (0..=255u8)
        .map(|host| (TCP, claim(&format!("198.51.100.{host}/32"), "25565-25600")))
        .collect();
    let (one, many) = (image(&claims[..1]), image(&claims));
    assert_eq!(one.nodes(), many.nodes());
    assert_eq!(many.networks(), 256);
}

#[test]
fn nodes_grow_with_the_claims_and_not_with_their_nesting() {
    // Twenty thousand ports claimed around ten thousand addresses that each
    // claim one more.
    let around = (0..20_000u16).map(|n| (TCP, claim("10.0.0.0/8", &(2 * n + 1).to_string())));
    let inside = (0..10_000u32).map(|n| {
        let address = Ipv4Addr::from_bits(0x0a00_0000 + n);
        (
            TCP,
            claim(&format!("{address}/32"), &(2 * n + 2).to_string()),
        )
    });
    let claims: Vec<_> = around.chain(inside).collect();
    let image = image(&claims);
    assert!(image.nodes() < 60_000, "{}", image.nodes());
    assert!(image.claims(TCP, IpAddr::from([10, 0, 0, 7]), 16));
    assert!(!image.claims(TCP, IpAddr::from([10, 0, 0, 7]), 18));
    assert!(image.claims(TCP, IpAddr::from([10, 0, 0, 7]), 39_999));
}

/// A small world of both families, so that claims do nest and overlap, with
/// ports at the ends of nodes.
fn any_claim() -> impl Strategy<Value = (u8, Claim)> {
    let length = prop_oneof![Just(0), Just(8), 28u8..=32];
    let first = prop_oneof![1u16..40, 4090u16..4110, 65_500u16..=65_535];
    let width = prop_oneof![Just(0), 0u16..40, 0u16..5000, Just(u16::MAX)];
    let protocol = prop_oneof![Just(TCP), Just(UDP)];
    (protocol, any::<bool>(), 0u8..8, length, first, width).prop_map(
        |(protocol, v6, host, length, first, width)| {
            let last = first.saturating_add(width);
            let net = if v6 {
                let address = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, host.into());
                IpNet::new(address.into(), if length == 0 { 0 } else { 96 + length })
            } else {
                IpNet::new(Ipv4Addr::new(198, 51, 100, host).into(), length)
            };
            let ports = anyport_model::ports::PortRange::new(first, last).expect("a range");
            let net = net.expect("a network").trunc();
            let transport = TRANSPORT;
            (
                protocol,
                Claim {
                    transport,
                    net,
                    ports,
                },
            )
        },
    )
}

proptest! {
    #[test]
    fn exactly_what_is_claimed_is_found(claims in prop::collection::vec(any_claim(), 0..10)) {
        let image = image(&claims);
        let ends = claims.iter().flat_map(|(_, claim)| {
            let (first, last) = (claim.ports.first(), claim.ports.last());
            [first.saturating_sub(1), first, last, last.saturating_add(1)]
        });
        let ports: Vec<_> = ends.chain([0, 1, 16, 255, 256, 4095, 4096, 65_535]).collect();
        for host in 0..9u8 {
            let v4 = IpAddr::from([198, 51, 100, host]);
            let v6 = IpAddr::from(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, host.into()));
            for (protocol, address) in [(TCP, v4), (UDP, v4), (TCP, v6), (UDP, v6)] {
                for &port in &ports {
                    let wanted = claims.iter().any(|(of, claim)| {
                        *of == protocol && claim.net.contains(&address) && claim.ports.contains(port)
                    });
                    let found = image.claims(protocol, address, port);
                    prop_assert_eq!(found, wanted, "{} {} {}", protocol, address, port);
                }
            }
        }
    }
}
