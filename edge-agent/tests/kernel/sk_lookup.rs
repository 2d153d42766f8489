//! What is true of steering by sk_lookup alone: its repairs, what it does when
//! nobody listens, and the way from TPROXY to it and back.

use std::{
    fs,
    net::{SocketAddr, TcpListener, UdpSocket},
    os::unix::fs::MetadataExt,
    path::Path,
    sync::Arc,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    time::{Duration, Instant},
};

use anyport_edge_agent::kernel::{
    Applied, Drift, Dropped, SteeredSockets, Steering, Undone, choose, undo,
};
use anyport_model::{resource::Transport, steering::Claim};
use libbpf_rs::{
    ErrorKind, Link, MapCore, MapFlags, MapHandle, ObjectBuilder,
    query::{ProgInfoIter, ProgInfoQueryOptions},
};
use socket2::{Domain, Protocol, Socket, Type};

use crate::{
    change::{Hammer, PREFIXES, STAYS},
    repair::{V4, V6, assert_both_steered, ours, set_up},
    support::{Agent, Answer, Edge, Listeners, PATIENCE, claim, on_edge, steered},
};

/// Breaks the set-up by `deed`, which is given the directory of the pins, and
/// expects each of `repairs`, nothing else, within a second.
fn broken_by(deed: fn(&Path), repairs: &'static [(Drift, u64)]) {
    on_edge(async |edge| {
        let listeners = Listeners::open(Steering::SkLookup);
        let agent = set_up(&listeners).await;
        assert_both_steered(&edge).await;
        let before = pins(&edge);
        deed(&edge.pins());
        let mut took = Duration::ZERO;
        for &(what, count) in repairs {
            took += agent.repaired(what, count).await;
        }
        agent.assert_prompt(took);
        assert_both_steered(&edge).await;
        assert_eq!(pins(&edge), before);
        assert_eq!(agent.repairs(), repairs.iter().copied().collect());
        // What was repaired also outlives the agent again.
        agent.kill().await;
        assert_both_steered(&edge).await;
    });
}

/// Names of the pins, of which those of programs tell what they steer.
fn pins(edge: &Edge) -> Vec<String> {
    let entries = fs::read_dir(edge.pins()).unwrap();
    let mut names: Vec<_> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

fn program(edge: &Edge) -> u32 {
    let link = Link::open(edge.pins().join("link")).unwrap();
    link.info().unwrap().prog_id
}

#[test]
fn a_link_detached_by_hand() {
    let detach = |pins: &Path| Link::open(pins.join("link")).unwrap().detach().unwrap();
    broken_by(detach, &[(Drift::Link, 1)]);
}

/// A detached link looks like one of a namespace that is gone, whose pins an agent
/// that starts elsewhere on the host removes.
#[test]
fn a_link_detached_by_hand_while_others_start() {
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let others = || {
            on_edge(async |_| {
                while !done.load(Ordering::Relaxed) {
                    let listeners = Listeners::open(Steering::SkLookup);
                    set_up(&listeners).await.kill().await;
                    undo().await.unwrap();
                }
            });
        };
        let starting = [(); 2].map(|()| scope.spawn(others));
        on_edge(async |edge| {
            let listeners = Listeners::open(Steering::SkLookup);
            let agent = set_up(&listeners).await;
            for times in 1..=20 {
                let link = Link::open(edge.pins().join("link")).unwrap();
                link.detach().unwrap();
                agent.repaired(Drift::Link, times).await;
            }
            done.store(true, Ordering::Relaxed);
            assert_both_steered(&edge).await;
            assert_eq!(agent.repairs(), [(Drift::Link, 20)].into());
        });
        done.store(true, Ordering::Relaxed);
        for other in starting {
            other.join().unwrap();
        }
    });
}

