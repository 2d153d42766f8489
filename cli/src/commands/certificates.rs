//! What a certificate says of itself, for people.

use std::time::{Duration, SystemTime};

use anyport_model::certificate::Chain;
use anyport_proto::v1;

use crate::{
    ages::short,
    console::{Cell, Mood},
};

/// Shorter is worth a look: those who renew by themselves do it at a month.
const SOON: Duration = Duration::from_secs(14 * 24 * 3600);

/// The names that a certificate is for, and until when it is one.
pub(super) fn shown(certificate: &v1::Certificate, now: SystemTime) -> (Vec<String>, Cell) {
    match Chain::from_pem(&certificate.cert) {
        Ok(chain) => {
            let expiry = expiry(&chain, now);
            (chain.names, expiry)
        }
        Err(error) => (Vec::new(), Cell::new(error, Mood::Bad)),
    }
}

/// Until when a certificate is one, or since when it is none.
pub(super) fn expiry(chain: &Chain, now: SystemTime) -> Cell {
    if let Ok(until) = chain.not_before.duration_since(now)
        && !until.is_zero()
    {
        return Cell::new(
            format_args!("not valid for {} yet", short(until)),
            Mood::Bad,
        );
    }
    match chain.not_after.duration_since(now) {
        Ok(left) if left < SOON => Cell::new(format_args!("in {}", short(left)), Mood::Notable),
        Ok(left) => Cell::new(format_args!("in {}", short(left)), Mood::Plain),
        Err(over) => Cell::new(format_args!("{} ago", short(over.duration())), Mood::Bad),
    }
}

/// What is to be said of a certificate that was applied and is not valid now.
/// It is taken all the same: which one a client can live with at three in the
/// morning is not ours to say.
pub(super) fn warning(resource: &v1::Resource, now: SystemTime) -> Option<String> {
    let Some(v1::resource::Kind::Certificate(certificate)) = &resource.kind else {
        return None;
    };
    let chain = Chain::from_pem(&certificate.cert).ok()?;
    let name = &certificate.name;
    if let Ok(over) = now.duration_since(chain.not_after) {
        let over = short(over);
        return Some(format!(
            "certificate {name:?} expired {over} ago; clients will refuse it"
        ));
    }
    let until = chain.not_before.duration_since(now).ok()?;
    let until = short(until);
    Some(format!(
        "certificate {name:?} is not valid for {until} yet; clients will refuse it"
    ))
}
