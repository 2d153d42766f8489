//! An edge with a transparent listener, a client that dials it, and what is
//! needed to look at the kernel from outside.

use std::{
    collections::BTreeMap,
    io::{ErrorKind, Read},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream},
    num::NonZeroU16,
    os::unix::fs::MetadataExt,
    path::PathBuf,
    sync::{Arc, Mutex, OnceLock},
    time::Duration,
};

use anyport_edge_agent::kernel::{
    Applied, Desired, Drift, Dropped, FamilyPorts, Kernel, KernelHandle, ListenerPorts, Reconciler,
    SteeredSockets, Steering, undo,
};
use anyport_model::{resource::Transport, steering::Claim};
use anyport_netns::{Mounts, Namespace, Topology};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::{io::AsyncWriteExt, task::JoinHandle, time::Instant};

/// The first pass of an agent that looks at everything is not before it is this old.
const CHECKED: Duration = Duration::from_secs(5);

/// Longest wait for anything that ought to happen at once.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) fn claim(net: &str, ports: &str) -> Claim {
    Claim {
        transport: Transport::Tcp,
        net: net.parse().unwrap(),
        ports: ports.parse().unwrap(),
    }
}

/// A test for each way of steering.
macro_rules! under_both {
    ($($scenario:ident),+ $(,)?) => {
        mod tproxy {
            use anyport_edge_agent::kernel::Steering;
            $(#[test] fn $scenario() { super::$scenario(Steering::Tproxy); })+
        }
        mod sk_lookup {
            use anyport_edge_agent::kernel::Steering;
            $(#[test] fn $scenario() { super::$scenario(Steering::SkLookup); })+
        }
    };
}
pub(crate) use under_both;

/// How the edge meets a connection.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// Steered to the listener, which saw this as the destination.
    Steered(SocketAddr),
    /// RST.
    Refused,
    /// The listener closed with the connection in its queue.
    Reset,
    /// Nothing came back.
    Silent,
}

/// Runs `test` inside the edge's namespace.
pub(crate) fn on_edge<F, Fut>(test: F)
where
    F: FnOnce(Edge) -> Fut + Send,
    Fut: Future<Output = ()>,
{
    on_edge_without_cleaning(async |edge| {
        test(edge).await;
        // Pins outlive the namespace.
        undo().await.unwrap();
    });
}

/// All edges of this process pin in the same place, as those of a host do, which is not the host's.
fn mounts() -> &'static Mounts {
    static MOUNTS: OnceLock<Mounts> = OnceLock::new();
    MOUNTS.get_or_init(|| Mounts::new().unwrap())
}

pub(crate) fn on_edge_without_cleaning<F, Fut>(test: F)
where
    F: FnOnce(Edge) -> Fut + Send,
    Fut: Future<Output = ()>,
{
    let topology = Topology::with_mounts(0, mounts()).unwrap();
    let namespace = topology.edge().clone();
    namespace
        .block_on(|| async {
            let edge = Edge { topology };
            edge.settled();
            test(edge).await;
        })
        .unwrap();
}

pub(crate) struct Edge {
    topology: Topology,
}

impl Edge {
    /// Waits until the kernel has made all of its own IPv6 routes, which it
    /// does some time after an address is added.
    fn settled(&self) {
        let since = Instant::now();
        let count = |command| self.run(command).lines().count();
        while count("ip -6 -o address show") != count("ip -6 route show table local type local") {
            assert!(since.elapsed() < PATIENCE, "IPv6 addresses never settled");
        }
    }

    /// Dials from the client, at the far end of the cable.
    pub(crate) async fn dial(&self, to: &str) -> Answer {
        dial(self.topology.client(), to).await
    }