/// An agent that starts tries what it can have, and leaves nothing of that; nor
/// does it take from the one that starts beside it.
#[test]
fn one_tries_out_while_another_starts() {
    on_edge(async |edge| {
        let here = edge.here();
        let trying = tokio::task::spawn_blocking(move || {
            here.run(|| {
                for _ in 0..300 {
                    assert_eq!(choose(None).unwrap(), Steering::SkLookup);
                }
            })
        });
        let listeners = Listeners::open(Steering::SkLookup);
        while !trying.is_finished() {
            set_up(&listeners).await.kill().await;
            assert_both_steered(&edge).await;
            undo().await.unwrap();
        }
        trying.await.unwrap().unwrap();
        assert!(!edge.pins().exists());
    });
}

#[test]
fn a_link_unpinned() {
    let remove = |pins: &Path| fs::remove_file(pins.join("link")).unwrap();
    broken_by(remove, &[(Drift::Pin, 1)]);
}

#[test]
fn a_map_unpinned() {
    let remove = |pins: &Path| fs::remove_file(pins.join("sockets")).unwrap();
    broken_by(remove, &[(Drift::Pin, 1)]);
}

#[test]
fn a_map_in_the_place_of_ours() {
    let replace = |pins: &Path| {
        fs::remove_file(pins.join("sockets")).unwrap();
        let mut other = MapHandle::from_pinned_path(pins.join("counters")).unwrap();
        other.pin(pins.join("sockets")).unwrap();
    };
    on_edge(async move |edge| {
        let listeners = Listeners::open(Steering::SkLookup);
        let agent = set_up(&listeners).await;
        replace(&edge.pins());
        // Nothing is lost by it while the agent runs, so there is no hurry: it
        // is found by the check that reads everything.
        agent.repaired(Drift::Pin, 1).await;
        assert_both_steered(&edge).await;
    });
}

#[test]
fn all_pins_removed() {
    let remove = |pins: &Path| fs::remove_dir_all(pins).unwrap();
    broken_by(remove, &[(Drift::Pin, 1)]);
}

#[test]
fn a_listener_taken_from_the_map() {
    let delete = |pins: &Path| {
        let sockets = MapHandle::from_pinned_path(pins.join("sockets")).unwrap();
        sockets.delete(&0u32.to_ne_bytes()).unwrap();
        sockets.delete(&1u32.to_ne_bytes()).unwrap();
    };
    broken_by(delete, &[(Drift::Socket, 2)]);
}

#[test]
fn a_stranger_in_the_map() {
    let replace = |pins: &Path| {
        let stranger = TcpListener::bind("127.0.0.1:0").unwrap();
        let fd = u64::try_from(std::os::fd::AsRawFd::as_raw_fd(&stranger)).unwrap();
        let sockets = MapHandle::from_pinned_path(pins.join("sockets")).unwrap();
        let key = 0u32.to_ne_bytes();
        sockets
            .update(&key, &fd.to_ne_bytes(), MapFlags::ANY)
            .unwrap();
        std::mem::forget(stranger);
    };
    broken_by(replace, &[(Drift::Socket, 1)]);
}

#[test]
fn another_program_on_our_link() {
    let replace = |pins: &Path| {
        let object = concat!(env!("CARGO_MANIFEST_DIR"), "/bpf/steer.bpf.o");
        let other = ObjectBuilder::default()
            .open_file(object)
            .unwrap()
            .load()
            .unwrap();
        let program = other.progs_mut().next().unwrap();
        let mut link = Link::open(pins.join("link")).unwrap();
        link.update_prog(&program).unwrap();
    };
    broken_by(replace, &[(Drift::Program, 1)]);
}

/// The kernel refuses it, so there is nothing to repair.
#[test]
fn claims_cannot_be_changed_in_the_kernel() {
    on_edge(async |edge| {
        let listeners = Listeners::open(Steering::SkLookup);
        let _agent = set_up(&listeners).await;
        let program = program(&edge);
        let options = ProgInfoQueryOptions::default().include_map_ids(true);
        let info = ProgInfoIter::with_query_opts(options).find(|info| info.id == program);
        let mut changed = 0;
        for number in info.unwrap().map_ids {
            let map = MapHandle::from_map_id(number).unwrap();
            let name = map.name().to_string_lossy().into_owned();
            if !["networks", "ports"].contains(&&*name) {
                continue;
            }
            let key = vec![0; map.key_size() as usize];
            let value = vec![0xff; map.value_size() as usize];
            let refused = map.update(&key, &value, MapFlags::ANY).unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::PermissionDenied, "{name}");
            changed += 1;
        }
        assert_eq!(changed, 2);
        assert_both_steered(&edge).await;
    });
}

