//! How a state becomes objects: chunks of resources, and a layout that lists
//! them.
//!
//! A resource belongs to one of 256 buckets by the hash of its kind and name; a
//! bucket is written in its order of resources and cut into chunks. So equal
//! states have equal layouts, whatever way led to them, and a change of a few
//! resources writes a few chunks.

use std::collections::BTreeSet;

use anyport_model::{
    resource::{Resource, ResourceRef},
    state::Resources,
};
use anyport_proto::{
    convert::{read_resource, write_resource},
    v1::{self, resource::Kind},
};
use prost::Message;
use sha2::{Digest, Sha256};

use super::seal::{SealError, SealedKey, StoreKeys};
use crate::store::{Object, ObjectId};

/// A chunk ends before the resource that would make it longer than this.
const CHUNK_BYTES: usize = 256 << 10;

/// One of 256.
type BucketIndex = u8;

/// The chunks of one state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// In order of bucket, then of place in it.
    chunks: Vec<Chunk>,
    id: ObjectId,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Chunk {
    bucket: BucketIndex,
    id: ObjectId,
    bytes: u64,
}

/// Bytes that are no part of a state.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LayoutError {
    #[error("cannot be read: {0}")]
    Malformed(#[from] prost::DecodeError),
    #[error("names bucket {bucket}; there are 256, in order")]
    Bucket { bucket: u32 },
    #[error("has a name of {len} bytes; a hash has 32")]
    HashLength { len: usize },
    #[error("holds a resource that this version cannot read: {0}")]
    Resource(String),
    #[error(transparent)]
    Sealed(#[from] SealError),
}

#[derive(Clone, PartialEq, Message)]
struct StoredLayout {
    #[prost(message, repeated, tag = "1")]
    chunks: Vec<StoredChunkRef>,
}

#[derive(Clone, PartialEq, Message)]
struct StoredChunkRef {
    #[prost(uint32, tag = "1")]
    bucket: u32,
    #[prost(bytes = "vec", tag = "2")]
    id: Vec<u8>,
    #[prost(uint64, tag = "3")]
    bytes: u64,
}

#[derive(Clone, PartialEq, Message)]
struct StoredChunk {
    #[prost(message, repeated, tag = "1")]
    resources: Vec<v1::Resource>,
    /// Of certificates above, which are without it.
    #[prost(message, repeated, tag = "2")]
    sealed: Vec<SealedKey>,
}

fn bucket_of(reference: &ResourceRef) -> BucketIndex {
    let mut hash = Sha256::new();
    hash.update(reference.kind().singular());
    hash.update([0]);
    hash.update(reference.name());
    hash.finalize()[0]
}

impl Layout {
    /// Of no resources.
    pub fn empty() -> Self {
        Self::of(Vec::new())
    }

    fn of(chunks: Vec<Chunk>) -> Self {
        let id = ObjectId::of(&encode(&chunks));
        Self { chunks, id }
    }

    /// The layout of `resources`, which differ from those of this layout in
    /// `changed` only; and the objects that it has and this one has not. Private keys
    /// in them are sealed with `keys`.
    pub fn rewrite<'a>(
        &self,
        resources: &Resources,
        changed: impl IntoIterator<Item = &'a ResourceRef>,
        keys: &StoreKeys,
    ) -> (Self, Vec<Object>) {
        let touched: BTreeSet<BucketIndex> = changed.into_iter().map(bucket_of).collect();
        let mut chunks: Vec<Chunk> = self.chunks.clone();
        chunks.retain(|chunk| !touched.contains(&chunk.bucket));
        let mut objects = Vec::new();
        for (bucket, written) in write_buckets(resources, &touched, keys) {
            for object in written {
                chunks.push(Chunk {
                    bucket,
                    id: object.id(),
                    bytes: object.bytes().len() as u64,
                });
                objects.push(object);
            }
        }
        // Stable: chunks of one bucket keep their order.
        chunks.sort_by_key(|chunk| chunk.bucket);
        let known: BTreeSet<ObjectId> = self.objects().collect();
        objects.push(Object::new(encode(&chunks)));
        objects.retain(|object| !known.contains(&object.id()));
        (Self::of(chunks), objects)
    }

    /// The name of the layout, and so the hash of the whole state.
    pub fn id(&self) -> ObjectId {
        self.id
    }

    /// Bytes of all resources together.
    pub fn bytes(&self) -> u64 {
        self.chunks.iter().map(|chunk| chunk.bytes).sum()
    }

    /// Names of the layout itself and of every chunk.
    pub fn objects(&self) -> impl Iterator<Item = ObjectId> {
        [self.id].into_iter().chain(self.chunks())
    }

    fn chunks(&self) -> impl Iterator<Item = ObjectId> {
        self.chunks.iter().map(|chunk| chunk.id)
    }

    /// Names of the chunks that hold these, and perhaps others.
    pub fn chunks_of<'a>(
        &self,
        resources: impl IntoIterator<Item = &'a ResourceRef>,
    ) -> Vec<ObjectId> {
        let buckets: BTreeSet<BucketIndex> = resources.into_iter().map(bucket_of).collect();
        let chunks = self.chunks.iter();
        let holding = chunks.filter(|chunk| buckets.contains(&chunk.bucket));
        holding.map(|chunk| chunk.id).collect()
    }

    /// Reads the bytes of a layout object.
    ///
    /// # Errors
    /// [`LayoutError`], which says what is wrong with them.
    pub fn decode(bytes: &[u8]) -> Result<Self, LayoutError> {
        let stored = StoredLayout::decode(bytes)?;
        let mut chunks: Vec<Chunk> = Vec::with_capacity(stored.chunks.len());
        for StoredChunkRef { bucket, id, bytes } in stored.chunks {
            let before = chunks.last().map_or(0, |chunk| chunk.bucket);
            let index = BucketIndex::try_from(bucket)
                .ok()
                .filter(|index| *index >= before)
                .ok_or(LayoutError::Bucket { bucket })?;
            let len = id.len();
            let id = ObjectId::from_slice(&id).ok_or(LayoutError::HashLength { len })?;
            chunks.push(Chunk {
                bucket: index,
                id,
                bytes,
            });
        }
        Ok(Self::of(chunks))
    }

    /// What has to be read to know this state where `known` is known already.
    pub fn beyond(&self, known: &Layout) -> Beyond {
        let chunks_of = |layout: &Layout, bucket| -> Vec<ObjectId> {
            let of_bucket = layout.chunks.iter().filter(|chunk| chunk.bucket == bucket);
            of_bucket.map(|chunk| chunk.id).collect()
        };
        let mut beyond = Beyond::default();
        for bucket in 0..=BucketIndex::MAX {
            let chunks = chunks_of(self, bucket);
            if chunks != chunks_of(known, bucket) {
                beyond.buckets.insert(bucket);
                beyond.chunks.extend(chunks);
            }
        }
        beyond
    }
}

