//! What the facts mean. Pure.

use std::fmt::Display;

use ipnet::IpNet;
use nlink::netlink::nftables::Hook;

use super::{
    super::return_path,
    Finding, Severity,
    facts::{Fact, Facts, ForeignChain, PolicyRule},
    probe::Probe,
    sockets::Listener,
};

/// Numbers of `linux/capability.h`.
const CAP_NET_ADMIN: u32 = 12;
const CAP_SYS_ADMIN: u32 = 21;
const CAP_BPF: u32 = 39;

/// Interval sets of addresses and ports came with 5.6, comments on tables,
/// which are our mark, with 5.10.
const OLDEST_KERNEL: (u32, u32) = (5, 10);

/// From here on, a set changes for packets in one instant; before, a claim
/// that takes a new shape can be missed for microseconds ("nft_set_pipapo:
/// don't check genbit from packetpath lookups").
const SEAMLESS_KERNEL: (u32, u32) = (6, 17);

/// The kernel's default since 5.4. Both queues of a listener end at it.
const SOMAXCONN: u32 = 4096;

/// A burst of this many handshakes at once is nothing out of the ordinary for
/// a host that takes connections for whole prefixes.
const SYN_BACKLOG: u32 = 1024;

/// A proxied connection takes two descriptors.
const OPEN_FILES: u64 = 65_536;

/// `RT_TABLE_LOCAL`.
const LOCAL_TABLE: u32 = 255;

/// Where our chain stands among those of its hook: `mangle`.
const OUR_PRIORITY: i32 = -150;

pub(super) fn judge(facts: &Facts, prefixes: &[IpNet], fixed_ports: &[u16]) -> Vec<Finding> {
    let mut findings = Findings::default();
    findings.privileges(&facts.capabilities);
    findings.kernel(&facts.kernel);
    findings.sk_lookup(&facts.sk_lookup);
    findings.tproxy(&facts.probe, &facts.sk_lookup);
    findings.bpf_fs(facts.bpf_fs);
    findings.foreign_programs(&facts.foreign_programs);
    findings.bpf_settings(facts);
    findings.rp_filter(&facts.rp_filter);
    findings.src_valid_mark(&facts.src_valid_mark, &facts.rules);
    findings.policy_rules(&facts.rules);
    findings.return_path(&facts.rules);
    findings.chains(&facts.chains);
    findings.legacy_tables(&facts.legacy_tables);
    findings.conntrack(facts.conntrack, &facts.chains);
    findings.bridge_netfilter(facts.bridge_netfilter);
    findings.queues(facts);
    findings.syncookies(&facts.syncookies);
    findings.ephemeral_ports(facts, fixed_ports);
    findings.listeners(&facts.listeners, prefixes);
    findings.own_addresses(&facts.addresses, prefixes);
    findings.neighbours(facts, prefixes);
    findings.open_files(&facts.open_files);
    findings.0
}

#[derive(Default)]
struct Findings(Vec<Finding>);

impl Findings {
    fn ok(&mut self, topic: &'static str, found: impl Into<String>) {
        self.push(Severity::Ok, topic, found.into(), String::new());
    }

    fn warn(&mut self, topic: &'static str, found: impl Into<String>, advice: impl Into<String>) {
        self.push(Severity::Warn, topic, found.into(), advice.into());
    }

    fn fail(&mut self, topic: &'static str, found: impl Into<String>, advice: impl Into<String>) {
        self.push(Severity::Fail, topic, found.into(), advice.into());
    }

    fn push(&mut self, severity: Severity, topic: &'static str, found: String, advice: String) {
        self.0.push(Finding {
            severity,
            topic,
            found,
            advice,
        });
    }

