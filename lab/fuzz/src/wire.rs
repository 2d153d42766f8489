//! From the wire to the model, and back.

use anyport_proto::convert::{read_resource, read_update, write_resource};
use anyport_proto::v1;
use prost::Message;

/// A resource that can be read is the same after it was written and read again; one that cannot
/// names at least one fault.
pub fn resource(bytes: &[u8]) {
    let Ok(wire) = v1::Resource::decode(bytes) else {
        return;
    };
    match read_resource(wire) {
        Ok(resource) => {
            let written = write_resource(&resource);
            let again = read_resource(written);
            assert_eq!(again.as_ref().ok(), Some(&resource), "{again:?}");
        }
        Err(unreadable) => {
            assert!(!unreadable.faults.is_empty(), "refused without a fault");
            for fault in unreadable.faults {
                assert!(!fault.problem.is_empty(), "a fault without words");
            }
        }
    }
}

/// Of an update, every resource is taken or rejected.
pub fn update(bytes: &[u8]) {
    let Ok(wire) = v1::Update::decode(bytes) else {
        return;
    };
    let sent = wire.upserts.len();
    if let Ok(update) = read_update(wire) {
        let (taken, rejected) = (update.upserts.len(), update.unreadable.len());
        // Two that cannot be read may be of one name.
        assert!(taken + rejected <= sent && (taken + rejected > 0 || sent == 0));
    }
}
