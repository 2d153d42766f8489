//! SipHash-2-4 (Aumasson and Bernstein, 2012), because its value has to be the
//! same on every edge, whatever its version, for as long as Anyport lives: the
//! hashers of the standard library promise nothing of the kind.

/// A hash function: one of 2^128.
#[derive(Debug, Clone, Copy)]
pub struct Sip {
    k0: u64,
    k1: u64,
}

impl Sip {
    pub const fn new(k0: u64, k1: u64) -> Self {
        Self { k0, k1 }
    }

    pub fn hash(self, bytes: &[u8]) -> u64 {
        let mut v = [
            self.k0 ^ 0x736f_6d65_7073_6575,
            self.k1 ^ 0x646f_7261_6e64_6f6d,
            self.k0 ^ 0x6c79_6765_6e65_7261,
            self.k1 ^ 0x7465_6462_7974_6573,
        ];
        let mut words = bytes.chunks_exact(8);
        for word in &mut words {
            absorb(&mut v, le(word));
        }
        // The length, modulo 256, above what is left of the bytes.
        let length = (bytes.len() as u64) << 56;
        absorb(&mut v, length | le(words.remainder()));
        v[2] ^= 0xff;
        for _ in 0..4 {
            round(&mut v);
        }
        v[0] ^ v[1] ^ v[2] ^ v[3]
    }
}

fn le(bytes: &[u8]) -> u64 {
    let shifted = bytes.iter().enumerate();
    shifted.fold(0, |word, (index, &byte)| {
        word | u64::from(byte) << (8 * index)
    })
}

fn absorb(v: &mut [u64; 4], word: u64) {
    v[3] ^= word;
    round(v);
    round(v);
    v[0] ^= word;
}

fn round(v: &mut [u64; 4]) {
    v[0] = v[0].wrapping_add(v[1]);
    v[1] = v[1].rotate_left(13) ^ v[0];
    v[0] = v[0].rotate_left(32);
    v[2] = v[2].wrapping_add(v[3]);
    v[3] = v[3].rotate_left(16) ^ v[2];
    v[0] = v[0].wrapping_add(v[3]);
    v[3] = v[3].rotate_left(21) ^ v[0];
    v[2] = v[2].wrapping_add(v[1]);
    v[1] = v[1].rotate_left(17) ^ v[2];
    v[2] = v[2].rotate_left(32);
}

/// Other bits, one for one: the finalizer of SplitMix64.
pub fn mix(bits: u64) -> u64 {
    let bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of the reference implementation: key 00 01 … 0f, input 00 01 …
    #[test]
    fn the_reference_vectors_come_out() {
        let sip = Sip::new(0x0706_0504_0302_0100, 0x0f0e_0d0c_0b0a_0908);
        let input: Vec<u8> = (0..63).collect();
        for (length, hash) in [
            (0, 0x726f_db47_dd0e_0e31),
            (1, 0x74f8_39c5_93dc_67fd),
            (7, 0xab02_00f5_8b01_d137),
            (8, 0x93f5_f579_9a93_2462),
            (15, 0xa129_ca61_49be_45e5),
            (63, 0x958a_324c_eb06_4572),
        ] {
            assert_eq!(sip.hash(&input[..length]), hash, "{length} bytes");
        }
    }
}
