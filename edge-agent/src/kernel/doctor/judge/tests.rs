//! Each fault, by itself on an otherwise sound host, is found and named.

#![allow(clippy::unwrap_used)]

use super::*;

fn sound_host() -> Facts {
    let local_first = |v6| PolicyRule {
        v6,
        priority: 0,
        table: LOCAL_TABLE,
        mark: None,
        mask: u32::MAX,
        to_all: true,
    };
    Facts {
        kernel: Ok((6, 18)),
        capabilities: Ok(u64::MAX),
        probe: Probe::Works,
        sk_lookup: Probe::Works,
        foreign_programs: Ok(Vec::new()),
        bpf_fs: true,
        unprivileged_bpf: Ok(2),
        bpf_jit: Ok(1),
        rp_filter: Ok(vec![("all".to_owned(), 0), ("eth0".to_owned(), 2)]),
        src_valid_mark: Ok(vec![("all".to_owned(), 0), ("eth0".to_owned(), 0)]),
        chains: Ok(Vec::new()),
        legacy_tables: Vec::new(),
        conntrack: Some(0),
        bridge_netfilter: None,
        somaxconn: Ok(4096),
        syn_backlog: Ok(4096),
        syncookies: Ok(1),
        ephemeral: Ok((32768, 60999)),
        reserved: Ok(Vec::new()),
        rules: Ok(vec![local_first(false), local_first(true)]),
        listeners: Ok(Vec::new()),
        addresses: Ok(vec![[10, 0, 0, 1].into()]),
        subnets: Ok(vec!["10.0.0.0/24".parse().expect("a network")]),
        gateways: Ok(vec![[10, 0, 0, 254].into()]),
        open_files: Ok((1 << 20, 1 << 20)),
    }
}

fn prefixes() -> Vec<IpNet> {
    vec!["198.51.100.0/24".parse().expect("a network")]
}

fn chain(hook: Hook, priority: i32) -> ForeignChain {
    ForeignChain {
        name: "ip other chain".to_owned(),
        hook,
        priority,
        translates: false,
        drops_by_default: false,
    }
}

/// The one finding that a fault makes, as topic and severity, and its words.
fn found(fault: impl FnOnce(&mut Facts)) -> (&'static str, Severity, String) {
    let mut facts = sound_host();
    fault(&mut facts);
    let mut findings = judge(&facts, &prefixes(), &[7420]);
    findings.retain(|finding| finding.severity > Severity::Ok);
    let [finding] = <[_; 1]>::try_from(findings).expect("one finding");
    assert!(!finding.advice.is_empty());
    (finding.topic, finding.severity, finding.found)
}

fn assert_found(fault: impl FnOnce(&mut Facts), topic: &str, severity: Severity, words: &[&str]) {
    let (found_topic, found_severity, text) = found(fault);
    assert_eq!((found_topic, found_severity), (topic, severity));
    for word in words {
        assert!(text.contains(word), "{word:?} in {text:?}");
    }
}

#[test]
fn a_sound_host_has_no_complaint() {
    let findings = judge(&sound_host(), &prefixes(), &[7420]);
    for finding in &findings {
        assert_eq!(finding.severity, Severity::Ok, "{finding:?}");
    }
    assert_eq!(findings.len(), 22);
}

#[test]
fn what_makes_steering_impossible() {
    use Severity::Fail;
    assert_found(
        |f| f.capabilities = Ok(0),
        "privileges",
        Fail,
        &["CAP_NET_ADMIN"],
    );
    assert_found(|f| f.kernel = Ok((5, 9)), "kernel", Fail, &["5.9", "5.10"]);
    let no_local = |f: &mut Facts| {
        if let Ok(rules) = &mut f.rules {
            rules[0].table = 254;
        }
    };
    assert_found(no_local, "ip rule", Fail, &["local table"]);
}

#[test]
fn without_bpf_it_works_less_well() {
    let net_admin = 1 << 12;
    assert_found(
        |f| f.capabilities = Ok(net_admin),
        "privileges",
        Severity::Warn,
        &["CAP_BPF", "hash"],
    );
}

