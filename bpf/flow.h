// Flows: what was judged once and need not be judged again while nothing changed.
//
// One entry a flow in the endpoint's own view, in one of two LRUs: unanswered (anyone can make those) and answered
// (someone had to reply), so that a flood of the first kind cannot push out the second.
// Sources of timeouts: nf_conntrack's defaults, shortened where an LRU entry is cheap to make again.

#define TICKS(seconds) ((seconds) * 1000000000ULL >> TICK_SHIFT)
#define TIMEOUT_UNANSWERED TICKS(60)
#define TIMEOUT_TCP TICKS(86400)
#define TIMEOUT_TCP_CLOSING TICKS(120)
#define TIMEOUT_TCP_CLOSED TICKS(10)
#define TIMEOUT_UDP TICKS(180)
#define TIMEOUT_OTHER TICKS(180)
#define TIMEOUT_FRAGMENT TICKS(30)
#define PROMOTIONS_PER_TICK 20000 // new answered flows of one endpoint

#define ECHO_BY_PEER 0 // flow_key.peer_port_be of ICMP echo says who asked: both sides may use one identifier
#define ECHO_BY_ENDPOINT 1

static INLINE __u32 find_timeout(__u8 protocol, __u8 state)
{
    if (!(state & FLOW_ANSWERED))
        return TIMEOUT_UNANSWERED;
    if (protocol == PROTOCOL_TCP) {
        if (state & FLOW_RESET)
            return TIMEOUT_TCP_CLOSED;
        if ((state & FLOW_FIN_OPENER) && (state & FLOW_FIN_REPLY))
            return TIMEOUT_TCP_CLOSED;
        if (state & (FLOW_FIN_OPENER | FLOW_FIN_REPLY))
            return TIMEOUT_TCP_CLOSING;
        return TIMEOUT_TCP;
    }
    return protocol == PROTOCOL_UDP ? TIMEOUT_UDP : TIMEOUT_OTHER;
}

static INLINE int is_echo_request(const struct packet *p)
{
    return p->icmp_type == (p->protocol == PROTOCOL_ICMP ? 8 : 128);
}

// ``own``: the endpoint's side is the packet's source (egress) or destination (ingress).
static INLINE void make_key(struct scratch *s, __u32 ifindex, int direction, __u8 own_address)
{
    struct packet *p = &s->packet;
    struct flow_key *key = &s->key;

    key->ifindex = ifindex;
    key->protocol = p->protocol;
    key->own_address = own_address;
    __builtin_memset(key->pad, 0, sizeof(key->pad));
    if (direction == EGRESS) {
        key->peer = p->destination;
        key->own_port_be = p->source_port_be;
        key->peer_port_be = p->destination_port_be;
    } else {
        key->peer = p->source;
        key->own_port_be = p->destination_port_be;
        key->peer_port_be = p->source_port_be;
    }
    if (!has_ports(p->protocol) && is_echo(p))
        key->peer_port_be = (direction == EGRESS) == is_echo_request(p) ? ECHO_BY_ENDPOINT : ECHO_BY_PEER;
}

static INLINE int is_bare_syn(const struct packet *p)
{
    return p->protocol == PROTOCOL_TCP && (p->tcp_flags & (TCP_SYN | TCP_ACK)) == TCP_SYN;
}

static INLINE int is_answered(struct flow *flow)
{
    return flow->state & FLOW_ANSWERED;
}

static INLINE struct flow *find_flow(struct flow_key *key)
{
    struct flow *flow = flows_answered.lookup(key);

    if (flow)
        return flow;
    return flows_unanswered.lookup(key);
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

static INLINE int may_promote(__u32 endpoint, __u32 ticks)
{
    struct quota *q = find_quota(endpoint);

    if (!q)
        return 0;
    if (q->promotion_tick != ticks) {
        q->promotion_tick = ticks;
        q->promotions = 0;
    }
    return q->promotions++ < PROMOTIONS_PER_TICK;
}

// The first reply moves a flow to the answered LRU; over the endpoint's rate it stays where a flood can reach it.
static INLINE void promote(struct scratch *s, struct flow *flow, __u32 endpoint, __u32 ticks)
{
    if (!may_promote(endpoint, ticks))
        return;
    flow->state = (flow->state | FLOW_ANSWERED) & ~FLOW_SYN_SENT;
    flow->expires = ticks + find_timeout(s->key.protocol, flow->state);
    s->flow = *flow;
    flows_answered.update(&s->key, &s->flow);
    flows_unanswered.delete(&s->key);
}

// Count a packet and follow the TCP state. Plain additions: each direction of a flow is one CPU's at a time.
static INLINE void touch_flow(struct __sk_buff *skb, struct scratch *s, struct flow *flow, int direction, __u32 endpoint,
                              __u32 ticks)
{
    int reply = direction != flow->direction;
    __u8 state = flow->state;
    __u32 expires;

    if (reply) {
        flow->packets[1]++;
        flow->bytes[1] += skb->len;
    } else {
        flow->packets[0]++;
        flow->bytes[0] += skb->len;
    }
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
        promote(s, flow, endpoint, ticks);
}

// What a first fragment tells about the rest of its datagram, once it was let through.
static INLINE void make_fragment_key(struct scratch *s, __u32 ifindex)
{
    struct fragment_key *key = &s->fragment_key;

    key->source = s->packet.source;
    key->destination = s->packet.destination;
    key->id = s->packet.fragment_id;
    key->ifindex = ifindex;
    key->protocol = s->packet.protocol;
    __builtin_memset(key->pad, 0, sizeof(key->pad));
}

static INLINE void remember_fragment(struct scratch *s, __u32 ifindex, __u32 ticks)
{
    struct fragment first = {
        .source_port_be = s->packet.source_port_be,
        .destination_port_be = s->packet.destination_port_be,
        .expires = ticks + TIMEOUT_FRAGMENT,
        .icmp_type = s->packet.icmp_type,
        .shares_flow = s->packet.shares_flow,
    };

    make_fragment_key(s, ifindex);
    fragments.update(&s->fragment_key, &first);
}

static INLINE int recall_fragment(struct scratch *s, __u32 ifindex, __u32 ticks)
{
    struct fragment *first;

    make_fragment_key(s, ifindex);
    first = fragments.lookup(&s->fragment_key);
    if (!first || (__s32)(first->expires - ticks) < 0)
        return REASON_FRAGMENT_UNKNOWN;
    s->packet.source_port_be = first->source_port_be;
    s->packet.destination_port_be = first->destination_port_be;
    s->packet.icmp_type = first->icmp_type;
    s->packet.shares_flow = first->shares_flow;
    return 0;
}