#[test]
fn a_dead_agents_claims_never_fall_to_another_socket_of_the_host() {
    on_edge(async |edge| {
        // It would take what is not claimed, and what nobody steers.
        let daemon = tokio::net::TcpListener::bind("[::]:80").await.unwrap();
        let listeners = Listeners::open(Steering::SkLookup);
        let agent = set_up(&listeners).await;
        assert_both_steered(&edge).await;
        agent.kill().await;
        listeners.close().await;
        for to in [V4, V6] {
            assert_eq!(edge.dial_what_is_closed(to).await, Answer::Refused, "{to}");
        }
        // The next agent counts what was turned away meanwhile.
        let listeners = Listeners::open(Steering::SkLookup);
        let agent = set_up(&listeners).await;
        assert_both_steered(&edge).await;
        let counted = agent.dropped(Dropped::NoListener, 2).await;
        assert_eq!(counted, 2);
        drop(daemon);
    });
}

#[test]
fn a_start_on_what_is_there_leaves_the_program_alone() {
    on_edge(async |edge| {
        let listeners = Listeners::open(Steering::SkLookup);
        set_up(&listeners).await.kill().await;
        let (before, whole) = (program(&edge), ours(&edge));
        set_up(&listeners).await.kill().await;
        assert_eq!((program(&edge), ours(&edge)), (before, whole));
        let all = pins(&edge);
        // Half done, as after a crash: each is whole after the next start.
        for missing in ["link", "sockets", "counters", all[0].as_str()] {
            fs::remove_file(edge.pins().join(missing)).unwrap();
            let agent = set_up(&listeners).await;
            assert_both_steered(&edge).await;
            assert_eq!(pins(&edge), all, "{missing}");
            assert!(agent.repairs().is_empty(), "a start is no repair");
            agent.kill().await;
        }
    });
}

#[test]
fn each_way_of_steering_takes_the_place_of_the_other_without_a_gap() {
    on_edge(async |edge| {
        let claims = [
            claim("198.51.100.0/24", "*"),
            claim("2001:db8:51::/48", "*"),
        ];
        let by_table = Listeners::open(Steering::Tproxy);
        let by_program = Listeners::open(Steering::SkLookup);
        let agent = Agent::start();
        agent.apply(by_table.wants(&PREFIXES, &claims)).await;
        let hammer = Hammer::start(&edge.client(), &STAYS);
        let mut rounds = 0;
        while rounds < 10 || hammer.has_tried_less_than(20) {
            rounds += 1;
            let applied = agent.apply(by_program.wants(&PREFIXES, &claims)).await;
            assert!(applied.program_attached, "{applied:?}");
            assert_eq!(edge.run("nft list ruleset"), "");
            let applied = agent.apply(by_table.wants(&PREFIXES, &claims)).await;
            assert!(applied.table_created, "{applied:?}");
            assert!(!edge.pins().exists());
        }
        let dialled = hammer.stop().await;
        assert!(dialled >= 20, "only {dialled} connections were tried");
        assert!(agent.repairs().is_empty(), "{:?}", agent.repairs());

        // By another process, as after a restart with another flag.
        agent.kill().await;
        let agent = Agent::start();
        agent.apply(by_program.wants(&PREFIXES, &claims)).await;
        assert_eq!(edge.run("nft list ruleset"), "");
        let wish = by_program.wants(&PREFIXES, &claims);
        assert_eq!(agent.apply(wish).await, Applied::default());
        agent.kill().await;
        let all = Undone {
            routes: 2,
            table: false,
            program: true,
            return_path: 0,
        };
        assert_eq!(undo().await.unwrap(), all);
        assert_eq!(undo().await.unwrap(), Undone::default());
        assert_eq!(edge.dial(STAYS[0]).await, Answer::Silent);
    });
}

