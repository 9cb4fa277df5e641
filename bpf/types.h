// SPDX-License-Identifier: (Apache-2.0 OR GPL-2.0)
// Every key and value that user space and the programs share, and the numbers they mean.
//
// services/nodeagent/mapcodec.py encodes the same layouts; tests/bpf/test_layouts.py compares size and offset of every
// field with what the compiler made of this file. Reasons and verdicts repeat schemas/terms.py and are compared too.
//
// All addresses are 16 bytes in network order, IPv4 as ::ffff:a.b.c.d: one body for both families. Ports named *_be are
// in network order. Zero denies: a zeroed value of any struct here shuts.

#define YETT_WORDS 8 // 512 rule bits: 0..191 Admin, 192..447 NetworkPolicy, 448..511 Baseline
#define WORDS_ADMIN 3
#define WORDS_NETWORK_POLICY 4
#define BIT_NETWORK_POLICY 192
#define BIT_BASELINE 448

enum direction { EGRESS = 0, INGRESS = 1 };
enum verdict { VERDICT_DENY = 0, VERDICT_ALLOW = 1, VERDICT_AUDIT = 2 };
enum tier { TIER_NONE = 0, TIER_ADMIN = 1, TIER_NETWORK_POLICY = 2, TIER_BASELINE = 3, TIER_DEFAULT = 4 };
enum default_verdict { DEFAULT_DENY = 0, DEFAULT_ALLOW = 1, DEFAULT_AUDIT = 2 };
enum reason {
    REASON_UNKNOWN = 0,
    REASON_RULE = 1,
    REASON_ISOLATED = 2,
    REASON_DEFAULT = 3,
    REASON_ESTABLISHED = 4,
    REASON_REPLY = 5,
    REASON_DNS_IMPLICIT = 6,
    REASON_OWN_NODE = 7,
    REASON_ALWAYS = 8,
    REASON_RELATED = 9,
    REASON_HAIRPIN = 10,
    REASON_NAME_EXPIRED = 11,
    REASON_NO_BACKEND = 12,
    REASON_MIXED_BACKENDS = 13,
    REASON_TOO_MANY_BACKENDS = 14,
    REASON_UNKNOWN_POD = 15,
    REASON_MALFORMED = 32,
    REASON_SPOOFED_SOURCE = 33,
    REASON_WRONG_DESTINATION = 34,
    REASON_SOURCE_ROUTED = 35,
    REASON_MAPPED_ADDRESS = 36,
    REASON_FRAGMENT_UNKNOWN = 37,
    REASON_UNKNOWN_ETHERTYPE = 38,
    REASON_TOO_MANY_HEADERS = 39,
    REASON_ND_REFUSED = 40,
    REASON_ICMP_UNRELATED = 41,
    REASON_BAD_ARP = 42,
    REASON_NO_ENDPOINT = 64,
    REASON_NO_RULESET = 65,
    REASON_MAP_FULL = 66,
    REASON_CLAIMED_TWICE = 67,
    REASON_LEARN_UNTRUSTED = 96,
    REASON_LEARN_UNASKED = 97,
    REASON_LEARN_MALFORMED = 98,
    REASON_LEARN_REFUSED_ADDRESS = 99,
    REASON_LEARN_QUOTA = 100,
    REASON_LEARN_RCODE = 101,
    REASON_LEARN_HANDED_OVER = 102,
    REASON_LEARN_BAD_NAME = 103,
    REASON_LEARN_NO_ADDRESS = 104,
};
#define REASONS 128

struct address {
    union {
        __u8 byte[16];
        __u32 word[4];
        __u64 half[2];
    };
};

// A part of ``places``. Read by its word, at once: it may change meanwhile.
union region {
    struct {
        __u32 first;
        __u32 count; // a power of two; 0: none
    };
    __u64 word;
};