    /// The fact, or a finding that it could not be read.
    fn known<'a, T>(&mut self, topic: &'static str, fact: &'a Fact<T>) -> Option<&'a T> {
        match fact {
            Ok(fact) => Some(fact),
            Err(why) => {
                self.warn(
                    topic,
                    format!("could not be looked at: {why}"),
                    "run the doctor as root, with /proc and /sys as the host has them",
                );
                None
            }
        }
    }

    fn privileges(&mut self, capabilities: &Fact<u64>) {
        const TOPIC: &str = "privileges";
        let Some(bits) = self.known(TOPIC, capabilities) else {
            return;
        };
        let has = |capability: u32| bits & (1 << capability) != 0;
        if !has(CAP_NET_ADMIN) {
            self.fail(
                TOPIC,
                "CAP_NET_ADMIN is missing: no route, no nftables rule and no transparent listener can be made",
                "run the agent as root, or give it CAP_NET_ADMIN (systemd: AmbientCapabilities=CAP_NET_ADMIN)",
            );
        } else if !has(CAP_BPF) && !has(CAP_SYS_ADMIN) {
            self.warn(
                TOPIC,
                "CAP_BPF is missing: connections are spread over workers by a hash, which gives \
                 some more than others, and sk_lookup cannot be had",
                "give the agent CAP_BPF beside CAP_NET_ADMIN (systemd: AmbientCapabilities)",
            );
        } else {
            self.ok(
                TOPIC,
                "CAP_NET_ADMIN and CAP_BPF are there, for routes, nftables, listeners and BPF programs",
            );
        }
    }

    fn kernel(&mut self, version: &Fact<(u32, u32)>) {
        const TOPIC: &str = "kernel";
        let Some(&(major, minor)) = self.known(TOPIC, version) else {
            return;
        };
        let (oldest_major, oldest_minor) = OLDEST_KERNEL;
        if (major, minor) < OLDEST_KERNEL {
            self.fail(
                TOPIC,
                format!(
                    "Linux {major}.{minor} is too old; steering needs {oldest_major}.{oldest_minor} \
                     for interval sets of addresses and ports and for comments on tables"
                ),
                format!("run Linux {oldest_major}.{oldest_minor} or later"),
            );
        } else if (major, minor) < SEAMLESS_KERNEL {
            self.ok(
                TOPIC,
                format!(
                    "Linux {major}.{minor}; unless it carries a later fix, a connection may be \
                     refused in the microseconds in which its claim takes another shape (6.17 \
                     and later never do that)"
                ),
            );
        } else {
            self.ok(TOPIC, format!("Linux {major}.{minor}"));
        }
    }

    fn sk_lookup(&mut self, probe: &Probe) {
        const TOPIC: &str = "sk_lookup";
        match probe {
            Probe::Works => self.ok(
                TOPIC,
                "the kernel takes our sk_lookup program, tried in a namespace of its own; \
                 --steering=auto uses it",
            ),
            Probe::Refused(why) => self.warn(
                TOPIC,
                format!("the kernel does not take our sk_lookup program: {why}; --steering=auto uses tproxy"),
                "nothing, if tproxy works; else Linux 5.9 or later with CONFIG_BPF_SYSCALL, and \
                 CAP_BPF beside CAP_NET_ADMIN for the agent",
            ),
            Probe::NotTried(why) => self.warn(
                TOPIC,
                format!("whether the kernel takes our sk_lookup program could not be tried: {why}"),
                "run the doctor as root (CAP_SYS_ADMIN is needed for the trial, not for the agent)",
            ),
        }
    }

    fn bpf_fs(&mut self, mounted: bool) {
        const TOPIC: &str = "bpf file system";
        if mounted {
            self.ok(TOPIC, "mounted at /sys/fs/bpf");
        } else {
            self.warn(
                TOPIC,
                "not mounted at /sys/fs/bpf, where steering by sk_lookup keeps what outlives the \
                 agent; an agent with CAP_SYS_ADMIN mounts it, any other steers by tproxy",
                "mount -t bpf bpf /sys/fs/bpf (systemd does so at boot)",
            );
        }
    }

