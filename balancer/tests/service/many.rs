//! How many origins one balancer probes, and what that costs. Needs root.

use std::{
    io::ErrorKind,
    net::TcpListener as StdListener,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyport_netns::{Namespace, link};
use anyport_proto::v1::{self, HealthState};
use nix::{
    sys::{
        resource::{UsageWho, getrusage},
        time::TimeValLike,
    },
    time::{ClockId, clock_gettime},
};

use crate::support::*;

const POOLS: usize = 400;
/// Of each.
const ORIGINS: usize = 50;
const EVERY: Duration = Duration::from_secs(5);
const WATCHED: Duration = Duration::from_secs(20);

/// A measurement: `cargo test -p anyport-balancer --test service -- --ignored --nocapture many`.
/// All is in one process; what the listener's thread takes is subtracted.
#[test]
#[ignore = "a minute of a whole processor"]
fn twenty_thousand_origins_are_probed_every_five_seconds() {
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
    run(there.command("ip"), "route add local 10.1.0.0/16 dev lo");
    run(here.command("ip"), "route add 10.1.0.0/16 via 198.51.100.2");
    let listener = there.run(|| StdListener::bind("0.0.0.0:7000").unwrap());
    let acceptor = Acceptor::start(listener.unwrap());
    here.block_on(async || scenario(&acceptor).await).unwrap();
}

fn run(mut command: Command, arguments: &str) {
    let output = command.args(arguments.split(' ')).output().unwrap();
    assert!(output.status.success(), "{output:?}");
}

/// Accepts and closes, on a thread of its own.
struct Acceptor {
    accepted: Arc<AtomicU64>,
    /// Nanoseconds of processor time.
    used: Arc<AtomicU64>,
}

impl Acceptor {
    fn start(listener: StdListener) -> Self {
        let (accepted, used) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let (counted, spent) = (Arc::clone(&accepted), Arc::clone(&used));
        std::thread::spawn(move || {
            loop {
                match listener.accept() {
                    Ok(_) => {
                        counted.fetch_add(1, Ordering::Relaxed);
                        let time = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).unwrap();
                        let nanos = u64::try_from(time.num_nanoseconds()).unwrap();
                        spent.store(nanos, Ordering::Relaxed);
                    }
                    Err(error) if error.kind() == ErrorKind::ConnectionAborted => {}
                    Err(error) => panic!("{error}"),
                }
            }
        });
        Self { accepted, used }
    }

    fn now(&self) -> (u64, Duration) {
        let used = Duration::from_nanos(self.used.load(Ordering::Relaxed));
        (self.accepted.load(Ordering::Relaxed), used)
    }
}

/// Processor time of the process so far.
fn process() -> Duration {
    let usage = getrusage(UsageWho::RUSAGE_SELF).unwrap();
    let micros = usage.user_time().num_microseconds() + usage.system_time().num_microseconds();
    Duration::from_micros(u64::try_from(micros).unwrap())
}

async fn scenario(acceptor: &Acceptor) {
    let config = ConfigService::start();
    let balancer = Running::start(config.address);
    let monitor = v1::Monitor {
        timeout: Some(Duration::from_secs(2).try_into().unwrap()),
        consecutive_up: 1,
        consecutive_down: 1,
        ..monitor(EVERY)
    };
    let pools = (0..POOLS).map(|index| {
        let names: Vec<String> = (0..ORIGINS).map(|origin| format!("o{origin}")).collect();
        let address = |origin: usize| {
            let number = index * ORIGINS + origin;
            let (high, low) = (number / 250, number % 250 + 1);
            format!("10.1.{high}.{low}:7000").parse().unwrap()
        };
        let origins: Vec<_> = names
            .iter()
            .enumerate()
            .map(|(origin, name)| (name.as_str(), address(origin)))
            .collect();
        pool(&format!("p{index}"), "quick", &origins)
    });
    let pools: Vec<_> = pools.collect();
    let first = Instant::now();
    config.say(full(1, resources(monitor, pools)));
    let mut watch = balancer.watch().await;
    watch.next().await;
    let all = |watch: &Watch, health: HealthState| {
        let origins = watch.pools.values().flat_map(|pool| &pool.origins);
        origins.filter(|origin| origin.health() == health).count()
    };
    while all(&watch, HealthState::Up) < POOLS * ORIGINS {
        watch.next().await;
    }
    eprintln!(
        "all of {} are up after {:.1?}",
        POOLS * ORIGINS,
        first.elapsed()
    );

    let (accepted, listener) = acceptor.now();
    let (used, start) = (process(), Instant::now());
    let mut turned = 0;
    let over = tokio::time::sleep(WATCHED);
    tokio::pin!(over);
    loop {
        tokio::select! {
            () = &mut over => break,
            _ = watch.next() => turned += 1,
        }
        assert_eq!(all(&watch, HealthState::Down), 0, "a false verdict");
    }
    let took = start.elapsed();
    let (accepted, listener) = {
        let (now, spent) = acceptor.now();
        (now - accepted, spent - listener)
    };
    let used = process() - used - listener;
    eprintln!(
        "{accepted} probes in {took:.1?}, {:.0} a second; {:.0} % of a processor ({:.0} µs a \
         probe), and {:.0} % for the listener; {turned} updates of weights",
        accepted as f64 / took.as_secs_f64(),
        100.0 * used.as_secs_f64() / took.as_secs_f64(),
        1e6 * used.as_secs_f64() / accepted as f64,
        100.0 * listener.as_secs_f64() / took.as_secs_f64(),
    );
    // Every origin had its turn, and its jitter.
    let least = (POOLS * ORIGINS) as f64 * took.as_secs_f64() / EVERY.mul_f64(1.1).as_secs_f64();
    assert!(accepted as f64 > 0.95 * least, "{accepted} of {least}");
}
