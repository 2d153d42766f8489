#![allow(clippy::unwrap_used)]
use proptest::{collection::vec, prelude::*};

use super::{crc32c::crc32c, *};

fn address() -> impl Strategy<Value = SocketAddr> {
    let v4 = any::<[u8; 4]>().prop_map(IpAddr::from);
    let v6 = any::<[u8; 16]>().prop_map(IpAddr::from);
    (prop_oneof![v4, v6], any::<u16>()).prop_map(SocketAddr::from)
}

fn endpoints() -> impl Strategy<Value = Endpoints> {
    (address(), address()).prop_map(|(source, destination)| Endpoints::new(source, destination))
}

fn protocol() -> impl Strategy<Value = Protocol> {
    prop_oneof![Just(Protocol::Stream), Just(Protocol::Datagram)]
}

fn tlvs() -> impl Strategy<Value = Vec<Tlv>> {
    let tlv = prop_oneof![
        any::<u128>().prop_map(Tlv::UniqueId),
        any::<u128>().prop_map(Tlv::TraceId),
    ];
    vec(tlv, 0..3)
}

/// A header, and what it says.
fn header() -> impl Strategy<Value = (Vec<u8>, Header)> {
    let v1 = endpoints().prop_map(|endpoints| {
        let protocol = Protocol::Stream;
        let says = Header::Proxied {
            protocol,
            endpoints,
        };
        (encode_v1(endpoints), says)
    });
    let v2 = (protocol(), endpoints(), tlvs()).prop_map(|(protocol, endpoints, tlvs)| {
        let says = Header::Proxied {
            protocol,
            endpoints,
        };
        (encode_v2(protocol, endpoints, &tlvs), says)
    });
    prop_oneof![v1, v2]
}

