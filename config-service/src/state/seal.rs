//! Private keys of certificates, sealed before they are stored.
//!
//! AES-256-GCM-SIV (RFC 8452), with the certificate's name as associated data: what
//! was stored for one cannot be passed off as another's. The nonce comes from the
//! name, so equal states have equal bytes on every replica and after every restart,
//! and so equal hashes; this cipher is made for nonces that come again, and tells
//! by it no more than that a key did not change.

use std::{
    fmt, fs, io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use aws_lc_rs::aead::{AES_256_GCM_SIV, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use base64::{
    Engine, alphabet,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use prost::Message;
use sha2::{Digest, Sha256};

/// Bytes of a store key.
const KEY_LEN: usize = 32;
/// Bytes of its name.
const ID_LEN: usize = 8;

/// With and without `=` at the end.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// Where the keys are, as a flag.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct StoreKeyArgs {
    /// Keys to seal private keys of certificates with before they are stored: 32
    /// random bytes in base64 or hexadecimal, one a line; the first seals, also what
    /// was sealed with another one, and all open
    #[arg(long, env = "ANYPORT_STORE_KEY_FILE", value_name = "FILE")]
    pub store_key: Option<PathBuf>,
}

impl StoreKeyArgs {
    /// None, where no file is named.
    ///
    /// # Errors
    /// As [`StoreKeys::read`].
    pub fn read(&self) -> Result<StoreKeys, StoreKeyError> {
        let keys = self.store_key.as_deref().map(StoreKeys::read);
        Ok(keys.transpose()?.unwrap_or_default())
    }
}

/// Keys that private keys are sealed with: the first one seals, all of them open.
/// With none, private keys are stored as they are. Clones share them.
#[derive(Clone, Default)]
pub struct StoreKeys(Arc<[StoreKey]>);

struct StoreKey {
    id: [u8; ID_LEN],
    key: LessSafeKey,
}

/// A private key as it is stored.
#[derive(Clone, PartialEq, Message)]
pub(super) struct SealedKey {
    #[prost(string, tag = "1")]
    pub(super) certificate: String,
    #[prost(bytes = "vec", tag = "2")]
    key_id: Vec<u8>,
    #[prost(bytes = "vec", tag = "3")]
    sealed: Vec<u8>,
}

/// The file of store keys cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreKeyError {
    #[error("--store-key {}: cannot be read: {source}", path.display())]
    Unreadable { path: PathBuf, source: io::Error },
    #[error("--store-key {}: {problem}; right is a line for each key, 32 random bytes as 64 hexadecimal digits or in base64, such as `openssl rand -base64 32` makes", path.display())]
    Malformed { path: PathBuf, problem: String },
}

/// A private key that was sealed stays so.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    #[error(
        "the private key of certificate {certificate} is sealed with the store key {id}, which \
         --store-key does not hold{}", others(.held)
    )]
    NoKey {
        certificate: String,
        id: String,
        held: Vec<String>,
    },
    #[error(
        "the private key of certificate {certificate} is sealed, and what is stored was changed"
    )]
    Changed { certificate: String },
}

fn others(ids: &[String]) -> String {
    match ids {
        [] => ": it is not given".to_owned(),
        ids => format!(": it holds {}", ids.join(", ")),
    }
}

