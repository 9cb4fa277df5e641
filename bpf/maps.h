// Every map. Sizes are settings (-D, services/nodeagent/loader.py has the defaults). The loader pins them, in a folder
// that is named by the hash of this file, of types.h and of the sizes, so that two layouts never meet in one map.
//
// Hashes are NO_PREALLOC: memory follows content. Arrays have theirs from the start.
// ``flows`` has an eighth more room than ``places``: two CPUs that admit one flow at once may leave one behind.
// Deliberately absent: a shared LRU, in which one pod pushes out another's entries; fallbacks for a missing map.
// A map that cannot be made is a program that does not load.

#define SPARSE 1 // BPF_F_NO_PREALLOC
#define MAPPED 1024 // BPF_F_MMAPABLE: the agent reads it where it is

// Not bcc's pinned tables: it opens what is pinned already by its id, which takes CAP_SYS_ADMIN.
#undef BPF_TABLE_PINNED
#define TABLE(type, key, leaf, name, size, flags) BPF_F_TABLE(type, key, leaf, name, size, flags)

TABLE("array", __u32, struct endpoint, endpoints, ENDPOINT_SLOTS, 0);
TABLE("hash", __u32, struct endpoint, endpoints_far, ENDPOINT_SLOTS, SPARSE);
TABLE("hash", struct endpoint_address, __u32, endpoint_addresses, ENDPOINT_SLOTS, SPARSE);
TABLE("array", __u32, struct ruleset, rulesets, RULESETS, 0);
TABLE("hash", struct address, struct known_address, ipcache, ADDRESSES, SPARSE);
TABLE("lpm_trie", struct cidr4_key, struct cidr, cidrs4, PREFIXES, SPARSE);
TABLE("lpm_trie", struct cidr6_key, struct cidr, cidrs6, PREFIXES, SPARSE);
TABLE("hash", __u32, __u32, classes, IDENTITIES, SPARSE);
TABLE("hash", struct peer_key, struct mask, peers, PEERS, SPARSE);
TABLE("array", __u32, struct row, near_peers, PEER_ROWS, 0);
TABLE("array", __u32, __u32, port_classes, PORT_CLASS_ENTRIES, 0);
TABLE("hash", struct peer_key, struct mask, ports, PORTS, SPARSE);
TABLE("array", __u32, struct row, near_ports, PORT_ROWS, 0);
TABLE("hash", struct frontend_key, struct frontend, frontends, FRONTENDS, SPARSE);
TABLE("hash", struct mixed_key, struct mixed, mixed, MIXED, SPARSE);
TABLE("lpm_trie", struct domain_key, __u32, domains, DOMAINS, SPARSE);
TABLE("hash", struct resolver_key, __u32, resolvers, RESOLVERS, SPARSE);
TABLE("lpm_trie", struct cidr6_key, __u32, guard, PREFIXES, SPARSE);
TABLE("array", __u32, struct config, config, 1, 0);
TABLE("array", __u32, __u64, epoch, 1, 0);
TABLE("array", __u32, __u32, credits, ENDPOINT_SLOTS, 0);

// What the programs write.
TABLE("hash", struct resolution_key, struct names, resolutions, RESOLUTIONS, SPARSE);
TABLE("array", __u32, struct kept_set, seen, SETS_OF(SEEN), 0);
TABLE("array", __u32, struct query_set, queries, ENDPOINT_SLOTS * QUERY_SETS, 0);
TABLE("hash", struct flow_key, struct flow, flows, FLOWS + FLOWS / 8, SPARSE);
TABLE("array", __u32, struct place, places, FLOWS, MAPPED);
TABLE("array", __u32, struct kept_set, fragments, SETS_OF(FRAGMENTS), 0);
TABLE("array", __u32, struct quota, quotas, ENDPOINT_SLOTS, 0);
TABLE("array", __u32, struct counter, reasons, 2 * REASONS, 0);
TABLE("array", __u32, struct counter, rule_counters, RULE_COUNTERS, MAPPED);
TABLE("array", __u32, struct reach_set, reached, ENDPOINT_SLOTS * 2 * REACH_SETS, MAPPED);

BPF_RINGBUF_OUTPUT(verdicts, VERDICT_PAGES);
BPF_RINGBUF_OUTPUT(resolution_events, RESOLUTION_PAGES);
BPF_RINGBUF_OUTPUT(handovers, HANDOVER_PAGES);

// The tail calls of one build: never shared between builds, or an upgrade would swap a learner under a running program.
TABLE("prog", __u32, __u32, tails, 16, 0);
#define TAIL_JUDGE 0
#define TAIL_FINISH 1
#define TAIL_LEARN_WALK 3
#define TAIL_LEARN_ALIAS 4
#define TAIL_LEARN_WRITE 5
#define TAIL_FROM_POD 6
#define TAIL_TO_POD 7
#define TAIL_LEARN_STREAM 8
#define TAIL_LEARN_PIECES 9
#define TAIL_LEARN_REFUSED 10
#define TAIL_DNS_FROM_POD 11
#define TAIL_DNS_TO_POD 12
