//! Origins that a name stands for (`origin_dns`): what is asked of a name
//! server, what its answer means for balancing, and for how long.

use std::{collections::BTreeMap, fmt, net::IpAddr, str::FromStr, sync::Arc, time::Duration};

use crate::{ports::PortMap, resource::Weight};

/// A domain name in lower case, absolute, without the dot at its end.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DnsName(Arc<str>);

/// Of a name as text, and of one of its labels (RFC 1035 2.3.4).
const NAME_MAX: usize = 253;
const LABEL_MAX: usize = 63;

/// Why a text is no [`DnsName`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DnsNameError {
    #[error("is empty; right is a domain name, for example game.internal")]
    Empty,
    #[error("{0:?} is longer than {NAME_MAX} bytes")]
    TooLong(String),
    #[error(
        "{0:?} is no domain name; it has labels of 1 to {LABEL_MAX} letters, digits, '-' and '_', with dots between them"
    )]
    Labels(String),
    #[error("{0:?} is an address or a number, no domain name; an address is for origin_direct")]
    Address(String),
}

impl DnsName {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for DnsName {
    type Err = DnsNameError;

    fn from_str(text: &str) -> Result<Self, DnsNameError> {
        let name = text.strip_suffix('.').unwrap_or(text);
        if text.is_empty() {
            return Err(DnsNameError::Empty);
        }
        if name.len() > NAME_MAX {
            return Err(DnsNameError::TooLong(text.chars().take(NAME_MAX).collect()));
        }
        if text.parse::<IpAddr>().is_ok() {
            return Err(DnsNameError::Address(text.to_owned()));
        }
        let letter = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
        let right = |label: &str| {
            let hyphened = label.starts_with('-') || label.ends_with('-');
            (1..=LABEL_MAX).contains(&label.len()) && !hyphened && label.bytes().all(letter)
        };
        if !name.split('.').all(right) {
            return Err(DnsNameError::Labels(text.to_owned()));
        }
        // No top-level domain is a number (RFC 3696 2), but 127.1 and 0x7f.1
        // are addresses to some.
        let last = name.rsplit('.').next().unwrap_or(name);
        let hex = last.strip_prefix("0x").or(last.strip_prefix("0X"));
        let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_hexdigit());
        if last.bytes().all(|byte| byte.is_ascii_digit()) || hex.is_some_and(digits) {
            return Err(DnsNameError::Address(text.to_owned()));
        }
        Ok(Self(name.to_ascii_lowercase().into()))
    }
}

impl fmt::Display for DnsName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Debug for DnsName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

/// The records that are asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RecordType {
    A,
    Aaaa,
    /// A and AAAA, both families alike.
    Addresses,
    /// SRV (RFC 2782), and the addresses of its targets.
    Srv,
}

impl RecordType {
    pub fn as_str(self) -> &'static str {
        match self {
            RecordType::A => "A",
            RecordType::Aaaa => "AAAA",
            RecordType::Addresses => "A+AAAA",
            RecordType::Srv => "SRV",
        }
    }
}

/// One question to the name servers. Apps that ask the same share its answer.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Question {
    pub name: DnsName,
    pub record: RecordType,
    /// How long an answer is used, whatever the records say.
    pub ttl: Option<Duration>,
}

/// `game.internal (A)`.
impl fmt::Display for Question {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.name, self.record.as_str())
    }
}

/// Where an app with `origin_dns` goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DnsOrigin {
    question: Question,
    port: Option<PortMap>,
}

/// A port and a record type that do not fit.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DnsPortError {
    #[error("is not set; an address has no port, so origin_dns needs one unless its type is SRV")]
    Missing,
    #[error("is set beside origin_dns of type SRV, whose records have the ports")]
    BesideSrv,
}

impl DnsOrigin {
    /// The port is the record's for SRV, and given for all else.
    pub fn new(question: Question, port: Option<PortMap>) -> Result<Self, DnsPortError> {
        match (question.record, port) {
            (RecordType::Srv, Some(_)) => Err(DnsPortError::BesideSrv),
            (RecordType::Srv, None) => Ok(Self { question, port }),
            (_, None) => Err(DnsPortError::Missing),
            (_, Some(_)) => Ok(Self { question, port }),
        }
    }

    pub fn question(&self) -> &Question {
        &self.question
    }

    /// None: each record has its own.
    pub fn port(&self) -> Option<PortMap> {
        self.port
    }
}

/// One place that a name stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// Lower ones first; the next only when none of the former accepts.
    pub priority: u16,
    pub ip: IpAddr,
    /// Of an SRV record.
    pub port: Option<u16>,
    /// Among those of its priority.
    pub weight: Weight,
}