    fn foreign_programs(&mut self, programs: &Fact<Vec<String>>) {
        const TOPIC: &str = "sk_lookup programs";
        // An old kernel has no such programs to ask for.
        match programs.as_deref() {
            Err(_) => {}
            Ok([]) => self.ok(TOPIC, "none but ours in this network namespace"),
            Ok(programs) => self.warn(
                TOPIC,
                format!(
                    "{} in this network namespace: of all that choose a socket for a connection, \
                     the one that was attached last decides, and one that drops is only overruled \
                     by one that chooses",
                    listed(programs)
                ),
                "make sure that they leave the claimed addresses alone (bpftool net, bpftool link)",
            ),
        }
    }

    fn bpf_settings(&mut self, facts: &Facts) {
        const TOPIC: &str = "bpf settings";
        let mut well = true;
        if facts.unprivileged_bpf == Ok(0) {
            well = false;
            self.warn(
                TOPIC,
                "every user of this host may load BPF programs",
                "sysctl kernel.unprivileged_bpf_disabled=2",
            );
        }
        if facts.bpf_jit == Ok(0) {
            well = false;
            self.warn(
                TOPIC,
                "BPF programs are interpreted: steering by sk_lookup takes several times as long \
                 for each new connection",
                "sysctl net.core.bpf_jit_enable=1",
            );
        }
        if well {
            self.ok(TOPIC, "programs are compiled, and not loaded by everybody");
        }
    }

    fn tproxy(&mut self, probe: &Probe, sk_lookup: &Probe) {
        const TOPIC: &str = "tproxy";
        let severity = match sk_lookup {
            Probe::Works => Severity::Warn,
            _ => Severity::Fail,
        };
        match probe {
            Probe::Works => self.ok(
                TOPIC,
                "the kernel takes our nftables table, tried in a namespace of its own",
            ),
            Probe::Refused(why) => self.push(
                severity,
                TOPIC,
                format!("the kernel does not take our nftables table: {why}"),
                "a kernel with CONFIG_NF_TABLES_INET, CONFIG_NFT_TPROXY, CONFIG_NF_TPROXY_IPV4 and \
                 CONFIG_NF_TPROXY_IPV6; if they are modules, load nft_tproxy"
                    .to_owned(),
            ),
            Probe::NotTried(why) => self.warn(
                TOPIC,
                format!("whether the kernel takes our nftables table could not be tried: {why}"),
                "run the doctor as root (CAP_SYS_ADMIN is needed for the trial, not for the agent)",
            ),
        }
    }

    fn rp_filter(&mut self, values: &Fact<Vec<(String, u8)>>) {
        const TOPIC: &str = "rp_filter";
        let Some(values) = self.known(TOPIC, values) else {
            return;
        };
        // The kernel takes the higher of `all` and the interface's own.
        let strict = interfaces_with(values, |value| value == 1);
        if strict.is_empty() {
            self.ok(TOPIC, "no interface checks reverse paths strictly");
        } else {
            self.warn(
                TOPIC,
                format!(
                    "reverse paths are checked strictly on {strict}: packets from clients whose \
                     way back goes out by another interface (anycast, several uplinks) are \
                     dropped without a trace"
                ),
                "if the paths are not the same both ways: sysctl net.ipv4.conf.all.rp_filter=2, \
                 and 0 or 2 on each interface",
            );
        }
    }

