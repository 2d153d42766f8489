//! The load generator as a command.

use std::io::{self, Write};
use std::net::{IpAddr, SocketAddr};
use std::num::{NonZeroU64, NonZeroUsize};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use anyport_lab::load::serve::{self, Mode};
use anyport_lab::load::{Control, Load, Report, RunError, Tag, TargetError, TargetSet, Targets};
use anyport_lab::load::{bulk, connect, datagram, idle, pingpong};
use anyport_lab::relay;
use clap::{Args, Parser, Subcommand, ValueEnum};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Puts load on TCP services, and plays the servers behind them, or the simplest of proxies in front
/// of them.
///
/// Exit status: 0 when every operation was done, 1 when one failed or the load could not be run, 2
/// for a wrong command line.
#[derive(Parser)]
#[command(name = "anyport-load", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Open a connection, ask, close, and again
    Connect {
        #[command(flatten)]
        load: LoadArgs,
        /// What to ask on each connection
        #[arg(long, value_enum, default_value_t = RequestKind::Echo)]
        request: RequestKind,
        /// How many bytes an echo has (K, M and G are powers of 1024)
        #[arg(long, value_parser = bytes, default_value = "1")]
        bytes: NonZeroU64,
        /// Close by a reset, which leaves no TIME_WAIT; else the client closes first by a FIN
        #[arg(long)]
        reset: bool,
    },
    /// Round trips on kept connections
    Pingpong {
        #[command(flatten)]
        load: LoadArgs,
        /// How many bytes go there and come back (K, M and G are powers of 1024)
        #[arg(long, value_parser = bytes, default_value = "1")]
        bytes: NonZeroU64,
        /// How long each connection rests after a round trip, such as 100ms
        #[arg(long, value_parser = duration, default_value = "0s")]
        pause: Duration,
    },
    /// Requests and replies over UDP, on flows that are kept; what is not answered within the timeout
    /// is lost
    Udp {
        #[command(flatten)]
        load: LoadArgs,
        /// How many bytes a request has, and a reply: 8 to 65507
        #[arg(long, value_parser = bytes, default_value = "64")]
        bytes: NonZeroU64,
        /// How long each flow rests after a reply, such as 100ms
        #[arg(long, value_parser = duration, default_value = "0s")]
        pause: Duration,
    },
    /// Streams, each on a connection of its own
    Bulk {
        #[command(flatten)]
        load: LoadArgs,
        /// How many bytes each transfer has in each direction (K, M and G are powers of 1024)
        #[arg(long, value_parser = bytes, default_value = "64M")]
        bytes: NonZeroU64,
        /// up: to a sink; down: from a source; both: to an echo and back
        #[arg(long, value_enum, default_value_t = DirectionKind::Down)]
        direction: DirectionKind,
    },
    /// Open connections and hold them
    Idle {
        #[command(flatten)]
        load: LoadArgs,
    },
    /// Be the server, until interrupted
    Serve {
        /// Where to listen: ADDRESS:PORT (0 for any free one) or ADDRESS:FIRST-LAST; may be repeated
        #[arg(long, required = true, value_parser = listen)]
        listen: Vec<Listen>,
        /// What to do with a connection
        #[arg(long, value_enum, default_value_t = ModeKind::Echo)]
        mode: ModeKind,
        /// Say this name, the peer and the local address when asked: an echo is asked by a line
        /// "who", http by any request
        #[arg(long)]
        tag: Option<Tag>,
        /// How many threads, each with its own listeners
        #[arg(long, default_value = "1")]
        threads: NonZeroUsize,
    },
    /// Carry connections to another address and do nothing else: what any proxy costs at the least
    Relay {
        /// LISTEN=TO, both ADDRESS:PORT; IPv6 in brackets
        #[arg(required = true, value_parser = way)]
        ways: Vec<(SocketAddr, SocketAddr)>,
        /// How many threads, each with its own listeners
        #[arg(long, default_value = "1")]
        threads: NonZeroUsize,
    },
}

/// The ports of one address.
#[derive(Clone)]
struct Listen(Vec<SocketAddr>);

