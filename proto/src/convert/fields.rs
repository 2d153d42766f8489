//! Collects the faults of a message while its fields are read.

use std::{fmt, str::FromStr, time::Duration};

use anyport_model::{fault::Fault, resource::ResourceRef};

use super::time::read_duration;

/// A message that is no valid resource.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unreadable {
    /// What it would have been, where kind and name could be read.
    pub reference: Option<ResourceRef>,
    /// At least one.
    pub faults: Vec<Fault>,
}

/// Faults found so far. Reading goes on after a fault, so that all are found.
#[derive(Default)]
pub(super) struct Faults(Vec<Fault>);

impl Faults {
    pub(super) fn add(&mut self, field: impl Into<String>, problem: impl fmt::Display) {
        self.0.push(Fault::new(field, problem));
    }

    /// The value, or `None` with the fault noted.
    pub(super) fn take<T, E: fmt::Display>(
        &mut self,
        field: impl Into<String>,
        result: Result<T, E>,
    ) -> Option<T> {
        result.map_err(|problem| self.add(field, problem)).ok()
    }

    pub(super) fn parse<T>(&mut self, field: impl Into<String>, text: &str) -> Option<T>
    where
        T: FromStr,
        T::Err: fmt::Display,
    {
        self.take(field, text.parse())
    }

    /// An empty text stands for nothing; `Some(None)` then.
    pub(super) fn parse_optional<T>(&mut self, field: &str, text: &str) -> Option<Option<T>>
    where
        T: FromStr,
        T::Err: fmt::Display,
    {
        if text.is_empty() {
            Some(None)
        } else {
            self.parse(field, text).map(Some)
        }
    }

    /// A duration within bounds; `default` where none is set.
    pub(super) fn duration(
        &mut self,
        field: &str,
        given: Option<prost_types::Duration>,
        default: Duration,
        bounds: std::ops::RangeInclusive<Duration>,
    ) -> Option<Duration> {
        let Some(given) = given else {
            return Some(default);
        };
        let duration = self.take(field, read_duration(given))?;
        if bounds.contains(&duration) {
            return Some(duration);
        }
        let (least, most) = (bounds.start(), bounds.end());
        self.add(
            field,
            format_args!("{duration:?} is out of bounds; right is {least:?} to {most:?}"),
        );
        None
    }

    /// The value if all its fields could be read.
    pub(super) fn finish<T>(
        self,
        reference: Option<ResourceRef>,
        value: Option<T>,
    ) -> Result<T, Unreadable> {
        match value {
            Some(value) if self.0.is_empty() => Ok(value),
            _ => Err(Unreadable {
                reference,
                faults: self.0,
            }),
        }
    }
}
