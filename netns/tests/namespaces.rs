//! Real namespaces on the real kernel: these need root and iproute2, and fail without.
#![allow(clippy::unwrap_used)]

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyport_netns::{Error, Namespace, Topology, counters, link, route, sysctl, topology};

const PATIENCE: Duration = Duration::from_secs(60);

/// One byte there and back, from `client` to `address` in `server`.
fn round_trip(client: &Namespace, server: &Namespace, address: IpAddr) {
    let listener = server
        .run(|| TcpListener::bind((address, 0)))
        .unwrap()
        .unwrap_or_else(|error| panic!("{address} is not usable at once: {error}"));
    let target = listener.local_addr().unwrap();
    let echo = thread::spawn(move || {
        let (mut stream, peer) = listener.accept().unwrap();
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        stream.write_all(&byte).unwrap();
        peer
    });
    // Made inside, used outside: a socket stays where it was born.
    let mut stream = client
        .run(|| TcpStream::connect_timeout(&target, PATIENCE))
        .unwrap()
        .unwrap_or_else(|error| panic!("no connection to {target}: {error}"));
    stream.write_all(b"x").unwrap();
    let mut byte = [0];
    stream.read_exact(&mut byte).unwrap();
    assert_eq!(&byte, b"x");
    assert_eq!(echo.join().unwrap(), stream.local_addr().unwrap());
}

fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// What `ip` says inside a namespace.
fn ip(namespace: &Namespace, arguments: &[&str]) -> String {
    let output = namespace.command("ip").args(arguments).output().unwrap();
    assert!(output.status.success(), "ip {arguments:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// Everything of the host that a slip of this crate would change, without the traffic counters.
fn host_network() -> [String; 5] {
    [
        "-brief link",
        "-brief address",
        "-4 route show table all",
        "-6 route show table all",
        "netns",
    ]
    .map(|what| {
        let output = Command::new("ip").args(what.split(' ')).output().unwrap();
        assert!(output.status.success(), "ip {what}: {output:?}");
        let text = String::from_utf8(output.stdout).unwrap();
        // Routes from router advertisements count down.
        let mut words = text.split(' ');
        let mut lasting = Vec::new();
        while let Some(word) = words.next() {
            if word == "expires" {
                words.next();
            } else {
                lasting.push(word);
            }
        }
        lasting.join(" ")
    })
}

#[test]
fn two_namespaces_talk_over_a_cable_at_once_and_the_host_sees_nothing() {
    let before = host_network();
    {
        let left = Namespace::new("left").unwrap();
        let right = Namespace::new("right").unwrap();
        link::veth((&left, "cable"), (&right, "cable")).unwrap();
        for (namespace, v4, v6) in [
            (&left, "10.7.0.1/24", "fd07::1/64"),
            (&right, "10.7.0.2/24", "fd07::2/64"),
        ] {
            link::add_address(namespace, "cable", v4.parse().unwrap()).unwrap();
            link::add_address(namespace, "cable", v6.parse().unwrap()).unwrap();
        }
        // Of the link-local address, which is the kernel's own, it may still be for a moment.
        let tentative = ["-6", "address", "show", "tentative", "scope", "global"];
        assert_eq!(ip(&right, &tentative), "");
        for address in ["10.7.0.2", "fd07::2", "127.0.0.1", "::1"] {
            let address: IpAddr = address.parse().unwrap();
            let client = if address.is_loopback() { &right } else { &left };
            round_trip(client, &right, address);
        }
        assert_eq!(host_network(), before, "while the namespaces are there");
    }
    assert_eq!(host_network(), before, "after they are gone");
}

#[test]
fn a_link_goes_with_the_last_handle_of_the_namespace_at_its_other_end() {
    let stays = Namespace::new("stays").unwrap();
    let goes = Namespace::new("goes").unwrap();
    let other_handle = goes.clone();
    link::veth((&stays, "cable"), (&goes, "cable")).unwrap();
    drop(goes);
    assert!(ip(&stays, &["link"]).contains("cable"));
    drop(other_handle);
    eventually("the cable is gone", || {
        !ip(&stays, &["link"]).contains("cable")
    });
}

/// Tells the process that is to be killed where to be seen from.
const VICTIM_OF: &str = "ANYPORT_NETNS_TEST_VICTIM_OF";

#[test]
#[ignore = "the process that nothing_is_left_after_kill_9 starts and kills"]
fn victim() {
    let observer = std::env::var(VICTIM_OF).unwrap();
    let observer = Namespace::open("observer", observer.as_ref()).unwrap();
    let doomed = Namespace::new("doomed").unwrap();
    link::veth((&doomed, "cable"), (&observer, "victim")).unwrap();
    let mut child = doomed.command("sleep").arg("600").spawn().unwrap();
    writeln!(std::io::stdout(), "child {}", child.id()).unwrap();
    child.wait().unwrap();
}

#[test]
fn nothing_is_left_after_kill_9() {
    let before = host_network();
    let observer = Namespace::new("observer").unwrap();
    let mut victim = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "victim", "--ignored", "--nocapture"])
        .env(VICTIM_OF, observer.path())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = String::new();
    let mut stdout = victim.stdout.take().unwrap();
    let child = loop {
        let mut byte = [0];
        stdout.read_exact(&mut byte).unwrap();
        said.push(char::from(byte[0]));
        if let Some((_, rest)) = said.split_once("child ")
            && let Some((pid, _)) = rest.split_once('\n')
        {
            break pid.to_owned();
        }
    };
    assert!(ip(&observer, &["link"]).contains("victim"));
    victim.kill().unwrap();
    victim.wait().unwrap();
    eventually("the child is gone", || {
        match std::fs::read_to_string(format!("/proc/{child}/stat")) {
            // A zombie of an init that reaps late has let go of everything else.
            Ok(stat) => stat.contains(") Z "),
            Err(_) => true,
        }
    });
    eventually("the namespace and its cable are gone", || {
        !ip(&observer, &["link"]).contains("victim")
    });
    assert_eq!(host_network(), before);
}