#[derive(Args)]
struct LoadArgs {
    /// ADDRESS:PORT, or CIDR:FIRST-LAST or CIDR:* to draw from; IPv6 in brackets
    #[arg(required = true)]
    targets: Vec<TargetSet>,
    /// How many connections at once
    #[arg(long, short, default_value = "1")]
    connections: NonZeroUsize,
    /// How many threads they are spread over
    #[arg(long, short, default_value = "1")]
    threads: NonZeroUsize,
    /// When to stop at the latest, such as 500ms, 10s or 5m; at most 24h
    #[arg(long, short, value_parser = duration, default_value = "10s")]
    duration: Duration,
    /// After how many operations to stop
    #[arg(long, short = 'n')]
    count: Option<NonZeroU64>,
    /// How long one step may take, such as 5s
    #[arg(long, value_parser = duration, default_value = "5s")]
    timeout: Duration,
    /// Connect from this address; may be repeated, then they are taken in turn
    #[arg(long)]
    source: Vec<IpAddr>,
    /// Decides what is drawn
    #[arg(long, default_value = "1")]
    seed: u64,
    /// Report one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum RequestKind {
    Nothing,
    Echo,
    Who,
}

#[derive(Clone, Copy, ValueEnum)]
enum DirectionKind {
    Up,
    Down,
    Both,
}

#[derive(Clone, Copy, ValueEnum)]
enum ModeKind {
    /// Send everything back
    Echo,
    /// Take everything, and say at the end how many bytes that were
    Sink,
    /// Send without end
    Source,
    /// Answer HTTP requests with 200
    Http,
    /// Say nothing, close when the client does
    Connect,
    /// Send datagrams of UDP back
    Udp,
}

fn main() -> anyhow::Result<ExitCode> {
    let command = Cli::parse().command;
    allow_many_connections().context("raising the limit of open files")?;
    match command {
        Command::Connect {
            load,
            request,
            bytes,
            reset,
        } => {
            let request = match request {
                RequestKind::Nothing => connect::Request::Nothing,
                RequestKind::Echo => connect::Request::Echo(bytes),
                RequestKind::Who => connect::Request::Who,
            };
            let close = if reset {
                connect::Close::Reset
            } else {
                connect::Close::Fin
            };
            load.run(|load| {
                connect::run(&connect::Plan {
                    load,
                    request,
                    close,
                })
            })
        }
        Command::Pingpong { load, bytes, pause } => {
            load.run(|load| pingpong::run(&pingpong::Plan { load, bytes, pause }))
        }
        Command::Udp { load, bytes, pause } => {
            load.run(|load| datagram::run(&datagram::Plan { load, bytes, pause }))
        }
        Command::Bulk {
            load,
            bytes,
            direction,
        } => {
            let direction = match direction {
                DirectionKind::Up => bulk::Direction::Up,
                DirectionKind::Down => bulk::Direction::Down,
                DirectionKind::Both => bulk::Direction::Both,
            };
            load.run(|load| {
                bulk::run(&bulk::Plan {
                    load,
                    bytes,
                    direction,
                })
            })
        }
        Command::Idle { load } => load.run(|load| idle::run(&idle::Plan { load })),
        Command::Serve {
            listen,
            mode,
            tag,
            threads,
        } => {
            let listen = listen.into_iter().flat_map(|Listen(addresses)| addresses);
            run_server(listen.collect(), mode, tag, threads)
        }
        Command::Relay { ways, threads } => {
            relay::relay(&ways, threads.get()).context("relaying")?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

impl LoadArgs {
    fn run(self, run: impl FnOnce(Load) -> Result<Report, RunError>) -> anyhow::Result<ExitCode> {
        let control = Control::default();
        let targets = Targets::new(self.targets).context("no target")?;
        let load = Load {
            sources: self.source,
            seed: self.seed,
            connections: self.connections,
            threads: self.threads,
            duration: self.duration,
            count: self.count,
            timeout: self.timeout,
            control: control.clone(),
            ..Load::on(targets)
        };
        let interrupted = runtime()?;
        interrupted.spawn(async move {
            if tokio::signal::ctrl_c().await.is_ok() {
                control.stop();
            }
        });
        let report = run(load)?;
        let text = if self.json {
            serde_json::to_string(&report)?
        } else {
            report.to_string()
        };
        writeln!(io::stdout(), "{text}")?;
        Ok(match report.failed() {
            0 => ExitCode::SUCCESS,
            _ => ExitCode::FAILURE,
        })
    }
}

fn run_server(
    listen: Vec<SocketAddr>,
    mode: ModeKind,
    tag: Option<Tag>,
    threads: NonZeroUsize,
) -> anyhow::Result<ExitCode> {
    let mode = match (mode, tag) {
        (ModeKind::Echo, tag) => Mode::Echo { tag },
        (ModeKind::Http, tag) => Mode::Http { tag },
        (ModeKind::Sink, None) => Mode::Sink,
        (ModeKind::Source, None) => Mode::Source,
        (ModeKind::Connect, None) => Mode::Connect,
        (ModeKind::Udp, tag) => return run_datagram_server(listen, tag, threads),
        (_, Some(tag)) => anyhow::bail!("--tag {tag}: only --mode echo, http and udp can be asked"),
    };
    let server = serve::start(&serve::Plan {
        listen,
        mode,
        threads,
    })?;
    let mut out = io::stdout().lock();
    for address in server.addresses() {
        writeln!(out, "listening on {address}")?;
    }
    out.flush()?;
    runtime()?.block_on(end_asked_for())?;
    writeln!(out, "accepted {} connections", server.accepted())?;
    Ok(ExitCode::SUCCESS)
}

fn run_datagram_server(
    listen: Vec<SocketAddr>,
    tag: Option<Tag>,
    threads: NonZeroUsize,
) -> anyhow::Result<ExitCode> {
    let server = serve::datagram::start(&serve::datagram::Plan {
        listen,
        tag,
        threads,
    })?;
    let mut out = io::stdout().lock();
    for address in server.addresses() {
        writeln!(out, "listening on {address}")?;
    }
    out.flush()?;
    runtime()?.block_on(end_asked_for())?;
    writeln!(out, "answered {} datagrams", server.answered())?;
    Ok(ExitCode::SUCCESS)
}

async fn end_asked_for() -> anyhow::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate()).context("waiting for SIGTERM")?;
    tokio::select! {
        _ = terminate.recv() => Ok(()),
        interrupted = tokio::signal::ctrl_c() => interrupted.context("waiting for SIGINT"),
    }
}

/// A runtime for signals only; the load has its own.
fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .context("building a runtime")
}