/// The part of a state that is not known yet.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Beyond {
    buckets: BTreeSet<BucketIndex>,
    chunks: Vec<ObjectId>,
}

impl Beyond {
    /// Names of the chunks to read.
    pub fn chunks(&self) -> &[ObjectId] {
        &self.chunks
    }

    /// The whole state, from the known one and the bytes of the chunks. Private keys
    /// in them are opened with `keys`.
    ///
    /// # Errors
    /// [`LayoutError`], which says what is wrong with the bytes, or that a key is not
    /// there.
    pub fn complete<B: AsRef<[u8]>>(
        &self,
        known: &Resources,
        chunks: &[B],
        keys: &StoreKeys,
    ) -> Result<Resources, LayoutError> {
        let same = |reference: &ResourceRef| !self.buckets.contains(&bucket_of(reference));
        let mut resources: Resources = if self.buckets.len() > usize::from(BucketIndex::MAX) {
            Resources::new()
        } else {
            let known = known.iter().filter(|(reference, _)| same(reference));
            known
                .map(|(r, resource)| (r.clone(), resource.clone()))
                .collect()
        };
        for bytes in chunks {
            for resource in StoredChunk::decode(bytes.as_ref())?.open(keys)? {
                let resource = read_resource(resource).map_err(unreadable)?;
                resources.insert(resource.reference(), resource);
            }
        }
        Ok(resources)
    }
}