/// What a name stands for: never empty, in order, nothing twice, so that two
/// answers of the same meaning are equal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer(Vec<Place>);

/// Places beyond these are left out, the last ones in order: a pool has no
/// more origins either.
const PLACES_MAX: usize = 1000;

/// One SRV record and the addresses of its target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    pub priority: u16,
    pub weight: u16,
    pub port: u16,
    pub addresses: Vec<IpAddr>,
}

impl Answer {
    /// Of A and AAAA records: all alike. `None` where there is none.
    pub fn of_addresses(addresses: impl IntoIterator<Item = IpAddr>) -> Option<Self> {
        Self::of(addresses.into_iter().map(|ip| Place {
            priority: 0,
            ip,
            port: None,
            weight: Weight::ONE,
        }))
    }

    /// Of SRV records: a target's weight is shared by its addresses. Of a
    /// weight of 0 beside others, RFC 2782 wants "a very small chance".
    pub fn of_services(services: impl IntoIterator<Item = Service>) -> Option<Self> {
        let services: Vec<Service> = services.into_iter().collect();
        let all_zero = |priority: u16| {
            let alike = services.iter().filter(|s| s.priority == priority);
            alike.into_iter().all(|service| service.weight == 0)
        };
        Self::of(services.iter().flat_map(|service| {
            let weight = match service.weight {
                0 if all_zero(service.priority) => 1,
                0 => 0,
                weight => u32::from(weight),
            };
            // 65535 × 10 is below the largest weight there is.
            let part = weight * 10
                / u32::try_from(service.addresses.len())
                    .unwrap_or(u32::MAX)
                    .max(1);
            let weight = Weight::of_thousandths(part.max(1));
            service.addresses.iter().map(move |&ip| Place {
                priority: service.priority,
                ip,
                port: Some(service.port),
                weight,
            })
        }))
    }

    fn of(places: impl Iterator<Item = Place>) -> Option<Self> {
        let mut once = BTreeMap::new();
        for place in places.filter(|place| place.port != Some(0)) {
            let ip = place.ip.to_canonical();
            let first = once
                .entry((ip, place.port))
                .or_insert(Place { ip, ..place });
            *first = (*first).min(Place { ip, ..place });
        }
        let mut places: Vec<Place> = once.into_values().collect();
        places.sort_unstable();
        places.truncate(PLACES_MAX);
        (!places.is_empty()).then_some(Self(places))
    }

    pub fn places(&self) -> &[Place] {
        &self.0
    }
}

/// Records that ask to be asked for at every use are not.
const TTL_MIN: Duration = Duration::from_secs(5);
/// A record that was once wrong must not stay for days.
const TTL_MAX: Duration = Duration::from_secs(3600);
/// What a manifest may ask for instead.
pub const CHOSEN_TTL: std::ops::RangeInclusive<Duration> =
    Duration::from_secs(1)..=Duration::from_secs(24 * 3600);

impl Question {
    /// How long an answer is used whose records may be kept for `ttl`: the
    /// manifest's own, as Spectrum has it, or else what the records say, within
    /// 5 s and an hour.
    pub fn lifetime(&self, ttl: Duration) -> Duration {
        self.ttl.unwrap_or_else(|| ttl.clamp(TTL_MIN, TTL_MAX))
    }
}