    fn src_valid_mark(&mut self, values: &Fact<Vec<(String, u8)>>, rules: &Fact<Vec<PolicyRule>>) {
        const TOPIC: &str = "src_valid_mark";
        let Some(values) = self.known(TOPIC, values) else {
            return;
        };
        let on = interfaces_with(values, |value| value != 0);
        let any =
            |is: fn(&PolicyRule) -> bool| rules.as_ref().is_ok_and(|rules| rules.iter().any(is));
        if on.is_empty() {
            self.ok(TOPIC, "off");
        } else if any(PolicyRule::is_return_path) {
            self.fail(
                TOPIC,
                format!(
                    "on for {on} while an app has client_ip: transparent: answers of its origins \
                     carry a mark by which they come back, and are dropped as martians, without a \
                     trace"
                ),
                "sysctl net.ipv4.conf.all.src_valid_mark=0, and 0 on each interface",
            );
        } else if any(|rule| rule.mark.is_some()) {
            self.warn(
                TOPIC,
                format!(
                    "on for {on} while rules route by mark (VPN clients set both): a packet that \
                     carries such a mark is checked against the routes of the mark, and dropped \
                     as a martian, without a trace, where they do not lead back to the client"
                ),
                "steering sets no marks itself; make sure that nothing marks packets to the owned \
                 prefixes, or set net.ipv4.conf.*.src_valid_mark=0",
            );
        } else {
            self.ok(TOPIC, format!("on for {on}, but nothing routes by mark"));
        }
    }

    fn policy_rules(&mut self, rules: &Fact<Vec<PolicyRule>>) {
        const TOPIC: &str = "ip rule";
        let Some(rules) = self.known(TOPIC, rules) else {
            return;
        };
        let mut well = true;
        for (v6, option) in [(false, ""), (true, " -6")] {
            let family = || rules.iter().filter(move |rule| rule.v6 == v6);
            let Some(local) = family()
                .filter(|rule| rule.table == LOCAL_TABLE && rule.to_all)
                .map(|rule| rule.priority)
                .min()
            else {
                // A host without IPv6 has no rules for it.
                if family().next().is_some() {
                    well = false;
                    self.fail(
                        TOPIC,
                        format!("`ip{option} rule` never looks into the local table, so no owned address is local"),
                        format!("ip{option} rule add from all lookup local priority 0"),
                    );
                }
                continue;
            };
            let nearer: Vec<_> = family().filter(|rule| rule.priority < local).collect();
            if !nearer.is_empty() {
                well = false;
                self.warn(
                    TOPIC,
                    format!(
                        "`ip{option} rule` looks into the local table at priority {local} only, \
                         after {}: what matches those never reaches the owned prefixes",
                        listed(nearer.iter().map(|rule| rule.describe())),
                    ),
                    "give those rules a priority after the local table's, or put the local table \
                     first again, at priority 0",
                );
            }
        }
        if well {
            self.ok(TOPIC, "the local table is looked into first");
        }
    }

    /// Where answers to transparent connections are led back.
    fn return_path(&mut self, rules: &Fact<Vec<PolicyRule>>) {
        const TOPIC: &str = "return path";
        // That they cannot be read is told by others.
        let rules = rules.as_deref().unwrap_or_default();
        let ours: Vec<_> = rules.iter().filter(|rule| rule.is_return_path()).collect();
        if ours.is_empty() {
            return;
        }
        let nearer = rules.iter().filter(|rule| {
            let before = |own: &&&PolicyRule| own.v6 == rule.v6 && rule.priority < own.priority;
            let is_local = rule.table == LOCAL_TABLE && rule.to_all;
            !is_local && rule.takes(return_path::MARK) && ours.iter().any(|own| before(&own))
        });
        let nearer: Vec<_> = nearer.map(PolicyRule::describe).collect();
        if nearer.is_empty() {
            self.ok(
                TOPIC,
                "nothing comes before the rule that leads answers of origins back",
            );
        } else {
            self.warn(
                TOPIC,
                format!(
                    "an app has client_ip: transparent, and `ip rule` looks first at {}: answers of \
                     its origins may be led elsewhere",
                    listed(nearer)
                ),
                format!("give those rules a priority above {}", return_path::PRIORITY),
            );
        }
    }