/// Is every private key in a chunk sealed with the first of the keys?
///
/// # Errors
/// [`LayoutError`], where the bytes are no chunk.
pub fn is_sealed_with_first(chunk: &[u8], keys: &StoreKeys) -> Result<bool, LayoutError> {
    let chunk = StoredChunk::decode(chunk)?;
    let in_the_clear = |resource: &v1::Resource| match &resource.kind {
        Some(Kind::Certificate(certificate)) => !certificate.key.is_empty(),
        _ => false,
    };
    Ok(chunk.sealed.iter().all(|sealed| keys.is_by_first(sealed))
        && !chunk.resources.iter().any(in_the_clear))
}

fn unreadable(bad: anyport_proto::convert::Unreadable) -> LayoutError {
    let faults: Vec<String> = bad.faults.iter().map(ToString::to_string).collect();
    let faults = faults.join("; ");
    LayoutError::Resource(match bad.reference {
        Some(reference) => format!("{reference}: {faults}"),
        None => faults,
    })
}

fn encode(chunks: &[Chunk]) -> Vec<u8> {
    let chunks = chunks.iter().map(|chunk| StoredChunkRef {
        bucket: chunk.bucket.into(),
        id: chunk.id.to_vec(),
        bytes: chunk.bytes,
    });
    let layout = StoredLayout {
        chunks: chunks.collect(),
    };
    layout.encode_to_vec()
}

/// The chunks of the touched buckets, by bucket.
fn write_buckets(
    resources: &Resources,
    touched: &BTreeSet<BucketIndex>,
    keys: &StoreKeys,
) -> Vec<(BucketIndex, Vec<Object>)> {
    let mut buckets: Vec<Vec<&Resource>> = vec![Vec::new(); usize::from(BucketIndex::MAX) + 1];
    for (reference, resource) in resources {
        let bucket = bucket_of(reference);
        if touched.contains(&bucket) {
            buckets[usize::from(bucket)].push(resource);
        }
    }
    let written = touched
        .iter()
        .map(|&bucket| (bucket, write_chunks(&buckets[usize::from(bucket)], keys)));
    written.collect()
}

/// A certificate whose private key is sealed is without it.
fn write_sealed(resource: &Resource, keys: &StoreKeys) -> (v1::Resource, Option<SealedKey>) {
    let mut wire = write_resource(resource);
    let mut sealed = None;
    if let Some(Kind::Certificate(certificate)) = &mut wire.kind {
        sealed = keys.seal(&certificate.name, &certificate.key);
        if sealed.is_some() {
            certificate.key.clear();
        }
    }
    (wire, sealed)
}

impl StoredChunk {
    /// With private keys where they belong.
    fn open(self, keys: &StoreKeys) -> Result<Vec<v1::Resource>, SealError> {
        let mut resources = self.resources;
        for sealed in self.sealed {
            let of = |resource: &&mut v1::Resource| match &resource.kind {
                Some(Kind::Certificate(certificate)) => certificate.name == sealed.certificate,
                _ => false,
            };
            if let Some(resource) = resources.iter_mut().find(of)
                && let Some(Kind::Certificate(certificate)) = &mut resource.kind
            {
                certificate.key = keys.open(sealed)?;
            }
        }
        Ok(resources)
    }
}

