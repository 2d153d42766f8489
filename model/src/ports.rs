//! Ports and ranges of ports, and how a range of edge ports maps onto origin ports.

use std::{fmt, str::FromStr};

/// A range of ports, both ends included, 1 ≤ first ≤ last ≤ 65535.
///
/// Orders by width first and then by position, so that sorting puts the more
/// specific claim first.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct PortRange {
    first: u16,
    last: u16,
}

/// Why a text or a pair of numbers is no [`PortRange`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PortsError {
    #[error("{0:?} is not a port; a port is a number from 1 to 65535")]
    NotAPort(String),
    #[error("{first}-{last} runs backwards; a range is FIRST-LAST with FIRST not above LAST")]
    Backwards { first: u16, last: u16 },
}

impl PortRange {
    /// Every port, 1 to 65535: what `*` stands for.
    pub const ALL: PortRange = PortRange {
        first: 1,
        last: u16::MAX,
    };

    pub fn new(first: u16, last: u16) -> Result<Self, PortsError> {
        if first == 0 {
            return Err(PortsError::NotAPort(first.to_string()));
        }
        if first > last {
            return Err(PortsError::Backwards { first, last });
        }
        Ok(Self { first, last })
    }

    pub fn single(port: u16) -> Result<Self, PortsError> {
        Self::new(port, port)
    }

    pub fn first(self) -> u16 {
        self.first
    }

    pub fn last(self) -> u16 {
        self.last
    }

    /// Number of ports, 1 to 65535.
    pub fn width(self) -> u32 {
        u32::from(self.last) - u32::from(self.first) + 1
    }

    pub fn contains(self, port: u16) -> bool {
        (self.first..=self.last).contains(&port)
    }

    pub fn overlaps(self, other: PortRange) -> bool {
        self.first <= other.last && other.first <= self.last
    }
}

impl Ord for PortRange {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.width(), self.first).cmp(&(other.width(), other.first))
    }
}

impl PartialOrd for PortRange {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

fn parse_port(text: &str) -> Result<u16, PortsError> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    match text.parse() {
        Ok(port) if digits && port != 0 => Ok(port),
        _ => Err(PortsError::NotAPort(text.to_owned())),
    }
}

/// `N`, `A-B` or `*`.
impl FromStr for PortRange {
    type Err = PortsError;

    fn from_str(text: &str) -> Result<Self, PortsError> {
        if text == "*" {
            return Ok(Self::ALL);
        }
        match text.split_once('-') {
            Some((first, last)) => Self::new(parse_port(first)?, parse_port(last)?),
            None => Self::single(parse_port(text)?),
        }
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if *self == Self::ALL {
            f.write_str("*")
        } else if self.first == self.last {
            write!(f, "{}", self.first)
        } else {
            write!(f, "{}-{}", self.first, self.last)
        }
    }
}

impl fmt::Debug for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Which port of an origin serves a port of the edge.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PortMap {
    /// Every edge port goes to one origin port.
    Fixed(u16),
    /// Edge port `edge.first + i` goes to origin port `origin_first + i`.
    Offset { edge: PortRange, origin_first: u16 },
}

impl PortMap {
    /// Maps `edge` onto `origin`: one origin port takes them all, a range must
    /// be as long as the edge's.
    pub fn new(edge: PortRange, origin: PortRange) -> Result<Self, RangeLengths> {
        if origin.width() == 1 {
            Ok(Self::Fixed(origin.first()))
        } else if origin.width() == edge.width() {
            Ok(Self::Offset {
                edge,
                origin_first: origin.first(),
            })
        } else {
            Err(RangeLengths { edge, origin })
        }
    }

    /// The origin port for `edge_port`, which lies in the edge range.
    pub fn origin_port(self, edge_port: u16) -> u16 {
        match self {
            Self::Fixed(port) => port,
            // `new` made both ranges equally long, so neither step overflows
            // for a port of the edge range; wrapping keeps others harmless.
            Self::Offset { edge, origin_first } => {
                origin_first.wrapping_add(edge_port.wrapping_sub(edge.first()))
            }
        }
    }
}

/// A range of origin ports that is not as long as the range of edge ports.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{origin} is {} ports for the {} of {edge}; use one port, or a range as long as the edge's",
    origin.width(),
    edge.width()
)]
pub struct RangeLengths {
    edge: PortRange,
    origin: PortRange,
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn texts_that_are_no_ports_are_refused() {
        for text in [
            "", "0", "65536", "-1", "+1", "1-", "-", "1-2-3", "5-4", "a", " 1", "0-5", "1 -2", "**",
        ] {
            assert!(text.parse::<PortRange>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn star_is_every_port() {
        let all: PortRange = "*".parse().unwrap();
        assert_eq!((all.first(), all.last(), all.width()), (1, 65535, 65535));
        assert_eq!("1-65535".parse::<PortRange>().unwrap().to_string(), "*");
    }

    #[test]
    fn a_range_maps_by_equal_offset() {
        let map = PortMap::new("1000-2000".parse().unwrap(), "3000-4000".parse().unwrap()).unwrap();
        assert_eq!(map.origin_port(1005), 3005);
        assert!(PortMap::new("1000-2000".parse().unwrap(), "3000-3999".parse().unwrap()).is_err());
    }

    proptest! {
        #[test]
        fn text_and_back(a in 1u16.., b in 1u16..) {
            let range = PortRange::new(a.min(b), a.max(b)).unwrap();
            prop_assert_eq!(range.to_string().parse::<PortRange>().unwrap(), range);
        }

        #[test]
        fn no_text_panics(text in ".*") {
            let _ = text.parse::<PortRange>();
        }

        #[test]
        fn offsets_stay_in_the_origin_range(first in 1u16.., start in 1u16.., width in 1u32..65535, pick: u16) {
            let end = |from: u16| u16::try_from(u32::from(from) + width - 1).ok();
            if let (Some(edge_last), Some(origin_last)) = (end(first), end(start)) {
                let edge = PortRange::new(first, edge_last).unwrap();
                let origin = PortRange::new(start, origin_last).unwrap();
                let port = first + u16::try_from(u32::from(pick) % width).unwrap();
                let mapped = PortMap::new(edge, origin).unwrap().origin_port(port);
                prop_assert!(origin.contains(mapped));
                prop_assert_eq!(port - first, mapped - start);
            }
        }
    }
}