// endpoints: array, slot = ifindex & (slots - 1). ``ifindex`` tells whether the slot is ours; of two live interfaces with
// one slot the second lives in endpoints_far, a hash by ifindex. The first address of each family is here, so that the
// source check of nearly every packet is a compare; further ones are in endpoint_addresses.
struct endpoint {
    __u32 ifindex; // 0: empty
    __u32 id;      // 1.., dense on this node: index of its queries and quotas
    __u32 ruleset[4]; // handles: egress, ingress, egress shadow, ingress shadow; 0: none (denied, NO_RULESET)
    __u32 flags;
    __u32 identity;
    __u32 address4; // network order, 0: none
    __u32 pad;
    union region region; // no other endpoint's flows are there; none: its packets make no flows
    struct address address6; // zero: none
    struct address gateway6; // the on-link peer that neighbour discovery may address; zero: none
};
#define ENDPOINT_CLAIMED_TWICE 1
#define ENDPOINT_MORE_ADDRESSES 2 // look into endpoint_addresses
#define ENDPOINT_SCOPED_NAMES 4   // this endpoint has resolutions of its own (resolvers outside the cluster)

// endpoint_addresses: further addresses. Value: 2.., part of the flow key.
struct endpoint_address {
    __u32 endpoint;
    __u32 pad; // keys have no hidden padding: what is not written is compared all the same
    struct address address;
};

// rulesets: array by handle, 1... Immutable while any endpoint refers to the handle.
struct ruleset {
    __u64 any[YETT_WORDS];  // rules whose peer is every address
    __u64 deny[YETT_WORDS]; // rules whose action is Deny (Admin and Baseline words only)
    __u64 pass[WORDS_ADMIN + 1]; // rules whose action is Pass: Admin's words, then Baseline's
    __u32 flags;
    __u32 default_verdict; // enum verdict
    __u32 counters;        // index of this ruleset's first rule counter
    __u16 admin_rules, network_policy_rules, baseline_rules; // how many of each: rule counters are dense
    __u16 pad;
    __u8 hash[16]; // content hash: what a restarted agent recognises the handle by
};
#define RULESET_VALID 1
#define RULESET_ISOLATED 2
#define RULESET_DNS_IMPLICIT 4
#define RULESET_HAS_CIDRS 8       // some rule has a CIDR peer: cidrs is looked up
#define RULESET_HAS_IDENTITIES 16 // some rule has a pod or node peer
#define RULESET_HAS_DOMAINS 32    // some rule has a domain peer: resolutions is looked up

struct mask {
    __u64 word[YETT_WORDS];
};

// ipcache: exact address -> who it is, and what else must be looked up for it: one miss tells that it is nobody's.
struct known_address {
    __u32 identity; // 0: no pod's and no node's
    __u32 flags;
};
#define ADDRESS_FRONTEND 1 // a Service's, on some port: ``frontends`` is looked up
#define ADDRESS_OWN_NODE 2 // the own node's (Node.status and the veth's gateway)

// cidrs4, cidrs6: longest prefix -> class of the local rulesets' CIDRs.
struct cidr4_key {
    __u32 prefix_bits;
    __u8 byte[4];
};
struct cidr6_key {
    __u32 prefix_bits;
    __u8 byte[16];
};
struct cidr {
    __u32 class; // CLASS_CIDR | n, or 0: covered by no rule
    __u32 flags;
};
#define CIDR_UNKNOWN_POD 1 // an address here without an identity is denied

// peers, ports: (ruleset handle, class) -> rules. A row lies in ``near_*``, an array, at the place that its key's hash says;
// of rows with one place the second and further ones are in the hash, and the place says that there are such. So nearly
// every row costs an array's lookup, and one that is not there nothing more. services/nodeagent/rowmap.py places them.
// Source: a hash's lookup is 22 ns, an array's 2.
//
// peers: Identities have a class (map classes); CIDRs have a class in the LPM's value;
// a domain row is its own class. The kind is in the top bits, so that the three cannot meet.
#define CLASS_IDENTITY 0x00000000u
#define CLASS_CIDR 0x40000000u
#define CLASS_DOMAIN 0x80000000u
struct peer_key {
    union {
        struct {
            __u32 ruleset;
            __u32 class;
        };
        __u64 word; // written whole: see set_mapped
    };
};

#define ROW_FAR 0x80000000ULL // of ``key``: the hash has rows of this place; no ruleset's handle is that high
struct row {
    __u64 key; // a peer_key, which is never 0, and ROW_FAR
    struct mask mask;
};

