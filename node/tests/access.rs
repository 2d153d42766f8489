//! The table of who may call what leaves nothing out.

use std::collections::BTreeSet;

use anyport_node::access::{Role, TABLE, allowed};
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

/// Written once more, so that no role gets more than it had by a change of a list
/// that several methods share.
#[test]
fn each_role_may_what_it_is_meant_to() {
    let may = |role: Role| -> Vec<&str> {
        let its = TABLE.iter().filter(|(_, roles)| roles.contains(&role));
        let names = its.map(|(path, _)| path.rsplit_once('.').map_or(*path, |(_, name)| name));
        let mut names: Vec<&str> = names.collect();
        names.sort_unstable();
        names.dedup();
        names
    };
    let all = ["Health/Check", "Health/Watch"];
    let reflection = ["ServerReflection/ServerReflectionInfo"];
    let read = [
        "BalancerService/GetHealth",
        "ConfigService/Get",
        "ConfigService/History",
        "ConfigService/List",
        "ConfigService/ListNodes",
        "ConfigService/Watch",
        "ConfigService/WatchNodes",
        "EdgeService/GetStatus",
        "EdgeService/ListConnections",
        "EdgeService/StreamEvents",
    ];
    let write = [
        "ConfigService/Apply",
        "ConfigService/Delete",
        "ConfigService/Promote",
        "ConfigService/Rollback",
        "EdgeService/Drain",
    ];
    let sync = ["DiscoveryService/Sync"];
    let members = [
        "BalancerService/WatchVerdicts",
        "DiscoveryService/WatchBalancers",
    ];
    let weights = [
        "BalancerService/ReportOrigins",
        "BalancerService/WatchWeights",
    ];
    let expected = |lists: &[&[&'static str]]| {
        let mut names = lists.concat();
        names.extend(all);
        names.extend(reflection);
        names.sort_unstable();
        names
    };
    assert_eq!(may(Role::Viewer), expected(&[&read]));
    assert_eq!(may(Role::Operator), expected(&[&read, &write]));
    assert_eq!(may(Role::Edge), expected(&[&sync, &weights]));
    assert_eq!(may(Role::Balancer), expected(&[&sync, &members]));
    assert_eq!(may(Role::ConfigService), expected(&[]));
}
