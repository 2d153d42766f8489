/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Steering by sk_lookup: hands every claimed address and port to the agent's
 * sockets.
 *
 * The kernel runs this in a network namespace whenever TCP looks for a
 * listener, or UDP for an unconnected socket, for a packet that is local
 * already. What belongs to a connection never comes here.
 *
 * The cost does not depend on the number of claims. One lookup finds the most
 * specific network around the destination, and with it the set of ports that
 * are claimed there; three loads from an array tell whether the port is in the
 * set. There is no loop.
 *
 * The claims of a loaded program never change: `networks` and `ports` are
 * filled before it is attached, and frozen. A change of claims is another
 * program with maps of its own, put in this one's place in one step. `sockets`
 * and `counters` are shared by all of them.
 *
 * The layout of keys and values is known to kernel/sk_lookup/image.rs.
 */
#include "helpers.h"

#define AF_INET 2
#define AF_INET6 10
#define IPPROTO_UDP 17

/* The agent makes these maps as large as its claims need. */
#define ANY_SIZE 1

/* Leads from the most specific network to its set of ports. An IPv4 address
 * takes the first four bytes of `address`; the rest is zero. */
struct network {
	__u32 prefix_length; /* bits of all that follows */
	__u8 family;
	__u8 protocol;
	__u16 zero;
	__u32 address[4]; /* network byte order */
};

/* The first bits of a network that are always compared. */
#define FIXED_BITS 32

struct {
	ATTRIBUTE(type, BPF_MAP_TYPE_LPM_TRIE);
	TYPE(key, struct network);
	TYPE(value, __u32); /* the root of the set of ports, an index of `ports` */
	ATTRIBUTE(max_entries, ANY_SIZE);
	ATTRIBUTE(map_flags, BPF_F_NO_PREALLOC | BPF_F_RDONLY_PROG);
} networks SEC(".maps");

/* A set of ports is a tree of three nodes' height. Each node takes four bits
 * of the port, highest first. The entries of the first two are indices of the
 * next node; those of the last are the last four bits' ports as a bitmap. Sets
 * share the nodes that they have in common. Node 0 is empty at any height. */
struct node {
	__u32 entries[16];
};

struct {
	ATTRIBUTE(type, BPF_MAP_TYPE_ARRAY);
	TYPE(key, __u32);
	TYPE(value, struct node);
	ATTRIBUTE(max_entries, ANY_SIZE);
	ATTRIBUTE(map_flags, BPF_F_RDONLY_PROG);
} ports SEC(".maps");

/* One socket of each kind, a member of the group (SO_REUSEPORT) over which the
 * kernel spreads what it is given. */
enum socket {
	TCP_V4,
	TCP_V6,
	UDP_V4,
	UDP_V6,
	SOCKETS,
};

struct {
	ATTRIBUTE(type, BPF_MAP_TYPE_SOCKMAP);
	TYPE(key, __u32);
	TYPE(value, __u64);
	ATTRIBUTE(max_entries, SOCKETS);
} sockets SEC(".maps");

/* What became of the packets for claimed ports. Each drop has its reason. */
enum counter {
	STEERED,
	/* There is no agent, or it does not listen in this family. */
	NO_SOCKET,
	/* The kernel does not take the socket that is there. */
	BAD_SOCKET,
	/* `ports` lacks a node that it ought to have. Cannot happen. */
	NO_NODE,
	COUNTERS,
};

struct {
	ATTRIBUTE(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	TYPE(key, __u32);
	TYPE(value, __u64);
	ATTRIBUTE(max_entries, COUNTERS);
} counters SEC(".maps");

static __always_inline void count(enum counter what)
{
	__u32 index = what;
	__u64 *counter = bpf_map_lookup_elem(&counters, &index);

	if (counter)
		(*counter)++;
}

/* A claimed port never falls to a socket that is not the agent's: with none to
 * take it, the lookup ends here, and the stack answers RST, or for UDP ICMP
 * port unreachable. */
static __always_inline int drop(enum counter reason)
{
	count(reason);
	return SK_DROP;
}

SEC("sk_lookup")
int steer(struct bpf_sk_lookup *lookup)
{
	struct network at = {
		.family = lookup->family,
		.protocol = lookup->protocol,
	};
	__u32 kind;

	if (lookup->family == AF_INET) {
		at.prefix_length = FIXED_BITS + 32;
		at.address[0] = lookup->local_ip4;
		kind = TCP_V4;
	} else if (lookup->family == AF_INET6) {
		at.prefix_length = FIXED_BITS + 128;
		at.address[0] = lookup->local_ip6[0];
		at.address[1] = lookup->local_ip6[1];
		at.address[2] = lookup->local_ip6[2];
		at.address[3] = lookup->local_ip6[3];
		kind = TCP_V6;
	} else {
		return SK_PASS;
	}
	if (lookup->protocol == IPPROTO_UDP)
		kind += UDP_V4;

	__u32 *root = bpf_map_lookup_elem(&networks, &at);
	if (!root)
		return SK_PASS;

	__u32 port = lookup->local_port; /* host byte order */
	struct node *first = bpf_map_lookup_elem(&ports, root);
	if (!first)
		return drop(NO_NODE);
	struct node *second = bpf_map_lookup_elem(&ports, &first->entries[port >> 12 & 15]);
	if (!second)
		return drop(NO_NODE);
	struct node *last = bpf_map_lookup_elem(&ports, &second->entries[port >> 8 & 15]);
	if (!last)
		return drop(NO_NODE);
	if (!(last->entries[port >> 4 & 15] >> (port & 15) & 1))
		return SK_PASS;

	struct bpf_sock *socket = bpf_map_lookup_elem(&sockets, &kind);
	if (!socket)
		return drop(NO_SOCKET);
	long error = bpf_sk_assign(lookup, socket, 0);
	bpf_sk_release(socket);
	if (error)
		return drop(BAD_SOCKET);
	count(STEERED);
	return SK_PASS;
}

/* No helper that is used here asks for a licence of its own. */
char _license[] SEC("license") = "Apache-2.0";
