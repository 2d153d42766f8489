//! Resources in the bytes of an `ApplyRequest`, counted while they come: decoded, an
//! empty one takes a hundred times what it takes on the wire.

use tonic::Status;

use super::status;
use crate::admit::RESOURCES_MAX;

/// Bytes before each message of gRPC: whether it is compressed, and its length.
const PREFIX: u8 = 5;
/// `ApplyRequest.resources`.
const FIELD: u64 = 1;

/// How many there were so far, and where in the message the next byte stands.
#[derive(Debug)]
pub(super) struct Resources {
    count: usize,
    at: At,
    /// A number of which some bytes have come.
    number: u64,
    shift: u32,
    /// Bytes of the message that have yet to come.
    left: u64,
}

#[derive(Debug, Clone, Copy)]
enum At {
    /// So much of it is to come.
    Prefix(u8),
    Tag,
    Varint,
    Length,
    /// So many bytes that mean nothing here.
    Skip(u64),
}

impl Default for Resources {
    fn default() -> Self {
        Self {
            count: 0,
            at: At::Prefix(PREFIX),
            number: 0,
            shift: 0,
            left: 0,
        }
    }
}

impl Resources {
    /// The next bytes of the request.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` where there are more resources than may be stored.
    pub(super) fn read(&mut self, mut bytes: &[u8]) -> Result<(), Status> {
        while let Some((&byte, rest)) = bytes.split_first() {
            if let At::Skip(skipped) = self.at {
                let now = skipped.min(self.left).min(bytes.len() as u64);
                bytes = bytes
                    .get(usize::try_from(now).unwrap_or(usize::MAX)..)
                    .unwrap_or(&[]);
                self.left -= now;
                self.go_on(match skipped - now {
                    0 => At::Tag,
                    skipped => At::Skip(skipped),
                });
                continue;
            }
            bytes = rest;
            self.byte(byte);
            if self.count > RESOURCES_MAX {
                return Err(too_many());
            }
        }
        Ok(())
    }

    fn byte(&mut self, byte: u8) {
        if let At::Prefix(missing) = self.at {
            // Its first byte says whether it is compressed, which is not allowed.
            self.left = self.left << 8 & 0xffff_ffff | u64::from(byte);
            match missing {
                0 | 1 => self.go_on(At::Tag),
                _ => self.at = At::Prefix(missing - 1),
            }
            return;
        }
        self.left = self.left.saturating_sub(1);
        let part = u64::from(byte & 0x7f);
        self.number |= part.checked_shl(self.shift).unwrap_or(0);
        self.shift = self.shift.saturating_add(7);
        let next = if byte & 0x80 != 0 {
            self.at
        } else {
            let number = std::mem::take(&mut self.number);
            self.shift = 0;
            self.after(number)
        };
        self.go_on(next);
    }

    /// Where it goes on after this number.
    fn after(&mut self, number: u64) -> At {
        match self.at {
            At::Length if number > 0 => At::Skip(number),
            At::Tag => {
                let (field, kind) = (number >> 3, number & 7);
                if field == FIELD && kind == 2 {
                    self.count += 1;
                }
                match kind {
                    0 => At::Varint,
                    1 => At::Skip(8),
                    2 => At::Length,
                    5 => At::Skip(4),
                    // Around fields; or of no kind, and then nothing is decoded.
                    _ => At::Tag,
                }
            }
            _ => At::Tag,
        }
    }

    fn go_on(&mut self, at: At) {
        self.at = at;
        if self.left == 0 {
            (self.number, self.shift) = (0, 0);
            self.at = At::Prefix(PREFIX);
        }
    }
}

fn too_many() -> Status {
    let problem = format!("the request has more of them; right is at most {RESOURCES_MAX}");
    status::invalid([("resources", problem)])
}

#[cfg(test)]
mod tests {
    use anyport_proto::v1;
    use prost::Message as _;

    use super::*;

    fn message(request: &[u8]) -> Vec<u8> {
        let length = u32::try_from(request.len()).expect("a length");
        [&[0][..], &length.to_be_bytes(), request].concat()
    }

    fn counted(bytes: &[u8], at_once: usize) -> usize {
        let mut resources = Resources::default();
        for bytes in bytes.chunks(at_once) {
            resources.read(bytes).expect("not too many");
        }
        resources.count
    }

    #[test]
    fn all_are_counted_wherever_the_bytes_are_cut_and_in_whatever_message() {
        let app = v1::App {
            name: "a".repeat(300),
            ..Default::default()
        };
        let app = v1::Resource {
            kind: Some(v1::resource::Kind::App(app)),
        };
        let request = v1::ApplyRequest {
            resources: vec![v1::Resource::default(), app.clone(), app],
            prune: true,
            expected_revision: Some(u64::MAX),
            request_id: "id".to_owned(),
            ..Default::default()
        };
        // And fields of other kinds that are not known: fixed64, fixed32, a group.
        let mut unknown = vec![0xf9, 0x0f, 1, 2, 3, 4, 5, 6, 7, 8];
        unknown.extend([0xfd, 0x0f, 1, 2, 3, 4, 0xfb, 0x0f, 0xfc, 0x0f]);
        let one = [&unknown[..], &request.encode_to_vec()].concat();
        let decoded = v1::ApplyRequest::decode(&one[..]).expect("a request");
        assert_eq!(decoded, request);
        let all = [message(&one), message(&[]), message(&one)].concat();
        for at_once in [1, 2, 3, 7, 100, all.len()] {
            assert_eq!(counted(&all, at_once), 6, "{at_once} bytes at once");
        }
    }

    #[test]
    fn more_than_may_be_stored_are_refused() {
        let most = message(&[0x0a, 0].repeat(RESOURCES_MAX));
        assert_eq!(counted(&most, 10_000), RESOURCES_MAX);
        let more = message(&[0x0a, 0].repeat(RESOURCES_MAX + 1));
        let refused = Resources::default()
            .read(&more)
            .map_err(|status| status.code());
        assert_eq!(refused, Err(tonic::Code::InvalidArgument));
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_read(bytes: Vec<u8>, at_once in 1usize..20) {
            counted(&bytes, at_once);
        }
    }
}
