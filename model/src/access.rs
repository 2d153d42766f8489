//! Who may connect to an app: of the rules whose network holds the client's
//! address, the one with the longest decides.

use std::{fmt, net::IpAddr};

use ipnet::{IpNet, Ipv4Net};

use crate::net_set::NetMap;

/// What becomes of a client.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Action {
    #[default]
    Allow,
    Deny,
}

impl Action {
    pub fn as_str(self) -> &'static str {
        match self {
            Action::Allow => "allow",
            Action::Deny => "deny",
        }
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// What becomes of the clients of a network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rule {
    pub action: Action,
    /// Without host bits. One of IPv6 holds no IPv4 client, however wide it is.
    pub source: IpNet,
}

/// The access rules of an app; no two are for the same network.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Access {
    default: Action,
    /// As they were declared.
    rules: Vec<Rule>,
    by_source: NetMap<Action>,
}

/// Why a rule cannot be one of an app's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RuleError {
    #[error("{given} has host bits; the network is {network}")]
    HostBits { given: IpNet, network: IpNet },
    #[error("{given} is a network of IPv4 clients; right is {right}")]
    Mapped { given: IpNet, right: Ipv4Net },
    #[error("{0} has a rule already")]
    Repeated(IpNet),
}

/// What was decided of a client, and by what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verdict {
    pub action: Action,
    /// The network of the rule that decided; `None`: no rule holds the client,
    /// so the default did.
    pub rule: Option<IpNet>,
}

impl Access {
    /// Without rules.
    pub fn new(default: Action) -> Self {
        Self {
            default,
            ..Self::default()
        }
    }

    /// # Errors
    /// [`RuleError`]; the rule is then not among the others.
    pub fn add(&mut self, rule: Rule) -> Result<(), RuleError> {
        let Rule { action, source } = rule;
        let network = source.trunc();
        if source != network {
            let given = source;
            return Err(RuleError::HostBits { given, network });
        }
        if let Some(right) = mapped(source) {
            let given = source;
            return Err(RuleError::Mapped { given, right });
        }
        if self.by_source.get(&source).is_some() {
            return Err(RuleError::Repeated(source));
        }
        self.by_source.insert(source, action);
        self.rules.push(rule);
        Ok(())
    }

    /// For clients that no rule holds.
    pub fn default_action(&self) -> Action {
        self.default
    }

    pub fn rules(&self) -> &[Rule] {
        &self.rules
    }

    /// Everyone is let in, and nobody is asked about.
    pub fn is_open(&self) -> bool {
        self.default == Action::Allow && self.rules.is_empty()
    }

    pub fn decide(&self, client: IpAddr) -> Verdict {
        let client = IpNet::from(client.to_canonical());
        match self.by_source.covering(&client) {
            Some((net, action)) => Verdict {
                action: *action,
                rule: Some(net),
            },
            None => Verdict {
                action: self.default,
                rule: None,
            },
        }
    }
}

/// A network of IPv4-mapped IPv6 addresses (RFC 4291, section 2.5.5.2), as what
/// clients of it are.
fn mapped(net: IpNet) -> Option<Ipv4Net> {
    let IpNet::V6(net) = net else {
        return None;
    };
    let len = net.prefix_len().checked_sub(96)?;
    Ipv4Net::new(net.addr().to_ipv4_mapped()?, len).ok()
}

