//! What was given out, one line each, and whether it still holds.
//!
//! ```text
//! message anyport.v1.Pool
//! field anyport.v1.Pool 6 origins: repeated anyport.v1.Origin
//! reserved anyport.v1.RevisionRecord 13
//! enum anyport.v1.Kind
//! value anyport.v1.Kind 1 KIND_PREFIX
//! rpc anyport.v1.ConfigService.Apply: anyport.v1.ApplyRequest -> anyport.v1.ApplyResponse
//! ```

use std::collections::{BTreeMap, BTreeSet};

use prost_types::{
    DescriptorProto, EnumDescriptorProto, FieldDescriptorProto, FileDescriptorSet,
    MethodDescriptorProto,
    field_descriptor_proto::{Label, Type},
};

/// All that programs of others rely on.
#[derive(Debug, Default)]
pub struct Contract {
    /// In order of the text.
    lines: Vec<String>,
    /// Messages, enums and RPCs by their full names, with what an RPC takes and
    /// gives.
    named: BTreeMap<String, String>,
    /// Fields and enum values by what they belong to and their numbers.
    numbered: BTreeMap<(String, i32), Member>,
    /// Numbers and quoted names.
    reserved: BTreeSet<(String, String)>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Member {
    name: String,
    /// Empty for a value of an enum.
    kind: String,
}

impl Contract {
    pub fn text(&self) -> String {
        self.lines.iter().map(|line| format!("{line}\n")).collect()
    }

    fn read(text: &str) -> Self {
        let mut contract = Self::default();
        for line in text.lines() {
            contract.add(line.to_owned());
        }
        contract
    }

    /// The text is what decides: what is found in descriptors is written first, and
    /// read the same way.
    fn add(&mut self, line: String) {
        let (what, rest) = line.split_once(' ').unwrap_or_default();
        match what {
            "message" | "enum" => {
                self.named.insert(rest.to_owned(), String::new());
            }
            "rpc" => {
                let (name, kind) = rest.split_once(": ").unwrap_or_else(|| malformed(&line));
                self.named.insert(name.to_owned(), kind.to_owned());
            }
            "reserved" => {
                let (owner, what) = rest.split_once(' ').unwrap_or_else(|| malformed(&line));
                self.reserved.insert((owner.to_owned(), what.to_owned()));
            }
            "field" | "value" => {
                let mut parts = rest.splitn(3, ' ');
                let (Some(owner), Some(Ok(number)), Some(member)) =
                    (parts.next(), parts.next().map(str::parse), parts.next())
                else {
                    return malformed(&line);
                };
                let (name, kind) = member.split_once(": ").unwrap_or((member, ""));
                let member = Member {
                    name: name.to_owned(),
                    kind: kind.to_owned(),
                };
                self.numbered.insert((owner.to_owned(), number), member);
            }
            _ => malformed(&line),
        }
        self.lines.push(line);
    }

    fn number_of(&self, owner: &str, name: &str) -> Option<i32> {
        self.numbered
            .iter()
            .find(|((of, _), member)| of == owner && member.name == name)
            .map(|((_, number), _)| *number)
    }

    fn message(&mut self, scope: &str, message: &DescriptorProto) {
        let name = format!("{scope}.{}", message.name());
        self.add(format!("message {name}"));
        for field in &message.field {
            let line = format!(
                "field {name} {} {}: {}",
                field.number(),
                field.name(),
                kind(message, field)
            );
            self.add(line);
        }
        // Of messages the end is not reserved any more, of enums it is.
        for range in &message.reserved_range {
            self.reserve(&name, range.start()..range.end());
        }
        self.reserve_names(&name, &message.reserved_name);
        for nested in &message.nested_type {
            self.message(&name, nested);
        }
        for nested in &message.enum_type {
            self.enumeration(&name, nested);
        }
    }

    fn enumeration(&mut self, scope: &str, wire: &EnumDescriptorProto) {
        let name = format!("{scope}.{}", wire.name());
        self.add(format!("enum {name}"));
        for value in &wire.value {
            self.add(format!("value {name} {} {}", value.number(), value.name()));
        }
        for range in &wire.reserved_range {
            self.reserve(&name, range.start()..range.end() + 1);
        }
        self.reserve_names(&name, &wire.reserved_name);
    }

    fn reserve(&mut self, owner: &str, numbers: std::ops::Range<i32>) {
        assert!(numbers.len() < 1_000, "{owner}: reserves too many numbers");
        for number in numbers {
            self.add(format!("reserved {owner} {number}"));
        }
    }

