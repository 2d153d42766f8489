use anyport_model::resource::{Prefix, ResourceRef};
use ipnet::IpNet;

use super::fields::{Faults, Unreadable};
use crate::v1;

pub(super) fn read(wire: &v1::Prefix) -> Result<Prefix, Unreadable> {
    let mut faults = Faults::default();
    let net = net(&mut faults, "cidr", &wire.cidr);
    // With host bits it is no prefix, but it is clear which one was meant.
    let meant = net.and_then(|net| Prefix::new(net.trunc()).ok());
    let prefix = net.and_then(|net| faults.take("cidr", Prefix::new(net)));
    faults.finish(meant.map(ResourceRef::Prefix), prefix)
}

fn net(faults: &mut Faults, field: &str, text: &str) -> Option<IpNet> {
    let problem = || format!("{text:?} is no CIDR; right is 198.51.100.0/24 or 2001:db8:51::/64");
    faults.take(field, text.parse().map_err(|_| problem()))
}

pub(super) fn write(prefix: Prefix) -> v1::Prefix {
    v1::Prefix {
        cidr: prefix.to_string(),
    }
}