    /// As [`dial`](Self::dial), where this process has closed its listener just now. A child of
    /// another test has all descriptors for a moment, between its fork and its exec, and resets
    /// who came to the listener meanwhile.
    pub(crate) async fn dial_what_is_closed(&self, to: &str) -> Answer {
        let start = Instant::now();
        loop {
            match self.dial(to).await {
                Answer::Reset if start.elapsed() < PATIENCE => {}
                answer => return answer,
            }
        }
    }

    /// Waits until a connection is taken.
    pub(crate) async fn until_steered(&self, to: &str) {
        let start = Instant::now();
        let to: SocketAddr = to.parse().unwrap();
        loop {
            let client = self.client();
            let connecting = move || client.run(|| TcpStream::connect(to)).unwrap();
            match tokio::task::spawn_blocking(connecting).await.unwrap() {
                Ok(_) => return,
                Err(error) => assert!(start.elapsed() < PATIENCE, "{to}: {error}"),
            }
        }
    }

    /// Dials from the edge host itself.
    pub(crate) async fn dial_from_itself(&self, to: &str) -> Answer {
        dial(self.topology.edge(), to).await
    }

    /// Dials from the edge host itself, and gives the source that was seen.
    pub(crate) async fn source_of_itself(&self, to: &str) -> IpAddr {
        let (edge, to) = (self.topology.edge().clone(), to.parse().unwrap());
        let asking = move || edge.run(|| ask(to)).unwrap().unwrap().1.ip();
        tokio::task::spawn_blocking(asking).await.unwrap()
    }

    /// Where the pins of the edge's namespace are.
    pub(crate) fn pins(&self) -> PathBuf {
        let namespace = std::fs::metadata(self.topology.edge().path()).unwrap();
        let bpf_fs = mounts().bpf_fs().unwrap();
        bpf_fs.join("anyport").join(namespace.ino().to_string())
    }

    pub(crate) fn here(&self) -> Namespace {
        self.topology.edge().clone()
    }

    pub(crate) fn client(&self) -> Namespace {
        self.topology.client().clone()
    }

    /// Runs a program on the edge and gives its output; panics where it fails.
    pub(crate) fn run(&self, command: &str) -> String {
        let mut words = command.split_whitespace();
        let program = words.next().unwrap();
        let mut process = self.topology.edge().command(program);
        let output = process.args(words).output().expect(program);
        let text = String::from_utf8(output.stdout).unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{command}: {errors}");
        text
    }

    /// Everything in the kernel that can be changed and is not ours.
    pub(crate) fn foreign_state(&self) -> ForeignState {
        let mut state = String::new();
        for table in self.run("nft list tables").lines() {
            if !["table inet anyport", "table inet anyport_return"].contains(&table) {
                state += &self.run(&format!("nft -a list {table}"));
            }
        }
        for family in ["-4", "-6"] {
            let routes = self.run(&format!("ip -d {family} route show table all"));
            let foreign = routes.lines().filter(|line| !line.contains("proto 65"));
            foreign.for_each(|line| state += &format!("{line}\n"));
            let rules = self.run(&format!("ip -d {family} rule"));
            let foreign = rules.lines().filter(|line| !line.contains("proto 65"));
            foreign.for_each(|line| state += &format!("{line}\n"));
        }
        state += &self.run("sysctl -a --pattern net.ipv[46].conf");
        ForeignState(state)
    }
}

/// Compares whole, and shows no more than the lines that differ.
#[derive(PartialEq, Eq)]
pub(crate) struct ForeignState(String);

impl ForeignState {
    pub(crate) fn assert_same(&self, other: &Self) {
        let lacks = |a: &str, b: &str| {
            let lines = a.lines().filter(|line| !b.lines().any(|l| l == *line));
            lines.map(str::to_owned).collect::<Vec<_>>()
        };
        let (gone, new) = (lacks(&self.0, &other.0), lacks(&other.0, &self.0));
        assert!(self == other, "gone: {gone:#?}, new: {new:#?}");
    }
}

