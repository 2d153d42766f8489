use anyport_model::{
    identity::{ClientIp, Identity, ProxyProtocol},
    resource::Transport,
};
use ipnet::IpNet;

use super::{
    app::{are_few, networks},
    fields::Faults,
};
use crate::v1;

/// `transport` is none where the protocol could not be read.
pub(super) fn read(
    faults: &mut Faults,
    wire: &v1::App,
    transport: Option<Transport>,
) -> Option<Identity> {
    let proxy_protocol = proxy_protocol(faults, wire.proxy_protocol, transport);
    let client_ip = client_ip(faults, wire.client_ip);
    let trusted_senders = trusted_senders(faults, &wire.accept_proxy_protocol, transport);
    Some(Identity {
        proxy_protocol: proxy_protocol?,
        client_ip: client_ip?,
        trusted_senders: trusted_senders?,
    })
}

fn proxy_protocol(
    faults: &mut Faults,
    wire: i32,
    transport: Option<Transport>,
) -> Option<ProxyProtocol> {
    use v1::ProxyProtocol as Wire;
    let form = match faults.take("proxy_protocol", Wire::try_from(wire))? {
        Wire::Unspecified | Wire::Off => ProxyProtocol::Off,
        Wire::V1 => ProxyProtocol::V1,
        Wire::V2 => ProxyProtocol::V2,
        Wire::Simple => ProxyProtocol::Simple,
    };
    faults.take("proxy_protocol", form.over(transport?))
}

fn client_ip(faults: &mut Faults, wire: i32) -> Option<ClientIp> {
    use v1::ClientIp as Wire;
    Some(match faults.take("client_ip", Wire::try_from(wire))? {
        Wire::Unspecified | Wire::Edge => ClientIp::Edge,
        Wire::Transparent => ClientIp::Transparent,
    })
}

fn trusted_senders(
    faults: &mut Faults,
    texts: &[String],
    transport: Option<Transport>,
) -> Option<Vec<IpNet>> {
    const FIELD: &str = "accept_proxy_protocol";
    if transport == Some(Transport::Udp) && !texts.is_empty() {
        faults.add(FIELD, "is for tcp only; right for udp is none");
    }
    if !are_few(faults, FIELD, texts.len()) {
        return None;
    }
    networks(faults, FIELD, texts)
}

/// The wire's defaults are not written out.
pub(super) fn write_proxy_protocol(form: ProxyProtocol) -> v1::ProxyProtocol {
    match form {
        ProxyProtocol::Off => v1::ProxyProtocol::Unspecified,
        ProxyProtocol::V1 => v1::ProxyProtocol::V1,
        ProxyProtocol::V2 => v1::ProxyProtocol::V2,
        ProxyProtocol::Simple => v1::ProxyProtocol::Simple,
    }
}

/// The wire's defaults are not written out.
pub(super) fn write_client_ip(client_ip: ClientIp) -> v1::ClientIp {
    match client_ip {
        ClientIp::Edge => v1::ClientIp::Unspecified,
        ClientIp::Transparent => v1::ClientIp::Transparent,
    }
}
