//! A service as a process of its own: signals, exit status, log, dead collector.
//!
//! The child is this test binary again, running [`child`] alone.

use std::{
    io::{BufRead, BufReader, Read},
    os::unix::process::ExitStatusExt,
    process::{Child, Command, ExitCode, ExitStatus, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use anyport_node::{boot, drain::Drain};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

const ROLE: &str = "ANYPORT_TEST_CHILD";
const LIMIT: Duration = Duration::from_secs(60);

#[test]
#[ignore = "the process that the other tests start"]
fn child() {
    let role = std::env::var(ROLE).expect("started by the other tests");
    let code = boot::run("child", async |drain: Drain| {
        tracing::info_span!("life").in_scope(|| tracing::info!("running"));
        match role.as_str() {
            "drains" => {
                let work = drain.guard();
                let worker = tokio::spawn({
                    let drain = drain.clone();
                    async move {
                        drain.started().await;
                        drop(work);
                    }
                });
                drain.finished(LIMIT).await?;
                worker.await?;
                tracing::info!("drained");
                Ok(())
            }
            // Every worker of the runtime is stuck, not only this task.
            "hangs" => {
                let stuck: Vec<_> = (0..64).map(|_| tokio::spawn(async { stick() })).collect();
                for task in stuck {
                    task.await?;
                }
                Ok(())
            }
            "fails" => {
                let cause = std::io::Error::other("disk full");
                Err(anyhow::Error::new(cause).context("cannot write the cache"))
            }
            "panics" => {
                let task = tokio::spawn(async { panic!("out of cheese") });
                assert!(task.await.is_err());
                Ok(())
            }
            other => panic!("no role {other:?}"),
        }
    });
    // libtest would turn every exit status into its own.
    std::process::exit(if code == ExitCode::SUCCESS { 0 } else { 1 });
}

fn stick() {
    loop {
        thread::park();
    }
}

struct Process {
    child: Child,
    lines: mpsc::Receiver<String>,
    seen: Vec<String>,
}

impl Process {
    fn start(role: &str, variables: &[(&str, &str)]) -> Self {
        let mut command = Command::new(std::env::current_exe().expect("this binary"));
        command
            .args([
                "--exact",
                "child",
                "--ignored",
                "--nocapture",
                "--test-threads=1",
            ])
            .env(ROLE, role)
            .env_remove("RUST_LOG")
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        for (name, value) in variables {
            command.env(name, value);
        }
        let mut child = command.spawn().expect("starts");
        let stderr = child.stderr.take().expect("piped");
        let (sender, lines) = mpsc::channel();
        thread::spawn(move || {
            for line in BufReader::new(stderr.take(1 << 20)).lines() {
                let Ok(line) = line else { return };
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Self {
            child,
            lines,
            seen: Vec::new(),
        }
    }

    /// Reads the log up to the line that holds `text`, and gives that line.
    fn await_line(&mut self, text: &str) -> String {
        let deadline = Instant::now() + LIMIT;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let Ok(line) = self.lines.recv_timeout(left) else {
                panic!("no {text:?} in {:#?}", self.seen);
            };
            self.seen.push(line.clone());
            if line.contains(text) {
                return line;
            }
        }
    }

    fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id()).expect("a pid");
        kill(Pid::from_raw(pid), signal).expect("it lives");
    }

    fn status(&mut self) -> ExitStatus {
        let deadline = Instant::now() + LIMIT;
        loop {
            if let Some(status) = self.child.try_wait().expect("ours") {
                return status;
            }
            assert!(
                Instant::now() < deadline,
                "it does not end; log: {:#?}",
                self.seen
            );
            thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Already gone where the test went well.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn sigterm_drains_and_the_status_is_zero() {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let mut process = Process::start("drains", &[]);
        process.await_line("running");
        process.signal(signal);
        process.await_line("drained");
        assert_eq!(process.status().code(), Some(0), "{signal}");
    }
}

#[test]
fn a_second_signal_ends_even_a_process_whose_workers_are_stuck() {
    let mut process = Process::start("hangs", &[]);
    process.await_line("running");
    process.signal(Signal::SIGTERM);
    process.await_line("draining");
    assert_eq!(
        process.child.try_wait().expect("ours"),
        None,
        "still draining"
    );
    process.signal(Signal::SIGTERM);
    let status = process.status();
    assert_eq!(
        status.code(),
        Some(128 + 15),
        "killed by {:?}",
        status.signal()
    );
}

#[test]
fn a_failed_service_logs_every_cause_and_its_status_is_one() {
    let mut process = Process::start("fails", &[]);
    process.await_line("cannot write the cache: disk full");
    assert_eq!(process.status().code(), Some(1));
}

#[test]
fn the_log_is_one_json_object_a_line_when_it_is_no_terminal() {
    let mut process = Process::start("fails", &[]);
    let line = process.await_line("running");
    assert!(line.starts_with(r#"{"timestamp":""#), "{line}");
    assert!(
        line.contains(r#""level":"INFO","message":"running""#),
        "{line}"
    );
    assert!(line.ends_with('}'), "{line}");
}

#[test]
fn a_panic_is_an_event_of_the_log() {
    let mut process = Process::start("panics", &[]);
    let line = process.await_line("panicked: out of cheese");
    assert!(line.contains(r#""level":"ERROR""#), "{line}");
    assert!(line.contains("tests/process.rs:"), "{line}");
    assert_eq!(process.status().code(), Some(0));
}

#[test]
fn a_collector_that_is_not_there_delays_nothing_and_is_reported() {
    // No port that the kernel gives to other tests.
    let absent = "http://127.0.0.1:1".to_owned();
    // This one takes connections and never answers.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let mute = format!("http://{}", silent.local_addr().expect("bound"));
    for (endpoint, complaint) in [
        (absent, "traces are lost"),
        (mute, "the last spans were not exported"),
    ] {
        // It would be waited for ten minutes, and a process here for one.
        let variables = [
            ("OTEL_EXPORTER_OTLP_ENDPOINT", &*endpoint),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "600000"),
        ];
        let mut process = Process::start("fails", &variables);
        let line = process.await_line("running");
        assert!(line.contains(r#"{"trace_id":""#), "{line}");
        assert_eq!(process.status().code(), Some(1));
        process.await_line(complaint);
    }
}

#[test]
fn an_endpoint_that_cannot_be_used_is_a_warning() {
    let mut process = Process::start("fails", &[("OTEL_EXPORTER_OTLP_ENDPOINT", "not a url")]);
    process.await_line("no traces are exported");
    process.await_line("running");
}

#[test]
fn a_malformed_log_filter_is_refused_with_an_example() {
    let mut process = Process::start("fails", &[("RUST_LOG", "anyport=loud")]);
    process.await_line("RUST_LOG=\"anyport=loud\"");
    assert_eq!(process.status().code(), Some(1));
}
