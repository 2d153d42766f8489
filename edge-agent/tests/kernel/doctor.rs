//! The doctor finds, on a real host, what was put there, and changes nothing.

use std::os::fd::AsRawFd;

use anyport_edge_agent::kernel::{Finding, Severity, doctor};

use libbpf_rs::ObjectBuilder;

use crate::support::{Edge, on_edge};

async fn examine() -> Vec<Finding> {
    doctor(&["198.51.100.0/24".parse().unwrap()], &[7420]).await
}

fn finding<'a>(findings: &'a [Finding], topic: &str) -> &'a Finding {
    let about = |finding: &&Finding| finding.topic == topic;
    findings.iter().find(about).expect(topic)
}

fn everything(edge: &Edge) -> String {
    edge.run("nft -a list ruleset") + &edge.run("ip route show table all") + &edge.run("ip rule")
}

#[test]
fn steering_is_tried_without_a_trace() {
    on_edge(async |edge| {
        let before = everything(&edge);
        let findings = examine().await;
        for topic in [
            "privileges",
            "kernel",
            "sk_lookup",
            "sk_lookup programs",
            "tproxy",
            "ip rule",
            "nftables",
            "rp_filter",
        ] {
            let finding = finding(&findings, topic);
            assert_eq!(finding.severity, Severity::Ok, "{finding:?}");
        }
        assert_eq!(everything(&edge), before);
    });
}

#[test]
fn what_was_put_there_is_found() {
    on_edge(async |edge| {
        for command in [
            "nft add table ip wall",
            "nft add chain ip wall early { type filter hook prerouting priority -300; }",
            "nft add chain ip wall gate { type filter hook input priority 0; policy drop; }",
            "nft add table ip home",
            "nft add chain ip home out { type nat hook prerouting priority -100; }",
            "ip address add 198.51.100.200/28 dev client",
            "ip route add default via 198.51.100.201",
            "ip rule add from all lookup local priority 5",
            "ip rule del priority 0",
            "ip rule add fwmark 0x7 lookup 77 priority 2",
            "sysctl -w net.ipv4.conf.all.rp_filter=1",
            "sysctl -w net.ipv4.tcp_syncookies=0",
        ] {
            edge.run(command);
        }
        let object = concat!(env!("CARGO_MANIFEST_DIR"), "/bpf/steer.bpf.o");
        let other = ObjectBuilder::default().open_file(object).unwrap();
        let other = other.load().unwrap();
        let here = std::fs::File::open("/proc/thread-self/ns/net").unwrap();
        let program = other.progs_mut().next().unwrap();
        let _link = program.attach_netns(here.as_raw_fd()).unwrap();
        let daemon = tokio::net::TcpListener::bind("0.0.0.0:0").await.unwrap();
        let port = daemon.local_addr().unwrap().port();
        let findings = examine().await;
        for (topic, words) in [
            ("nftables", "ip wall early (priority -300, before ours)"),
            ("conntrack", "ip home out"),
            ("own addresses", "198.51.100.200"),
            (
                "neighbours",
                "default gateway 198.51.100.201, connected subnet 198.51.100.192/28",
            ),
            ("ip rule", "2 (mark 0x7, table 77)"),
            ("rp_filter", "client"),
            ("tcp_syncookies", "off"),
            ("sk_lookup programs", "steer (program "),
            ("open daemons", &*format!("0.0.0.0:{port} (kernel")),
        ] {
            let finding = finding(&findings, topic);
            assert_eq!(finding.severity, Severity::Warn, "{finding:?}");
            assert!(finding.found.contains(words), "{words:?}: {finding:?}");
            assert!(!finding.advice.is_empty(), "{finding:?}");
        }
        let gate = |f: &Finding| f.topic == "nftables" && f.found.contains("ip wall gate drops");
        assert!(findings.iter().any(gate));
    });
}