    fn reserve_names(&mut self, owner: &str, names: &[String]) {
        for name in names {
            self.add(format!("reserved {owner} {name:?}"));
        }
    }
}

fn malformed<T>(line: &str) -> T {
    panic!("accepted.txt: {line:?} is none of its lines")
}

/// What the descriptors give out.
pub fn contract(set: &FileDescriptorSet) -> Contract {
    let mut contract = Contract::default();
    let mut files: Vec<_> = set.file.iter().collect();
    files.sort_by_key(|file| file.name());
    for file in files {
        for service in &file.service {
            for method in &service.method {
                let (package, service) = (file.package(), service.name());
                let line = format!("rpc {package}.{service}.{}", method.name());
                contract.add(format!("{line}: {}", signature(method)));
            }
        }
        for message in &file.message_type {
            contract.message(file.package(), message);
        }
        for wire in &file.enum_type {
            contract.enumeration(file.package(), wire);
        }
    }
    contract
}

fn signature(method: &MethodDescriptorProto) -> String {
    let side = |streams, message: &str| {
        let stream = if streams { "stream " } else { "" };
        format!("{stream}{}", message.trim_start_matches('.'))
    };
    format!(
        "{} -> {}",
        side(method.client_streaming(), method.input_type()),
        side(method.server_streaming(), method.output_type())
    )
}

/// `repeated string`, `optional uint64`, `anyport.v1.App in kind`.
fn kind(message: &DescriptorProto, field: &FieldDescriptorProto) -> String {
    let label = match field.label() {
        Label::Repeated => "repeated ",
        _ if field.proto3_optional() => "optional ",
        _ => "",
    };
    let kind = match field.r#type() {
        Type::Message | Type::Enum | Type::Group => {
            field.type_name().trim_start_matches('.').to_owned()
        }
        scalar => {
            let name = scalar.as_str_name().to_ascii_lowercase();
            name.trim_start_matches("type_").to_owned()
        }
    };
    let oneof = match field.oneof_index {
        Some(index) if !field.proto3_optional() => {
            let oneof = usize::try_from(index).ok();
            let oneof = oneof.and_then(|index| message.oneof_decl.get(index));
            format!(
                " in {}",
                oneof.map(|oneof| oneof.name()).unwrap_or_default()
            )
        }
        _ => String::new(),
    };
    format!("{label}{kind}{oneof}")
}

/// What was given out and does not hold any more, one line each.
pub fn broken(accepted: &str, now: &Contract) -> Vec<String> {
    let accepted = Contract::read(accepted);
    let mut broken = Vec::new();
    for (name, was) in &accepted.named {
        match now.named.get(name) {
            None => broken.push(format!("{name}: removed; what was given out stays")),
            Some(is) if is != was => broken.push(format!("{name}: was `{was}`, is `{is}`")),
            Some(_) => {}
        }
    }
    for ((owner, number), was) in &accepted.numbered {
        if now.named.contains_key(owner) {
            broken.extend(changed(now, owner, *number, was));
        }
    }
    for (owner, what) in accepted.reserved.difference(&now.reserved) {
        broken.push(format!("{owner}: {what} is not reserved any more"));
    }
    broken
}

fn changed(now: &Contract, owner: &str, number: i32, was: &Member) -> Option<String> {
    let Member { name, kind } = was;
    match now.numbered.get(&(owner.to_owned(), number)) {
        Some(is) if is == was => None,
        Some(is) if is.name != *name => Some(format!(
            "{owner}.{}: was named {name}, which JSON and generated code rely on",
            is.name
        )),
        Some(is) => Some(format!("{owner}.{name}: was `{kind}`, is `{}`", is.kind)),
        None => {
            if let Some(other) = now.number_of(owner, name) {
                return Some(format!("{owner}.{name}: was number {number}, is {other}"));
            }
            let missing = [number.to_string(), format!("{name:?}")]
                .into_iter()
                .find(|what| !now.reserved.contains(&(owner.to_owned(), what.clone())))?;
            Some(format!(
                "{owner}.{name}: removed; say `reserved {missing};`"
            ))
        }
    }
}

/// What is given out and was not yet.
pub fn additions(accepted: &str, now: &Contract) -> Vec<String> {
    let known: BTreeSet<&str> = accepted.lines().collect();
    let lines = now.lines.iter();
    lines
        .filter(|line| !known.contains(&line[..]))
        .cloned()
        .collect()
}