fn allow_many_connections() -> nix::Result<()> {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most)
}

fn listen(text: &str) -> Result<Listen, TargetError> {
    // The kernel's choice of a port is for servers only, so a target cannot say it.
    if let Ok(address) = text.parse() {
        return Ok(Listen(vec![address]));
    }
    text.parse::<TargetSet>()?
        .ports_of_one_address()
        .map(Listen)
}

fn way(text: &str) -> Result<(SocketAddr, SocketAddr), String> {
    let ends = text
        .split_once('=')
        .map(|(from, to)| (from.parse(), to.parse()));
    match ends {
        Some((Ok(from), Ok(to))) => Ok((from, to)),
        _ => Err("write ADDRESS:PORT=ADDRESS:PORT: 127.0.0.1:8000=127.0.0.1:7000".to_owned()),
    }
}

fn bytes(text: &str) -> Result<NonZeroU64, String> {
    let (number, unit) = match text.as_bytes().last() {
        Some(b'K') => (&text[..text.len() - 1], 1 << 10),
        Some(b'M') => (&text[..text.len() - 1], 1 << 20),
        Some(b'G') => (&text[..text.len() - 1], 1 << 30),
        _ => (text, 1),
    };
    let amount = number.parse::<u64>().ok();
    amount
        .and_then(|number| number.checked_mul(unit))
        .and_then(NonZeroU64::new)
        .ok_or_else(|| "write a number above zero, with K, M or G or without: 64M".to_owned())
}

fn duration(text: &str) -> Result<Duration, String> {
    let units = [("ms", 1), ("s", 1000), ("m", 60_000), ("h", 3_600_000)];
    units
        .into_iter()
        .find_map(|(unit, milliseconds)| {
            let number: u64 = text.strip_suffix(unit)?.parse().ok()?;
            number.checked_mul(milliseconds).map(Duration::from_millis)
        })
        .ok_or_else(|| "write a whole number and ms, s, m or h: 500ms, 10s".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_read_with_their_units() {
        assert_eq!(
            bytes("64M"),
            Ok(NonZeroU64::new(64 << 20).expect("not zero"))
        );
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(duration("5m"), Ok(Duration::from_secs(300)));
        for text in ["", "0", "K", "-1", "1.5M", "99999999999999999999", "é"] {
            assert!(bytes(text).is_err(), "{text:?}");
        }
        for text in ["", "5", "s", "-1s", "1.5s", "18446744073709551615h", "5é"] {
            assert!(duration(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }
}
