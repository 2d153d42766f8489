//! What is wrong with an input, said by field.

use std::fmt;

use crate::resource::ResourceRef;

/// One thing that is wrong with one field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// Path inside the resource: `edge_ips[0]`, `origins[2].weight`; empty for
    /// the resource as a whole.
    pub field: String,
    /// What the value is and what would be right.
    pub problem: String,
}

impl Fault {
    pub fn new(field: impl Into<String>, problem: impl fmt::Display) -> Self {
        Self {
            field: field.into(),
            problem: problem.to_string(),
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.field.is_empty() {
            f.write_str(&self.problem)
        } else {
            write!(f, "{}: {}", self.field, self.problem)
        }
    }
}

/// A fault of a resource that could be read, but does not fit the others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StateFault {
    pub resource: ResourceRef,
    pub fault: Fault,
}

impl fmt::Display for StateFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.resource, self.fault)
    }
}
