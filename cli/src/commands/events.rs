//! `anyport events`: what happened to connections, on all edges.

use std::time::Duration;

use anyport_proto::{
    event_log::{EventLine, event_word},
    v1,
};
use tokio::sync::mpsc;
use tonic::Status;

use super::{
    Context, connections,
    edges::{self, Edge, Found, warn_of_missing},
};
use crate::{
    console::{Console, Mood, warn},
    failure::Failure,
};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Only of this app
    #[arg(long, value_name = "NAME", default_value = "")]
    app: String,
    /// Go on with what happens from now on
    #[arg(short, long)]
    follow: bool,
    #[command(flatten)]
    edges: edges::EdgeArgs,
    /// How to write it
    #[arg(
        short,
        long,
        value_name = "FORMAT",
        value_enum,
        default_value = "table"
    )]
    output: LineFormat,
}

/// How things are written that come one by one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum LineFormat {
    /// For people
    Table,
    /// For programs: one object a line
    Json,
}

const WHAT: &str = "read events";
/// Before an edge that was followed is tried again.
const PAUSE: Duration = Duration::from_secs(1);
/// An edge has this long to begin answering.
const PATIENCE: Duration = Duration::from_secs(10);

/// What an edge says, or what is said of it.
enum Said {
    Event(Box<v1::Event>),
    Lost(String, u64),
    Missing(String, v1::MissingAgent),
    /// It is gone, and tried again.
    Gone(String, Status),
    Failed(Failure),
}

pub async fn run(args: Args, mut context: Context) -> Result<(), Failure> {
    let Found { edges, mut failed } = args.edges.find(&context).await?;
    if let Some(failure) = failed.as_ref().filter(|_| args.follow) {
        warn(failure);
    }
    let (sender, mut receiver) = mpsc::channel(64);
    for edge in edges {
        let request = v1::StreamEventsRequest {
            application: args.app.clone(),
            follow: args.follow,
        };
        tokio::spawn(read(edge, request, sender.clone()));
    }
    drop(sender);
    let mut printer = Printer::new(args.output);
    let mut past = Vec::new();
    while let Some(said) = receiver.recv().await {
        match said {
            Said::Event(event) if args.follow => printer.print(&mut context.console, &event)?,
            Said::Event(event) => past.push(event),
            Said::Lost(edge, count) => {
                warn(format_args!(
                    "edge {edge}: {count} events came too fast and are missing"
                ));
            }
            Said::Missing(edge, agent) => warn_of_missing(&edge, "events", &agent),
            Said::Gone(edge, status) => {
                let why = status.message();
                warn(format_args!("edge {edge} is gone, and tried again: {why}"));
            }
            Said::Failed(failure) => {
                // The others may go on for ever.
                if args.follow {
                    warn(&failure);
                }
                failed = Some(failure);
            }
        }
    }
    past.sort_by_key(|event| event.timestamp.map(|time| (time.seconds, time.nanos)));
    printer.measure(&past);
    for event in past {
        printer.print(&mut context.console, &event)?;
    }
    failed.map_or(Ok(()), Err)
}

/// Reads one edge to the end of its stream, or, following it, again and again.
async fn read(edge: Edge, request: v1::StreamEventsRequest, to: mpsc::Sender<Said>) {
    let mut reader = Reader {
        edge,
        to,
        answered: false,
        last: None,
    };
    loop {
        let ended = reader.read(&request).await;
        let said = match ended {
            Ok(()) if !request.follow => return,
            Ok(()) => Said::Gone(
                reader.edge.name.clone(),
                Status::unavailable("it ended the stream"),
            ),
            Err(status) if request.follow && reader.answered => {
                Said::Gone(reader.edge.name.clone(), status)
            }
            Err(status) => Said::Failed(reader.edge.failure(WHAT, &status)),
        };
        let over = matches!(said, Said::Failed(_));
        if reader.to.send(said).await.is_err() || over {
            return;
        }
        reader.retried().await;
    }
}

struct Reader {
    edge: Edge,
    to: mpsc::Sender<Said>,
    answered: bool,
    /// Of the last event, which the next stream may begin before.
    last: Option<(i64, i32)>,
}

