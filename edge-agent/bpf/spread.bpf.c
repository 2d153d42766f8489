/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Spreads new TCP connections evenly over the workers.
 *
 * The kernel runs this whenever it has to choose one listener of a group
 * (SO_REUSEPORT): for the first packet of a connection, and for any that belongs
 * to none, as what answers a SYN cookie does. Left alone it chooses by a hash: of
 * 32 connections one of two workers then has 20 or more in one case of five, and
 * its clients wait for each other while the other worker sleeps.
 *
 * Of two workers drawn at random the one that was given less of late is taken
 * (Mitzenmacher, The Power of Two Choices in Randomized Load Balancing, 2001).
 * Connections do not end as evenly as they come, so of these two the one that has
 * fewer open is given more. That is about 9 for the other's 7, once there are some
 * in a second, and no more: what is open may be idle, and what comes may be short
 * and end at once, so that the difference stays however much the one is given.
 *
 * Two processors may do this at once, and both halve what a worker was given. That
 * is made up for with what comes next.
 *
 * The layout of the maps is known to listen/spread.rs.
 */
#include "helpers.h"

/* The agent makes the maps as large as it has workers. */
#define ANY_SIZE 1

#define ETH_P_IPV6 0x86dd

/* What was given counts half as much each 2^30 ns, 1.07 s. */
#define HALVED 30

/* Of one worker; a cache line of its own. */
struct load {
	__u64 open;   /* connections, written by the worker */
	__u64 given;  /* connections that it was given of late */
	__u64 halved; /* when that was halved last, in units of HALVED */
	__u64 pad[5];
};

/* Open connections of a worker that has ended. */
#define ENDED (~0ULL)

struct {
	ATTRIBUTE(type, BPF_MAP_TYPE_ARRAY);
	TYPE(key, __u32);
	TYPE(value, struct load);
	ATTRIBUTE(max_entries, ANY_SIZE);
	ATTRIBUTE(map_flags, BPF_F_MMAPABLE);
} loads SEC(".maps");

/* The listener of each worker for IPv4, and for IPv6 after it. */
struct {
	ATTRIBUTE(type, BPF_MAP_TYPE_SOCKMAP);
	TYPE(key, __u32);
	TYPE(value, __u64);
	ATTRIBUTE(max_entries, ANY_SIZE);
} listeners SEC(".maps");

/* How many workers there are, two at least. */
const volatile __u32 workers = 2;

static __always_inline void halve(struct load *load, __u64 now)
{
	__u64 times = now - load->halved;

	if (now <= load->halved)
		return;
	load->given = times < 64 ? load->given >> times : 0;
	load->halved = now;
}

/* What it was given, and with that counted, as far as it may count, what it has
 * open more than the other. */
static __always_inline __u64 weight(struct load *load, struct load *other, __u64 most)
{
	__u64 more = load->open > other->open ? load->open - other->open : 0;

	return load->given + (more < most ? more : most);
}

SEC("sk_reuseport")
int spread(struct sk_reuseport_md *packet)
{
	__u64 now = bpf_ktime_get_coarse_ns() >> HALVED;
	__u32 chance = bpf_get_prandom_u32();
	__u32 one = (chance & 0xffff) % workers;
	__u32 other = (one + 1 + (chance >> 16) % (workers - 1)) % workers;
	struct load *of_one = bpf_map_lookup_elem(&loads, &one);
	struct load *of_other = bpf_map_lookup_elem(&loads, &other);

	/* Both are there. Where the program chooses none, the kernel does. */
	if (!of_one || !of_other)
		return SK_PASS;
	halve(of_one, now);
	halve(of_other, now);
	__u64 most = (of_one->given + of_other->given) / 8 + 1;
	if (of_other->open != ENDED &&
	    (of_one->open == ENDED ||
	     weight(of_other, of_one, most) < weight(of_one, of_other, most))) {
		one = other;
		of_one = of_other;
	}
	if (of_one->open == ENDED)
		return SK_PASS;
	__sync_fetch_and_add(&of_one->given, 1);
	__u32 listener = one * 2 + (packet->eth_protocol == __builtin_bswap16(ETH_P_IPV6));
	bpf_sk_select_reuseport(packet, &listeners, &listener, 0);
	return SK_PASS;
}

/* No helper that is used here asks for a licence of its own. */
char _license[] SEC("license") = "Apache-2.0";