#[test]
fn settings_that_drop_packets() {
    use Severity::Warn;
    let strict = Ok(vec![("all".to_owned(), 1), ("eth0".to_owned(), 0)]);
    assert_found(|f| f.rp_filter = strict, "rp_filter", Warn, &["eth0"]);
    assert_found(|f| f.somaxconn = Ok(128), "somaxconn", Warn, &["128"]);
    assert_found(
        |f| f.syn_backlog = Ok(128),
        "tcp_max_syn_backlog",
        Warn,
        &["128"],
    );
    assert_found(|f| f.syncookies = Ok(0), "tcp_syncookies", Warn, &["off"]);
    assert_found(
        |f| f.bridge_netfilter = Some(true),
        "br_netfilter",
        Warn,
        &["bridge"],
    );
    assert_found(|f| f.conntrack = Some(7), "conntrack", Warn, &["7 now"]);
    assert_found(
        |f| f.open_files = Ok((1024, 4096)),
        "open files",
        Warn,
        &["512"],
    );
}

#[test]
fn a_loose_interface_beside_a_strict_one_is_not_named() {
    let mixed = vec![
        ("all".to_owned(), 0),
        ("eth0".to_owned(), 1),
        ("eth1".to_owned(), 2),
    ];
    let (_, _, text) = found(|f| f.rp_filter = Ok(mixed));
    assert!(text.contains("on eth0:"), "{text}");
}

#[test]
fn marks_matter_only_where_something_routes_by_them() {
    let on = || Ok(vec![("all".to_owned(), 1), ("eth0".to_owned(), 0)]);
    let routes_by_mark = |f: &mut Facts| {
        f.src_valid_mark = on();
        if let Ok(rules) = &mut f.rules {
            rules.push(PolicyRule {
                v6: false,
                priority: 5210,
                table: 52,
                mark: Some(0x80000),
                mask: 0xff0000,
                to_all: false,
            });
        }
    };
    assert_found(routes_by_mark, "src_valid_mark", Severity::Warn, &["eth0"]);
    let mut facts = sound_host();
    facts.src_valid_mark = on();
    let findings = judge(&facts, &prefixes(), &[]);
    assert!(findings.iter().all(|f| f.severity == Severity::Ok));
}

fn transparent(rules: &mut Vec<PolicyRule>) {
    rules.push(PolicyRule {
        v6: false,
        priority: return_path::PRIORITY,
        table: return_path::ROUTING_TABLE.into(),
        mark: Some(return_path::MARK),
        mask: u32::MAX,
        to_all: false,
    });
}

#[test]
fn what_takes_answers_to_transparent_connections_is_named() {
    let checked = |f: &mut Facts| {
        f.src_valid_mark = Ok(vec![("all".to_owned(), 1), ("eth0".to_owned(), 0)]);
        f.rules.as_mut().map(transparent).unwrap();
    };
    let words = ["eth0", "client_ip: transparent"];
    assert_found(checked, "src_valid_mark", Severity::Fail, &words);
    let with = |priority, mark, mask| {
        let mut facts = sound_host();
        let rules = facts.rules.as_mut().unwrap();
        transparent(rules);
        rules.push(PolicyRule {
            v6: false,
            priority,
            table: 52,
            mark,
            mask,
            to_all: false,
        });
        let mut findings = judge(&facts, &prefixes(), &[]).into_iter();
        findings
            .find(|f| f.topic == "return path")
            .unwrap()
            .severity
    };
    // One bit that ours has too; a rule that asks for no mark; others.
    assert_eq!(with(9, Some(0x10), 0x10), Severity::Warn);
    assert_eq!(with(9, None, u32::MAX), Severity::Warn);
    assert_eq!(with(9, Some(0x80000), 0xff0000), Severity::Ok);
    assert_eq!(with(5210, None, u32::MAX), Severity::Ok);
}

#[test]
fn a_rule_nearer_than_the_local_table_is_named() {
    let nearer = |f: &mut Facts| {
        if let Ok(rules) = &mut f.rules {
            rules[0].priority = 32765;
            rules.push(PolicyRule {
                v6: false,
                priority: 100,
                table: 77,
                mark: Some(0x200),
                mask: u32::MAX,
                to_all: false,
            });
        }
    };
    let words = ["32765", "100 (mark 0x200, table 77)"];
    assert_found(nearer, "ip rule", Severity::Warn, &words);
}

#[test]
fn a_host_without_ipv6_has_no_rules_for_it() {
    let mut facts = sound_host();
    facts.rules = facts.rules.map(|rules| rules[..1].to_vec());
    let findings = judge(&facts, &prefixes(), &[]);
    assert!(findings.iter().all(|f| f.severity == Severity::Ok));
}