fn write_chunks(resources: &[&Resource], keys: &StoreKeys) -> Vec<Object> {
    let mut chunks = Vec::new();
    let mut chunk = StoredChunk::default();
    let mut bytes = 0;
    for resource in resources {
        let (wire, sealed) = write_sealed(resource, keys);
        let len = wire.encoded_len() + sealed.as_ref().map_or(0, Message::encoded_len);
        if bytes + len > CHUNK_BYTES && !chunk.resources.is_empty() {
            chunks.push(Object::new(std::mem::take(&mut chunk).encode_to_vec()));
            bytes = 0;
        }
        bytes += len;
        chunk.resources.push(wire);
        chunk.sealed.extend(sealed);
    }
    if !chunk.resources.is_empty() {
        chunks.push(Object::new(chunk.encode_to_vec()));
    }
    chunks
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::Arc;

    use anyport_model::resource::{Origin, Policy, Pool, Weight};

    use super::*;

    /// About 40 KiB.
    fn large_pool(name: &str) -> Resource {
        let origin = |n| Origin {
            name: format!("origin-{n}").parse().unwrap(),
            address: "10.0.2.2:7000".parse().unwrap(),
            weight: Weight::ONE,
            enabled: true,
        };
        Resource::Pool(Arc::new(Pool {
            name: name.parse().unwrap(),
            monitor: None,
            policy: Policy::Weighted,
            minimum_origins: 1,
            fallback: None,
            origins: (0..1000).map(origin).collect(),
        }))
    }

    #[test]
    fn a_bucket_that_is_too_large_for_one_object_is_cut() {
        let reference = |n| ResourceRef::Pool(format!("pool-{n}").parse().unwrap());
        let together = (0..).filter(|n| bucket_of(&reference(*n)) == 7).take(20);
        let state: Resources = together
            .map(|n| (reference(n), large_pool(&format!("pool-{n}"))))
            .collect();
        let (layout, objects) =
            Layout::empty().rewrite(&state, state.keys(), &StoreKeys::default());
        assert!(
            layout.bytes() > 2 * CHUNK_BYTES as u64,
            "{}",
            layout.bytes()
        );
        assert!(layout.chunks.len() > 2 && layout.chunks.iter().all(|c| c.bucket == 7));
        let largest = layout.chunks.iter().map(|chunk| chunk.bytes).max();
        assert!(largest < Some(CHUNK_BYTES as u64 + 1024), "{largest:?}");

        let read = |layout: &Layout, known: &Layout, resources: &Resources, objects: &[Object]| {
            let beyond = layout.beyond(known);
            let bytes = |id: &ObjectId| {
                let object = objects.iter().find(|object| object.id() == *id);
                object.unwrap().bytes()
            };
            let chunks: Vec<_> = beyond.chunks().iter().map(bytes).collect();
            beyond
                .complete(resources, &chunks, &StoreKeys::default())
                .unwrap()
        };
        let nothing = (&Layout::empty(), &Resources::new());
        assert_eq!(read(&layout, nothing.0, nothing.1, &objects), state);

        // A change in the last chunk only leaves the names of the others.
        let mut next = state.clone();
        let (last, _) = next.pop_last().unwrap();
        let (changed, written) = layout.rewrite(&next, [&last], &StoreKeys::default());
        assert_eq!(changed.chunks[0], layout.chunks[0]);
        let objects: Vec<Object> = objects.into_iter().chain(written).collect();
        assert_eq!(read(&changed, &layout, &state, &objects), next);
    }

    #[test]
    fn where_resources_are_stored_is_the_same_for_ever() {
        // A store that is written today is read by a later version.
        let app = ResourceRef::App("web".parse().unwrap());
        let pool = ResourceRef::Pool("web".parse().unwrap());
        assert_eq!((bucket_of(&app), bucket_of(&pool)), (46, 89));
        assert_eq!(Layout::empty().id(), ObjectId::of(b""));
    }
}