async fn dial(from: &Namespace, to: &str) -> Answer {
    let from = from.clone();
    let to: SocketAddr = to.parse().unwrap();
    tokio::task::spawn_blocking(move || from.run(|| dial_blocking(to)).unwrap())
        .await
        .unwrap()
}

pub(crate) fn dial_blocking(to: SocketAddr) -> Answer {
    match ask(to) {
        Ok((seen, _)) => Answer::Steered(seen),
        Err(answer) => answer,
    }
}

/// The destination and the source that the listener saw.
fn ask(to: SocketAddr) -> Result<(SocketAddr, SocketAddr), Answer> {
    let mut stream = match TcpStream::connect_timeout(&to, Duration::from_secs(10)) {
        Ok(stream) => stream,
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => return Err(Answer::Refused),
        Err(error) if error.kind() == ErrorKind::TimedOut => return Err(Answer::Silent),
        Err(error) => panic!("dialling {to}: {error}"),
    };
    let mut seen = String::new();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    match stream.read_to_string(&mut seen) {
        Ok(_) => {}
        Err(error) if error.kind() == ErrorKind::ConnectionReset => return Err(Answer::Reset),
        Err(error) => panic!("asking {to}: {error}"),
    }
    let (to, from) = seen.split_once(' ').expect("the listener's answer");
    Ok((to.parse().unwrap(), from.parse().unwrap()))
}

pub(crate) fn steered(to: &str) -> Answer {
    Answer::Steered(to.parse().unwrap())
}

/// Listeners on both loopback addresses, which tell each client where it thinks
/// it is connected to. For TPROXY they are transparent, for sk_lookup not.
pub(crate) struct Listeners {
    steering: Steering,
    sockets: SteeredSockets,
    pub(crate) v4: NonZeroU16,
    pub(crate) v6: NonZeroU16,
    tasks: [JoinHandle<()>; 2],
}

impl Listeners {
    pub(crate) fn open(steering: Steering) -> Self {
        let mut sockets = SteeredSockets::default();
        let (v4, first) = listen(Ipv4Addr::LOCALHOST.into(), steering, &mut sockets);
        let (v6, second) = listen(Ipv6Addr::LOCALHOST.into(), steering, &mut sockets);
        Self {
            steering,
            sockets,
            v4,
            v6,
            tasks: [first, second],
        }
    }

    /// Returns once the sockets are closed.
    pub(crate) async fn close(self) {
        for task in self.tasks {
            task.abort();
            assert!(task.await.unwrap_err().is_cancelled());
        }
    }

    pub(crate) fn wants(&self, prefixes: &[&str], claims: &[Claim]) -> Desired {
        Desired {
            steering: self.steering,
            sockets: self.sockets.clone(),
            prefixes: prefixes.iter().map(|p| p.parse().unwrap()).collect(),
            claims: claims.to_vec(),
            return_path: false,
            listeners: ListenerPorts {
                v4: for_both_transports(self.v4),
                v6: Some(for_both_transports(self.v6)),
            },
        }
    }
}

/// Nothing listens for UDP here; the rules have to name some port.
fn for_both_transports(port: NonZeroU16) -> FamilyPorts {
    FamilyPorts {
        tcp: port,
        udp: port,
    }
}

fn listen(
    on: IpAddr,
    steering: Steering,
    sockets: &mut SteeredSockets,
) -> (NonZeroU16, JoinHandle<()>) {
    let socket = Socket::new(
        Domain::for_address((on, 0).into()),
        Type::STREAM,
        Some(Protocol::TCP),
    )
    .unwrap();
    match (steering, on) {
        (Steering::SkLookup, _) => {}
        (Steering::Tproxy, IpAddr::V4(_)) => socket.set_ip_transparent_v4(true).unwrap(),
        (Steering::Tproxy, IpAddr::V6(_)) => socket.set_ip_transparent_v6(true).unwrap(),
    }
    socket.bind(&SocketAddr::from((on, 0)).into()).unwrap();
    socket.listen(4096).unwrap();
    sockets.add(&socket).unwrap();
    socket.set_nonblocking(true).unwrap();
    let listener = tokio::net::TcpListener::from_std(socket.into()).unwrap();
    let port = listener.local_addr().unwrap().port();
    let task = tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let (to, from) = (stream.local_addr().unwrap(), stream.peer_addr().unwrap());
            let seen = format!("{to} {from}");
            // The client may have gone; that is its business.
            let _ = stream.write_all(seen.as_bytes()).await;
        }
    });
    (NonZeroU16::new(port).unwrap(), task)
}