impl Reader {
    async fn read(&mut self, request: &v1::StreamEventsRequest) -> Result<(), Status> {
        let mut client = self.edge.client();
        let stream = tokio::time::timeout(PATIENCE, client.stream_events(request.clone()));
        let late = |_| Status::deadline_exceeded("it did not answer in time");
        let mut stream = stream.await.map_err(late)??.into_inner();
        self.answered = true;
        let resumed_after = self.last;
        while let Some(message) = stream.message().await? {
            if message.lost > 0 {
                let lost = Said::Lost(self.edge.name.clone(), message.lost);
                let _ = self.to.send(lost).await;
            }
            if let Some(agent) = message.missing {
                let missing = Said::Missing(self.edge.name.clone(), agent);
                let _ = self.to.send(missing).await;
            }
            let Some(event) = message.event else {
                continue;
            };
            let at = event.timestamp.map(|time| (time.seconds, time.nanos));
            if resumed_after.is_some() && at <= resumed_after {
                continue;
            }
            self.last = at.max(self.last);
            if self.to.send(Said::Event(Box::new(event))).await.is_err() {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Waits until the edge answers again.
    async fn retried(&self) {
        loop {
            tokio::time::sleep(PAUSE).await;
            let mut client = self.edge.client();
            let asked = client.get_status(v1::GetStatusRequest {}).await;
            if asked.is_ok() || self.to.is_closed() {
                return;
            }
        }
    }
}

/// Writes events as they come, in columns that widen with what is in them.
struct Printer {
    format: LineFormat,
    widths: [usize; COLUMNS],
    header: bool,
}

const COLUMNS: usize = 12;
const HEADER: [&str; COLUMNS] = [
    "TIME", "EVENT", "STATUS", "EDGE", "APP", "PROTOCOL", "CLIENT", "TO", "ORIGIN", "IN", "OUT",
    "REASON",
];

impl Printer {
    fn new(format: LineFormat) -> Self {
        let mut widths = HEADER.map(str::len);
        // The longest of each, so that the first lines stand like the later ones.
        widths[0] = "2026-01-01T00:00:00.000Z".len();
        widths[1] = "clientFiltered".len();
        Self {
            format,
            widths,
            header: false,
        }
    }

    fn measure(&mut self, events: &[Box<v1::Event>]) {
        for event in events {
            self.widen(&row(event));
        }
    }

    fn widen(&mut self, row: &[String; COLUMNS]) {
        for (width, text) in self.widths.iter_mut().zip(row) {
            *width = (*width).max(text.chars().count());
        }
    }

    fn print(&mut self, console: &mut Console, event: &v1::Event) -> Result<(), Failure> {
        if self.format == LineFormat::Json {
            if let Some(line) = EventLine::new(event) {
                console.json_line(&line)?;
            }
            return Ok(());
        }
        let row = row(event);
        self.widen(&row);
        if !self.header {
            self.header = true;
            let line = self.line(&HEADER.map(str::to_owned));
            let line = console.paint(line, Mood::Faint);
            console.line(line)?;
        }
        let mood = match event.status {
            0 | 200 => Mood::Plain,
            400..500 => Mood::Notable,
            _ => Mood::Bad,
        };
        let line = console.paint(self.line(&row), mood);
        Ok(console.line(line)?)
    }

    fn line(&self, row: &[String; COLUMNS]) -> String {
        let cells = row.iter().zip(self.widths);
        let cells = cells.map(|(text, width)| format!("{text:<width$}"));
        let line = cells.collect::<Vec<_>>().join("  ");
        line.trim_end().to_owned()
    }
}

fn row(event: &v1::Event) -> [String; COLUMNS] {
    let nothing = v1::Connection::default();
    let connection = event.connection.as_ref().unwrap_or(&nothing);
    let ended = event.kind() != v1::EventKind::Connect;
    let bytes = |count| if ended { size(count) } else { String::new() };
    let origin = match connections::origin(connection).as_str() {
        "-" => address(&connection.origin_ip, connection.origin_port),
        named => named.to_owned(),
    };
    [
        event.timestamp.map(millis).unwrap_or_default(),
        event_word(event.kind()).unwrap_or("unknown").to_owned(),
        event.status.to_string(),
        connection.edge.clone(),
        connection.application.clone(),
        connection.client_proto.clone(),
        address(&connection.client_ip, connection.client_port),
        address(&connection.edge_ip, connection.edge_port),
        origin,
        bytes(connection.client_bytes),
        bytes(connection.origin_bytes),
        event.reason.clone(),
    ]
}

/// RFC 3339, to the millisecond.
fn millis(time: prost_types::Timestamp) -> String {
    let whole = prost_types::Timestamp { nanos: 0, ..time }.to_string();
    let whole = whole.trim_end_matches('Z');
    format!(
        "{whole}.{:03}Z",
        time.nanos.clamp(0, 999_999_999) / 1_000_000
    )
}

/// `203.0.113.7:1234`, `[2001:db8::1]:22`, `-`.
pub(super) fn address(ip: &str, port: u32) -> String {
    match ip {
        "" => "-".to_owned(),
        v6 if v6.contains(':') => format!("[{v6}]:{port}"),
        v4 => format!("{v4}:{port}"),
    }
}

/// `999`, `1.5k`, `27M`, in powers of 1000.
pub(super) fn size(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["k", "M", "G", "T", "P", "E"];
    if bytes < 1000 {
        return bytes.to_string();
    }
    let mut value = bytes as f64;
    let mut unit = "";
    for next in UNITS {
        value /= 1000.0;
        unit = next;
        if value < 999.5 {
            break;
        }
    }
    if value < 9.95 {
        format!("{value:.1}{unit}")
    } else {
        format!("{value:.0}{unit}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_two_or_three_digits() {
        for (bytes, text) in [
            (0, "0"),
            (999, "999"),
            (1000, "1.0k"),
            (9949, "9.9k"),
            (9951, "10k"),
            (999_499, "999k"),
            (999_600, "1.0M"),
            (u64::MAX, "18E"),
        ] {
            assert_eq!(size(bytes), text, "{bytes}");
        }
    }

    #[test]
    fn times_and_addresses_are_as_users_write_them() {
        let time = prost_types::Timestamp {
            seconds: 1,
            nanos: 2_345_678,
        };
        assert_eq!(millis(time), "1970-01-01T00:00:01.002Z");
        assert_eq!(address("2001:db8::1", 22), "[2001:db8::1]:22");
        assert_eq!(address("198.51.100.1", 22), "198.51.100.1:22");
        assert_eq!(address("", 0), "-");
    }
}
