// The working memory of one packet on one CPU: too much for a 512-byte stack, and a place where the verifier forgets.
//
// TC programs run with bottom halves off, so nothing else uses this CPU's copy between a packet's first instruction and
// its last tail call. Deliberately absent: anything that must outlive the packet, except the cached clock.

#define NO_BIT 0xffff
#define NO_MATCH 0xffffu // no rule

// What to judge: one new flow, in the orientation of the side that opened it.
struct question {
    struct address peer;
    __u32 ruleset;
    __u32 stored_domain; // of the flow that is judged again
    __u32 now;           // seconds of CLOCK_BOOTTIME
    __u16 port_be;       // the destination's: the peer's on egress, the endpoint's own on ingress
    __u8 protocol;
    __u8 direction;
    __u8 own_node;      // ingress: generated on this node
    __u8 allow_expired; // no SYN: names whose time is over still count
    __u8 pad[2];
};

// What was concluded.
struct finding {
    __u32 ruleset;
    __u32 domain;
    __u32 identity;
    __u16 bit;
    __u8 verdict;
    __u8 reason;
    __u8 tier;
    __u8 pad[3];
};

struct name_walk {
    __u32 wanted_bit; // whose domain row is to be found, NO_MATCH: none
    __u32 wants_live; // among the live names, or among those whose time is over
};

struct dns {
    __u64 hash;      // of the asked name, its type and class, and the resolver
    __u64 name_hash; // of the asked name alone
    struct address sum; // over the answer's records
    __u32 cursor;
    __u32 length;      // of the message, as far as it was read
    __u32 name_bytes;  // in wire form without its end
    __u32 name_length; // as text without its last dot
    __u32 dots;        // and NULs inside labels
    __u32 short_length; // without the search suffix
    __u32 left;    // records to walk
    __u32 found;   // records of the asked type, at ``at``
    __u32 applied; // of those
    __u32 placing; // the last of them wants a slot
    __u32 page;    // the next to try for it
    __u32 lifetime;
    __u32 learned, news, refused, full; // addresses
    __u32 domain;
    __u32 scope;
    __u32 now; // seconds of CLOCK_BOOTTIME
    __u32 shortest; // lifetime of the first WALK_BITE addresses
    __u32 told; // until when the cluster was told of all addresses, that soonest ends
    __u32 min_ttl, max_ttl, grace, names_limit;
    __u32 alias, alias_length; // data of a CNAME that is the first record
    __u16 type, class;
    __u16 id;
    __u8 bad_name;  // a dot or a NUL inside a label, or no label at all
    __u8 first;     // no record was walked yet
    __u8 flags;     // RESOLVER_*
    __u8 response;
    __u8 truncated; // there was more than we read
    __u8 started;   // 1: walking, 2: writing
    __u8 quiet;     // this very answer was told before
    __u8 piece;     // enum piece
    __u32 calls, reserve; // of a stream: tail calls left, and how many of them are for what is behind this message
    __u32 stream_at;             // offset in the packet of the stream's next byte
    __u32 piece_at, piece_begin; // offsets in the packet: of the next piece, and of the first
    __u32 piece_place; // the event's ``place`` of that first one
    __u32 piece_whole, piece_id, piece_checksum; // of the event
};

// What the entry program leaves for the one that judges.
enum mode { MODE_REFUSED = 0, MODE_NEW = 1, MODE_AGAIN = 2 };
enum step { STEP_PACKET = 0, STEP_REVERSE = 1, STEP_SHADOW = 2 }; // whose orientation, which ruleset
enum by_frontend { FRONT_NONE = 0, FRONT_BACKENDS = 1, FRONT_NO_BACKEND = 2 };
enum dns_mode { DNS_NONE = 0, DNS_QUERY = 1, DNS_ANSWER = 2, DNS_STREAM = 3, DNS_FRAGMENT = 4 };
struct job {
    __u64 epoch; // read before any lookup
    __u32 ticks;
    __u8 mode;
    __u8 direction;
    __u8 related; // an ICMP error that quotes the flow in ``key``
    __u8 dns;
    __u8 hairpin; // came out of this same interface: through the pod's own Service
    __u8 step;    // enum step
    __u8 concluded; // ``finding`` is final; else the tiers are still to be walked
    __u8 by_frontend; // enum by_frontend
    __u8 peer_flags;  // ADDRESS_* of the peer that is judged
    __u8 has_match;   // some rule matches
    __u8 has_names;   // ``names`` and ``expired`` are of this judgement
    __u8 has_far;     // some of ``far`` is not zero
};

