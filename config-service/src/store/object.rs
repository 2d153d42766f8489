//! Immutable bytes, named by what they are.

use std::{fmt, str::FromStr};

use prost::bytes::Bytes;
use sha2::{Digest, Sha256};

/// SHA-256 of an object's bytes, and so its name: whoever reads an object can
/// tell whether it is the right one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectId([u8; 32]);

/// An object on its way into a store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Object {
    id: ObjectId,
    bytes: Bytes,
}

impl ObjectId {
    /// The name of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }

    /// `None` where `bytes` are not 32 in number.
    pub fn from_slice(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }

    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    pub fn to_vec(self) -> Vec<u8> {
        self.0.to_vec()
    }
}

/// 64 hexadecimal digits.
impl fmt::Display for ObjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// A text that is no name of an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a name has 64 hexadecimal digits")]
pub struct ObjectIdError;

/// As it is shown.
impl FromStr for ObjectId {
    type Err = ObjectIdError;

    fn from_str(text: &str) -> Result<Self, ObjectIdError> {
        let digits = text.as_bytes();
        let mut name = [0; 32];
        if digits.len() != 2 * name.len() || !digits.iter().all(u8::is_ascii_hexdigit) {
            return Err(ObjectIdError);
        }
        for (byte, pair) in name.iter_mut().zip(digits.chunks_exact(2)) {
            let pair = std::str::from_utf8(pair).map_err(|_| ObjectIdError)?;
            *byte = u8::from_str_radix(pair, 16).map_err(|_| ObjectIdError)?;
        }
        Ok(Self(name))
    }
}

impl fmt::Debug for ObjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Object {
    pub fn new(bytes: impl Into<Bytes>) -> Self {
        let bytes = bytes.into();
        let id = ObjectId::of(&bytes);
        Self { id, bytes }
    }

    pub fn id(&self) -> ObjectId {
        self.id
    }

    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_read_as_it_is_shown() {
        let id = ObjectId::of(b"some bytes");
        let shown = id.to_string();
        assert_eq!(shown.parse(), Ok(id));
        for wrong in [
            "",
            "+f",
            &shown[1..],
            &format!("{shown}00"),
            &"+f".repeat(32),
            &"é".repeat(32),
        ] {
            assert_eq!(wrong.parse::<ObjectId>(), Err(ObjectIdError), "{wrong}");
        }
    }
}
