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
use anyport_node::identity::TlsArgs;

anyport_lab::on_both_stores![
    a_client_that_knows_only_reflection_reads_writes_and_is_told_its_faults,
    a_client_of_generated_types_does_the_same,
    both_show_a_certificate_where_the_fleet_is_in_tls,
];

/// Debian's, for which python3-grpcio is.
const PYTHON: &str = "/usr/bin/python3";

/// More than a page of the examples, which is 100.
const APPS: usize = 120;

fn start(store: Store) -> Cluster {
    start_as(Plan::on(store))
}

fn start_as(plan: Plan) -> Cluster {
    let cluster = Cluster::start(plan).unwrap();
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

/// A client, and how it is asked for the same as the other.
struct Program {
    command: fn(&Cluster) -> Command,
    server: &'static str,
    list: Vec<String>,
    apply: Vec<String>,
    /// How it writes PERMISSION_DENIED.
    denied: &'static str,
}

impl Program {
    fn run(&self, cluster: &Cluster, tls: &TlsArgs, arguments: &[String]) -> Said {
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        run(self.showing(cluster, tls), &arguments)
    }

    fn showing(&self, cluster: &Cluster, tls: &TlsArgs) -> Command {
        let mut command = (self.command)(cluster);
        command.args(["--server", self.server]);
        for (flag, path) in [
            ("--tls-cert", &tls.tls_cert),
            ("--tls-key", &tls.tls_key),
            ("--tls-ca", &tls.tls_ca),
        ] {
            command.args(
                path.iter()
                    .flat_map(|path| [flag.as_ref(), path.as_os_str()]),
            );
        }
        command
    }
}

fn both_show_a_certificate_where_the_fleet_is_in_tls(store: Store) {
    let cluster = start_as(Plan {
        tls: true,
        ..Plan::on(store)
    });
    let words = |text: &str| text.split(' ').map(str::to_owned).collect();
    let file = written(cluster.directory(), &app("from-python", "tcp/22"));
    let programs = [
        Program {
            command: python,
            server: "127.0.0.1:7400",
            list: words("list app"),
            apply: words(&format!("apply {file}")),
            denied: "PERMISSION_DENIED: ",
        },
        Program {
            command: rust,
            server: "https://127.0.0.1:7400",
            list: words("list"),
            apply: words("apply from-rust tcp/23 198.51.100.10 tcp://10.0.2.2:7000"),
            denied: "PermissionDenied: ",
        },
    ];
    let operator = cluster.certificate("operator");
    let viewer = cluster.issue("viewer", "ana").unwrap();
    for (before, program) in programs.iter().enumerate() {
        for reads in [&viewer, &operator] {
            let said = program.run(&cluster, reads, &program.list);
            assert_eq!(said.status, Some(0), "{said}");
            assert_eq!(said.out.lines().count(), APPS + before, "{said}");
        }
        let watch = Watch::start(program.showing(&cluster, &viewer));
        watch.until(&format!("revision {}", before + 1));

        let said = program.run(&cluster, &viewer, &program.apply);
        assert_eq!(said.status, Some(1), "{said}");
        let why = "viewer `ana` may not call ConfigService/Apply: needs operator";
        assert!(
            said.err.contains(&format!("{}{why}", program.denied)),
            "{said}"
        );

        let said = program.run(&cluster, &operator, &program.apply);
        assert_eq!(said.status, Some(0), "{said}");
        watch.until(&format!("revision {}", before + 2));

        let half = TlsArgs {
            tls_ca: None,
            ..operator.clone()
        };
        let said = program.run(&cluster, &half, &program.list);
        assert_eq!(said.status, Some(2), "{said}");
        assert!(said.err.contains("--tls-ca"), "{said}");
        let said = program.run(&cluster, &TlsArgs::default(), &program.list);
        assert_eq!(said.status, Some(1), "{said}");
        let help = program
            .run(&cluster, &TlsArgs::default(), &words("--help"))
            .out;
        for flag in ["--tls-cert", "--tls-key", "--tls-ca"] {
            assert!(help.contains(flag), "{help}");
        }
    }
}