    fn chains(&mut self, chains: &Fact<Vec<ForeignChain>>) {
        const TOPIC: &str = "nftables";
        let Some(chains) = self.known(TOPIC, chains) else {
            return;
        };
        let early = |chain: &&ForeignChain| chain.hook == Hook::Prerouting && !chain.translates;
        let prerouting: Vec<_> = chains.iter().filter(early).collect();
        if !prerouting.is_empty() {
            let place = |chain: &&ForeignChain| {
                let order = if chain.priority < OUR_PRIORITY {
                    "before"
                } else {
                    "after"
                };
                format!("{} (priority {}, {order} ours)", chain.name, chain.priority)
            };
            self.warn(
                TOPIC,
                format!(
                    "other chains see packets at the prerouting hook and may drop them or steer \
                     them elsewhere: {}",
                    listed(prerouting.iter().map(place))
                ),
                "look through them with `nft list chain` for drop, tproxy, mark and redirect that \
                 take in the owned prefixes",
            );
        }
        let input = |chain: &&ForeignChain| chain.hook == Hook::Input && chain.drops_by_default;
        let closed: Vec<_> = chains.iter().filter(input).collect();
        if !closed.is_empty() {
            self.warn(
                TOPIC,
                format!(
                    "{} drops what it does not allow. Steered connections pass it with the \
                     address and the port that the client dialled",
                    listed(closed.iter().map(|chain| &chain.name))
                ),
                "allow the owned prefixes there, for example `ip daddr 198.51.100.0/24 tcp dport \
                 1-65535 accept`",
            );
        }
        if prerouting.is_empty() && closed.is_empty() {
            self.ok(TOPIC, "no other chain stands in the way");
        }
    }

    fn legacy_tables(&mut self, tables: &[String]) {
        const TOPIC: &str = "iptables-legacy";
        if tables.is_empty() {
            self.ok(TOPIC, "not in use");
        } else {
            self.warn(
                TOPIC,
                format!(
                    "{} in use; `nft` does not show their rules, which may drop steered packets \
                     or steer them elsewhere",
                    listed(tables)
                ),
                "look through them with `iptables-legacy-save`, or move them to nftables",
            );
        }
    }

    fn conntrack(&mut self, entries: Option<u64>, chains: &Fact<Vec<ForeignChain>>) {
        const TOPIC: &str = "conntrack";
        let translators: Vec<_> = (chains.iter().flatten())
            .filter(|chain| chain.translates)
            .map(|chain| &chain.name)
            .collect();
        let entries = entries.unwrap_or(0);
        if entries == 0 && translators.is_empty() {
            self.ok(TOPIC, "connections are not tracked");
            return;
        }
        let because = if translators.is_empty() {
            String::new()
        } else {
            format!(", if only for {}", listed(translators))
        };
        self.warn(
            TOPIC,
            format!(
                "connections are tracked ({entries} now{because}). When the table is full, new \
                 connections are dropped before any listener sees them, SYN cookies or not: a \
                 flood does that"
            ),
            "do without NAT and `ct` rules on this host, or exempt the owned prefixes: a chain at \
             hook prerouting, priority raw, with `ip daddr PREFIX notrack`, and one at output with \
             `ip saddr PREFIX notrack`",
        );
    }

    fn bridge_netfilter(&mut self, on: Option<bool>) {
        const TOPIC: &str = "br_netfilter";
        if on == Some(true) {
            self.warn(
                TOPIC,
                "bridged packets pass the IP hooks as well, so traffic of other hosts that this \
                 one only bridges is steered too, if it goes to a claimed address",
                "sysctl net.bridge.bridge-nf-call-iptables=0 net.bridge.bridge-nf-call-ip6tables=0, \
                 unless containers need it",
            );
        } else {
            self.ok(TOPIC, "bridged packets do not pass the IP hooks");
        }
    }