#[test]
fn a_command_runs_inside_and_dies_with_the_thread_that_spawned_it() {
    let namespace = Namespace::new("inside").unwrap();
    let inside = namespace.run(|| std::fs::read_link("/proc/thread-self/ns/net").unwrap());
    let inside = inside.unwrap().into_os_string().into_string().unwrap();
    let output = namespace
        .command("readlink")
        .arg("/proc/self/ns/net")
        .output()
        .unwrap();
    assert_eq!(String::from_utf8(output.stdout).unwrap().trim_end(), inside);
    let by_path = Command::new("nsenter")
        .arg(format!("--net={}", namespace.path().display()))
        .args(["readlink", "/proc/self/ns/net"])
        .output()
        .unwrap();
    assert_eq!(
        String::from_utf8(by_path.stdout).unwrap().trim_end(),
        inside
    );

    let for_thread = namespace.clone();
    let mut child = thread::spawn(move || for_thread.command("sleep").arg("600").spawn().unwrap())
        .join()
        .unwrap();
    let started = Instant::now();
    assert!(!child.wait().unwrap().success());
    assert!(started.elapsed() < PATIENCE);
}

#[tokio::test]
async fn a_tokio_command_runs_inside() {
    let namespace = Namespace::new("inside").unwrap();
    let output = namespace
        .tokio_command("ip")
        .args(["-brief", "link"])
        .output()
        .await
        .unwrap();
    let links = String::from_utf8(output.stdout).unwrap();
    assert_eq!(links.lines().count(), 1, "{links}");
    assert!(links.starts_with("lo "), "{links}");
}

#[test]
fn the_callers_thread_never_leaves_its_own_namespace() {
    let own = || std::fs::read_link("/proc/thread-self/ns/net").unwrap();
    let before = own();
    let namespace = Namespace::new("elsewhere").unwrap();
    let inside = namespace.run(own).unwrap();
    assert_ne!(inside, before);
    assert_eq!(namespace.block_on(|| async { own() }).unwrap(), inside);
    let thread = namespace.spawn_thread(own).unwrap();
    assert_eq!(thread.join().unwrap().unwrap(), inside);
    assert_eq!(own(), before);
}

#[test]
fn a_panic_inside_reaches_the_caller() {
    let namespace = Namespace::new("panics").unwrap();
    let caught = std::panic::catch_unwind(|| namespace.run(|| panic!("told you so")));
    let message = caught.unwrap_err();
    assert_eq!(*message.downcast::<&str>().unwrap(), "told you so");
}

#[test]
fn a_setting_is_of_one_namespace_only() {
    const NAME: &str = "net/ipv4/ip_forward";
    let (one, other) = (
        Namespace::new("one").unwrap(),
        Namespace::new("other").unwrap(),
    );
    let (host, others) = (
        std::fs::read_to_string("/proc/sys/net/ipv4/ip_forward").unwrap(),
        sysctl::get(&other, NAME).unwrap(),
    );
    let flipped = if sysctl::get(&one, NAME).unwrap() == "0" {
        "1"
    } else {
        "0"
    };
    sysctl::set(&one, NAME, flipped).unwrap();
    assert_eq!(sysctl::get(&one, NAME).unwrap(), flipped);
    assert_eq!(sysctl::get(&other, NAME).unwrap(), others);
    let host_after = std::fs::read_to_string("/proc/sys/net/ipv4/ip_forward").unwrap();
    assert_eq!(host_after, host);
}