// port_classes: array, index = slot of protocol * 65536 + port, then one entry a protocol without ports.
// ports: (ruleset handle, port class) -> rules; the key is a peer_key.
#define PORT_SLOT_TCP 0
#define PORT_SLOT_UDP 1
#define PORT_SLOT_SCTP 2
#define PORT_SLOTS_OTHER (3 * 65536)
#define PORT_CLASS_ENTRIES (3 * 65536 + 256)

// frontends: a Service's address, protocol and port -> what stands behind.
struct frontend_key {
    struct address address;
    __u16 port_be;
    __u8 protocol;
    __u8 pad[5];
};
struct frontend {
    __u32 kind; // enum frontend_kind
    __u32 target; // uniform: identity; mixed: number of the set
    __u16 port_be; // uniform: the backends' port
    __u16 pad;
    __u32 pad2;
    struct address backend; // uniform without identity: the backend's address, judged by CIDRs as well; else zero
};
enum frontend_kind { FRONTEND_EMPTY = 0, FRONTEND_UNIFORM = 1, FRONTEND_MIXED = 2, FRONTEND_TOO_MANY = 3 };

// mixed: (ruleset handle, set) -> the final verdict: the AND over all distinct backends, worked out by the agent's pure
// core. A set belongs to one frontend, so CIDR rules on its address and port are part of the verdict already.
// ``bit``: the rule that denies or, if all accept, the rule of the first backend; 0xffff none.
struct mixed_key {
    __u32 ruleset;
    __u32 set;
};
struct mixed {
    __u32 verdict;
    __u32 reason;
    __u32 tier;
    __u32 bit;
};

// domains: longest prefix over the reversed name -> number of the domain row, stable for life.
// The name: wire form, length bytes as dots, lower case, reversed: ``moc.elpmaxe.``. An exact name has a NUL behind its
// last dot; ``*.x`` has not, so that it is a prefix of x too: an exact entry for x carries only what covers x.
#define NAME_BYTES 256
struct domain_key {
    __u32 prefix_bits;
    __u8 name[NAME_BYTES];
};

// resolvers: (address, port) whose answers count, and that implicit DNS opens.
struct resolver_key {
    struct address address;
    __u16 port_be;
    __u16 pad[3];
};
#define RESOLVER_TRUSTED 1
#define RESOLVER_NODE_LOCAL 2 // counts only with ingress_ifindex 0
#define RESOLVER_OUTSIDE 4    // what it says serves the asking endpoint only

// guard: longest prefix over the 128-bit form -> 1: no name may have this address, 2: an exception that may.
#define GUARD_REFUSE 1
#define GUARD_PERMIT 2

// resolutions: which names an address has now. A slot is (domain row << 32 | expiry); 0 is free; claimed by
// compare-and-swap. Expiry: seconds of CLOCK_BOOTTIME, grace included. ``more``: a next page exists.
// ``scope``: SCOPE_LEARNED for what an answer on this node taught, written by the learner; SCOPE_SHARED for what other
// nodes saw, written by the agent alone (so neither can lose the other's slot); an endpoint's id for what a resolver
// outside the cluster told it. ``owner``: endpoint whose quota a learned slot counts against.
#define NAME_SLOTS 8
#define NAME_PAGES 8
#define SCOPE_LEARNED 0u
#define SCOPE_SHARED 0xffffffffu
struct resolution_key {
    struct address address;
    __u32 scope;
    __u32 page;
};
struct names {
    __u64 slot[NAME_SLOTS];
    __u16 owner[NAME_SLOTS];
    __u32 more;
    __u32 pad;
};

