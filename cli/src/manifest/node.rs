//! YAML text to a tree whose nodes know their lines.

use std::fmt;

use serde::{
    Deserialize, Deserializer,
    de::{self, MapAccess, SeqAccess, Visitor},
};
use serde_saphyr::{DuplicateKeyPolicy, MergeKeyPolicy, Spanned};

/// A value and where it stands.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Node {
    /// Counted from 1; 0: unknown.
    pub(super) line: u64,
    pub(super) value: Value,
}

/// A value of YAML's core schema.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value {
    Null,
    Flag(bool),
    Whole(i128),
    Real(f64),
    Text(String),
    List(Vec<Node>),
    /// In the order written; no key twice.
    Map(Vec<(Key, Node)>),
}

/// A key of a mapping and where it stands.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Key {
    pub(super) line: u64,
    pub(super) name: String,
}

/// Why a text is no YAML that a manifest could be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{problem}")]
pub(super) struct SyntaxError {
    /// Counted from 1; 0: unknown.
    pub(super) line: u64,
    pub(super) problem: String,
}

/// Nodes of one manifest: 10,000 apps of fifty values each, doubled.
const NODES_MAX: usize = 1_000_000;
/// Parser events that aliases may stand for, all together: thousands of shared
/// timeouts, and no bomb.
const REPLAYED_MAX: usize = 100_000;

impl Node {
    /// Reads one YAML document; an empty one is null.
    pub(super) fn parse(text: &str) -> Result<Self, SyntaxError> {
        let options = serde_saphyr::options! {
            duplicate_keys: DuplicateKeyPolicy::Error,
            merge_keys: MergeKeyPolicy::Merge,
            // A name such as 007 or 1_000 is a text to everyone but a parser.
            leading_zero_numbers_as_strings: true,
            underscored_numbers_as_strings: true,
            // And a pool may be called `on` or `no`.
            strict_booleans: true,
            with_snippet: false,
            emit_comments: false,
            alias_limits: serde_saphyr::alias_limits! {
                max_total_replayed_events: REPLAYED_MAX,
            },
            budget: serde_saphyr::budget! {
                max_nodes: NODES_MAX,
                max_events: 4 * NODES_MAX,
                max_depth: 32,
            },
        };
        let read: Result<Spanned<Value>, _> = serde_saphyr::from_str_with_options(text, options);
        read.map(Node::from).map_err(|error| SyntaxError {
            line: error.location().map_or(0, |location| location.line()),
            problem: error.without_snippet().render(),
        })
    }
}

impl From<Spanned<Value>> for Node {
    fn from(spanned: Spanned<Value>) -> Self {
        Node {
            line: spanned.referenced.line(),
            value: spanned.value,
        }
    }
}

impl Node {
    /// Whether it is a mapping with such a key.
    pub(super) fn has(&self, key: &str) -> bool {
        match &self.value {
            Value::Map(entries) => entries.iter().any(|(found, _)| found.name == key),
            _ => false,
        }
    }
}

impl Value {
    /// What a user would call it: `the number 5`, `a list`.
    pub(super) fn describe(&self) -> String {
        match self {
            Value::Null => "nothing".to_owned(),
            Value::Flag(flag) => flag.to_string(),
            Value::Whole(number) => format!("the number {number}"),
            Value::Real(number) => format!("the number {number}"),
            Value::Text(text) => format!("the text {text:?}"),
            Value::List(_) => "a list".to_owned(),
            Value::Map(_) => "a mapping".to_owned(),
        }
    }
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ValueVisitor)
    }
}

struct ValueVisitor;

impl<'de> Visitor<'de> for ValueVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E: de::Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E: de::Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, inner: D) -> Result<Value, D::Error> {
        Value::deserialize(inner)
    }

    fn visit_bool<E: de::Error>(self, flag: bool) -> Result<Value, E> {
        Ok(Value::Flag(flag))
    }

    fn visit_i64<E: de::Error>(self, number: i64) -> Result<Value, E> {
        Ok(Value::Whole(number.into()))
    }

    fn visit_u64<E: de::Error>(self, number: u64) -> Result<Value, E> {
        Ok(Value::Whole(number.into()))
    }

    fn visit_i128<E: de::Error>(self, number: i128) -> Result<Value, E> {
        Ok(Value::Whole(number))
    }

    fn visit_u128<E: de::Error>(self, number: u128) -> Result<Value, E> {
        match i128::try_from(number) {
            Ok(number) => Ok(Value::Whole(number)),
            Err(_) => Err(E::custom("a number beyond all bounds")),
        }
    }

    fn visit_f64<E: de::Error>(self, number: f64) -> Result<Value, E> {
        Ok(Value::Real(number))
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Value, E> {
        Ok(Value::Text(text.to_owned()))
    }

    fn visit_string<E: de::Error>(self, text: String) -> Result<Value, E> {
        Ok(Value::Text(text))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Value, A::Error> {
        let mut nodes = Vec::new();
        while let Some(node) = list.next_element::<Spanned<Value>>()? {
            nodes.push(node.into());
        }
        Ok(Value::List(nodes))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut entries = Vec::new();
        while let Some(key) = map.next_key::<Spanned<String>>()? {
            let key = Key {
                line: key.referenced.line(),
                name: key.value,
            };
            entries.push((key, map.next_value::<Spanned<Value>>()?.into()));
        }
        Ok(Value::Map(entries))
    }
}
