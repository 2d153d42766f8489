//! The event log as a file: one JSON object a line, appended.
//!
//! A thread of its own writes, so that a slow disk holds up nothing else; what
//! it cannot keep up with is lost and counted. Where the file is renamed or
//! removed, as by logrotate, the next line begins a new one under its name.

use std::{
    fs::{File, OpenOptions},
    io::{self, Write},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use anyport_proto::event_log::EventLine;

use super::{
    log::{EventLog, Next},
    wire::Writer,
};

/// How often the name is looked at.
const LOOK: Duration = Duration::from_secs(1);

/// Bytes that are written at once at the most, but for the last line.
const AT_ONCE: usize = 32 << 10;

/// A running writer.
pub struct EventFile {
    log: Arc<EventLog>,
    thread: thread::JoinHandle<()>,
}

/// The file cannot be written to.
#[derive(Debug, thiserror::Error)]
#[error("--event-log: cannot open {}: {source}", path.display())]
pub struct FileError {
    path: PathBuf,
    source: io::Error,
}

impl EventFile {
    /// Writes every event from now on to the file at `path`.
    pub fn start(path: &Path, log: &Arc<EventLog>, writer: Writer) -> Result<Self, FileError> {
        let failed = |source| FileError {
            path: path.to_owned(),
            source,
        };
        let file = Lines::open(path).map_err(failed)?;
        let shared = Arc::clone(log);
        let thread = thread::Builder::new().name("event-log".to_owned());
        let thread = thread.spawn(move || write(file, &shared, &writer));
        Ok(Self {
            log: Arc::clone(log),
            thread: thread.map_err(failed)?,
        })
    }

    /// Closes the log and waits until all of it is written; blocks.
    pub fn finish(self) {
        self.log.close();
        // A writer that panicked has said so by the panic hook.
        let _ = self.thread.join();
    }
}

fn write(mut file: Lines, log: &EventLog, writer: &Writer) {
    let Some((recent, mut events)) = log.follow() else {
        return;
    };
    for event in &recent {
        file.write(&writer.event(event));
    }
    loop {
        if events.has_all() {
            file.flush();
        }
        match events.next_blocking() {
            Next::Event(event) => file.write(&writer.event(&event)),
            Next::Lost(count) => tracing::warn!(count, "events are missing in the event log"),
            Next::End => break,
        }
    }
    file.flush();
}

/// The file, and whether it was writable the last time.
struct Lines {
    path: PathBuf,
    file: Option<File>,
    /// Whole lines that are not written yet. They are written in one call: an
    /// agent that takes over from this one may append to the same file.
    buffer: Vec<u8>,
    looked: Instant,
    broken: bool,
}

impl Lines {
    fn open(path: &Path) -> io::Result<Self> {
        Ok(Self {
            path: path.to_owned(),
            file: Some(open(path)?),
            buffer: Vec::new(),
            looked: Instant::now(),
            broken: false,
        })
    }

    fn write(&mut self, event: &anyport_proto::v1::Event) {
        let Some(line) = EventLine::new(event) else {
            return;
        };
        // Writing to memory cannot fail.
        let _ = serde_json::to_writer(&mut self.buffer, &line);
        self.buffer.push(b'\n');
        if self.buffer.len() >= AT_ONCE {
            self.flush();
        }
    }

    fn flush(&mut self) {
        if self.buffer.is_empty() {
            return;
        }
        let flushed = self.try_flush();
        self.buffer.clear();
        self.conclude(flushed);
    }

    fn try_flush(&mut self) -> io::Result<()> {
        if self.looked.elapsed() >= LOOK {
            self.looked = Instant::now();
            if !self.is_current() {
                self.file = None;
            }
        }
        let file = match &mut self.file {
            Some(file) => file,
            None => self.file.insert(open(&self.path)?),
        };
        file.write_all(&self.buffer)
    }

    /// Whether the open file is still the one of this name.
    fn is_current(&self) -> bool {
        let same = || {
            let open = self.file.as_ref()?.metadata().ok()?;
            let named = std::fs::metadata(&self.path).ok()?;
            Some((open.dev(), open.ino()) == (named.dev(), named.ino()))
        };
        same().unwrap_or(false)
    }

    /// Says once that it does not work, and once that it does again.
    fn conclude(&mut self, outcome: io::Result<()>) {
        match outcome {
            Ok(()) if self.broken => {
                self.broken = false;
                tracing::info!(path = %self.path.display(), "the event log is written again");
            }
            Err(error) if !self.broken => {
                self.broken = true;
                let path = self.path.display();
                tracing::error!(%error, %path, "the event log cannot be written; events are lost");
            }
            Ok(()) | Err(_) => {}
        }
    }
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).open(path)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::events::{Connection, Details, EventKind};
    use anyport_model::{names::Revision, outcome::Status, resource::Transport};
    use prometheus::IntCounter;

    fn event(log: &EventLog, id: u64) {
        let at = "198.51.100.1:80".parse().unwrap();
        let details = Details::new("app".parse().unwrap(), Revision(1), at);
        let connection = Arc::new(Connection::new(id, Transport::Tcp, at, details));
        log.record(EventKind::Disconnect, Some(Status::Closed), &connection);
    }

    fn ids(path: &Path) -> Vec<u64> {
        let text = std::fs::read_to_string(path).unwrap_or_default();
        let id = |line: &str| {
            let line: serde_json::Value = serde_json::from_str(line).unwrap();
            line["connection"].as_u64().unwrap()
        };
        text.lines().map(id).collect()
    }

    #[test]
    fn a_renamed_file_is_followed_by_a_new_one_and_no_line_is_lost() {
        let directory = tempfile::tempdir().unwrap();
        let (path, old) = (directory.path().join("log"), directory.path().join("old"));
        let log = Arc::new(EventLog::new(IntCounter::new("lost", "lost").unwrap()));
        let writer = Writer {
            name: "edge1".to_owned(),
            region: String::new(),
        };
        let file = EventFile::start(&path, &log, writer).unwrap();
        event(&log, 0);
        let eventually = |what: &dyn Fn() -> bool| {
            let start = Instant::now();
            while !what() {
                assert!(start.elapsed() < Duration::from_secs(20));
                thread::sleep(Duration::from_millis(5));
            }
        };
        eventually(&|| ids(&path) == [0]);
        std::fs::rename(&path, &old).unwrap();
        // Until the writer looks at the name, lines go to the old file.
        let next = std::cell::Cell::new(1);
        eventually(&|| {
            event(&log, next.get());
            next.set(next.get() + 1);
            path.exists()
        });
        file.finish();
        let mut all = ids(&old);
        all.extend(ids(&path));
        assert_eq!(all, (0..next.get()).collect::<Vec<_>>());
    }

    #[test]
    fn a_file_that_cannot_be_opened_is_named() {
        let log = Arc::new(EventLog::new(IntCounter::new("lost", "lost").unwrap()));
        let writer = Writer {
            name: String::new(),
            region: String::new(),
        };
        let started = EventFile::start(Path::new("/nowhere/log"), &log, writer);
        let error = started.err().unwrap().to_string();
        assert!(
            error.contains("--event-log") && error.contains("/nowhere/log"),
            "{error}"
        );
    }
}
