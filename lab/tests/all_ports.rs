//! Every TCP port of an address at once: 65,535 ports of IPv4 and as many of IPv6, behind one
//! listener per worker and family. Needs root.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use anyport_lab::cluster::{Cluster, Plan, Service, Store};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::timeout;

anyport_lab::on_both_stores![
    every_port_of_both_families_reaches_the_origin_through_one_listener_per_worker
];

const WORKERS: usize = 2;

/// Connections at the same time. Each takes one descriptor here and one more in the origin's server,
/// which is in this process too.
const AT_ONCE: usize = 256;

/// For one connection, from the connect to the last byte.
const PATIENCE: Duration = Duration::from_secs(60);

const MANIFEST: &str = r#"
prefixes:
  - cidr: 198.51.100.0/24
  - cidr: 2001:db8:51::/64
pools:
  - name: one
    origins:
      - { name: only, address: "10.0.2.2:7000" }
apps:
  - name: every-port
    protocol: tcp/*
    edge_ips: [198.51.100.10, "2001:db8:51::10"]
    origin_pool: one
"#;

fn every_port_of_both_families_reaches_the_origin_through_one_listener_per_worker(store: Store) {
    let cluster = Cluster::start(Plan {
        workers: NonZeroUsize::new(WORKERS).unwrap(),
        ..Plan::on(store)
    })
    .unwrap();
    let origin = cluster.echo(0, "only", [7000]).unwrap();
    cluster.apply(MANIFEST).unwrap();

    for address in ["198.51.100.10", "2001:db8:51::10"] {
        let address: IpAddr = address.parse().unwrap();
        let failed = cluster
            .topology()
            .client()
            .block_on(|| dial_every_port(address))
            .unwrap();
        let shown = &failed[..failed.len().min(10)];
        assert!(
            failed.is_empty(),
            "{} ports failed: {shown:?}",
            failed.len()
        );
    }

    assert_eq!(origin.accepted(), 2 * 65_535);
    let metrics = cluster.metrics(Service::EdgeAgent).unwrap();
    let of_app = &[("app", "every-port")];
    let opened = metrics.value("anyport_connections_opened_total", of_app);
    assert_eq!(opened, Some(2.0 * 65_535.0));
    assert_eq!(metrics.sum("anyport_connections_unclaimed_total", &[]), 0.0);

    let pid = cluster.pid(Service::EdgeAgent).unwrap();
    let control = [
        Service::EdgeAgent.listen().port(),
        Service::EdgeAgent.admin().port(),
    ];
    for family in ["tcp", "tcp6"] {
        let mut listeners = listeners(pid, family);
        listeners.retain(|port| !control.contains(port));
        assert_eq!(listeners.len(), WORKERS, "{family}: {listeners:?}");
        let ports: BTreeSet<_> = listeners.iter().collect();
        assert_eq!(ports.len(), 1, "{family}: {listeners:?}");
    }
}

/// The ports that did not send back what they were sent, with the reason.
async fn dial_every_port(address: IpAddr) -> Vec<(u16, String)> {
    let room = Arc::new(Semaphore::new(AT_ONCE));
    let mut dials = JoinSet::new();
    for port in 1..=u16::MAX {
        let permit = Arc::clone(&room).acquire_owned().await.unwrap();
        dials.spawn(async move {
            let answer = timeout(PATIENCE, echo(SocketAddr::new(address, port))).await;
            drop(permit);
            match answer {
                Ok(Ok(())) => None,
                Ok(Err(error)) => Some((port, error.to_string())),
                Err(_) => Some((port, format!("nothing within {PATIENCE:?}"))),
            }
        });
    }
    dials.join_all().await.into_iter().flatten().collect()
}

/// Sends what only this target is sent, and takes nothing else for an answer.
async fn echo(target: SocketAddr) -> std::io::Result<()> {
    let mut stream = TcpStream::connect(target).await?;
    // One origin address has some 28,000 ports for the edge to connect from, and whoever ends a
    // connection in order keeps its port for a minute. A reset keeps none.
    stream.set_zero_linger()?;
    let question = format!("to {target}, and back again\n");
    stream.write_all(question.as_bytes()).await?;
    let mut answer = vec![0; question.len()];
    stream.read_exact(&mut answer).await?;
    if answer == question.as_bytes() {
        Ok(())
    } else {
        let answer = String::from_utf8_lossy(&answer);
        Err(std::io::Error::other(format!("{answer:?} came back")))
    }
}

/// The ports that a process listens on, once for each listener. `family` is `tcp` or `tcp6`.
fn listeners(pid: u32, family: &str) -> Vec<u16> {
    let own: BTreeSet<String> = fs::read_dir(format!("/proc/{pid}/fd"))
        .unwrap()
        .filter_map(|entry| fs::read_link(entry.unwrap().path()).ok())
        .filter_map(|link| {
            let link = link.to_str()?;
            Some(link.strip_prefix("socket:[")?.strip_suffix(']')?.to_owned())
        })
        .collect();
    let table = fs::read_to_string(format!("/proc/{pid}/net/{family}")).unwrap();
    let sockets = table.lines().skip(1).map(|line| {
        let columns: Vec<_> = line.split_whitespace().collect();
        (
            columns[1].to_owned(),
            columns[3].to_owned(),
            columns[9].to_owned(),
        )
    });
    sockets
        .filter(|(_, state, inode)| state == "0A" && own.contains(inode))
        .map(|(local, _, _)| u16::from_str_radix(local.rsplit_once(':').unwrap().1, 16).unwrap())
        .collect()
}