impl StoreKeys {
    /// Reads a file with a key a line; empty lines and those that begin with `#` are
    /// left out.
    ///
    /// # Errors
    /// [`StoreKeyError`], naming the file, the line and what would be right.
    pub fn read(path: &Path) -> Result<Self, StoreKeyError> {
        let unreadable = |source| StoreKeyError::Unreadable {
            path: path.to_owned(),
            source,
        };
        let text = fs::read_to_string(path).map_err(unreadable)?;
        let mode = fs::metadata(path).map_err(unreadable)?.permissions().mode();
        if mode & 0o077 != 0 {
            tracing::warn!(
                path = %path.display(),
                mode = format_args!("{:o}", mode & 0o777),
                "--store-key: others than the owner may read the keys"
            );
        }
        let keys = Self::parse(&text).map_err(|problem| StoreKeyError::Malformed {
            path: path.to_owned(),
            problem,
        })?;
        tracing::info!(keys = %keys.ids().join(", "), "private keys are sealed with the first");
        Ok(keys)
    }

    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let mut keys: Vec<StoreKey> = Vec::new();
        let lines = text.lines().map(str::trim).enumerate();
        for (index, line) in lines.filter(|(_, line)| !line.is_empty() && !line.starts_with('#')) {
            let number = index + 1;
            let key =
                StoreKey::parse(line).map_err(|problem| format!("line {number} {problem}"))?;
            if keys.iter().any(|other| other.id == key.id) {
                return Err(format!("line {number} holds a key that came before"));
            }
            keys.push(key);
        }
        if keys.is_empty() {
            return Err("holds no key".to_owned());
        }
        Ok(Self(keys.into()))
    }

    /// Are private keys stored as they are?
    pub fn are_none(&self) -> bool {
        self.0.is_empty()
    }

    /// Their names, in order: no secret, and enough to tell them apart.
    pub fn ids(&self) -> Vec<String> {
        self.0.iter().map(|key| hex(&key.id)).collect()
    }

    /// `None`: it is stored as it is.
    pub(super) fn seal(&self, certificate: &str, private_key: &str) -> Option<SealedKey> {
        let key = self.0.first()?;
        let mut sealed = private_key.as_bytes().to_vec();
        let aad = Aad::from(certificate.as_bytes());
        // Refused for a text of gigabytes only, which no certificate has.
        key.key
            .seal_in_place_append_tag(nonce(certificate), aad, &mut sealed)
            .ok()?;
        Some(SealedKey {
            certificate: certificate.to_owned(),
            key_id: key.id.to_vec(),
            sealed,
        })
    }

    /// The name of the key that seals.
    pub fn first(&self) -> Option<String> {
        Some(hex(&self.0.first()?.id))
    }

    /// Is it what [`seal`](Self::seal) would make, as far as the key goes?
    pub(super) fn is_by_first(&self, sealed: &SealedKey) -> bool {
        let first = self.0.first();
        first.is_some_and(|first| first.id[..] == sealed.key_id[..])
    }

    pub(super) fn open(&self, mut sealed: SealedKey) -> Result<String, SealError> {
        let key = self.0.iter().find(|key| key.id[..] == sealed.key_id[..]);
        let key = key.ok_or_else(|| SealError::NoKey {
            certificate: sealed.certificate.clone(),
            id: hex(&sealed.key_id),
            held: self.ids(),
        })?;
        let nonce = nonce(&sealed.certificate);
        let aad = Aad::from(sealed.certificate.as_bytes());
        let opened = key.key.open_in_place(nonce, aad, &mut sealed.sealed).ok();
        let text = opened.and_then(|bytes| String::from_utf8(bytes.to_vec()).ok());
        text.ok_or(SealError::Changed {
            certificate: sealed.certificate,
        })
    }
}

impl StoreKey {
    fn parse(line: &str) -> Result<Self, &'static str> {
        let bytes = unhex(line).or_else(|| BASE64.decode(line).ok());
        let bytes = bytes.ok_or("is neither hexadecimal nor base64")?;
        let bytes: [u8; KEY_LEN] = bytes.try_into().map_err(|_| "does not hold 32 bytes")?;
        let key = UnboundKey::new(&AES_256_GCM_SIV, &bytes).map_err(|_| "is no key")?;
        let mut hash = Sha256::new();
        hash.update(b"anyport store key");
        hash.update(bytes);
        let mut id = [0; ID_LEN];
        id.copy_from_slice(&hash.finalize()[..ID_LEN]);
        Ok(Self {
            id,
            key: LessSafeKey::new(key),
        })
    }
}

