//! How many origins one balancer probes, and what that costs. Needs root.

use std::{
    io::ErrorKind,
    net::{SocketAddr, TcpListener as StdListener},
    os::fd::AsRawFd,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyport_netns::{Namespace, link};
use anyport_proto::v1::{self, HealthState};
use nix::{
    sys::{
        resource::{UsageWho, getrusage},
        socket::{Shutdown, shutdown},
        time::TimeValLike,
    },
    time::{ClockId, clock_gettime},
};
use socket2::{Domain, Socket, Type};

use crate::support::*;

/// How long it may take until all is as it should be.
const AT_MOST: Duration = Duration::from_secs(600);
/// Origins that have their turn on any machine.
const USUAL: usize = 20_000;
const WATCHED: Duration = Duration::from_secs(20);
/// Of those with an even number, and of the others.
const PORTS: [u16; 2] = [7000, 7001];

/// Origins of one balancer.
#[derive(Debug, Clone, Copy)]
struct Fleet {
    pools: usize,
    /// Of each pool.
    origins: usize,
    every: Duration,
}

/// A measurement: `cargo test -p anyport-balancer --test service -- --ignored --nocapture many`.
/// `ANYPORT_FLEET=400x100` has so many pools of so many origins.
#[test]
#[ignore = "two minutes of a whole processor"]
fn twenty_thousand_origins_are_probed_every_five_seconds() {
    let (pools, origins) = match std::env::var("ANYPORT_FLEET") {
        Ok(fleet) => {
            let (pools, origins) = fleet.split_once('x').expect("pools x origins");
            (pools.parse().unwrap(), origins.parse().unwrap())
        }
        Err(_) => (400, 50),
    };
    measure(Fleet {
        pools,
        origins,
        every: Duration::from_secs(5),
    });
}

/// Of a large pool each verdict is a small part.
#[test]
#[ignore = "two minutes of a whole processor"]
fn twenty_pools_of_a_thousand_are_as_quick_as_small_ones() {
    measure(Fleet {
        pools: 20,
        origins: 1000,
        every: Duration::from_secs(5),
    });
}

/// All is in one process; what the threads of the listeners take is subtracted.
fn measure(fleet: Fleet) {
    let here = Namespace::new("balancer").unwrap();
    let there = Namespace::new("origins").unwrap();
    link::veth((&here, "uplink"), (&there, "servers")).unwrap();
    for (namespace, link, address) in [
        (&here, "uplink", "198.51.100.1/24"),
        (&there, "servers", "198.51.100.2/24"),
    ] {
        link::add_address(namespace, link, address.parse().unwrap()).unwrap();
    }
    // Every address of the network is the origins' host.
    run(there.command("ip"), "route add local 10.0.0.0/8 dev lo");
    run(here.command("ip"), "route add 10.0.0.0/8 via 198.51.100.2");
    let servers = Servers {
        host: there.clone(),
        counts: Arc::default(),
    };
    here.block_on(async || scenario(fleet, servers).await)
        .unwrap();
}

fn run(mut command: Command, arguments: &str) {
    let output = command.args(arguments.split(' ')).output().unwrap();
    assert!(output.status.success(), "{output:?}");
}

#[derive(Debug, Default)]
struct Counts {
    accepted: AtomicU64,
    /// Nanoseconds of processor time, of each port's thread.
    used: [AtomicU64; PORTS.len()],
}

/// Where all origins are.
struct Servers {
    host: Namespace,
    counts: Arc<Counts>,
}

/// Accepts and closes, on a thread of its own, until it is stopped.
struct Acceptor {
    listener: StdListener,
    thread: thread::JoinHandle<()>,
}

impl Servers {
    fn listen(&self, which: usize) -> Acceptor {
        let listener = self.host.run(|| listen_on(PORTS[which])).unwrap();
        let (accepts, counts) = (listener.try_clone().unwrap(), Arc::clone(&self.counts));
        let before = counts.used[which].load(Ordering::Relaxed);
        let thread = thread::spawn(move || {
            loop {
                match accepts.accept() {
                    Ok(_) => {
                        counts.accepted.fetch_add(1, Ordering::Relaxed);
                        let time = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).unwrap();
                        let nanos = before + u64::try_from(time.num_nanoseconds()).unwrap();
                        counts.used[which].store(nanos, Ordering::Relaxed);
                    }
                    Err(error) if error.kind() == ErrorKind::ConnectionAborted => {}
                    // It was stopped.
                    Err(error) if error.kind() == ErrorKind::InvalidInput => return,
                    Err(error) => panic!("{error}"),
                }
            }
        });
        Acceptor { listener, thread }
    }

    fn used(&self) -> Duration {
        let used = self.counts.used.iter();
        Duration::from_nanos(used.map(|used| used.load(Ordering::Relaxed)).sum())
    }
}

