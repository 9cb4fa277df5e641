// DNS over TCP. The place of the next message is known from the resolver's SYN on; a segment that merely looks like a
// message is none. A message that is whole in its segment is learned; of all else the recorder gets the bytes. Where a
// message begins in the midst of what is handed over, or one is missing, the rest of the connection is the recorder's.

#define PIECES_PER_TICK 512 // of one endpoint, 4,095 bytes each

// Tail calls that it takes to hand over so much.
static INLINE __u32 count_pieces(__u32 bytes)
{
    return (bytes + DNS_MASK - 1) / DNS_MASK;
}

// Tail calls that the message takes from here on, if no address wants more than one page: bites of a walk, of which no
// message holds more, an alias, and bites of writing. Where it takes more it is given up on, whole.
static INLINE __u32 count_calls(const struct scratch *s)
{
    __u32 records = read_u16(s->event.message, 6);

    if (records > RECORDS)
        records = RECORDS;
    return records / WALK_BITE + records / WRITE_BITE + 3;
}

static INLINE int hand_over_stream(struct __sk_buff *skb, struct scratch *s, struct endpoint *ep, __u8 piece,
                                   __u32 begins)
{
    struct dns *d = &s->dns;

    d->piece = piece;
    d->piece_begin = d->piece_at = d->stream_at;
    d->piece_place = s->packet.tcp_sequence + d->stream_at - s->packet.payload;
    d->piece_whole = begins;
    d->piece_id = d->piece_checksum = 0;
    d->stream_at = s->packet.end;
    tails.call(skb, TAIL_LEARN_PIECES);
    count_suppressed(ep);
    return TC_ACT_UNSPEC;
}

static INLINE void lose_stream(struct flow *flow)
{
    flow->dns = (flow->dns & ~FLOW_DNS_SYNC) | FLOW_DNS_HANDED_OVER;
}

// The resolver's SYN, the first it sends on a connection that the pod opened: the first message follows it.
static INLINE void begin_stream(struct flow *flow, const struct packet *p)
{
    if (!(p->tcp_flags & TCP_ACK) || flow->replies.packets != 1 || flow->dns & FLOW_DNS_HANDED_OVER)
        return;
    flow->dns_sequence = p->tcp_sequence + 1;
    flow->dns |= FLOW_DNS_SYNC | FLOW_DNS_PORT;
}

// A message begins here. Its place is left behind, whatever comes of it. What may take more tail calls than there are
// is handed over from its beginning, while they suffice to hand over all that is behind it too.
static INLINE int read_stream(struct __sk_buff *skb, struct scratch *s, struct endpoint *ep, struct flow *flow,
                              __u32 left)
{
    struct dns *d = &s->dns;
    __u32 begins = flow->dns_sequence, at = d->stream_at, length, behind, calls;
    __u16 length_be = 0;
    int reason;

    if (bpf_skb_load_bytes(skb, at, &length_be, sizeof(length_be)))
        return TC_ACT_UNSPEC;
    length = bpf_ntohs(length_be);
    flow->dns_sequence = begins + 2 + length;
    if (length > DNS_MASK || left < 2 + length) {
        if (left > 2 + length)
            lose_stream(flow);
        return hand_over_stream(skb, s, ep, PIECE_BEGIN, begins);
    }
    behind = left - (2 + length);
    d->reserve = behind ? 1 + count_pieces(behind) : 0;
    d->started = 0;
    reason = read_question(skb, s, at + 2, length, DNS_MASK);
    if (!d->response)
        reason = REASON_LEARN_MALFORMED;
    calls = d->reserve;
    if (!reason)
        calls += count_calls(s);
    if (d->calls < calls) {
        if (behind)
            lose_stream(flow);
        return hand_over_stream(skb, s, ep, PIECE_BEGIN, begins);
    }
    d->stream_at = at + 2 + length;
    if (reason)
        return count_learn(skb, s, reason);
    d->calls--;
    tails.call(skb, TAIL_LEARN_WALK);
    count_suppressed(ep);
    return TC_ACT_UNSPEC;
}