/// Bytes that look like a header up to some point.
fn nearly_a_header() -> impl Strategy<Value = Vec<u8>> {
    let flips = vec((any::<prop::sample::Index>(), any::<u8>()), 0..4);
    (header(), flips, any::<prop::sample::Index>()).prop_map(|((mut bytes, _), flips, cut)| {
        for (at, byte) in flips {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        bytes.truncate(cut.index(bytes.len() + 1));
        bytes
    })
}

proptest! {
    #[test]
    fn what_is_written_is_read_and_not_a_byte_more(
        (mut bytes, says) in header(),
        after in vec(any::<u8>(), 0..64),
    ) {
        let len = bytes.len();
        for cut in 0..len {
            prop_assert_eq!(decode(&bytes[..cut]), Ok(Decoded::Incomplete), "{} bytes", cut);
        }
        bytes.extend(after);
        prop_assert_eq!(decode(&bytes), Ok(Decoded::Complete { len, header: says }));
    }

    #[test]
    fn any_bytes_have_an_outcome_which_more_bytes_do_not_change(
        bytes in prop_oneof![vec(any::<u8>(), 0..300), nearly_a_header()],
        more in vec(any::<u8>(), 0..64),
    ) {
        let first = decode(&bytes);
        let longer = [bytes.as_slice(), &more].concat();
        match first {
            Ok(Decoded::Incomplete) => {}
            Ok(Decoded::Complete { len, .. }) => {
                prop_assert!(len <= bytes.len());
                prop_assert_eq!(decode(&longer), first);
            }
            Err(_) => prop_assert_eq!(decode(&longer), first),
        }
    }

    #[test]
    fn simple_headers_are_read_as_written(endpoints in endpoints(), payload in vec(any::<u8>(), 0..64)) {
        let datagram = [&encode_simple(endpoints)[..], &payload].concat();
        let (read, rest) = decode_simple(&datagram).unwrap();
        let canonical = |address: SocketAddr| (address.ip().to_canonical(), address.port());
        prop_assert_eq!(canonical(read.source()), canonical(endpoints.source()));
        prop_assert_eq!(canonical(read.destination()), canonical(endpoints.destination()));
        prop_assert_eq!(rest, &payload[..]);
        prop_assert_eq!(encode_simple(read), encode_simple(endpoints));
    }

    #[test]
    fn any_datagram_has_an_outcome(bytes in vec(any::<u8>(), 0..80)) {
        let read = decode_simple(&bytes);
        prop_assert_eq!(read.is_ok(), bytes.len() >= 38 && bytes[..2] == [0x56, 0xec]);
    }
}

fn between(source: &str, destination: &str) -> Endpoints {
    Endpoints::new(source.parse().unwrap(), destination.parse().unwrap())
}

fn v4() -> Endpoints {
    between("203.0.113.5:40000", "198.51.100.10:25565")
}

fn v6() -> Endpoints {
    between("[2001:db8::5]:40000", "[2001:db8:51::10]:25565")
}

/// A version 2 header by hand.
fn raw(version_command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
    let len = (rest.len() as u16).to_be_bytes();
    [&V2_SIGNATURE[..], &[version_command, family], &len, rest].concat()
}

fn v4_rest(tlvs: &[u8]) -> Vec<u8> {
    let addresses = [203, 0, 113, 5, 198, 51, 100, 10, 0x9c, 0x40, 0x63, 0xdd];
    [&addresses[..], tlvs].concat()
}

fn read(bytes: &[u8]) -> Result<Header, Malformed> {
    match decode(bytes)? {
        Decoded::Complete { header, .. } => Ok(header),
        Decoded::Incomplete => panic!("incomplete: {bytes:?}"),
    }
}

const STREAM: Protocol = Protocol::Stream;

#[test]
fn headers_are_written_as_the_specification_has_them() {
    assert_eq!(
        encode_v1(v4()),
        b"PROXY TCP4 203.0.113.5 198.51.100.10 40000 25565\r\n"
    );
    assert_eq!(
        encode_v1(v6()),
        b"PROXY TCP6 2001:db8::5 2001:db8:51::10 40000 25565\r\n"
    );
    assert_eq!(
        encode_v2(STREAM, v4(), &[]),
        b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\xcb\0\x71\x05\xc6\x33\x64\x0a\x9c\x40\x63\xdd"
    );
    assert_eq!(encode_v2(Protocol::Datagram, v4(), &[])[13], 0x12);
    assert_eq!(encode_v2(STREAM, v6(), &[]).len(), 52);
    let with_id = encode_v2(STREAM, v4(), &[Tlv::UniqueId(0xab), Tlv::TraceId(1)]);
    let zeros = [b'0'; 31];
    let tlvs = [
        b"\x05\0\x20",
        &zeros[1..],
        b"ab",
        b"\xe0\0\x20",
        &zeros,
        b"1",
    ];
    assert_eq!(with_id[28..], tlvs.concat());
    assert_eq!(
        encode_simple(v4()),
        *b"\x56\xec\0\0\0\0\0\0\0\0\0\0\xff\xff\xcb\0\x71\x05\0\0\0\0\0\0\0\0\0\0\xff\xff\xc6\x33\x64\x0a\x9c\x40\x63\xdd"
    );
}

#[test]
fn the_longest_headers_are_within_what_the_specification_says() {
    let longest = |ip: &str| between(&format!("{ip}:65535"), &format!("{ip}:65535"));
    assert_eq!(encode_v1(longest("255.255.255.255")).len(), 56);
    let ip = "[ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff]";
    assert_eq!(encode_v1(longest(ip)).len(), 104);
}

#[test]
fn two_families_in_one_header_are_written_as_ipv6() {
    let mixed = between("203.0.113.5:40000", "[2001:db8:51::10]:22");
    assert_eq!(
        encode_v1(mixed),
        b"PROXY TCP6 ::ffff:203.0.113.5 2001:db8:51::10 40000 22\r\n"
    );
}

#[test]
fn headers_that_name_nobody_leave_the_real_ends() {
    for bytes in [
        b"PROXY UNKNOWN\r\n".to_vec(),
        b"PROXY UNKNOWN ffff::1 what ever 99999\r\n".to_vec(),
        // LOCAL, with nothing and with what is to be skipped.
        raw(0x20, 0x00, b""),
        raw(0x20, 0x11, b"\x01\x02\x03"),
        // Unspecified, and Unix sockets.
        raw(0x21, 0x00, b"anything"),
        raw(0x21, 0x31, &[0; 216]),
    ] {
        assert_eq!(read(&bytes), Ok(Header::Unspecified), "{bytes:?}");
    }
}

#[test]
fn lines_of_another_form_are_refused() {
    for line in [
        "PROXY TCP4 203.0.113.5 198.51.100.10 40000\r\n",
        "PROXY TCP4 203.0.113.5 198.51.100.10 40000 22 \r\n",
        "PROXY TCP4 203.0.113.5 198.51.100.10 40000 22 x\r\n",
        "PROXY  TCP4 203.0.113.5 198.51.100.10 40000 22\r\n",
        "PROXY TCP4 203.0.113.5  198.51.100.10 40000 22\r\n",
        "PROXY TCP4 203.0.113.5 198.51.100.10 040000 22\r\n",
        "PROXY TCP4 203.0.113.5 198.51.100.10 +4000 22\r\n",
        "PROXY TCP4 203.0.113.5 198.51.100.10 65536 22\r\n",
        "PROXY TCP4 203.0.113.5 198.51.100.10 40000 22\n",
        "PROXY TCP4 203.0.113.05 198.51.100.10 40000 22\r\n",
        "PROXY TCP4 2001:db8::1 2001:db8::2 40000 22\r\n",
        "PROXY TCP6 203.0.113.5 198.51.100.10 40000 22\r\n",
        "PROXY UDP4 203.0.113.5 198.51.100.10 40000 22\r\n",
        "PROXY \r\n",
        "PROXY UNKNOWNS\r\n",
        "PROXY TCP4 203.0.113.5 198.51.100.10 40000 22\r\r\n",
        "PROXY \u{fffd}\r\n",
    ] {
        assert_eq!(read(line.as_bytes()), Err(Malformed::Line), "{line:?}");
    }
    assert_eq!(read(b"PROXY \xff\xff\r\n"), Err(Malformed::Line));
}

#[test]
fn what_cannot_become_a_header_is_refused_at_once() {
    for bytes in [
        &b"G"[..],
        b"SSH-2.0-x",
        b"PROXI",
        b"\r\n\r\n\0\r\nQUIX",
        b"\0",
    ] {
        assert_eq!(decode(bytes), Err(Malformed::NoHeader), "{bytes:?}");
    }
    let endless = [&b"PROXY "[..], &[b'1'; 101]].concat();
    assert_eq!(decode(&endless[..106]), Ok(Decoded::Incomplete));
    assert_eq!(decode(&endless), Err(Malformed::Endless));
    // The last byte that a line may have.
    let widest = [&b"PROXY UNKNOWN "[..], &[b'x'; 91], b"\r\n"].concat();
    assert_eq!(widest.len(), 107);
    assert_eq!(read(&widest), Ok(Header::Unspecified));
    assert_eq!(decode(&raw(0x11, 0, b"")[..13]), Err(Malformed::Version(1)));
    assert_eq!(decode(&raw(0x22, 0, b"")[..13]), Err(Malformed::Command(2)));
    let long = raw(0x21, 0x11, &v4_rest(&[0; 4069]));
    assert_eq!(long.len(), 4097);
    assert_eq!(decode(&long[..16]), Err(Malformed::TooLong(4097)));
}

#[test]
fn version_2_headers_that_contradict_themselves_are_refused() {
    let short = v4_rest(b"");
    assert_eq!(
        read(&raw(0x21, 0x11, &short[..11])),
        Err(Malformed::TooShort)
    );
    assert_eq!(read(&raw(0x21, 0x21, &short)), Err(Malformed::TooShort));
    assert_eq!(read(&raw(0x21, 0x41, &short)), Err(Malformed::Family(0x41)));
    assert_eq!(read(&raw(0x21, 0x13, &short)), Err(Malformed::Family(0x13)));
    for tlvs in [&b"\x04"[..], b"\x04\0", b"\x04\0\x01", b"\x04\0\x01xx"] {
        let bytes = raw(0x21, 0x11, &v4_rest(tlvs));
        assert_eq!(read(&bytes), Err(Malformed::Tlv), "{tlvs:?}");
    }
}

#[test]
fn tlvs_of_others_are_passed_over_and_a_checksum_is_checked() {
    let says = Header::Proxied {
        protocol: STREAM,
        endpoints: v4(),
    };
    let noop_authority = b"\x04\0\0\x02\0\x0bexample.com";
    assert_eq!(read(&raw(0x21, 0x11, &v4_rest(noop_authority))), Ok(says));
    let with = |sum: &[u8]| {
        let checksum = [&[0x03, 0, sum.len() as u8], sum].concat();
        let tlvs = [&b"\x04\0\0"[..], &checksum, b"\x05\0\x02id"].concat();
        raw(0x21, 0x11, &v4_rest(&tlvs))
    };
    let right = crc32c(&[&with(&[0; 4])]);
    assert_eq!(read(&with(&right.to_be_bytes())), Ok(says));
    assert_eq!(
        read(&with(&(right ^ 1).to_be_bytes())),
        Err(Malformed::Checksum)
    );
    assert_eq!(
        read(&with(&right.to_be_bytes()[..3])),
        Err(Malformed::Checksum)
    );
}