#[test]
fn other_firewalls_are_named() {
    use Severity::Warn;
    let early = chain(Hook::Prerouting, -300);
    let words = ["ip other chain", "before ours"];
    assert_found(|f| f.chains = Ok(vec![early]), "nftables", Warn, &words);
    let closed = ForeignChain {
        drops_by_default: true,
        ..chain(Hook::Input, 0)
    };
    assert_found(
        |f| f.chains = Ok(vec![closed]),
        "nftables",
        Warn,
        &["drops"],
    );
    let nat = ForeignChain {
        translates: true,
        ..chain(Hook::Prerouting, -100)
    };
    let words = ["ip other chain"];
    assert_found(|f| f.chains = Ok(vec![nat]), "conntrack", Warn, &words);
    let legacy = vec!["iptables filter".to_owned()];
    assert_found(
        |f| f.legacy_tables = legacy,
        "iptables-legacy",
        Warn,
        &["iptables filter"],
    );
}

#[test]
fn what_is_exposed_and_what_is_taken_away() {
    use Severity::Warn;
    let sshd = Listener {
        port: 22,
        v6: false,
        program: Some("sshd".to_owned()),
    };
    let words = ["0.0.0.0:22 (sshd)", "198.51.100.0/24"];
    assert_found(
        |f| f.listeners = Ok(vec![sshd]),
        "open daemons",
        Warn,
        &words,
    );
    let own = vec![[198, 51, 100, 1].into()];
    assert_found(
        |f| f.addresses = Ok(own),
        "own addresses",
        Warn,
        &["198.51.100.1"],
    );
}

#[test]
fn a_fixed_port_among_the_ephemeral_ones_unless_reserved() {
    let range = |f: &mut Facts| f.ephemeral = Ok((1024, 65535));
    assert_found(range, "ephemeral ports", Severity::Warn, &["7420"]);
    let mut facts = sound_host();
    range(&mut facts);
    facts.reserved = Ok(vec![(7400, 7430)]);
    let findings = judge(&facts, &prefixes(), &[7420]);
    assert!(findings.iter().all(|f| f.severity == Severity::Ok));
}

#[test]
fn one_of_the_two_ways_of_steering_has_to_work() {
    use Severity::{Fail, Warn};
    let refused = || Probe::Refused("not allowed".to_owned());
    assert_found(|f| f.probe = refused(), "tproxy", Warn, &["not allowed"]);
    let words = ["not allowed", "auto uses tproxy"];
    assert_found(|f| f.sk_lookup = refused(), "sk_lookup", Warn, &words);
    let mut facts = sound_host();
    (facts.probe, facts.sk_lookup) = (refused(), refused());
    let findings = judge(&facts, &prefixes(), &[]);
    let failed = findings.iter().filter(|finding| finding.severity == Fail);
    let failed: Vec<_> = failed.map(|finding| finding.topic).collect();
    assert_eq!(failed, ["tproxy"]);
}

#[test]
fn what_is_in_the_way_of_sk_lookup() {
    use Severity::Warn;
    let other = Ok(vec!["theirs (program 7)".to_owned()]);
    assert_found(
        |f| f.foreign_programs = other,
        "sk_lookup programs",
        Warn,
        &["theirs (program 7)"],
    );
    assert_found(
        |f| f.bpf_fs = false,
        "bpf file system",
        Warn,
        &["/sys/fs/bpf"],
    );
    assert_found(
        |f| f.bpf_jit = Ok(0),
        "bpf settings",
        Warn,
        &["interpreted"],
    );
    assert_found(
        |f| f.unprivileged_bpf = Ok(0),
        "bpf settings",
        Warn,
        &["every user"],
    );
}

#[test]
fn what_cannot_be_read_is_a_finding() {
    let mut facts = sound_host();
    facts.rp_filter = Err("no such file".to_owned());
    facts.probe = Probe::NotTried("not permitted".to_owned());
    let findings = judge(&facts, &prefixes(), &[]);
    let complaints: Vec<_> = findings
        .iter()
        .filter(|f| f.severity == Severity::Warn)
        .collect();
    assert_eq!(complaints.len(), 2);
    assert!(complaints[0].found.contains("not permitted"));
    assert!(complaints[1].found.contains("no such file"));
}

#[test]
fn hosts_nearby_that_an_owned_prefix_would_hide() {
    use Severity::Warn;
    let gateway = Ok(vec![[198, 51, 100, 1].into()]);
    assert_found(
        |f| f.gateways = gateway,
        "neighbours",
        Warn,
        &["gateway 198.51.100.1"],
    );
    for subnet in ["198.51.100.64/26", "198.51.0.0/16"] {
        let subnets = Ok(vec![subnet.parse().expect("a network")]);
        assert_found(|f| f.subnets = subnets, "neighbours", Warn, &[subnet]);
    }
}
