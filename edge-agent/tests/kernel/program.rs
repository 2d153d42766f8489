//! The running program, asked by BPF_PROG_TEST_RUN what it makes of a packet.

use std::{
    ffi::c_void,
    net::{IpAddr, SocketAddr},
    os::fd::{AsFd, AsRawFd},
    time::Duration,
};

use anyport_model::resource::Transport;
use libbpf_rs::{ProgramHandle, libbpf_sys};

use crate::support::Edge;

const SK_PASS: u32 = 1;

/// What is pinned in the edge's namespace.
pub(crate) struct Program(ProgramHandle);

impl Program {
    pub(crate) fn of(edge: &Edge) -> Self {
        let entries = std::fs::read_dir(edge.pins()).unwrap();
        let mut paths = entries.map(|entry| entry.unwrap().path());
        let is_program = |path: &std::path::PathBuf| {
            let name = path.file_name().unwrap().to_str().unwrap();
            name.starts_with("claims-")
        };
        let path = paths.find(is_program).expect("a pinned program");
        Self(ProgramHandle::from_pinned_path(path).unwrap())
    }

    /// Whether the first packet to `to` is given a socket. One that is not has
    /// to be passed on untouched.
    pub(crate) fn steers(&self, transport: Transport, to: SocketAddr) -> bool {
        let (verdict, cookie, _) = self.run(transport, to, 1);
        assert_eq!(verdict, SK_PASS, "{transport:?} {to}");
        cookie != 0
    }

    /// The mean time of one lookup.
    pub(crate) fn cost(&self, to: SocketAddr, times: u32) -> Duration {
        self.run(Transport::Tcp, to, times).2
    }

    /// Verdict, the socket's cookie, and the mean time.
    fn run(&self, transport: Transport, to: SocketAddr, times: u32) -> (u32, u64, Duration) {
        // struct bpf_sk_lookup
        let mut context = [0u8; 72];
        let mut put =
            |at: usize, bytes: &[u8]| context[at..at + bytes.len()].copy_from_slice(bytes);
        let (family, protocol) = match (to, transport) {
            (SocketAddr::V4(_), Transport::Tcp) => (libc::AF_INET, libc::IPPROTO_TCP),
            (SocketAddr::V4(_), Transport::Udp) => (libc::AF_INET, libc::IPPROTO_UDP),
            (SocketAddr::V6(_), Transport::Tcp) => (libc::AF_INET6, libc::IPPROTO_TCP),
            (SocketAddr::V6(_), Transport::Udp) => (libc::AF_INET6, libc::IPPROTO_UDP),
        };
        put(8, &family.to_ne_bytes());
        put(12, &protocol.to_ne_bytes());
        match to.ip() {
            IpAddr::V4(ip) => put(40, &ip.octets()),
            IpAddr::V6(ip) => put(44, &ip.octets()),
        }
        put(60, &u32::from(to.port()).to_ne_bytes());
        let mut after = context;
        let mut options = libbpf_sys::bpf_test_run_opts {
            sz: size_of::<libbpf_sys::bpf_test_run_opts>() as _,
            ctx_in: context.as_ptr().cast::<c_void>(),
            ctx_size_in: 72,
            ctx_out: after.as_mut_ptr().cast::<c_void>(),
            ctx_size_out: 72,
            repeat: i32::try_from(times).unwrap(),
            ..Default::default()
        };
        // SAFETY: both contexts are as long as it says, and outlive the call.
        let result = unsafe {
            libbpf_sys::bpf_prog_test_run_opts(self.0.as_fd().as_raw_fd(), &raw mut options)
        };
        assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
        let cookie = u64::from_ne_bytes(after[..8].try_into().unwrap());
        let mean = Duration::from_nanos(options.duration.into());
        (options.retval, cookie, mean)
    }
}