    fn queues(&mut self, facts: &Facts) {
        let settings = [
            (
                "somaxconn",
                "net.core.somaxconn",
                &facts.somaxconn,
                SOMAXCONN,
            ),
            (
                "tcp_max_syn_backlog",
                "net.ipv4.tcp_max_syn_backlog",
                &facts.syn_backlog,
                SYN_BACKLOG,
            ),
        ];
        for (topic, name, value, enough) in settings {
            let Some(&value) = self.known(topic, value) else {
                continue;
            };
            if value >= enough {
                self.ok(topic, value.to_string());
            } else {
                self.warn(
                    topic,
                    format!(
                        "{value}: one listener takes the connections of all claimed ports, and \
                         queues no more than this; a burst beyond it is dropped"
                    ),
                    format!("sysctl {name}={enough}"),
                );
            }
        }
    }

    fn syncookies(&mut self, value: &Fact<u32>) {
        const TOPIC: &str = "tcp_syncookies";
        match self.known(TOPIC, value) {
            None => {}
            Some(0) => self.warn(
                TOPIC,
                "off: a flood of SYNs that fills the listener's queue shuts out every client",
                "sysctl net.ipv4.tcp_syncookies=1",
            ),
            Some(value) => self.ok(TOPIC, value.to_string()),
        }
    }

    fn ephemeral_ports(&mut self, facts: &Facts, fixed_ports: &[u16]) {
        const TOPIC: &str = "ephemeral ports";
        let Some(&(first, last)) = self.known(TOPIC, &facts.ephemeral) else {
            return;
        };
        let Some(reserved) = self.known(TOPIC, &facts.reserved) else {
            return;
        };
        let at_risk: Vec<_> = fixed_ports
            .iter()
            .filter(|port| (first..=last).contains(port))
            .filter(|&port| !reserved.iter().any(|&(a, b)| (a..=b).contains(port)))
            .collect();
        if at_risk.is_empty() {
            self.ok(
                TOPIC,
                format!("{first}-{last}, none of the agent's fixed ports"),
            );
        } else {
            let ports = listed(at_risk);
            self.warn(
                TOPIC,
                format!(
                    "{first}-{last} takes in {ports}, which the agent binds by number: after a \
                     restart an outgoing connection may hold it, and the agent cannot start"
                ),
                format!(
                    "add {ports} to the list in net.ipv4.ip_local_reserved_ports (a write replaces \
                     the whole list)"
                ),
            );
        }
    }

    fn listeners(&mut self, listeners: &Fact<Vec<Listener>>, prefixes: &[IpNet]) {
        const TOPIC: &str = "open daemons";
        let Some(listeners) = self.known(TOPIC, listeners) else {
            return;
        };
        if listeners.is_empty() {
            self.ok(TOPIC, "no program listens on every address");
            return;
        }
        let whose = if prefixes.is_empty() {
            "an owned prefix".to_owned()
        } else {
            listed(prefixes)
        };
        self.warn(
            TOPIC,
            format!(
                "{}: listening on every address means on every address of {whose} too, where the \
                 port is not claimed by an app",
                listed(listeners.iter().map(Listener::describe))
            ),
            "bind them to the host's own address (sshd: ListenAddress), or close those ports for \
             the owned prefixes with a firewall",
        );
    }

    fn own_addresses(&mut self, addresses: &Fact<Vec<std::net::IpAddr>>, prefixes: &[IpNet]) {
        const TOPIC: &str = "own addresses";
        let Some(addresses) = self.known(TOPIC, addresses) else {
            return;
        };
        let inside: Vec<_> = addresses
            .iter()
            .filter(|address| prefixes.iter().any(|prefix| prefix.contains(*address)))
            .collect();
        if inside.is_empty() {
            self.ok(TOPIC, "none lies in an owned prefix");
        } else {
            self.warn(
                TOPIC,
                format!(
                    "{} of this host lies in an owned prefix: a claimed port there is steered to \
                     the apps and no longer reaches this host's own services, such as SSH",
                    listed(inside)
                ),
                "keep the ports of the host's own services out of the claims, or reach the host by \
                 another address",
            );
        }
    }

