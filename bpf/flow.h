// Flows: what was judged once and need not be judged again while nothing changed.
//
// One hash for all, and a place for each flow in its endpoint's own region of ``places``: unanswered flows (anyone can make
// those) in every fourth, answered ones (someone had to reply) in the others. Where they are full, the endpoint's own flow
// that was idle longest among a few goes; no packet of an endpoint can remove another's flow. Where regions change, flows
// move with them: move.h.
// Deliberately absent: a shared LRU. It gives no endpoint anything: the valid entries are its likeliest victims.
// Timeouts are settings, in struct config; a flow has the one that was in force when a packet renewed it: at its last one,
// or RENEW_JIFFIES before.

#define PLACES_PROBED 4  // of them the one that was idle longest goes
#define NO_PLACE 0xffffffffu

#define ECHO_BY_PEER 0 // flow_key.peer_port_be of ICMP echo says who asked: both sides may use one identifier
#define ECHO_BY_ENDPOINT 1

// Which of the timeouts holds: by protocol and state.
static INLINE enum timeout choose_timeout(__u8 protocol, __u8 state)
{
    if (protocol == PROTOCOL_TCP) {
        if (!(state & FLOW_ANSWERED))
            return TIMEOUT_TCP_OPENING;
        if (state & FLOW_RESET)
            return TIMEOUT_TCP_CLOSED;
        if ((state & FLOW_FIN_OPENER) && (state & FLOW_FIN_REPLY))
            return TIMEOUT_TCP_CLOSED;
        if (state & (FLOW_FIN_OPENER | FLOW_FIN_REPLY))
            return TIMEOUT_TCP_CLOSING;
        return TIMEOUT_TCP;
    }
    if (protocol == PROTOCOL_UDP)
        return state & FLOW_ANSWERED ? TIMEOUT_UDP : TIMEOUT_UDP_UNANSWERED;
    return state & FLOW_ANSWERED ? TIMEOUT_OTHER : TIMEOUT_OTHER_UNANSWERED;
}

// In ticks.
static INLINE __u32 read_timeout(enum timeout which)
{
    struct config *c = find_config();

    return c ? c->timeout[which & (TIMEOUT_SLOTS - 1)] : 0;
}

static INLINE __u32 find_timeout(__u8 protocol, __u8 state)
{
    return read_timeout(choose_timeout(protocol, state));
}

static INLINE int is_echo_request(const struct packet *p)
{
    return p->icmp_type == (p->protocol == PROTOCOL_ICMP ? 8 : 128);
}

static INLINE void fill_key(struct flow_key *key, __u32 ifindex, __u16 own_be, __u16 peer_be, __u8 protocol, __u8 own)
{
    key->interface_ports = (__u64)peer_be << 48 | (__u64)own_be << 32 | ifindex;
    key->protocol_address = (__u64)own << 8 | protocol;
}

// ``own``: the endpoint's side is the packet's source (egress) or destination (ingress).
static INLINE void make_key(struct scratch *s, __u32 ifindex, int direction, __u8 own_address)
{
    struct packet *p = &s->packet;
    struct flow_key *key = &s->key;
    __u16 own = p->destination_port_be, peer = p->source_port_be;

    key->peer = p->source;
    if (direction == EGRESS) {
        key->peer = p->destination;
        own = p->source_port_be;
        peer = p->destination_port_be;
    }
    if (!has_ports(p->protocol) && is_echo(p))
        peer = (direction == EGRESS) == is_echo_request(p) ? ECHO_BY_ENDPOINT : ECHO_BY_PEER;
    fill_key(key, ifindex, own, peer, p->protocol, own_address);
}

static INLINE int is_bare_syn(const struct packet *p)
{
    return p->protocol == PROTOCOL_TCP && (p->tcp_flags & (TCP_SYN | TCP_ACK)) == TCP_SYN;
}

// Whether this packet belongs to the flow that is there, or is the first of another on the same ports.
static INLINE int is_continued(struct flow *flow, const struct packet *p, int direction, __u32 ticks)
{
    if ((__s32)(flow->expires - ticks) < 0)
        return 0;
    if (p->protocol != PROTOCOL_TCP || !is_bare_syn(p))
        return 1;
    return direction != flow->direction && (flow->state & FLOW_SYN_SENT); // simultaneous open: RFC 9293 3.5
}

static INLINE struct quota *find_quota(__u32 endpoint)
{
    __u32 index = endpoint & (ENDPOINT_SLOTS - 1);

    return quotas.lookup(&index);
}