/// When to ask again: before the lifetime is over, and not when all others do.
/// `random` is uniform over all 64 bits.
pub fn refresh_after(lifetime: Duration, random: u64) -> Duration {
    let fraction = random as f64 / u64::MAX as f64;
    lifetime.mul_f64(0.75 + 0.2 * fraction)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names_are_domain_names_and_nothing_else() {
        for (text, name) in [
            ("game.internal", "game.internal"),
            ("Game.Internal.", "game.internal"),
            ("_game._tcp.example.com", "_game._tcp.example.com"),
            ("localhost", "localhost"),
            ("1.a", "1.a"),
            ("xn--bcher-kva.example", "xn--bcher-kva.example"),
        ] {
            assert_eq!(text.parse::<DnsName>().unwrap().as_str(), name);
        }
        for text in [
            "",
            ".",
            "a..b",
            ".a",
            "-a.b",
            "a-.b",
            "a b",
            "ä.de",
            "10.0.2.2",
            "127.1",
            "0x7f.0x1",
            "2130706433",
            "::1",
            "[::1]",
            "a/b",
            "a:1",
            "*.a",
            &format!("{}.a", "x".repeat(64)),
            &"a.".repeat(128),
        ] {
            assert!(text.parse::<DnsName>().is_err(), "{text:?}");
        }
    }

    fn service(priority: u16, weight: u16, addresses: &[&str]) -> Service {
        Service {
            priority,
            weight,
            port: 7000,
            addresses: addresses.iter().map(|ip| ip.parse().unwrap()).collect(),
        }
    }

    #[test]
    fn services_are_ordered_by_priority_and_share_by_weight() {
        let answer = Answer::of_services([
            service(20, 0, &["10.0.0.9"]),
            service(10, 60, &["10.0.0.1", "10.0.0.2"]),
            service(10, 20, &["10.0.0.3"]),
            service(10, 0, &["10.0.0.4"]),
            service(10, 5, &[]),
        ])
        .unwrap();
        let seen: Vec<_> = answer
            .places()
            .iter()
            .map(|p| (p.priority, p.ip.to_string(), p.weight.thousandths()))
            .collect();
        let place = |priority, ip: &str, weight| (priority, ip.to_owned(), weight);
        assert_eq!(
            seen,
            [
                place(10, "10.0.0.1", 300),
                place(10, "10.0.0.2", 300),
                place(10, "10.0.0.3", 200),
                place(10, "10.0.0.4", 1),
                place(20, "10.0.0.9", 10),
            ]
        );
    }

    #[test]
    fn answers_of_the_same_meaning_are_equal() {
        let answer = |ips: &[&str]| Answer::of_addresses(ips.iter().map(|ip| ip.parse().unwrap()));
        let one = answer(&["10.0.0.2", "10.0.0.1", "10.0.0.2"]);
        assert_eq!(one, answer(&["10.0.0.1", "::ffff:10.0.0.2"]));
        assert_eq!(one.unwrap().places().len(), 2);
        assert_eq!(answer(&[]), None);
        assert_eq!(Answer::of_services([service(1, 1, &[])]), None);
    }

    #[test]
    fn an_answer_lives_as_long_as_the_manifest_or_else_its_records_say() {
        let lifetime = |chosen: Option<u64>, ttl: u64| {
            let question = Question {
                name: "a.b".parse().unwrap(),
                record: RecordType::A,
                ttl: chosen.map(Duration::from_secs),
            };
            question.lifetime(Duration::from_secs(ttl)).as_secs()
        };
        assert_eq!(lifetime(None, 60), 60);
        assert_eq!(lifetime(None, 0), 5);
        assert_eq!(lifetime(None, 86_400), 3600);
        assert_eq!(lifetime(Some(600), 1), 600);
        assert_eq!(lifetime(Some(1), 86_400), 1);
    }

    #[test]
    fn a_port_is_given_or_in_the_records() {
        let origin = |record, port: Option<u16>| {
            let question = Question {
                name: "a.b".parse().unwrap(),
                record,
                ttl: None,
            };
            DnsOrigin::new(question, port.map(PortMap::Fixed)).map(|_| ())
        };
        assert_eq!(origin(RecordType::A, None), Err(DnsPortError::Missing));
        assert_eq!(
            origin(RecordType::Srv, Some(1)),
            Err(DnsPortError::BesideSrv)
        );
        assert_eq!(origin(RecordType::Srv, None), Ok(()));
        assert_eq!(origin(RecordType::Addresses, Some(1)), Ok(()));
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "\\PC{0,300}") {
            let _ = text.parse::<DnsName>();
        }

        #[test]
        fn a_name_reads_as_itself(text in "[a-z0-9_]{1,20}(\\.[a-z_][a-z0-9_]{0,20}){0,5}") {
            if let Ok(name) = text.parse::<DnsName>() {
                prop_assert_eq!(name.as_str().parse::<DnsName>().unwrap(), name);
            }
        }

        #[test]
        fn it_is_asked_again_before_the_lifetime_is_over(seconds in 1u64..86_400, random: u64) {
            let lifetime = Duration::from_secs(seconds);
            let after = refresh_after(lifetime, random);
            prop_assert!(after < lifetime && after > lifetime / 2);
        }

        #[test]
        fn weights_of_services_keep_their_proportion(
            weights in prop::collection::vec(1u16.., 2..10),
        ) {
            let services = weights.iter().zip(1u8..).map(|(&weight, host)| Service {
                priority: 0,
                weight,
                port: 1,
                addresses: vec![IpAddr::from([10, 0, 0, host])],
            });
            let answer = Answer::of_services(services).unwrap();
            for (place, weight) in answer.places().iter().zip(&weights) {
                prop_assert_eq!(place.weight.thousandths(), u32::from(*weight) * 10);
            }
        }
    }
}
