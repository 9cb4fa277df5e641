// Every map. Sizes are settings (-D, services/nodeagent/loader.py has the defaults); PIN_FOLDER is named by the hash of
// this file, of types.h and of the sizes, so that two layouts never meet in one map.
//
// Hashes are NO_PREALLOC: memory follows content. Arrays have theirs from the start.
// ``flows`` has an eighth more room than ``places``: two CPUs that admit one flow at once may leave one behind.
// Deliberately absent: a shared LRU, in which one pod pushes out another's entries; fallbacks for a missing map.
// A map that cannot be made is a program that does not load.

#define SPARSE 1 // BPF_F_NO_PREALLOC
#define MAPPED 1024 // BPF_F_MMAPABLE: the agent reads it where it is

BPF_TABLE_PINNED("array", __u32, struct endpoint, endpoints, ENDPOINT_SLOTS, PIN_FOLDER "/endpoints", 0);
BPF_TABLE_PINNED("hash", __u32, struct endpoint, endpoints_far, ENDPOINT_SLOTS, PIN_FOLDER "/endpoints_far", SPARSE);
BPF_TABLE_PINNED("hash", struct endpoint_address, __u32, endpoint_addresses, ENDPOINT_SLOTS,
                 PIN_FOLDER "/endpoint_addresses", SPARSE);
BPF_TABLE_PINNED("array", __u32, struct ruleset, rulesets, RULESETS, PIN_FOLDER "/rulesets", 0);
BPF_TABLE_PINNED("hash", struct address, struct known_address, ipcache, ADDRESSES, PIN_FOLDER "/ipcache", SPARSE);
BPF_TABLE_PINNED("lpm_trie", struct cidr4_key, struct cidr, cidrs4, PREFIXES, PIN_FOLDER "/cidrs4", SPARSE);
BPF_TABLE_PINNED("lpm_trie", struct cidr6_key, struct cidr, cidrs6, PREFIXES, PIN_FOLDER "/cidrs6", SPARSE);
BPF_TABLE_PINNED("hash", __u32, __u32, classes, IDENTITIES, PIN_FOLDER "/classes", SPARSE);
BPF_TABLE_PINNED("hash", struct peer_key, struct mask, peers, PEERS, PIN_FOLDER "/peers", SPARSE);
BPF_TABLE_PINNED("array", __u32, __u32, port_classes, PORT_CLASS_ENTRIES, PIN_FOLDER "/port_classes", 0);
BPF_TABLE_PINNED("hash", struct peer_key, struct mask, ports, PORTS, PIN_FOLDER "/ports", SPARSE);
BPF_TABLE_PINNED("hash", struct frontend_key, struct frontend, frontends, FRONTENDS, PIN_FOLDER "/frontends", SPARSE);
BPF_TABLE_PINNED("hash", struct mixed_key, struct mixed, mixed, MIXED, PIN_FOLDER "/mixed", SPARSE);
BPF_TABLE_PINNED("lpm_trie", struct domain_key, __u32, domains, DOMAINS, PIN_FOLDER "/domains", SPARSE);
BPF_TABLE_PINNED("hash", struct resolver_key, __u32, resolvers, RESOLVERS, PIN_FOLDER "/resolvers", SPARSE);
BPF_TABLE_PINNED("lpm_trie", struct cidr6_key, __u32, guard, PREFIXES, PIN_FOLDER "/guard", SPARSE);
BPF_TABLE_PINNED("array", __u32, struct config, config, 1, PIN_FOLDER "/config", 0);
BPF_TABLE_PINNED("array", __u32, __u64, epoch, 1, PIN_FOLDER "/epoch", 0);
BPF_TABLE_PINNED("array", __u32, __u32, credits, ENDPOINT_SLOTS, PIN_FOLDER "/credits", 0);

// What the programs write.
BPF_TABLE_PINNED("hash", struct resolution_key, struct names, resolutions, RESOLUTIONS, PIN_FOLDER "/resolutions",
                 SPARSE);
BPF_TABLE_PINNED("array", __u32, struct kept_set, seen, SETS_OF(SEEN), PIN_FOLDER "/seen", 0);
BPF_TABLE_PINNED("array", __u32, struct query_set, queries, ENDPOINT_SLOTS * QUERY_SETS, PIN_FOLDER "/queries", 0);
BPF_TABLE_PINNED("hash", struct flow_key, struct flow, flows, FLOWS + FLOWS / 8, PIN_FOLDER "/flows", SPARSE);
BPF_TABLE_PINNED("array", __u32, struct place, places, FLOWS, PIN_FOLDER "/places", 0);
BPF_TABLE_PINNED("array", __u32, struct kept_set, fragments, SETS_OF(FRAGMENTS), PIN_FOLDER "/fragments", 0);
BPF_TABLE_PINNED("array", __u32, struct quota, quotas, ENDPOINT_SLOTS, PIN_FOLDER "/quotas", 0);
BPF_TABLE_PINNED("array", __u32, struct counter, reasons, 2 * REASONS, PIN_FOLDER "/reasons", 0);
BPF_TABLE_PINNED("array", __u32, struct counter, rule_counters, RULE_COUNTERS, PIN_FOLDER "/rule_counters", MAPPED);
BPF_TABLE_PINNED("array", __u32, struct reach_set, reached, ENDPOINT_SLOTS * 2 * REACH_SETS, PIN_FOLDER "/reached",
                 MAPPED);

// bcc has no macro for a pinned ring buffer; this is its BPF_RINGBUF_OUTPUT with a path.
#define RING_PINNED(ring, pages, path)                                                                                 \
    struct ring##_table_t {                                                                                            \
        int key;                                                                                                       \
        u32 leaf;                                                                                                      \
        int (*ringbuf_output)(void *, u64, u64);                                                                       \
        void *(*ringbuf_reserve)(u64);                                                                                 \
        void (*ringbuf_discard)(void *, u64);                                                                          \
        void (*ringbuf_submit)(void *, u64);                                                                           \
        u32 max_entries;                                                                                               \
    };                                                                                                                 \
    __attribute__((section("maps/ringbuf:" path))) struct ring##_table_t ring = {.max_entries = (pages)*PAGE_SIZE}
RING_PINNED(verdicts, VERDICT_PAGES, PIN_FOLDER "/verdicts");
RING_PINNED(resolution_events, RESOLUTION_PAGES, PIN_FOLDER "/resolution_events");

RING_PINNED(handovers, HANDOVER_PAGES, PIN_FOLDER "/handovers");

// The tail calls of one build: never shared between builds, or an upgrade would swap a learner under a running program.
BPF_TABLE_PINNED("prog", __u32, __u32, tails, 16, TAILS_PIN, 0);
#define TAIL_JUDGE 0
#define TAIL_NAMES 1
#define TAIL_LEARN_WALK 3
#define TAIL_LEARN_ALIAS 4
#define TAIL_LEARN_WRITE 5
#define TAIL_FROM_POD 6
#define TAIL_TO_POD 7
#define TAIL_LEARN_STREAM 8
#define TAIL_LEARN_PIECES 9
#define TAIL_LEARN_REFUSED 10