#[test]
fn an_error_names_the_deed_the_place_and_the_kernels_answer() {
    let namespace = Namespace::new("the place").unwrap();
    let told = |error: Error| {
        let source = std::error::Error::source(&error).unwrap().to_string();
        format!("{error}: {source}")
    };
    let missing = link::add_address(&namespace, "nosuch", "10.0.0.1/8".parse().unwrap());
    let missing = told(missing.unwrap_err());
    for part in ["the place", "10.0.0.1/8", "nosuch", "not found"] {
        assert!(missing.contains(part), "{part:?} is not in {missing:?}");
    }
    let twice = link::bridge(&namespace, "lo").unwrap_err();
    let twice = told(twice);
    for part in ["the place", "bridge", "\"lo\"", "File exists"] {
        assert!(twice.contains(part), "{part:?} is not in {twice:?}");
    }
    let unknown = told(sysctl::set(&namespace, "net/ipv4/nosuch", "1").unwrap_err());
    for part in ["the place", "/proc/sys/net/ipv4/nosuch", "No such file"] {
        assert!(unknown.contains(part), "{part:?} is not in {unknown:?}");
    }
    let far = "10.9.9.9".parse().unwrap();
    let to = "203.0.113.0/24".parse().unwrap();
    let unreachable = route::add(&namespace, to, route::NextHop::Gateway(far));
    let unreachable = told(unreachable.unwrap_err());
    for part in ["the place", "203.0.113.0/24", "10.9.9.9", "unreachable"] {
        assert!(
            unreachable.contains(part),
            "{part:?} is not in {unreachable:?}"
        );
    }
}

#[test]
fn without_privilege_the_error_says_that_root_is_needed() {
    // Capabilities are per thread, so only this one loses them; threads it starts inherit that.
    let error = thread::spawn(|| {
        drop_all_capabilities();
        Namespace::new("unprivileged").unwrap_err()
    })
    .join()
    .unwrap();
    assert!(matches!(error, Error::NotPermitted { .. }), "{error:?}");
    assert!(
        error
            .to_string()
            .contains("needs root (CAP_NET_ADMIN and CAP_SYS_ADMIN)"),
        "{error}"
    );
}

/// `capset(2)` of nothing, for the calling thread.
fn drop_all_capabilities() {
    #[repr(C)]
    struct Header {
        version: u32,
        pid: i32,
    }
    const VERSION_3: u32 = 0x2008_0522;
    let header = Header {
        version: VERSION_3,
        pid: 0,
    };
    let none = [0u32; 6];
    // SAFETY: version 3 reads one header and two triples of u32, which both outlive the call.
    let answer =
        unsafe { nix::libc::syscall(nix::libc::SYS_capset, &raw const header, none.as_ptr()) };
    assert_eq!(answer, 0, "{}", std::io::Error::last_os_error());
}

#[test]
fn tracked_connections_are_counted() {
    let namespace = Namespace::new("tracked").unwrap();
    let Some(idle) = counters::conntrack_entries(&namespace).unwrap() else {
        // A kernel without connection tracking has nothing to count, and says so.
        let path = "/proc/sys/net/netfilter/nf_conntrack_count";
        assert!(!std::path::Path::new(path).exists());
        return;
    };
    assert_eq!(idle, 0);
    let rules = "add table ip t; \
                 add chain ip t c { type filter hook input priority 0; }; \
                 add rule ip t c ct state new accept";
    let nft = namespace.command("nft").arg(rules).status().unwrap();
    assert!(nft.success());
    round_trip(&namespace, &namespace, "127.0.0.1".parse().unwrap());
    assert_eq!(counters::conntrack_entries(&namespace).unwrap(), Some(1));
}

