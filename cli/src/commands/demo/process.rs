//! A child process inside a namespace, and the end of what it logs.

use std::{
    collections::VecDeque,
    io,
    process::{ExitStatus, Stdio},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyport_netns::Namespace;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde::Deserialize;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, ChildStderr, Command},
    time::timeout,
};

use super::role;
use crate::failure::Failure;

/// This very program, also where its file was replaced meanwhile.
const THIS_PROGRAM: &str = "/proc/self/exe";
/// Lines of a log that are kept for the case that something goes wrong.
const LINES_KEPT: usize = 6;
/// How long a process that was told to end may take.
const FAREWELL: Duration = Duration::from_secs(3);

/// A running process. Dropped, it is killed.
pub struct Process {
    name: String,
    child: Child,
    complaints: Arc<Mutex<VecDeque<String>>>,
}

/// A command line of this program for `namespace`. The environment is empty: the
/// user's `ANYPORT_…` and `OTEL_…` are not meant for the demo.
pub fn this_program(namespace: &Namespace) -> Command {
    let mut command = namespace.tokio_command(THIS_PROGRAM);
    command
        .arg0("anyport")
        .env_clear()
        .envs(std::env::var_os("RUST_LOG").map(|filter| ("RUST_LOG", filter)))
        // Ctrl-C is for the demo, which then ends its children in good order.
        .process_group(0)
        .kill_on_drop(true)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    command
}

impl Process {
    /// Starts the process that plays the role that `arguments` begin with.
    ///
    /// It dies with the thread that calls this, whatever happens to it.
    pub fn start(name: &str, namespace: &Namespace, arguments: &[&str]) -> Result<Self, Failure> {
        let spawned = this_program(namespace)
            .arg(role::WORD)
            .args(arguments)
            .spawn();
        let mut child = spawned
            .map_err(|error| Failure::refused(format_args!("cannot start {name}: {error}")))?;
        let complaints = Arc::default();
        if let Some(log) = child.stderr.take() {
            tokio::spawn(keep_complaints(log, Arc::clone(&complaints)));
        }
        Ok(Self {
            name: name.to_owned(),
            child,
            complaints,
        })
    }

    /// Its process id; none once it has ended.
    pub fn id(&self) -> Option<u32> {
        self.child.id()
    }

    /// That it runs, or that it does not and what it last said.
    pub fn check(&mut self) -> Result<(), Failure> {
        match self.child.try_wait() {
            Ok(None) => Ok(()),
            Ok(Some(status)) => Err(self.accuse(format_args!("has ended: {status}"))),
            Err(error) => Err(self.accuse(format_args!("cannot be asked for: {error}"))),
        }
    }

    /// `kill -9`. When this returns, the kernel has closed all that it had open.
    pub async fn kill(&mut self) -> io::Result<()> {
        self.child.kill().await
    }

    /// Asks it to end, and waits; one that does not is killed.
    pub async fn stop(mut self) -> Result<(), Failure> {
        match self.ask_to_end().await {
            Ok(Some(status)) if status.success() => Ok(()),
            Ok(Some(status)) => Err(self.accuse(format_args!("did not end well: {status}"))),
            Ok(None) => Err(self.accuse(format_args!(
                "did not end within {} s and was killed",
                FAREWELL.as_secs()
            ))),
            Err(error) => Err(self.accuse(format_args!("cannot be ended: {error}"))),
        }
    }

    async fn ask_to_end(&mut self) -> io::Result<Option<ExitStatus>> {
        let pid = self.child.id().and_then(|pid| i32::try_from(pid).ok());
        if let Some(pid) = pid {
            kill(Pid::from_raw(pid), Signal::SIGTERM)?;
        }
        match timeout(FAREWELL, self.child.wait()).await {
            Ok(ended) => ended.map(Some),
            Err(_) => self.child.kill().await.map(|()| None),
        }
    }

    fn accuse(&self, what: impl std::fmt::Display) -> Failure {
        let complaints = self
            .complaints
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        Failure::refused(format_args!("{} {what}", self.name)).details(complaints.iter().cloned())
    }
}

/// Reads a log to its end, so that its writer never waits, and keeps what is no
/// everyday matter.
async fn keep_complaints(log: ChildStderr, complaints: Arc<Mutex<VecDeque<String>>>) {
    let mut lines = BufReader::new(log).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        if let Some(complaint) = complaint(line) {
            let mut kept = complaints.lock().unwrap_or_else(PoisonError::into_inner);
            if kept.len() == LINES_KEPT {
                kept.pop_front();
            }
            kept.push_back(complaint);
        }
    }
}

/// What a log line says above the level of information. A line that is no log line
/// was said by somebody in distress.
fn complaint(line: String) -> Option<String> {
    #[derive(Deserialize)]
    struct Event {
        level: String,
        message: String,
        #[serde(default)]
        error: String,
    }
    match serde_json::from_str(&line) {
        Ok(Event { level, .. }) if !matches!(&level[..], "ERROR" | "WARN") => None,
        Ok(Event { message, error, .. }) if error.is_empty() => Some(message),
        Ok(Event { message, error, .. }) => Some(format!("{message}: {error}")),
        Err(_) => Some(line),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_everyday_matter_is_kept_in_plain_words() {
        let kept = |line: &str| complaint(line.to_owned());
        assert_eq!(kept(r#"{"level":"INFO","message":"started"}"#), None);
        assert_eq!(
            kept(r#"{"level":"ERROR","message":"cannot accept","error":"no descriptors"}"#),
            Some("cannot accept: no descriptors".to_owned())
        );
        assert_eq!(
            kept(r#"{"level":"WARN","message":"odd"}"#),
            Some("odd".to_owned())
        );
        assert_eq!(kept("usage: anyport"), Some("usage: anyport".to_owned()));
    }
}
