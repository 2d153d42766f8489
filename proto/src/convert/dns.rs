use anyport_model::{
    dns::{CHOSEN_TTL, DnsOrigin, Question, RecordType},
    ports::{PortMap, PortRange},
};

use super::{fields::Faults, write_duration};
use crate::v1;

pub(super) fn read(
    faults: &mut Faults,
    wire: &v1::OriginDns,
    port: Option<PortRange>,
    edge: Option<PortRange>,
) -> Option<DnsOrigin> {
    let name = faults.parse("origin_dns.name", &wire.name);
    let record = faults.take("origin_dns.type", v1::OriginDnsType::try_from(wire.r#type));
    let ttl = faults.duration("origin_dns.ttl", wire.ttl, *CHOSEN_TTL.start(), CHOSEN_TTL);
    let record = match record? {
        v1::OriginDnsType::Unspecified => RecordType::Addresses,
        v1::OriginDnsType::A => RecordType::A,
        v1::OriginDnsType::Aaaa => RecordType::Aaaa,
        v1::OriginDnsType::Srv => RecordType::Srv,
    };
    let port = match port {
        Some(port) => Some(faults.take("origin_port", PortMap::new(edge?, port))?),
        None => None,
    };
    let question = Question {
        name: name?,
        record,
        ttl: wire.ttl.and(Some(ttl?)),
    };
    faults.take("origin_port", DnsOrigin::new(question, port))
}

pub(super) fn write(origin: &DnsOrigin) -> v1::OriginDns {
    let question = origin.question();
    v1::OriginDns {
        name: question.name.to_string(),
        r#type: match question.record {
            RecordType::Addresses => v1::OriginDnsType::Unspecified,
            RecordType::A => v1::OriginDnsType::A,
            RecordType::Aaaa => v1::OriginDnsType::Aaaa,
            RecordType::Srv => v1::OriginDnsType::Srv,
        }
        .into(),
        ttl: question.ttl.map(write_duration),
    }
}
