//! Programs of others: the two examples against a real cluster, one that knows only what server
//! reflection tells, in Python, and one of generated types, in Rust. Needs root, etcd, and
//! python3-grpcio.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;

use anyport_lab::cluster::{Cluster, PATIENCE, Plan, Said, Store};

anyport_lab::on_both_stores![
    a_client_that_knows_only_reflection_reads_writes_and_is_told_its_faults,
    a_client_of_generated_types_does_the_same,
];

/// Debian's, for which python3-grpcio is.
const PYTHON: &str = "/usr/bin/python3";

/// More than a page of the examples, which is 100.
const APPS: usize = 120;

fn start(store: Store) -> Cluster {
    let cluster = Cluster::start(Plan::on(store)).unwrap();
    let app = |index| {
        let port = 10_000 + index;
        format!(
            "  - {{ name: app-{index:03}, protocol: tcp/{port}, edge_ips: [198.51.100.10], \
             origin_direct: [\"tcp://10.0.2.2:7000\"] }}\n"
        )
    };
    let apps: String = (0..APPS).map(app).collect();
    let prefixes = "prefixes: [{ cidr: 198.51.100.0/24 }]";
    cluster
        .apply(&format!("{prefixes}\napps:\n{apps}"))
        .unwrap();
    cluster
}

fn python(cluster: &Cluster) -> Command {
    let script = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../examples/python/anyport_client.py"
    );
    let mut command = cluster.topology().edge().command(PYTHON);
    command.arg(script);
    command
}

fn rust(cluster: &Cluster) -> Command {
    let program = cluster.program("anyport-example").unwrap();
    cluster.topology().edge().command(program)
}

fn run(mut command: Command, arguments: &[&str]) -> Said {
    let output = command.args(arguments).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Said {
        status: output.status.code(),
        out: text(output.stdout),
        err: text(output.stderr),
    }
}

fn done(command: Command, arguments: &[&str]) -> String {
    let said = run(command, arguments);
    assert_eq!(said.status, Some(0), "{said}");
    said.out
}

/// A `watch` that runs on; killed when dropped.
struct Watch {
    process: Child,
    lines: Receiver<String>,
}

impl Watch {
    fn start(mut command: Command) -> Self {
        let mut process = command.arg("watch").stdout(Stdio::piped()).spawn().unwrap();
        let out = BufReader::new(process.stdout.take().unwrap());
        let (send, lines) = channel();
        thread::spawn(move || {
            out.lines()
                .map_while(Result::ok)
                .try_for_each(|l| send.send(l))
        });
        Self { process, lines }
    }

    /// Waits for a line, and gives those before it.
    fn until(&self, wanted: &str) -> Vec<String> {
        let mut before = Vec::new();
        loop {
            let line = self.lines.recv_timeout(PATIENCE);
            let line = line.unwrap_or_else(|_| panic!("no line {wanted:?} after {before:?}"));
            if line == wanted {
                return before;
            }
            before.push(line);
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// What another one writes is seen as a difference.
fn watches(cluster: &Cluster, client: Command) {
    let watch = Watch::start(client);
    watch.until("revision 2");
    let said = cluster.anyport(&["delete", "apps", "app-001"]).unwrap();
    assert_eq!(said.status, Some(0), "{said}");
    let state = watch.until("revision 3");
    let expected = APPS + 2;
    assert_eq!(
        state.len(),
        expected,
        "all apps, a prefix, the new app: {state:?}"
    );
    assert!(watch.until("- app-001").is_empty());
}

fn app(name: &str, protocol: &str) -> String {
    format!(
        r#"{{"resources": [{{"app": {{"name": "{name}", "protocol": "{protocol}",
        "edge_ips": ["198.51.100.10"], "origin_direct": ["tcp://10.0.2.2:7000"]}}}}]}}"#
    )
}

fn written(directory: &Path, request: &str) -> String {
    let path = directory.join("request.json");
    fs::write(&path, request).unwrap();
    path.display().to_string()
}

fn a_client_that_knows_only_reflection_reads_writes_and_is_told_its_faults(store: Store) {
    let cluster = start(store);
    let client = || python(&cluster);
    let apps = done(client(), &["list", "app"]);
    assert_eq!(apps.lines().count(), APPS, "over all pages: {apps}");
    assert!(apps.contains(r#""protocol": "tcp/10119""#), "{apps}");

    let file = written(cluster.directory(), &app("new", "tcp/22"));
    let applied = done(client(), &["apply", &file]);
    assert_eq!(applied, "new: created\nrevision 2\n");

    let file = written(cluster.directory(), &app("faulty", "tcp/99999"));
    let said = run(client(), &["apply", &file]);
    assert_eq!(said.status, Some(1), "{said}");
    assert!(said.err.starts_with("INVALID_ARGUMENT: "), "{said}");
    assert!(
        said.err.contains("\n  resources[0].app.protocol: "),
        "{said}"
    );

    watches(&cluster, client());
    assert_eq!(done(client(), &["delete", "app", "new"]), "revision 4\n");
    let history = done(client(), &["history"]);
    assert_eq!(history.lines().count(), 4, "{history}");
    let said = run(client(), &["delete", "app", "new"]);
    assert!(said.err.starts_with("NOT_FOUND: "), "{said}");
}

fn a_client_of_generated_types_does_the_same(store: Store) {
    let cluster = start(store);
    let client = || rust(&cluster);
    let apps = done(client(), &["list"]);
    assert_eq!(apps.lines().count(), APPS, "over all pages: {apps}");

    let apply = |name, protocol| {
        let origin = "tcp://10.0.2.2:7000";
        run(
            client(),
            &["apply", name, protocol, "198.51.100.10", origin],
        )
    };
    let said = apply("new", "tcp/22");
    assert_eq!(said.out, "new: created\nrevision 2\n", "{said}");

    let said = apply("faulty", "tcp/99999");
    assert_eq!(said.status, Some(1), "{said}");
    assert!(said.err.contains("InvalidArgument: "), "{said}");
    assert!(
        said.err.contains("\n  resources[0].app.protocol: "),
        "{said}"
    );

    watches(&cluster, client());
    assert_eq!(done(client(), &["delete", "new"]), "revision 4\n");
    let history = done(client(), &["history"]);
    assert_eq!(history.lines().count(), 4, "{history}");
}