int learn_stream(struct __sk_buff *skb)
{
    struct scratch *s = find_scratch();
    struct endpoint *ep = find_endpoint(skb->ifindex);
    struct flow *flow;
    __u32 left;
    __s32 ahead;

    if (!s || !ep)
        return TC_ACT_UNSPEC;
    flow = flows.lookup(&s->key);
    if (!flow || flow->direction != EGRESS)
        return TC_ACT_UNSPEC;
    s->dns.flags = find_resolver(s, &s->key.peer, s->key.peer_port_be);
    if (!s->dns.flags || is_misled(skb, s->dns.flags))
        return TC_ACT_UNSPEC;
    if (s->packet.tcp_flags & TCP_SYN) {
        begin_stream(flow, &s->packet);
        return TC_ACT_UNSPEC;
    }
    left = s->packet.end - s->dns.stream_at;
    if (flow->dns & FLOW_DNS_HANDED_OVER)
        return hand_over_stream(skb, s, ep, PIECE_STREAM, 0);
    if (!(flow->dns & FLOW_DNS_SYNC))
        return TC_ACT_UNSPEC;
    ahead = s->packet.tcp_sequence + (s->dns.stream_at - s->packet.payload) - flow->dns_sequence;
    if (ahead == 0 && left >= 2)
        return read_stream(skb, s, ep, flow, left);
    if (ahead < 0 && (__u32)-ahead >= left) // the rest of what was handed over, or sent again
        return hand_over_stream(skb, s, ep, PIECE_STREAM, 0);
    lose_stream(flow);
    return hand_over_stream(skb, s, ep, PIECE_BEGIN, flow->dns_sequence);
}

// One piece of this packet into the ring, and the next by a tail call to self.
int learn_pieces(struct __sk_buff *skb)
{
    struct scratch *s = find_scratch();
    struct endpoint *ep = find_endpoint(skb->ifindex);
    struct resolution_event *e;
    struct quota *q;
    struct dns *d;
    __u64 size;
    __u32 left;

    if (!s || !ep)
        return TC_ACT_UNSPEC;
    q = find_quota(ep->id);
    d = &s->dns;
    e = &s->event;
    d->flags = find_resolver(s, &s->key.peer, s->key.peer_port_be);
    if (!q || d->piece_at >= s->packet.end || !d->flags || is_misled(skb, d->flags))
        return TC_ACT_UNSPEC;
    if (d->piece_at == d->piece_begin)
        count_reason(INGRESS, REASON_LEARN_HANDED_OVER, skb->len);
    renew_budget(s, q);
    left = s->packet.end - d->piece_at;
    size = (left > DNS_MASK ? DNS_MASK : left) - 1;
    FORGET(size);
    size = (size & DNS_MASK) + 1; // kernel 6.1 does not take "is not zero" for a bound
    if (q->pieces >= PIECES_PER_TICK || bpf_skb_load_bytes(skb, d->piece_at, e->message, size)) {
        q->answers_suppressed++;
        return TC_ACT_UNSPEC;
    }
    q->pieces++;
    describe_event(s, ep, q->answers_suppressed);
    e->message_bytes = size;
    e->reason = REASON_LEARN_HANDED_OVER;
    e->learned = e->answers = 0;
    e->domain = 0;
    e->piece = d->piece;
    e->place = d->piece_place + (d->piece_at - d->piece_begin);
    e->whole = d->piece_whole;
    e->id = d->piece_id;
    e->checksum = d->piece_checksum;
    d->piece_at += size;
    if (d->piece == PIECE_BEGIN)
        d->piece = PIECE_STREAM;
    size = (size & DNS_MASK) + __builtin_offsetof(struct resolution_event, message);
    if (handovers.ringbuf_output(e, size, 0)) {
        q->lost[RING_HANDOVERS]++;
        q->answers_suppressed++;
    } else {
        q->answers_suppressed = 0;
    }
    if (d->piece_at >= s->packet.end)
        return TC_ACT_UNSPEC;
    tails.call(skb, TAIL_LEARN_PIECES);
    q->answers_suppressed++;
    return TC_ACT_UNSPEC;
}