// How long the flow in a place was idle, in ticks; PLACE_CLOSED: both sides are done with it; PLACE_FREE: there is none, or
// its time is over. Of a place that nobody has claimed.
#define PLACE_FREE 0xffffffffu
#define PLACE_CLOSED 0xfffffffeu
static INLINE __u32 find_idleness(struct place *p, __u32 index, __u32 ticks)
{
    enum timeout which;
    struct flow *flow;
    __s32 left, timeout;

    if (!p->key.ifindex)
        return PLACE_FREE;
    flow = flows.lookup(&p->key);
    if (!flow || flow->place != index)
        return PLACE_FREE;
    left = flow->expires - ticks;
    if (left < 0)
        return PLACE_FREE;
    which = choose_timeout(p->key.protocol, flow->state);
    if (which == TIMEOUT_TCP_CLOSED)
        return PLACE_CLOSED;
    timeout = read_timeout(which);
    return timeout > left ? timeout - left : 0; // shorter than when the flow was last used
}

// A place is taken away from the flow that has it by whoever changes this word of its key to PLACE_CLAIMED, and is
// nobody's until that one names a flow in it, which is in the hash by then: however long a CPU is held up meanwhile, no
// other takes the place too.
static INLINE __u64 read_holder(const struct place *p)
{
    return *(const volatile __u64 *)&p->key.interface_ports;
}

// ``holder``: what the word was when the place was chosen. 0: another CPU was first. Else the flow that had the place is
// gone, unless it moved to another.
static INLINE int claim_place(struct place *p, __u32 index, __u64 holder)
{
    struct flow_key key;
    struct flow *flow;

    if (__sync_val_compare_and_swap(&p->key.interface_ports, holder, PLACE_CLAIMED) != holder)
        return 0;
    if (!holder)
        return 1;
    key = p->key;
    key.interface_ports = holder;
    flow = flows.lookup(&key);
    if (flow && flow->place == index)
        flows.delete(&key);
    return 1;
}

// Of whoever claimed it. The word that says so is the last to be written.
static INLINE void name_place(struct place *p, const struct flow_key *key)
{
    p->key.peer = key->peer;
    p->key.protocol_address = key->protocol_address;
    __sync_lock_test_and_set(&p->key.interface_ports, key->interface_ports);
}

// Of whoever claimed it, too: it is free.
static INLINE void disclaim_place(struct place *p)
{
    __sync_lock_test_and_set(&p->key.interface_ports, 0);
}

// How many places of a region are for such flows.
static INLINE __u32 count_places(union region region, int answered)
{
    return answered ? region.count - region.count / 4 : region.count / 4;
}

// Of the places for such flows the ``number``th: of four the first is for those that nobody answered.
static INLINE __u32 find_place(union region region, int answered, __u32 number)
{
    return region.first + (answered ? number + number / 3 + 1 : number * 4);
}

struct choice {
    __u32 index;  // NO_PLACE: none
    __u32 idle;   // how long its flow was, in ticks, PLACE_CLOSED or PLACE_FREE
    __u64 holder; // to claim it by
};

// Of the next places for such flows in the endpoint's region the one that was idle longest, or the first that is free.
static INLINE struct choice pick_place(struct endpoint *ep, union region region, int answered, __u32 ticks)
{
    struct choice best = {.index = NO_PLACE, .idle = 0, .holder = 0};
    __u32 size = count_places(region, answered);
    struct quota *q = find_quota(ep->id);
    struct place *p;

    if (!q || !size)
        return best;
    for (int i = 0; i < PLACES_PROBED; i++) {
        __u64 hand = q->hand[answered];
        __u32 index = find_place(region, answered, hand % size), idle;
        __u64 holder;

        if (__sync_val_compare_and_swap(&q->hand[answered], hand, hand + 1) != hand)
            continue; // another CPU has this place
        p = places.lookup(&index);
        if (!p)
            break;
        holder = read_holder(p);
        if (holder == PLACE_CLAIMED)
            continue;
        idle = find_idleness(p, index, ticks);
        if (idle >= best.idle) {
            best.idle = idle;
            best.index = index;
            best.holder = holder;
        }
        if (idle == PLACE_FREE)
            break;
    }
    return best;
}

// A place in the endpoint's region, claimed, or NO_PLACE. ``answered``: for which kind of flows.
static INLINE __u32 take_place(struct endpoint *ep, int answered, __u32 ticks)
{
    struct choice best = pick_place(ep, read_region(ep), answered, ticks);
    struct place *p = places.lookup(&best.index);

    return p && claim_place(p, best.index, best.holder) ? best.index : NO_PLACE;
}

// A new flow, unanswered; whether it has a place.
static INLINE int insert_flow(struct scratch *s, struct endpoint *ep, __u32 ticks)
{
    __u32 index = take_place(ep, 0, ticks);
    struct place *p = places.lookup(&index);

    if (!p)
        return 0;
    s->flow.place = index;
    if (flows.update(&s->key, &s->flow)) {
        disclaim_place(p);
        return 0;
    }
    name_place(p, &s->key);
    return 1;
}

// Of two flows of one interface and the same ports.
static INLINE int is_same_flow(const struct flow_key *a, const struct flow_key *b)
{
    return a->protocol_address == b->protocol_address && is_same_address(&a->peer, &b->peer);
}