/// So many may wait, as all origins have one queue here.
fn listen_on(port: u16) -> StdListener {
    let listener = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    let address = SocketAddr::from(([0, 0, 0, 0], port));
    listener.set_reuse_address(true).unwrap();
    listener.bind(&address.into()).unwrap();
    listener.listen(4096).unwrap();
    listener.into()
}

impl Acceptor {
    /// From when it returns on, connections are refused.
    fn stop(self) {
        shutdown(self.listener.as_raw_fd(), Shutdown::Both).unwrap();
        self.thread.join().unwrap();
    }
}

/// From one moment on: time, processor time without that of the listeners, and probes.
struct Meter<'a> {
    servers: &'a Servers,
    start: Instant,
    process: Duration,
    servers_used: Duration,
    accepted: u64,
}

#[derive(Debug)]
struct Spent {
    took: Duration,
    used: Duration,
    accepted: u64,
}

impl<'a> Meter<'a> {
    fn start(servers: &'a Servers) -> Self {
        Self {
            servers,
            start: Instant::now(),
            process: process(),
            servers_used: servers.used(),
            accepted: servers.counts.accepted.load(Ordering::Relaxed),
        }
    }

    fn spent(&self) -> Spent {
        let servers = self.servers.used() - self.servers_used;
        let accepted = self.servers.counts.accepted.load(Ordering::Relaxed);
        Spent {
            took: self.start.elapsed(),
            used: (process() - self.process).saturating_sub(servers),
            accepted: accepted - self.accepted,
        }
    }
}

impl std::fmt::Display for Spent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let part = self.used.as_secs_f64() / self.took.as_secs_f64();
        write!(f, "{:.1?}, {:.0} % of a processor", self.took, 100.0 * part)
    }
}

/// Processor time of the process so far.
fn process() -> Duration {
    let usage = getrusage(UsageWho::RUSAGE_SELF).unwrap();
    let micros = usage.user_time().num_microseconds() + usage.system_time().num_microseconds();
    Duration::from_micros(u64::try_from(micros).unwrap())
}

impl Fleet {
    fn count(self) -> usize {
        self.pools * self.origins
    }

    fn pools(self) -> Vec<v1::Pool> {
        let pools = (0..self.pools).map(|index| {
            let names: Vec<String> = (0..self.origins).map(|n| format!("o{n}")).collect();
            let address = |origin: usize| {
                let number = index * self.origins + origin;
                let (high, middle) = (number / 62_500, number / 250 % 250);
                let address = format!("10.{}.{middle}.{}", high + 1, number % 250 + 1);
                format!("{address}:{}", PORTS[origin % 2]).parse().unwrap()
            };
            let origins: Vec<_> = names
                .iter()
                .enumerate()
                .map(|(origin, name)| (name.as_str(), address(origin)))
                .collect();
            pool(&format!("p{index}"), "quick", &origins)
        });
        pools.collect()
    }
}