    fn neighbours(&mut self, facts: &Facts, prefixes: &[IpNet]) {
        const TOPIC: &str = "neighbours";
        let Some(subnets) = self.known(TOPIC, &facts.subnets) else {
            return;
        };
        let Some(gateways) = self.known(TOPIC, &facts.gateways) else {
            return;
        };
        let owned = |net: &IpNet| {
            let overlaps = |prefix: &IpNet| prefix.contains(net) || net.contains(prefix);
            prefixes.iter().any(overlaps)
        };
        let gateways = gateways.iter().filter(|&&address| owned(&address.into()));
        let gateways: Vec<_> = gateways
            .map(|address| format!("default gateway {address}"))
            .collect();
        let subnets = subnets.iter().filter(|&net| owned(net));
        let subnets: Vec<_> = subnets
            .map(|net| format!("connected subnet {net}"))
            .collect();
        let inside = gateways.iter().chain(&subnets);
        if inside.clone().next().is_none() {
            self.ok(
                TOPIC,
                "no gateway and no connected subnet lies in an owned prefix",
            );
        } else {
            self.warn(
                TOPIC,
                format!(
                    "an owned prefix takes in {}: this host takes every owned address for its own, \
                     and no longer reaches the hosts that have them",
                    listed(inside)
                ),
                "declare prefixes that are routed to this host, not those of the networks that it \
                 is in; a single address of such a network can be owned as a /32 or /128",
            );
        }
    }

    fn open_files(&mut self, limits: &Fact<(u64, u64)>) {
        const TOPIC: &str = "open files";
        let Some(&(soft, hard)) = self.known(TOPIC, limits) else {
            return;
        };
        if soft >= OPEN_FILES {
            self.ok(TOPIC, format!("{soft} (hard limit {hard})"));
        } else {
            self.warn(
                TOPIC,
                format!(
                    "{soft} (hard limit {hard}): a proxied connection takes two, so {} is the most \
                     that can be open at a time",
                    soft / 2
                ),
                "raise it for the agent, for example to 1048576 (systemd: LimitNOFILE=)",
            );
        }
    }
}

impl PolicyRule {
    /// Ours, which is there while an app has `client_ip: transparent`.
    fn is_return_path(&self) -> bool {
        self.mark == Some(return_path::MARK) && self.table == u32::from(return_path::ROUTING_TABLE)
    }

    /// Whether a packet with this mark can match.
    fn takes(&self, mark: u32) -> bool {
        self.mark
            .is_none_or(|own| mark & self.mask == own & self.mask)
    }

    fn describe(&self) -> String {
        match self.mark {
            Some(mark) => format!("{} (mark {mark:#x}, table {})", self.priority, self.table),
            None => format!("{} (table {})", self.priority, self.table),
        }
    }
}

impl Listener {
    fn describe(&self) -> String {
        let any = if self.v6 { "[::]" } else { "0.0.0.0" };
        match &self.program {
            Some(program) => format!("{any}:{} ({program})", self.port),
            None => format!("{any}:{}", self.port),
        }
    }
}

/// The interfaces whose effective value, the higher of `all` and their own,
/// is such; empty if there are none.
fn interfaces_with(values: &[(String, u8)], such: impl Fn(u8) -> bool) -> String {
    let of_all = values.iter().find(|(name, _)| name == "all");
    let of_all = of_all.map_or(0, |&(_, value)| value);
    let interfaces = values
        .iter()
        .filter(|(name, value)| name != "all" && such(of_all.max(*value)));
    listed(interfaces.map(|(name, _)| name))
}

fn listed(items: impl IntoIterator<Item = impl Display>) -> String {
    let items: Vec<_> = items.into_iter().map(|item| item.to_string()).collect();
    items.join(", ")
}

#[cfg(test)]
mod tests;