#[test]
fn the_topology_connects_client_edge_and_every_origin() {
    let before = host_network();
    let topology = Topology::new(3).unwrap();
    let (client, edge) = (topology.client(), topology.edge());
    for (server, from, address) in [
        (edge, client, IpAddr::from(topology::EDGE_TO_CLIENT_V4)),
        (edge, client, topology::EDGE_TO_CLIENT_V6.into()),
        (client, edge, topology::CLIENT_V4.into()),
        (client, edge, topology::CLIENT_V6.into()),
    ] {
        round_trip(from, server, address);
    }
    let addresses: Vec<_> = topology
        .origins()
        .iter()
        .map(|origin| origin.v4.octets())
        .collect();
    assert_eq!(addresses, [[10, 0, 2, 2], [10, 0, 2, 3], [10, 0, 2, 4]]);
    for origin in topology.origins() {
        for address in origin.addresses() {
            round_trip(edge, &origin.namespace, address);
        }
        for address in [
            IpAddr::from(topology::EDGE_TO_ORIGINS_V4),
            topology::EDGE_TO_ORIGINS_V6.into(),
        ] {
            round_trip(&origin.namespace, edge, address);
        }
    }
    // What an agent will do: answer for every address of a prefix.
    for (prefix, address) in [
        ("198.51.100.0/24", "198.51.100.77"),
        ("203.0.113.0/24", "203.0.113.1"),
        ("2001:db8:51::/64", "2001:db8:51::abcd"),
    ] {
        ip(edge, &["route", "add", "local", prefix, "dev", "lo"]);
        let target = SocketAddr::new(address.parse().unwrap(), 0);
        let unspecified: IpAddr = if target.is_ipv4() { "0.0.0.0" } else { "::" }
            .parse()
            .unwrap();
        let listener = edge
            .run(|| TcpListener::bind((unspecified, 0)))
            .unwrap()
            .unwrap();
        let port = listener.local_addr().unwrap().port();
        let target = SocketAddr::new(target.ip(), port);
        let stream = client
            .run(|| TcpStream::connect_timeout(&target, PATIENCE))
            .unwrap()
            .unwrap_or_else(|error| panic!("{target}: {error}"));
        let (accepted, peer) = listener.accept().unwrap();
        assert_eq!(accepted.local_addr().unwrap(), target);
        assert_eq!(peer, stream.local_addr().unwrap());
    }
    assert_eq!(host_network(), before);
}

#[test]
fn the_edge_of_the_topology_does_not_forward() {
    let topology = Topology::new(0).unwrap();
    for setting in ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"] {
        assert_eq!(
            sysctl::get(topology.edge(), setting).unwrap(),
            "0",
            "{setting}"
        );
    }
}

#[test]
fn a_topology_of_more_origins_than_addresses_is_refused() {
    let error = Topology::new(254).unwrap_err();
    assert!(matches!(
        error,
        Error::TooManyOrigins {
            asked: 254,
            most: 253
        }
    ));
}

/// The files that a thread sees, as a shell would list them.
fn names(directory: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(directory).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.collect()
}

#[test]
fn what_is_made_in_mounts_of_their_own_is_seen_there_and_gone_with_them() {
    const BPF_FS: &str = "/sys/fs/bpf";
    const MADE: &str = "anyport-netns-test";
    let topology = Topology::new(0).unwrap();
    let edge = topology.edge();
    let made = edge.run(|| std::fs::create_dir(Path::new(BPF_FS).join(MADE)));
    made.unwrap().unwrap();
    let seen = |names: Vec<String>| names.iter().any(|name| name == MADE);
    assert!(
        seen(edge.run(|| names(BPF_FS.as_ref())).unwrap()),
        "by a thread"
    );
    let mut list = edge.command("ls");
    let listed = list.arg(BPF_FS).output().unwrap();
    assert!(
        String::from_utf8_lossy(&listed.stdout).contains(MADE),
        "by a process"
    );
    let from_elsewhere = edge.mounts().unwrap().bpf_fs().unwrap();
    assert!(seen(names(&from_elsewhere)), "from elsewhere");
    assert!(!seen(names(BPF_FS.as_ref())), "on the host");
    let client = topology.client();
    assert!(
        !seen(client.run(|| names(BPF_FS.as_ref())).unwrap()),
        "by others"
    );
    // Another network shares them, and finds what was made.
    let mounts = edge.mounts().unwrap().clone();
    drop(topology);
    let next = Topology::with_mounts(0, &mounts).unwrap();
    assert!(
        seen(next.edge().run(|| names(BPF_FS.as_ref())).unwrap()),
        "by the next"
    );
    let other = Topology::new(0).unwrap();
    assert!(
        !seen(other.edge().run(|| names(BPF_FS.as_ref())).unwrap()),
        "by another"
    );
    // The working directory is the caller's, by its name.
    let here = std::env::current_dir().unwrap();
    let mut pwd = other.edge().command("pwd");
    let printed = String::from_utf8(pwd.output().unwrap().stdout).unwrap();
    assert_eq!(Path::new(printed.trim()), here);
    let there = other.edge().run(std::env::current_dir).unwrap().unwrap();
    assert_eq!(
        (there, std::env::current_dir().unwrap()),
        (here.clone(), here)
    );
}
