//! What is measured, in which unit, and which way is better.

use super::contender::Contender;

/// One figure of a contender.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Measure {
    /// Connections a second: opened, one byte there and back, closed.
    ConnectRate,
    /// How long such a connection takes, the median.
    ConnectMedian,
    /// How long the slowest hundredth takes at least.
    ConnectTail,
    /// Processor time of the proxy for one of them.
    ConnectCpu,
    /// Round trips of one byte a second, on kept connections.
    RoundTripRate,
    /// How long one takes, the median.
    RoundTripMedian,
    /// How long the slowest hundredth takes at least.
    RoundTripTail,
    /// Processor time of the proxy for one of them.
    RoundTripCpu,
    /// Payload a second from the origin to the client.
    BulkRate,
    /// Processor time of the proxy for a gigabyte of it.
    BulkCpu,
    /// Datagrams a second, there and back, on kept flows of UDP.
    DatagramRate,
    /// How long a request and its answer take, the median.
    DatagramMedian,
    /// How long the slowest hundredth takes at least.
    DatagramTail,
    /// Processor time of the proxy for one datagram.
    DatagramCpu,
    /// Memory of the proxy's processes for an idle connection.
    IdleMemory,
    /// Memory of the kernel for an idle connection, on the proxy's host.
    IdleKernelMemory,
    /// File descriptors of the proxy's processes for an idle connection.
    IdleDescriptors,
}

/// Which way is better.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Better {
    /// Higher.
    More,
    /// Lower.
    Less,
}

impl Measure {
    /// All, in the order in which they are shown.
    pub const ALL: [Self; 17] = [
        Self::ConnectRate,
        Self::ConnectMedian,
        Self::ConnectTail,
        Self::ConnectCpu,
        Self::RoundTripRate,
        Self::RoundTripMedian,
        Self::RoundTripTail,
        Self::RoundTripCpu,
        Self::BulkRate,
        Self::BulkCpu,
        Self::DatagramRate,
        Self::DatagramMedian,
        Self::DatagramTail,
        Self::DatagramCpu,
        Self::IdleMemory,
        Self::IdleKernelMemory,
        Self::IdleDescriptors,
    ];

    /// The name for programs.
    pub fn key(self) -> &'static str {
        match self {
            Self::ConnectRate => "connect_rate",
            Self::ConnectMedian => "connect_p50",
            Self::ConnectTail => "connect_p99",
            Self::ConnectCpu => "connect_cpu",
            Self::RoundTripRate => "round_trip_rate",
            Self::RoundTripMedian => "round_trip_p50",
            Self::RoundTripTail => "round_trip_p99",
            Self::RoundTripCpu => "round_trip_cpu",
            Self::BulkRate => "bulk_rate",
            Self::BulkCpu => "bulk_cpu",
            Self::DatagramRate => "datagram_rate",
            Self::DatagramMedian => "datagram_p50",
            Self::DatagramTail => "datagram_p99",
            Self::DatagramCpu => "datagram_cpu",
            Self::IdleMemory => "idle_memory",
            Self::IdleKernelMemory => "idle_kernel_memory",
            Self::IdleDescriptors => "idle_descriptors",
        }
    }

    /// The name for people.
    pub fn title(self) -> &'static str {
        match self {
            Self::ConnectRate => "connect, ask, close",
            Self::ConnectMedian => "… p50",
            Self::ConnectTail => "… p99",
            Self::ConnectCpu => "… CPU of the proxy",
            Self::RoundTripRate => "round trips",
            Self::RoundTripMedian => "… p50",
            Self::RoundTripTail => "… p99",
            Self::RoundTripCpu => "… CPU of the proxy",
            Self::BulkRate => "streams",
            Self::BulkCpu => "… CPU of the proxy",
            Self::DatagramRate => "UDP (nginx = 1), datagrams",
            Self::DatagramMedian => "… p50 there and back",
            Self::DatagramTail => "… p99",
            Self::DatagramCpu => "… CPU of the proxy",
            Self::IdleMemory => "idle connection, memory",
            Self::IdleKernelMemory => "… kernel memory",
            Self::IdleDescriptors => "… descriptors",
        }
    }

    /// What its values count.
    pub fn unit(self) -> &'static str {
        match self {
            Self::ConnectRate | Self::RoundTripRate | Self::DatagramRate => "per second",
            Self::ConnectMedian
            | Self::ConnectTail
            | Self::ConnectCpu
            | Self::RoundTripMedian
            | Self::RoundTripTail
            | Self::RoundTripCpu
            | Self::DatagramMedian
            | Self::DatagramTail
            | Self::DatagramCpu => "microseconds",
            Self::BulkRate => "gigabits per second",
            Self::BulkCpu => "milliseconds per gigabyte",
            Self::IdleMemory | Self::IdleKernelMemory => "bytes",
            Self::IdleDescriptors => "descriptors",
        }
    }

    /// Which way is better.
    pub fn better(self) -> Better {
        match self {
            Self::ConnectRate | Self::RoundTripRate | Self::BulkRate | Self::DatagramRate => {
                Better::More
            }
            _ => Better::Less,
        }
    }

    /// Whose figure is 1 where others are compared: HAProxy has no UDP.
    pub fn base(self) -> Contender {
        match self {
            Self::DatagramRate | Self::DatagramMedian | Self::DatagramTail | Self::DatagramCpu => {
                Contender::Nginx
            }
            _ => Contender::Haproxy,
        }
    }

    /// Whether a contender has what is measured at all.
    pub fn is_of(self, contender: Contender) -> bool {
        self.base() == Contender::Haproxy || contender.has_datagrams()
    }

    /// A value with its unit, short.
    pub fn say(self, value: f64) -> String {
        match self {
            Self::ConnectRate | Self::RoundTripRate | Self::DatagramRate => {
                format!("{}/s", short(value))
            }
            Self::BulkRate => format!("{value:.1} Gbit/s"),
            Self::BulkCpu => format!("{value:.0} ms/GB"),
            Self::IdleMemory | Self::IdleKernelMemory => format!("{:.1} KiB", value / 1024.0),
            Self::IdleDescriptors => format!("{value:.2}"),
            Self::DatagramCpu => format!("{value:.1} µs"),
            _ if value >= 10_000.0 => format!("{:.1} ms", value / 1000.0),
            _ => format!("{value:.0} µs"),
        }
    }
}

fn short(value: f64) -> String {
    if value >= 100_000.0 {
        format!("{:.0} k", value / 1000.0)
    } else if value >= 1_000.0 {
        format!("{:.1} k", value / 1000.0)
    } else {
        format!("{value:.0} ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_short_and_carry_their_unit() {
        for (measure, value, said) in [
            (Measure::ConnectRate, 8412.0, "8.4 k/s"),
            (Measure::ConnectRate, 84.0, "84 /s"),
            (Measure::RoundTripRate, 123_456.0, "123 k/s"),
            (Measure::ConnectTail, 381.4, "381 µs"),
            (Measure::ConnectTail, 20_480.0, "20.5 ms"),
            (Measure::BulkRate, 12.34, "12.3 Gbit/s"),
            (Measure::BulkCpu, 250.4, "250 ms/GB"),
            (Measure::IdleMemory, 1536.0, "1.5 KiB"),
            (Measure::IdleDescriptors, 2.0, "2.00"),
        ] {
            assert_eq!(measure.say(value), said);
        }
    }

    #[test]
    fn no_two_measures_share_a_key() {
        let keys: std::collections::BTreeSet<_> = Measure::ALL.map(Measure::key).into();
        assert_eq!(keys.len(), Measure::ALL.len());
    }
}