/// `deny by the rule for 203.0.113.0/24`, `allow by default`.
impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.rule {
            Some(net) => write!(f, "{} by the rule for {net}", self.action),
            None => write!(f, "{} by default", self.action),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;
    use std::net::{Ipv4Addr, Ipv6Addr};

    fn rule(action: Action, source: &str) -> Rule {
        let source = source.parse().unwrap();
        Rule { action, source }
    }

    fn access(default: Action, rules: &[(Action, &str)]) -> Access {
        let mut access = Access::new(default);
        for (action, source) in rules {
            access.add(rule(*action, source)).unwrap();
        }
        access
    }

    #[test]
    fn the_longest_network_decides_whatever_the_order() {
        use Action::{Allow, Deny};
        let mut rules = [
            (Deny, "203.0.113.0/24"),
            (Allow, "203.0.113.128/25"),
            (Deny, "203.0.113.200/32"),
            (Deny, "2001:db8::/32"),
            (Allow, "2001:db8:7::/64"),
        ];
        for _ in 0..rules.len() {
            rules.rotate_left(1);
            let access = access(Allow, &rules);
            for (client, action, rule) in [
                ("203.0.113.5", Deny, Some("203.0.113.0/24")),
                ("203.0.113.129", Allow, Some("203.0.113.128/25")),
                ("203.0.113.200", Deny, Some("203.0.113.200/32")),
                ("::ffff:203.0.113.200", Deny, Some("203.0.113.200/32")),
                ("203.0.112.5", Allow, None),
                ("2001:db8:8::1", Deny, Some("2001:db8::/32")),
                ("2001:db8:7::1", Allow, Some("2001:db8:7::/64")),
                ("2001:db9::1", Allow, None),
            ] {
                let rule = rule.map(|net| net.parse().unwrap());
                let verdict = access.decide(client.parse().unwrap());
                assert_eq!(verdict, Verdict { action, rule }, "{client}");
            }
        }
    }

    #[test]
    fn no_network_of_ipv6_holds_an_ipv4_client() {
        let access = access(Action::Allow, &[(Action::Deny, "::/0")]);
        let denied = |client: &str| access.decide(client.parse().unwrap()).action == Action::Deny;
        assert!(denied("2001:db8::1") && !denied("203.0.113.5") && !denied("::ffff:203.0.113.5"));
    }

    #[test]
    fn what_would_decide_nothing_or_twice_is_no_rule() {
        let mut access = access(Action::Allow, &[(Action::Deny, "203.0.113.0/24")]);
        for (source, says) in [
            (
                "203.0.113.5/24",
                "203.0.113.5/24 has host bits; the network is 203.0.113.0/24",
            ),
            ("203.0.113.0/24", "203.0.113.0/24 has a rule already"),
            (
                "::ffff:198.51.100.0/120",
                "::ffff:198.51.100.0/120 is a network of IPv4 clients; right is 198.51.100.0/24",
            ),
        ] {
            let refused = access.add(rule(Action::Allow, source)).unwrap_err();
            assert_eq!(refused.to_string(), says);
        }
        assert_eq!(access.rules().len(), 1);
    }

    fn any_rules() -> impl Strategy<Value = Vec<Rule>> {
        let v4 = (0u8..8, 24u8..=32).prop_map(|(host, len)| {
            IpNet::new(Ipv4Addr::new(198, 51, 100, host).into(), len).unwrap()
        });
        let v6 = (0u16..8, 112u8..=128).prop_map(|(host, len)| {
            IpNet::new(
                Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, host).into(),
                len,
            )
            .unwrap()
        });
        let wide = prop::sample::select(vec!["0.0.0.0/0", "::/0", "198.0.0.0/8"]);
        let wide = wide.prop_map(|net| net.parse().unwrap());
        let action = prop::sample::select(vec![Action::Allow, Action::Deny]);
        let rule = (prop_oneof![v4, v6, wide], action);
        let rule = rule.prop_map(|(net, action)| Rule {
            action,
            source: net.trunc(),
        });
        prop::collection::vec(rule, 0..12)
    }

    proptest! {
        #[test]
        fn agrees_with_trying_every_rule(rules in any_rules(), deny in any::<bool>()) {
            let default = if deny { Action::Deny } else { Action::Allow };
            let mut access = Access::new(default);
            let mut taken: Vec<Rule> = Vec::new();
            for rule in rules {
                let repeated = taken.iter().any(|other| other.source == rule.source);
                prop_assert_eq!(access.add(rule).is_err(), repeated);
                if !repeated {
                    taken.push(rule);
                }
            }
            prop_assert_eq!(access.rules(), &taken[..]);
            prop_assert_eq!(access.is_open(), taken.is_empty() && !deny);
            let v4 = (0..16).map(|host| IpAddr::from([198, 51, 100, host]));
            let v6 = (0..16).map(|host| Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, host).into());
            for client in v4.chain(v6) {
                let held = taken.iter().filter(|rule| rule.source.contains(&client));
                let longest = held.max_by_key(|rule| rule.source.prefix_len());
                prop_assert_eq!(access.decide(client), Verdict {
                    action: longest.map_or(default, |rule| rule.action),
                    rule: longest.map(|rule| rule.source),
                });
            }
        }
    }
}