// seen, fragments: arrays of sets; see kept.h. ``two``, ``three`` and ``four`` tell keys of one table apart.
// seen: which answers were news already, so that steady state costs user space nothing. ``one``: the address, of a whole
// answer zero; ``two``: hash of the name; ``three``: endpoint, enum seen_kind. ``expires``: seconds of CLOCK_BOOTTIME.
// ``value``: of an address the domain row it was learned under, since a pattern added later makes it news again; of the
// last whole answer a digest of addresses and row, whose last bit says that it gave the name addresses that it may have;
// 0 after the same question was refused.
enum seen_kind { SEEN_ADDRESS = 0, SEEN_ANSWER_A = 1, SEEN_ANSWER_AAAA = 2 };
#define SEEN_GIVEN 1ULL
// fragments: what the first fragment of a datagram that was let through tells of the rest. ``one``, ``two``: source,
// destination; ``three``: identification, interface; ``four``: the protocol that each fragment bears, which may be an extension
// header's. ``expires``: ticks; ``value``: struct fragment.
#define KEPT_WAYS 4
#define SETS_OF(entries) (((entries) + KEPT_WAYS - 1) / KEPT_WAYS)
struct kept_key {
    struct address one, two;
    __u64 three, four;
};
union stamp {
    struct {
        __u32 version; // odd: being written
        __u32 expires;
    };
    __u64 word;
};
struct kept {
    union stamp stamp;
    struct kept_key key;
    __u64 value;
};
struct kept_set {
    struct kept way[KEPT_WAYS];
};

// queries: array, index = (endpoint id & (ENDPOINT_SLOTS - 1)) * QUERY_SETS + set. An endpoint can only overwrite its own.
#define QUERY_WAYS 8
#define QUERY_SECONDS 15
struct query {
    __u64 hash; // of name, type and resolver; 0: free
    __u32 asked; // ticks, see flow
    __u16 id;
    __u16 port_be;
};
struct query_set {
    struct query way[QUERY_WAYS];
};

// flows: a hash, one entry a flow, in the endpoint's own view, whoever opened it. The endpoint's own address is not in the
// key but its number (0: the first of its family), so that one short key serves both families.
// places: an array as long as ``flows``. A flow is admitted to the hash only with a place, and each endpoint takes places
// of its own region alone: what floods an endpoint pushes out that endpoint's flows and nobody else's, and the hash cannot
// fill up. Every fourth place is for flows that nobody answered yet, which anyone can make: so a place is for the same kind
// however long the region is.
// ``own_port_be`` is 0 for queries to a trusted resolver: they share one flow, and the query entry admits the answer.
// Written by whole words: see set_mapped.
struct flow_key {
    struct address peer;
    union {
        struct {
            __u32 ifindex;
            __u16 own_port_be;
            __u16 peer_port_be;
        };
        __u64 interface_ports;
    };
    union {
        struct {
            __u8 protocol;
            __u8 own_address;
            __u16 pad[3];
        };
        __u64 protocol_address;
    };
};
// Where it lies in memory is part of its speed. An entry of the hash begins 8 bytes into a line of the cache and has 80
// before the value, where entries are a multiple of lines: what packets of both directions read ends with the line that
// the key ends in, and what each direction writes at every packet, on whatever CPU, is in a line of its own.
struct tally {
    __u64 packets, bytes;
    __u32 renewed; // when a packet of this direction set ``expires`` last, in steps of RENEW_JIFFIES
    __u32 pad;
};
struct flow {
    __u64 epoch;    // of the judgement; the flow is judged again when it differs from the node's
    __u32 expires;  // ticks: CLOCK_MONOTONIC nanoseconds >> 30, 1.07 s each
    __u32 domain;   // domain row that admitted it, 0: none
    __u32 counter;  // index in rule_counters, NO_COUNTER: none
    __u8 direction; // of the opener
    __u8 state;     // FLOW_* bits
    __u8 verdict;   // ALLOW or AUDIT
    __u8 tier;
    __u16 bit;
    __u8 reason;
    __u8 dns; // FLOW_DNS_* bits
    __u32 dns_sequence; // TCP to a trusted resolver: sequence number at which the next message begins
    __u32 place;        // index in ``places``; the flow there is this one only if it says so too
    __u32 audited_by;   // handle of the ruleset under which it was told as audited last, 0: never
    struct tally sent;  // by the opener
    __u64 apart[5];
    struct tally replies;
    __u64 rest[5];
};
struct place {
    struct flow_key key; // interface_ports 0: free, PLACE_CLAIMED: a program gives it to another flow
};
#define PLACE_CLAIMED 0xffffffffffffffffULL // of no interface: an index is positive
#define NO_COUNTER 0xffffffffu
#define FLOW_ANSWERED 1
#define FLOW_FIN_OPENER 2
#define FLOW_FIN_REPLY 4
#define FLOW_RESET 8
#define FLOW_OWN_NODE 16 // admitted as traffic that this node generated
#define FLOW_HAIRPIN 32
#define FLOW_SYN_SENT 128 // opened by a SYN that nothing answered yet
#define FLOW_DNS_PORT 1        // trusted resolvers listen on the peer's port: its packets are never plain
#define FLOW_DNS_SYNC 2        // dns_sequence is known
#define FLOW_DNS_HANDED_OVER 4 // the recorder reads this stream: FLOW_DNS_SYNC was lost