/// Updates until the origins are so, which `wanted` tells of all of them.
async fn follow(watch: &mut Watch, wanted: impl Fn(&[&v1::OriginWeight]) -> bool) -> usize {
    let (start, mut updates) = (Instant::now(), 0);
    loop {
        let origins = watch.pools.values().flat_map(|pool| &pool.origins);
        if wanted(&origins.collect::<Vec<_>>()) {
            return updates;
        }
        let left = AT_MOST.saturating_sub(start.elapsed());
        watch.next_within(left).await;
        updates += 1;
    }
}

async fn down_with_reasons(balancer: &Running, watch: &Watch) -> Vec<String> {
    let mut down = Vec::new();
    for (name, pool) in &watch.pools {
        let of_pool: Vec<_> = pool.origins.iter().collect();
        if number(&of_pool, HealthState::Down) > 0 {
            let origins = balancer.health(name).await.origins;
            down.extend(origins.into_iter().map(|origin| origin.reason));
        }
    }
    down.retain(|reason| !reason.is_empty());
    down
}

fn number(origins: &[&v1::OriginWeight], health: HealthState) -> usize {
    let of = origins.iter().filter(|origin| origin.health() == health);
    of.count()
}

async fn scenario(fleet: Fleet, servers: Servers) {
    let (all, half) = (fleet.count(), fleet.pools * (fleet.origins / 2));
    let mut acceptors = [0, 1].map(|which| Some(servers.listen(which)));
    let config = ConfigService::start();
    let balancer = Running::start(config.address);
    let monitor = v1::Monitor {
        timeout: Some(Duration::from_secs(2).try_into().unwrap()),
        consecutive_up: 1,
        consecutive_down: 1,
        ..monitor(fleet.every)
    };
    let meter = Meter::start(&servers);
    config.say(full(1, resources(monitor, fleet.pools())));
    let mut watch = balancer.watch().await;
    follow(&mut watch, |o| number(o, HealthState::Up) == all).await;
    let spent = meter.spent();
    eprintln!("{} pools of {}:", fleet.pools, fleet.origins);
    eprintln!("all are up after {spent}");

    let meter = Meter::start(&servers);
    let mut turned = 0;
    let over = tokio::time::sleep(WATCHED);
    tokio::pin!(over);
    loop {
        tokio::select! {
            () = &mut over => break,
            _ = watch.next_within(AT_MOST) => turned += 1,
        }
        let down = down_with_reasons(&balancer, &watch).await;
        assert!(down.is_empty(), "false verdicts: {down:?}");
    }
    let spent = meter.spent();
    let probes = spent.accepted as f64;
    eprintln!(
        "at rest, {spent}: {:.0} probes a second, of each origin every {:.1} s, {:.0} µs each; \
         {turned} updates of weights",
        probes / spent.took.as_secs_f64(),
        all as f64 * spent.took.as_secs_f64() / probes,
        1e6 * spent.used.as_secs_f64() / probes,
    );
    // Every origin had its turn, and its jitter; who asks for more wants to see.
    let least = all as f64 * spent.took.as_secs_f64() / fleet.every.mul_f64(1.1).as_secs_f64();
    let is_usual = all <= USUAL;
    assert!(!is_usual || probes > 0.95 * least, "{probes} of {least}");

    let meter = Meter::start(&servers);
    acceptors[1].take().unwrap().stop();
    let updates = follow(&mut watch, |o| number(o, HealthState::Down) == half).await;
    eprintln!("half is down after {}; {updates} updates", meter.spent());
    let meter = Meter::start(&servers);
    acceptors[1] = Some(servers.listen(1));
    let updates = follow(&mut watch, |o| {
        o.len() == all && o.iter().all(|origin| origin.weight >= 1.0)
    });
    let updates = updates.await;
    eprintln!(
        "half is back, and eased in, after {}; {updates} updates",
        meter.spent()
    );
}
