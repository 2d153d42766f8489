//! How things are named, and what has to be commented.

use std::collections::{BTreeMap, HashSet};

use prost_types::{
    DescriptorProto, EnumDescriptorProto, FileDescriptorProto, FileDescriptorSet,
    ServiceDescriptorProto,
};

/// Streams of what has a name of its own, where the rule asks for another one.
const EXCEPTIONS: [(&str, &str); 3] = [
    ("anyport.v1.BalancerService.WatchWeights", "WeightsUpdate"),
    ("anyport.v1.BalancerService.WatchVerdicts", "VerdictsUpdate"),
    ("anyport.v1.DiscoveryService.WatchBalancers", "BalancerSet"),
];

// Numbers of fields in descriptor.proto, of which paths of source locations consist.
const FILE_MESSAGES: i32 = 4;
const FILE_ENUMS: i32 = 5;
const FILE_SERVICES: i32 = 6;
const SERVICE_METHODS: i32 = 2;
const MESSAGE_MESSAGES: i32 = 3;
const MESSAGE_ENUMS: i32 = 4;

/// One line for each fault.
pub fn faults(set: &FileDescriptorSet) -> Vec<String> {
    let mut uses: BTreeMap<&str, usize> = BTreeMap::new();
    for method in set
        .file
        .iter()
        .flat_map(|file| &file.service)
        .flat_map(|service| &service.method)
    {
        for message in [method.input_type(), method.output_type()] {
            *uses.entry(message.trim_start_matches('.')).or_default() += 1;
        }
    }
    let mut faults: Vec<String> = uses
        .iter()
        .filter(|(_, uses)| **uses > 1)
        .map(|(message, uses)| format!("{message}: used by {uses} RPCs; each has its own"))
        .collect();
    for file in &set.file {
        let mut linter = Linter {
            commented: commented(file),
            used: uses.keys().copied().collect(),
            faults: &mut faults,
        };
        linter.file(file);
    }
    faults
}

/// Paths of everything that has a comment before it.
fn commented(file: &FileDescriptorProto) -> HashSet<&[i32]> {
    let info = file.source_code_info.iter();
    info.flat_map(|info| &info.location)
        .filter(|location| !location.leading_comments().trim().is_empty())
        .map(|location| &location.path[..])
        .collect()
}

struct Linter<'a> {
    commented: HashSet<&'a [i32]>,
    /// Messages that are the request or response of an RPC.
    used: HashSet<&'a str>,
    faults: &'a mut Vec<String>,
}

