//! Where random numbers come from.

use std::{fmt, sync::Arc};

/// Numbers, uniform over all 64 bits. Clones share the source.
#[derive(Clone)]
pub struct Random(Arc<dyn Fn() -> u64 + Send + Sync>);

impl Random {
    pub fn new(source: impl Fn() -> u64 + Send + Sync + 'static) -> Self {
        Self(Arc::new(source))
    }

    pub fn next(&self) -> u64 {
        (self.0)()
    }
}

/// The system's.
impl Default for Random {
    fn default() -> Self {
        Self::new(rand::random)
    }
}

impl fmt::Debug for Random {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Random")
    }
}