// The place of a flow that goes to another, unless it was given away since.
static INLINE void leave_place(struct place *p, const struct flow_key *key)
{
    if (__sync_val_compare_and_swap(&p->key.interface_ports, key->interface_ports, PLACE_CLAIMED) != key->interface_ports)
        return;
    if (is_same_flow(&p->key, key))
        disclaim_place(p);
    else
        __sync_lock_test_and_set(&p->key.interface_ports, key->interface_ports);
}

// The first reply moves a flow where only flows that were answered compete. The place is let go while the flow still
// names it: once it does not, another CPU may have given it away.
static INLINE void promote(struct scratch *s, struct flow *flow, struct endpoint *ep, __u32 ticks)
{
    __u32 before = flow->place, now = take_place(ep, 1, ticks);
    struct place *old = places.lookup(&before), *p = places.lookup(&now);

    if (!p)
        return;
    if (old)
        leave_place(old, &s->key);
    flow->place = now;
    flow->state = (flow->state | FLOW_ANSWERED) & ~FLOW_SYN_SENT;
    flow->expires = ticks + find_timeout(s->key.protocol, flow->state);
    name_place(p, &s->key);
}

// Of the opener's side, or of the other.
static INLINE struct tally *choose_tally(struct flow *flow, int reply)
{
    return reply ? &flow->replies : &flow->sent;
}

// Plain additions: each direction of a flow is one CPU's at a time.
static INLINE void count(struct tally *tally, __u32 bytes)
{
    tally->packets++;
    tally->bytes += bytes;
}

// Count a packet and follow the TCP state.
static INLINE void touch_flow(struct __sk_buff *skb, struct scratch *s, struct flow *flow, int direction,
                              struct endpoint *ep, __u32 ticks)
{
    int reply = direction != flow->direction;
    __u8 state = flow->state;
    __u32 expires;

    count(choose_tally(flow, reply), skb->len);
    if (s->packet.protocol == PROTOCOL_TCP) {
        __u8 flags = s->packet.tcp_flags;

        if (flags & TCP_FIN)
            state |= reply ? FLOW_FIN_REPLY : FLOW_FIN_OPENER;
        if (flags & TCP_RST)
            state |= FLOW_RESET;
        if (state != flow->state)
            flow->state = state;
    }
    expires = ticks + find_timeout(s->packet.protocol, state);
    if (expires != flow->expires)
        flow->expires = expires;
    if (reply && !(state & FLOW_ANSWERED))
        promote(s, flow, ep, ticks);
}

// What a first fragment tells about the rest of its datagram, once it was let through.
static INLINE struct kept_set *find_fragments(struct scratch *s, const struct endpoint *ep)
{
    struct kept_key *key = &s->kept_key;
    __u32 set;

    key->one = s->packet.source;
    key->two = s->packet.destination;
    key->three = (__u64)ep->ifindex << 32 | s->packet.fragment_id;
    key->four = s->packet.fragment_protocol;
    set = choose_set(ep, SETS_OF(FRAGMENTS), key);
    return fragments.lookup(&set);
}

static INLINE void remember_fragment(struct scratch *s, const struct endpoint *ep, __u32 ticks)
{
    struct packet *p = &s->packet;
    struct kept_set *set = find_fragments(s, ep);
    struct fragment first = {.word = 0};
    __u32 headers = p->transport - p->fragment_begin + (p->protocol == PROTOCOL_TCP ? 20 : 8);

    if (!set || headers > 255 * 8)
        return;
    p->fragment_headers = (headers + 7) / 8;
    first.source_port_be = p->source_port_be;
    first.destination_port_be = p->destination_port_be;
    first.icmp_type = p->icmp_type;
    first.shares_flow = p->shares_flow;
    first.protocol = p->protocol;
    first.headers = p->fragment_headers;
    keep(set, &s->kept_key, ticks + read_timeout(TIMEOUT_FRAGMENT), first.word);
}

// 0 or a reason. What reaches back into the headers of the first could change what was judged: RFC 3128, RFC 5722.
static INLINE int recall_fragment(struct scratch *s, const struct endpoint *ep, __u32 ticks)
{
    struct kept_set *set = find_fragments(s, ep);
    struct kept *entry = set ? find_kept(set, &s->kept_key) : 0;
    struct fragment first;

    if (!entry || !read_kept(entry, &s->kept_key, ticks, &first.word))
        return REASON_FRAGMENT_UNKNOWN;
    if (s->packet.fragment_offset < first.headers * 8)
        return REASON_MALFORMED;
    s->packet.protocol = first.protocol;
    s->packet.fragment_headers = first.headers;
    s->packet.source_port_be = first.source_port_be;
    s->packet.destination_port_be = first.destination_port_be;
    s->packet.icmp_type = first.icmp_type;
    s->packet.shares_flow = first.shares_flow;
    return 0;
}