struct fragment {
    union {
        struct {
            __u16 source_port_be;
            __u16 destination_port_be;
            __u8 icmp_type;
            __u8 shares_flow; // enum shares
            __u8 protocol;    // behind extension headers that follow the fragment header
            __u8 headers;     // 8 bytes each, from what is fragmented to behind the transport header, or TCP's first 20
        };
        __u64 word;
    };
};

enum shares { SHARES_NOT = 0, SHARES_DNS = 1, SHARES_ANSWER = 2 }; // see flow_key.own_port_be; an answer is handed over

// quotas: array by endpoint id, written by the programs alone. ``learned`` only grows; the agent writes what expired to
// credits (array by endpoint id) and the difference is what the endpoint holds now.
enum ring { RING_VERDICTS = 0, RING_ANSWERS = 1, RING_HANDOVERS = 2 };
struct quota {
    __u32 event_tick;
    __u32 events;
    __u32 suppressed;
    __u32 answer_tick;
    __u32 answers;
    __u32 answers_suppressed;
    __u32 icmp_tick;
    __u32 icmp;
    __u32 learned;
    __u32 pieces; // handed over in ``answer_tick``
    __u32 refusals; // told of in ``answer_tick``
    __u32 refusals_suppressed;
    __u32 lost[3]; // events that a full ring did not take, by enum ring, since the map was made
    __u32 pad;
    __u64 hand[2]; // where the next place is looked for: of unanswered flows, of answered ones
};

// reasons: array, index = direction * REASONS + reason. rule_counters: array, index = ruleset.counters + rule's place.
struct counter {
    __u64 packets;
    __u64 bytes;
};

// reached: array, index = ((endpoint id & (ENDPOINT_SLOTS - 1)) * 2 + direction) * REACH_SETS + set. Peers of new flows that
// were let in, of the side that opened them. An endpoint's rows are its own, and those of each direction.
// ``what``: from the lowest bits: the destination's port (network order), protocol, how (the reason in the lower six bits,
// REACH_* above them), and in the upper half the peer's identity or, where REACH_NAMED, the domain row that admitted it.
#define REACH_WAYS 8
#define REACH_BUSY 1 // being written; other tags are of peer and ``what``, 0: free
#define REACH_REASON 63
#define REACH_NAMED 64
#define REACH_AUDITED 128
struct reach {
    __u64 tag;
    struct address peer;
    __u64 what;
    __u64 flows;
};
struct reach_set {
    struct reach way[REACH_WAYS];
    __u64 lost; // flows that found no room, since the map was made
};

