//! What a lookup costs, by the number of claims. Figures, not a test:
//!
//! ```text
//! cargo test -p anyport-edge-agent --test kernel cost -- --ignored --nocapture
//! ```

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::Instant,
};

use anyport_edge_agent::kernel::Steering;
use anyport_model::steering::Claim;
use ipnet::IpNet;

use crate::{
    program::Program,
    support::{Agent, Listeners, claim, on_edge},
};

const TIMES: u32 = 200_000;

fn host(n: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(0x0a00_0000 + n * 7)
}

/// Each an address and a range of its own.
fn claims(count: u32) -> Vec<Claim> {
    let of = |n: u32| Claim {
        net: IpNet::from(IpAddr::from(host(n))),
        ..claim(
            "10.0.0.0/32",
            &format!("{}-{}", 1 + n % 60_000, 101 + n % 60_000),
        )
    };
    (0..count).map(of).collect()
}

#[test]
#[ignore = "prints figures, and judges nothing"]
fn cost_of_a_lookup_by_the_number_of_claims() {
    on_edge(async |edge| {
        let listeners = Listeners::open(Steering::SkLookup);
        let agent = Agent::start();
        for count in [1, 1_000, 100_000] {
            let claims = claims(count);
            let start = Instant::now();
            agent.apply(listeners.wants(&[], &claims)).await;
            let applied = start.elapsed();
            let mut one_less = claims.clone();
            one_less.pop();
            let start = Instant::now();
            agent.apply(listeners.wants(&[], &one_less)).await;
            let changed = start.elapsed();
            agent.apply(listeners.wants(&[], &claims)).await;

            let program = Program::of(&edge);
            let middle = count / 2;
            let port = u16::try_from(1 + middle % 60_000 + 50).unwrap();
            let claimed = SocketAddr::from((host(middle), port));
            let closed = SocketAddr::from((host(middle), port + 200));
            let elsewhere = "192.168.7.7:80".parse().unwrap();
            eprintln!(
                "{count:>7} claims: steered {:?}, closed port {:?}, other address {:?}; applied in \
                 {applied:?}, one fewer in {changed:?}",
                program.cost(claimed, TIMES),
                program.cost(closed, TIMES),
                program.cost(elsewhere, TIMES),
            );
        }
    });
}