// The time as of this jiffy: reading a clock costs half a lookup, reading jiffies nothing.
struct clock {
    __u64 jiffies;    // when it was read
    __u64 boot_nanos; // CLOCK_BOOTTIME
    __u32 ticks;      // see flow
    __u32 boot_seconds;
};

// Where a row of a hash is copied to, by what it is matched as; a row that is not there is read here too, as zeroes. So a
// row is in the array or here, and the verifier follows two ways where there would be three.
enum far_row { FAR_PEERS = 0, FAR_MORE_PEERS = 1, FAR_PORTS = 2, FAR_BEHIND = 3, FAR_ROWS = 6 };

#define ANSWERS 256 // one more than an event counts; a message of more (records whose owner is the root) is handed over
#define TEXT_BYTES 520

struct scratch {
    struct packet packet;
    struct l4_header l4;
    __u8 headers[112];
    struct flow_key key;
    struct flow flow;
    struct job job;
    struct question question;
    struct finding finding;
    struct finding shadow; // under the rulesets with the policies under audit
    __u32 audited;         // 1: those would have denied
    struct name_walk walk;
    struct mask far[FAR_ROWS]; // rows of the hashes that this judgement found; zero where ``has_far`` is
    struct mask matched; // rules whose peer matches and whose port matches
    struct mask ports;   // of them those whose port matches, where names are asked
    struct mask names;   // rules that live names bring
    struct mask expired; // next to them: rules that names would bring if their time were not over
    struct resolution_key resolution_key;
    struct frontend_key frontend_key;
    struct resolver_key resolver_key;
    struct endpoint_address own_key;
    struct cidr6_key cidr_key;
    struct kept_key kept_key;
    struct names fresh;
    struct address found; // the address being learned
    __u32 slot_own, slot_free;
    struct dns dns;
    struct clock clock;
    __u8 text[TEXT_BYTES]; // the asked name reversed, ending at TEXT_END; see names.h
    __u16 at[ANSWERS];
    struct resolution_event event; // its message is the DNS message
    __u8 beyond[16];
};
BPF_TABLE("percpu_array", __u32, struct scratch, scratch, 1);

static INLINE struct scratch *find_scratch(void)
{
    __u32 zero = 0;

    return scratch.lookup(&zero);
}

static INLINE struct config *find_config(void)
{
    __u32 zero = 0;

    return config.lookup(&zero);
}

#define TICK_SHIFT 30
#define TICKS(seconds) ((seconds) * 1000000000ULL >> TICK_SHIFT)
static INLINE struct clock *read_clock(struct scratch *s)
{
    struct clock *c = &s->clock;
    __u64 now = bpf_jiffies64();

    if (now != c->jiffies) {
        c->jiffies = now;
        c->ticks = bpf_ktime_get_coarse_ns() >> TICK_SHIFT;
        c->boot_nanos = bpf_ktime_get_boot_ns();
        c->boot_seconds = c->boot_nanos / 1000000000ULL;
    }
    return c;
}

static INLINE __u32 read_ticks(struct scratch *s)
{
    return read_clock(s)->ticks;
}

// Seconds of CLOCK_BOOTTIME.
static INLINE __u32 read_boot_seconds(struct scratch *s)
{
    return read_clock(s)->boot_seconds;
}

// Nanoseconds of CLOCK_BOOTTIME, as coarse as the kernel's tick.
static INLINE __u64 read_boot_nanos(struct scratch *s)
{
    return read_clock(s)->boot_nanos;
}