fn nonce(certificate: &str) -> Nonce {
    let mut nonce = [0; NONCE_LEN];
    nonce.copy_from_slice(&Sha256::digest(certificate)[..NONCE_LEN]);
    Nonce::assume_unique_for_key(nonce)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// `None` where it is not 64 digits: most of those are base64 of something else, too.
fn unhex(text: &str) -> Option<Vec<u8>> {
    let digits = text.len() == 2 * KEY_LEN && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    let pairs = digits.then(|| text.as_bytes().chunks(2))?;
    let byte = |pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
    pairs.map(byte).collect()
}

/// Never the keys.
impl fmt::Debug for StoreKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("StoreKeys").field(&self.ids()).finish()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const ONE: &str = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";
    /// The same, in base64.
    const ONE_BASE64: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
    const TWO: &str = "a80f95b2b1ae3f1dc0f9a8cbd2b0a80f95b2b1ae3f1dc0f9a8cbd2b0a80f95b2";

    fn keys(text: &str) -> StoreKeys {
        StoreKeys::parse(text).unwrap()
    }

    #[test]
    fn what_is_sealed_is_opened_with_the_same_key_and_no_other() {
        let sealed = keys(ONE).seal("mail", "the key").unwrap();
        assert_eq!(keys(ONE).open(sealed.clone()).unwrap(), "the key");
        let error = keys(TWO).open(sealed.clone()).unwrap_err().to_string();
        let (one, two) = (&keys(ONE).ids()[0], &keys(TWO).ids()[0]);
        let wanted = format!("store key {one}, which --store-key does not hold: it holds {two}");
        assert!(error.ends_with(&wanted), "{error}");
        let error = StoreKeys::default().open(sealed).unwrap_err().to_string();
        assert!(error.ends_with("does not hold: it is not given"), "{error}");
    }

    #[test]
    fn what_is_sealed_for_one_certificate_is_nothing_for_another_and_nothing_once_changed() {
        let sealed = keys(ONE).seal("mail", "the key").unwrap();
        let elsewhere = SealedKey {
            certificate: "web".to_owned(),
            ..sealed.clone()
        };
        assert!(matches!(
            keys(ONE).open(elsewhere),
            Err(SealError::Changed { .. })
        ));
        for index in 0..sealed.sealed.len() {
            let mut changed = sealed.clone();
            changed.sealed[index] ^= 1;
            assert!(matches!(
                keys(ONE).open(changed),
                Err(SealError::Changed { .. })
            ));
        }
        let mut cut = sealed;
        cut.sealed.truncate(3);
        assert!(matches!(
            keys(ONE).open(cut),
            Err(SealError::Changed { .. })
        ));
    }

    #[test]
    fn equal_keys_are_sealed_alike_and_the_first_key_seals() {
        let both = keys(&format!("{TWO}\n{ONE}\n"));
        let old = keys(ONE).seal("mail", "the key").unwrap();
        assert_eq!(keys(ONE).seal("mail", "the key").unwrap(), old);
        assert_ne!(keys(ONE).seal("web", "the key").unwrap().sealed, old.sealed);
        let new = both.seal("mail", "the key").unwrap();
        assert_eq!(new, keys(TWO).seal("mail", "the key").unwrap());
        for sealed in [old, new] {
            assert_eq!(both.open(sealed).unwrap(), "the key");
        }
    }

    #[test]
    fn files_of_keys() {
        let ids = keys(ONE).ids();
        for text in [
            ONE_BASE64,
            ONE_BASE64.trim_end_matches('='),
            &ONE.to_uppercase(),
        ] {
            assert_eq!(
                keys(&format!("# of June\n\n  {text}\n")).ids(),
                ids,
                "{text}"
            );
        }
        for (text, problem) in [
            ("", "holds no key"),
            ("# none\n", "holds no key"),
            ("%", "line 1 is neither hexadecimal nor base64"),
            ("\nAAAA", "line 2 does not hold 32 bytes"),
            (&ONE[4..], "line 1 does not hold 32 bytes"),
            (
                &format!("{ONE}\n{ONE_BASE64}"),
                "line 2 holds a key that came before",
            ),
        ] {
            assert_eq!(StoreKeys::parse(text).unwrap_err(), problem, "{text}");
        }
        assert_eq!(format!("{:?}", keys(ONE)), format!("StoreKeys({ids:?})"));
    }
}
