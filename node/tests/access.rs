//! The table of who may call what leaves nothing out.

use std::collections::BTreeSet;

use anyport_node::access::{TABLE, allowed};
use prost::Message;
use prost_types::FileDescriptorSet;

/// `/PACKAGE.SERVICE/METHOD` of every method there is.
fn described() -> BTreeSet<String> {
    let sets = [
        anyport_proto::DESCRIPTORS,
        tonic_health::pb::FILE_DESCRIPTOR_SET,
        tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET,
        tonic_reflection::pb::v1alpha::FILE_DESCRIPTOR_SET,
    ];
    let mut methods = BTreeSet::new();
    for set in sets {
        let set = FileDescriptorSet::decode(set).expect("descriptors");
        for file in &set.file {
            for service in &file.service {
                for method in &service.method {
                    let (package, service) = (file.package(), service.name());
                    methods.insert(format!("/{package}.{service}/{}", method.name()));
                }
            }
        }
    }
    methods
}

#[test]
fn every_method_has_one_entry_and_every_entry_a_method() {
    let entries: BTreeSet<String> = TABLE.iter().map(|(path, _)| (*path).to_owned()).collect();
    assert_eq!(entries, described());
    assert_eq!(entries.len(), TABLE.len(), "none twice");
    for path in &entries {
        assert!(allowed(path).is_some(), "{path}");
    }
}