/// A listener that shares its port with others of its kind, and counts.
fn member(port: u16, accepted: Arc<AtomicUsize>) -> (Socket, u16) {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP)).unwrap();
    socket.set_reuse_port(true).unwrap();
    socket
        .bind(&SocketAddr::from(([127, 0, 0, 1], port)).into())
        .unwrap();
    socket.listen(1024).unwrap();
    let port = socket.local_addr().unwrap().as_socket().unwrap().port();
    let listener = TcpListener::from(socket.try_clone().unwrap());
    std::thread::spawn(move || {
        while listener.accept().is_ok() {
            accepted.fetch_add(1, Ordering::SeqCst);
        }
    });
    (socket, port)
}

#[test]
fn connections_are_spread_over_all_that_share_the_port_whichever_is_left() {
    const DIALS: usize = 200;
    on_edge(async |edge| {
        let counts: [Arc<AtomicUsize>; 3] = Default::default();
        let mut port = 0;
        let mut group = Vec::new();
        for count in &counts {
            let (socket, bound) = member(port, Arc::clone(count));
            port = bound;
            group.push(socket);
        }
        let mut sockets = SteeredSockets::default();
        group.iter().for_each(|socket| sockets.add(socket).unwrap());
        let agent = Agent::start();
        let listeners = Listeners::open(Steering::SkLookup);
        let mut wish = listeners.wants(&["198.51.100.0/24"], &[claim("198.51.100.0/24", "80")]);
        wish.sockets = sockets;
        agent.apply(wish).await;

        let dial = async || {
            for _ in 0..DIALS {
                let client = edge.client();
                let connecting = move || client.run(|| std::net::TcpStream::connect(V4)).unwrap();
                tokio::task::spawn_blocking(connecting)
                    .await
                    .unwrap()
                    .unwrap();
            }
        };
        let accepted = async |wanted: usize| {
            let all = || {
                counts
                    .iter()
                    .map(|count| count.load(Ordering::SeqCst))
                    .sum::<usize>()
            };
            let start = tokio::time::Instant::now();
            while all() < wanted {
                assert!(start.elapsed() < PATIENCE, "{} of {wanted}", all());
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            counts.clone().map(|count| count.swap(0, Ordering::SeqCst))
        };
        dial().await;
        let shares = accepted(DIALS).await;
        assert!(shares.iter().all(|&share| share > DIALS / 10), "{shares:?}");

        // The first is the one in the map. Another takes its place, and the
        // program goes on with those that are left.
        group.remove(0).shutdown(std::net::Shutdown::Both).unwrap();
        edge.until_steered("198.51.100.9:80").await;
        accepted(1).await;
        dial().await;
        let shares = accepted(DIALS).await;
        assert_eq!(shares[0], 0, "{shares:?}");
        assert!(
            shares[1..].iter().all(|&share| share > DIALS / 10),
            "{shares:?}"
        );
        assert!(agent.repairs().keys().all(|&what| what == Drift::Socket));
    });
}

#[test]
fn pins_of_a_namespace_that_is_gone_are_removed_by_the_next_agent() {
    let (mut left_behind, mut of_the_dead) = (std::path::PathBuf::new(), 0);
    crate::support::on_edge_without_cleaning(async |edge| {
        let listeners = Listeners::open(Steering::SkLookup);
        set_up(&listeners).await.kill().await;
        left_behind = edge.pins();
        // An agent of another test may remove it as soon as the namespace is gone.
        of_the_dead = fs::metadata(&left_behind).unwrap().ino();
    });
    on_edge(async |edge| {
        let start = tokio::time::Instant::now();
        // The kernel ends a namespace some time after its last user.
        loop {
            let listeners = Listeners::open(Steering::SkLookup);
            set_up(&listeners).await.kill().await;
            assert_both_steered(&edge).await;
            let now = fs::metadata(&left_behind).map(|found| found.ino());
            if now.ok() != Some(of_the_dead) {
                break;
            }
            assert!(start.elapsed() < PATIENCE, "{left_behind:?} is still there");
            undo().await.unwrap();
        }
    });
}

#[test]
fn steered_is_what_the_kernel_says_of_the_listener() {
    on_edge(async |edge| {
        let listeners = Listeners::open(Steering::SkLookup);
        let agent = Agent::start();
        // Claims may overlap here: what is claimed twice is claimed.
        let claims = [
            claim("198.51.100.0/24", "1-100"),
            claim("198.51.100.7/32", "50-200"),
        ];
        agent
            .apply(listeners.wants(&["198.51.100.0/24"], &claims))
            .await;
        for to in ["198.51.100.7:1", "198.51.100.7:200", "198.51.100.8:100"] {
            assert_eq!(edge.dial(to).await, steered(to));
        }
        for to in ["198.51.100.7:201", "198.51.100.8:101"] {
            assert_eq!(edge.dial(to).await, Answer::Refused);
        }
    });
}

#[test]
fn udp_has_claims_and_sockets_of_its_own() {
    on_edge(async |edge| {
        let listeners = Listeners::open(Steering::SkLookup);
        let agent = Agent::start();
        let tcp = ["198.51.100.0/24", "2001:db8:51::/48"].map(|net| claim(net, "80"));
        let udp = ["198.51.100.0/24", "2001:db8:51::/48"].map(|net| Claim {
            transport: Transport::Udp,
            ..claim(net, "53-60")
        });
        let claims = [tcp, udp].concat();
        let mut wish = listeners.wants(&PREFIXES, &claims);
        let v4 = UdpSocket::bind("127.0.0.1:0").unwrap();
        let v6 = UdpSocket::bind("[::1]:0").unwrap();
        for socket in [&v4, &v6] {
            socket.set_read_timeout(Some(PATIENCE)).unwrap();
            wish.sockets.add(socket).unwrap();
        }
        let applied = agent.apply(wish).await;
        assert_eq!(applied.sockets_put, 4);
        assert_both_steered(&edge).await;

        let send = |from: &str, to: &str| {
            let (from, to): (SocketAddr, SocketAddr) = (from.parse().unwrap(), to.parse().unwrap());
            let client = edge.client();
            let answer = client.run(move || {
                let client = UdpSocket::bind(from).unwrap();
                let often = Duration::from_millis(200);
                client.set_read_timeout(Some(often)).unwrap();
                client.connect(to).unwrap();
                let start = Instant::now();
                loop {
                    let sent = client.send(to.to_string().as_bytes());
                    match sent.and_then(|_| client.recv(&mut [0; 64])) {
                        // As with listeners, a child may have the socket that
                        // was closed, for a moment.
                        Err(error)
                            if error.kind() == std::io::ErrorKind::WouldBlock
                                && start.elapsed() < PATIENCE => {}
                        answer => return answer,
                    }
                }
            });
            answer.unwrap()
        };
        for (socket, any, to) in [
            (&v4, "0.0.0.0:0", "198.51.100.7:53"),
            (&v6, "[::]:0", "[2001:db8:51::7]:60"),
        ] {
            let received = std::thread::scope(|scope| {
                let client = edge.client();
                scope.spawn(move || {
                    client.run(|| {
                        let socket = UdpSocket::bind(any).unwrap();
                        socket.send_to(to.as_bytes(), to).unwrap();
                    })
                });
                let mut datagram = [0; 64];
                let (length, _) = socket.recv_from(&mut datagram).unwrap();
                String::from_utf8_lossy(&datagram[..length]).into_owned()
            });
            assert_eq!(received, to);
        }
        // What is claimed for TCP alone is answered by ICMP port unreachable.
        for (any, to) in [
            ("0.0.0.0:0", "198.51.100.7:80"),
            ("0.0.0.0:0", "198.51.100.7:61"),
            ("[::]:0", "[2001:db8:51::7]:52"),
        ] {
            let refused = send(any, to).unwrap_err();
            assert_eq!(
                refused.kind(),
                std::io::ErrorKind::ConnectionRefused,
                "{to}"
            );
        }
        // Nobody is there any more.
        drop((v4, v6));
        let refused = send("0.0.0.0:0", "198.51.100.7:53").unwrap_err();
        assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
        agent.dropped(Dropped::NoListener, 1).await;
    });
}