/// The code under test, running, and what it says it repaired.
pub(crate) struct Agent {
    started: Instant,
    pub(crate) handle: KernelHandle,
    repairs: Arc<Mutex<BTreeMap<Drift, u64>>>,
    drops: Arc<Mutex<BTreeMap<Dropped, u64>>>,
    task: JoinHandle<()>,
}

impl Agent {
    pub(crate) fn start() -> Self {
        Self::start_while(|| false)
    }

    /// With connections that need the return path for as long as `needed` says so.
    pub(crate) fn start_while(needed: impl Fn() -> bool + Send + 'static) -> Self {
        let started = Instant::now();
        let repairs = Arc::new(Mutex::new(BTreeMap::new()));
        let counter = Arc::clone(&repairs);
        let (handle, reconciler) = Reconciler::open(move |what, count| {
            *counter.lock().unwrap().entry(what).or_default() += count;
        })
        .unwrap();
        let drops = Arc::new(Mutex::new(BTreeMap::new()));
        let dropped = Arc::clone(&drops);
        let reconciler = reconciler
            .keep_return_path_while(needed)
            .on_drop(move |reason, count| {
                dropped.lock().unwrap().insert(reason, count);
            });
        let task = tokio::spawn(async move { reconciler.run().await.unwrap() });
        Self {
            started,
            handle,
            repairs,
            drops,
            task,
        }
    }

    pub(crate) async fn apply(&self, desired: Desired) -> Applied {
        self.handle.apply(desired).await.unwrap()
    }

    /// Waits until the kernel is as wanted.
    pub(crate) async fn without_fault(&self) {
        let mut standing = self.handle.standing();
        let healed = standing.wait_for(|standing| standing.fault.is_none());
        tokio::time::timeout(PATIENCE, healed)
            .await
            .unwrap()
            .unwrap();
    }

    pub(crate) fn repairs(&self) -> BTreeMap<Drift, u64> {
        self.repairs.lock().unwrap().clone()
    }

    /// Waits until as many packets were dropped, and returns how many.
    pub(crate) async fn dropped(&self, reason: Dropped, count: u64) -> u64 {
        let start = Instant::now();
        loop {
            let dropped = self.drops.lock().unwrap().get(&reason).copied();
            match dropped {
                Some(dropped) if dropped >= count => return dropped,
                _ => assert!(start.elapsed() < PATIENCE, "{dropped:?} of {count}"),
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// What took so long to be repaired until now was repaired within a second; or at least not by the
    /// pass that looks at everything, on a machine that stood still meanwhile.
    pub(crate) fn assert_prompt(&self, took: Duration) {
        let prompt = took < Duration::from_secs(1) || self.started.elapsed() < CHECKED;
        assert!(prompt, "repaired after {took:?}");
    }

    /// As a crash does: no farewell.
    pub(crate) async fn kill(self) {
        self.task.abort();
        assert!(self.task.await.unwrap_err().is_cancelled());
    }

    /// Waits until as many repairs of `what` were counted, and returns how
    /// long it took.
    pub(crate) async fn repaired(&self, what: Drift, count: u64) -> Duration {
        let start = Instant::now();
        while self.repairs().get(&what).copied().unwrap_or(0) < count {
            assert!(start.elapsed() < PATIENCE, "never repaired: {what:?}");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        start.elapsed()
    }
}
