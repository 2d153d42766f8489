/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The few declarations of libbpf's <bpf/bpf_helpers.h> that the program here
 * uses, so that compiling it needs clang and the kernel's headers alone. The
 * numbers of helpers are those of `enum bpf_func_id` in <linux/bpf.h>.
 */
#ifndef ANYPORT_BPF_HELPERS_H
#define ANYPORT_BPF_HELPERS_H

#include <linux/bpf.h>
#include <linux/types.h>

#define SEC(name) __attribute__((section(name), used))

/* A map is a variable in section ".maps"; the loader reads its attributes
 * from the type information of these members. */
#define ATTRIBUTE(name, value) int(*name)[value]
#define TYPE(name, type) typeof(type) *name

static void *(*const bpf_map_lookup_elem)(void *map, const void *key) = (void *)1;
static __u32 (*const bpf_get_prandom_u32)(void) = (void *)7;
static long (*const bpf_sk_select_reuseport)(void *ctx, void *map, void *key, __u64 flags) = (void *)82;
static long (*const bpf_sk_release)(void *sock) = (void *)86;
static long (*const bpf_sk_assign)(void *ctx, void *sock, __u64 flags) = (void *)124;
static __u64 (*const bpf_ktime_get_coarse_ns)(void) = (void *)160;

#endif