impl Linter<'_> {
    fn fault(&mut self, name: &str, problem: &str) {
        self.faults.push(format!("{name}: {problem}"));
    }

    fn expect(&mut self, holds: bool, name: &str, problem: &str) {
        if !holds {
            self.fault(name, problem);
        }
    }

    fn comment(&mut self, name: &str, path: &[i32]) {
        let there = self.commented.contains(path);
        self.expect(there, name, "no comment");
    }

    fn file(&mut self, file: &FileDescriptorProto) {
        let package = file.package();
        let version = package.rsplit('.').next().and_then(|v| v.strip_prefix('v'));
        let versioned = version.is_some_and(|v| v.parse::<u32>().is_ok());
        self.expect(
            versioned,
            &format!("package {package}"),
            "no version; right is one that ends in .v1",
        );
        let (directory, _) = file.name().rsplit_once('/').unwrap_or_default();
        if directory != package.replace('.', "/") {
            self.fault(&format!("package {package}"), &format!("is in {directory}"));
        }
        for (path, message) in indexed(FILE_MESSAGES, &file.message_type) {
            self.message(package, message, &path);
        }
        for (path, wire) in indexed(FILE_ENUMS, &file.enum_type) {
            self.enumeration(package, wire, &path);
        }
        for (path, service) in indexed(FILE_SERVICES, &file.service) {
            self.service(package, service, &path);
        }
    }

    fn service(&mut self, package: &str, service: &ServiceDescriptorProto, path: &[i32]) {
        let name = format!("{package}.{}", service.name());
        self.comment(&name, path);
        self.expect(
            pascal(service.name()) && service.name().ends_with("Service"),
            &name,
            "a service ends in Service, in PascalCase",
        );
        for (below, method) in indexed(SERVICE_METHODS, &service.method) {
            let rpc = format!("{name}.{}", method.name());
            self.comment(&rpc, &[path, &below].concat());
            self.expect(pascal(method.name()), &rpc, "not PascalCase");
            for (what, suffix, given) in [
                ("request", "Request", method.input_type()),
                ("response", "Response", method.output_type()),
            ] {
                let given = given.rsplit('.').next().unwrap_or_default();
                let right = format!("{}{suffix}", method.name());
                if given != right && !EXCEPTIONS.contains(&(&rpc, given)) {
                    self.fault(&rpc, &format!("its {what} is {given}; right is {right}"));
                }
            }
        }
    }

    fn message(&mut self, scope: &str, message: &DescriptorProto, path: &[i32]) {
        if message.options.as_ref().is_some_and(|o| o.map_entry()) {
            return;
        }
        let name = format!("{scope}.{}", message.name());
        // What a request is, its RPC says.
        if !self.used.contains(&name[..]) {
            self.comment(&name, path);
        }
        self.expect(pascal(message.name()), &name, "not PascalCase");
        let fields = message.field.iter().map(|field| field.name());
        let oneofs = message.oneof_decl.iter().map(|oneof| oneof.name());
        // A oneof that `optional` brings along begins with an underscore.
        for member in fields.chain(oneofs.filter(|oneof| !oneof.starts_with('_'))) {
            self.expect(
                lower_snake(member),
                &format!("{name}.{member}"),
                "not lower_snake_case",
            );
        }
        for (below, nested) in indexed(MESSAGE_MESSAGES, &message.nested_type) {
            self.message(&name, nested, &[path, &below].concat());
        }
        for (below, nested) in indexed(MESSAGE_ENUMS, &message.enum_type) {
            self.enumeration(&name, nested, &[path, &below].concat());
        }
    }

    fn enumeration(&mut self, scope: &str, wire: &EnumDescriptorProto, path: &[i32]) {
        let name = format!("{scope}.{}", wire.name());
        self.comment(&name, path);
        self.expect(pascal(wire.name()), &name, "not PascalCase");
        let prefix = upper_snake(wire.name()) + "_";
        for value in &wire.value {
            let full = format!("{name}.{}", value.name());
            let zero = format!("{prefix}UNSPECIFIED");
            if value.number() == 0 && value.name() != zero {
                self.fault(&full, &format!("the value 0 is {zero}"));
            }
            if !value.name().starts_with(&prefix) {
                self.fault(&full, &format!("does not begin with {prefix}"));
            }
            let upper = value.name().to_ascii_uppercase() == value.name();
            self.expect(upper, &full, "not UPPER_SNAKE_CASE");
        }
    }
}

/// Each with its path in what holds it.
fn indexed<T>(field: i32, all: &[T]) -> impl Iterator<Item = ([i32; 2], &T)> {
    (0..).map(move |index| [field, index]).zip(all)
}

fn pascal(name: &str) -> bool {
    name.starts_with(|first: char| first.is_ascii_uppercase())
        && name.chars().all(|c| c.is_ascii_alphanumeric())
}

fn lower_snake(name: &str) -> bool {
    name.starts_with(|first: char| first.is_ascii_lowercase())
        && !name.contains("__")
        && name
            .chars()
            .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
}

/// `PoolState` as `POOL_STATE`.
fn upper_snake(name: &str) -> String {
    let mut snake = String::new();
    for c in name.chars() {
        if c.is_ascii_uppercase() && !snake.is_empty() {
            snake.push('_');
        }
        snake.push(c.to_ascii_uppercase());
    }
    snake
}