// config: array of one. epoch: array of one u64, bumped at every change that a live flow must be judged by.
// ``timeout``: how long a flow outlives its last packet, in ticks, by what it is; settings. 0: it outlives nothing.
#define SEARCH_SUFFIXES 8
#define NEAR_RESOLVERS 4
#define SUFFIX_BYTES 64
#define TIMEOUT_SLOTS 16 // power of two: an index is masked
enum timeout {
    TIMEOUT_TCP = 0,
    TIMEOUT_TCP_OPENING = 1, // nobody answered yet
    TIMEOUT_TCP_CLOSING = 2, // one side is done
    TIMEOUT_TCP_CLOSED = 3,  // both are, or a reset
    TIMEOUT_UDP = 4,
    TIMEOUT_UDP_UNANSWERED = 5,
    TIMEOUT_OTHER = 6,
    TIMEOUT_OTHER_UNANSWERED = 7,
    TIMEOUT_FRAGMENT = 8, // not a flow: what a first fragment told of the rest
};
struct suffix {
    __u32 length; // 0: none; the suffix is in the reversed form of ``domains``, its trailing dot included
    __u8 name[SUFFIX_BYTES];
};
struct near_resolver { // of ``resolvers``
    struct address address;
    __u16 port_be;
    __u16 pad;
    __u32 flags; // 0: none
};
struct config {
    __u32 ttl_min_seconds;
    __u32 ttl_max_seconds;
    __u32 grace_seconds;
    __u32 flags;
    __u32 names_per_endpoint; // quota of learned (name, address) pairs
    __u32 events_per_second;  // token bucket an endpoint, verdict events
    __u32 revision;           // policy revision in force: copied into every event
    __u16 resolver_port_be[4]; // the ports in ``resolvers``: other packets need no look there
    __u32 pad;
    __u32 timeout[TIMEOUT_SLOTS];
    struct near_resolver resolver[NEAR_RESOLVERS]; // those asked most: a compare instead of a look-up, for each packet
    struct suffix suffix[SEARCH_SUFFIXES];
};
#define CONFIG_ALLOW_EVENTS 1 // allowed new flows make events too
#define CONFIG_MANY_RESOLVER_PORTS 2 // more than four: look for every port
#define CONFIG_MANY_RESOLVERS 4 // more than NEAR_RESOLVERS: what is none of those is looked up

// ----------------------------------------------------------------------------------------------------------------------
// Events. Every event starts with a header; ``suppressed`` counts like events that the token bucket held back.

struct event_header {
    __u64 boottime_nanos;
    __u32 endpoint;
    __u32 suppressed;
};

struct verdict_event {
    struct event_header header;
    struct address source;
    struct address destination;
    __u16 source_port_be;
    __u16 destination_port_be;
    __u8 protocol;
    __u8 direction;
    __u8 verdict;
    __u8 reason;
    __u8 tier;
    __u8 family; // 4, 6, or 0 if not IP
    __u16 bit;   // rule bit that decided, 0xffff: none
    __u32 ruleset;
    __u32 domain; // domain row that admitted, or whose expiry denied; 0: none
    __u32 peer_identity;
    __u32 revision;
    __u32 frame_bytes;
    __u32 shadow; // 1: judged under the shadow ruleset (audit)
    __u32 pad;
};

// A DNS answer that was news, or one that gives a name which some pattern covers no address (LEARN_RCODE,
// LEARN_NO_ADDRESS; ``suppressed`` counts those then): the message follows (``message_bytes``). Or, on the ring ``handovers``, a piece of what
// came in more than one: bytes of a TCP stream from sequence number ``place`` on, or of one datagram from offset ``place``.
#define MESSAGE_BYTES 4096
enum piece { PIECE_NONE = 0, PIECE_BEGIN = 1, PIECE_STREAM = 2, PIECE_DATAGRAM = 3 };
struct resolution_event {
    struct event_header header;
    struct address resolver;
    __u16 resolver_port_be;
    __u16 message_bytes;
    __u8 reason;  // 0: learned in full; else a LEARN_* reason (handed over, quota, refused address)
    __u8 learned; // addresses that the kernel wrote to ``resolutions``
    __u8 answers; // A and AAAA records that it accepted, covered by a pattern or not
    __u8 protocol;
    __u32 domain; // domain row of the asked name, 0: covered by no pattern
    __u8 resolver_flags; // RESOLVER_*
    __u8 piece;          // enum piece
    __u16 own_port_be;   // the asker's; 0 in later fragments
    __u32 place;
    __u32 whole; // BEGIN: sequence number of a message's length; DATAGRAM: the message's bytes, 0: not told here
    __u32 id;    // DATAGRAM: what its pieces have in common
    __u32 checksum; // first fragment: UDP's, its ports and the destination added up as RFC 768 does; 0: not to be checked
    __u8 message[MESSAGE_BYTES];
};
