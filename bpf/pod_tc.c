// The two programs on a pod's host-side interface, and those behind them.
//
// from_pod: TC ingress of the veth, what the pod sends (egress). to_pod: TC egress, what it receives (ingress).
// They pass plain packets that a live flow covers, and judge those that none covers (established.h); what admits, and all
// that is not plain, is a tail call away, which costs next to nothing, so that the verifier follows each part alone.
// Accept is TC_ACT_UNSPEC, so that filters of others behind ours still run. Every denial leaves by ``deny``, where it is
// counted and told. A tail call that fails denies.

#define ICMP_ERRORS_PER_TICK 100

enum outcome { OUTCOME_REFUSED = 0, OUTCOME_PASS = 1, OUTCOME_JUDGE = 2 };

// Denied before any rule was looked at.
static INLINE int refuse(struct scratch *s, __u8 reason)
{
    s->job.mode = MODE_REFUSED;
    s->finding.ruleset = s->finding.domain = s->finding.identity = 0;
    conclude(s, VERDICT_DENY, reason, TIER_NONE, NO_BIT);
    return OUTCOME_REFUSED;
}

// ----------------------------------------------------------------------------------------------------------------------
// ICMP errors: judged by the flow they quote.

static INLINE int is_icmp_error(const struct packet *p)
{
    if (p->protocol == PROTOCOL_ICMP && p->family == 4)
        return p->icmp_type == 3 || p->icmp_type == 11 || p->icmp_type == 12;
    return p->protocol == PROTOCOL_ICMPV6 && p->family == 6 && p->icmp_type >= 1 && p->icmp_type <= 4;
}

struct quote {
    struct address source, destination;
    struct l4_header l4;
    __u8 protocol;
    __u8 pad[3];
};

static INLINE int read_quote(struct __sk_buff *skb, struct packet *p, struct quote *quote, __u8 *buffer)
{
    __u32 at = p->transport + 8, header;

    if (p->family == 4) {
        struct ipv4_header *ip = (struct ipv4_header *)buffer;

        if (bpf_skb_load_bytes(skb, at, ip, sizeof(*ip)))
            return REASON_ICMP_UNRELATED;
        header = (ip->version_ihl & 15) * 4;
        if (ip->version_ihl >> 4 != 4 || header < sizeof(*ip) || ip->fragment_be & bpf_htons(0x1fff))
            return REASON_ICMP_UNRELATED;
        set_mapped(&quote->source, ip->source);
        set_mapped(&quote->destination, ip->destination);
        quote->protocol = ip->protocol;
    } else {
        struct ipv6_header *ip = (struct ipv6_header *)buffer;

        if (bpf_skb_load_bytes(skb, at, ip, sizeof(*ip)) || buffer[0] >> 4 != 6)
            return REASON_ICMP_UNRELATED;
        header = sizeof(*ip);
        quote->source = ip->source;
        quote->destination = ip->destination;
        if (is_mapped(&quote->source) || is_mapped(&quote->destination)) // as a key, a flow over IPv4
            return REASON_ICMP_UNRELATED;
        quote->protocol = ip->next;
    }
    if (at + header + 8 > p->end || bpf_skb_load_bytes(skb, at + header, &quote->l4, 8))
        return REASON_ICMP_UNRELATED;
    return 0;
}

// The key of the quoted flow, in the endpoint's own view. The quoted packet went the other way than the error.
static INLINE int make_quoted_key(struct __sk_buff *skb, struct scratch *s, int direction)
{
    struct packet *p = &s->packet;
    struct quote *quote = (struct quote *)(s->headers + 48);
    struct flow_key *key = &s->key;
    int sent_by_pod = direction == INGRESS;
    __u8 type;

    if (read_quote(skb, p, quote, s->headers))
        return REASON_ICMP_UNRELATED;
    if (sent_by_pod) {
        if (!is_same_address(&quote->source, &p->destination))
            return REASON_ICMP_UNRELATED;
        key->peer = quote->destination;
        key->own_port_be = quote->l4.source_be;
        key->peer_port_be = quote->l4.destination_be;
    } else {
        if (!is_same_address(&quote->destination, &p->source) || !is_same_address(&quote->source, &p->destination))
            return REASON_ICMP_UNRELATED;
        key->peer = quote->source;
        key->own_port_be = quote->l4.destination_be;
        key->peer_port_be = quote->l4.source_be;
    }
    key->protocol = quote->protocol;
    if (!has_ports(quote->protocol)) {
        type = quote->l4.source_be & 0xff;
        key->own_port_be = key->peer_port_be = 0;
        if (quote->protocol == (p->family == 4 ? PROTOCOL_ICMP : PROTOCOL_ICMPV6)) {
            int request = type == (p->family == 4 ? 8 : 128), reply = type == (p->family == 4 ? 0 : 129);

            if (!request && !reply)
                return REASON_ICMP_UNRELATED;
            key->own_port_be = quote->l4.sequence_be & 0xffff;
            key->peer_port_be = sent_by_pod == request ? ECHO_BY_ENDPOINT : ECHO_BY_PEER;
        }
    }
    if (key->protocol == PROTOCOL_UDP && find_resolver(s, &key->peer, key->peer_port_be) && !flows.lookup(key))
        key->own_port_be = 0;
    return 0;
}

static INLINE int may_send_icmp_error(struct endpoint *ep, __u32 ticks)
{
    struct quota *q = find_quota(ep->id);

    if (!q)
        return 0;
    if (q->icmp_tick != ticks) {
        q->icmp_tick = ticks;
        q->icmp = 0;
    }
    return q->icmp++ < ICMP_ERRORS_PER_TICK;
}

// ----------------------------------------------------------------------------------------------------------------------
// Judging a packet that no valid flow covers.

enum orientation { ORIENTATION_PACKET = 1, ORIENTATION_REVERSE = 2 };

static INLINE void ask(struct scratch *s, struct endpoint *ep, int direction)
{
    struct question *q = &s->question;

    q->peer = s->key.peer;
    q->protocol = s->key.protocol;
    q->direction = direction;
    q->ruleset = ep->ruleset[direction & 1];
    q->port_be = direction == EGRESS ? s->key.peer_port_be : s->key.own_port_be;
    q->stored_domain = 0;
    q->allow_expired = 0;
    q->now = read_boot_seconds(s);
}

// Which side opened what this packet belongs to: its sender, as far as one packet can tell, or either.
static INLINE int find_orientations(const struct packet *p)
{
    if (p->protocol == PROTOCOL_TCP && p->fragment != FRAGMENT_LATER) {
        if (is_bare_syn(p))
            return ORIENTATION_PACKET;
        return p->tcp_flags & TCP_SYN ? ORIENTATION_REVERSE : ORIENTATION_PACKET | ORIENTATION_REVERSE;
    }
    if (!has_ports(p->protocol) && is_echo(p) && !is_echo_request(p))
        return ORIENTATION_REVERSE;
    return ORIENTATION_PACKET;
}

static INLINE int was_generated_here(struct __sk_buff *skb, struct scratch *s, int direction)
{
    struct known_address *known;

    if (direction == INGRESS)
        return skb->ingress_ifindex == 0;
    known = ipcache.lookup(&s->key.peer); // a reply to a flow that was there before us
    return known && known->flags & ADDRESS_OWN_NODE;
}

// A pod that reached itself through its own Service.
static INLINE void judge_hairpin(struct scratch *s, struct endpoint *ep)
{
    s->question.direction = INGRESS;
    s->finding.ruleset = ep->ruleset[INGRESS];
    s->finding.domain = 0;
    s->finding.identity = ep->identity;
    s->job.concluded = 1;
    conclude(s, VERDICT_ALLOW, REASON_HAIRPIN, TIER_NONE, NO_BIT);
}

// A live flow after a change: today's facts and rulesets, plus the name that admitted it. 0: it is gone.
static INLINE int ask_again(struct scratch *s, struct endpoint *ep)
{
    struct flow *flow = flows.lookup(&s->key);

    if (!flow)
        return 0;
    ask(s, ep, flow->direction & 1);
    s->question.stored_domain = flow->domain;
    s->question.own_node = (flow->state & FLOW_OWN_NODE) != 0;
    return 1;
}

// The next thing to judge from ``job.step`` on; 0: nothing is left.
static INLINE int prepare(struct __sk_buff *skb, struct scratch *s, struct endpoint *ep, int direction)
{
    int orientations;

    if (s->job.step == STEP_SHADOW) {
        s->question.ruleset = ep->ruleset[2 + (s->question.direction & 1)];
        // A live flow keeps the name that the shadow admitted it by, which nobody noted: expiry ends no flow.
        s->question.allow_expired |= s->job.mode == MODE_AGAIN;
        return 1;
    }
    if (s->job.mode == MODE_AGAIN)
        return ask_again(s, ep);
    orientations = find_orientations(&s->packet);
    if (s->job.step == STEP_PACKET && !(orientations & ORIENTATION_PACKET))
        s->job.step = STEP_REVERSE;
    ask(s, ep, s->job.step == STEP_REVERSE ? !direction : direction);
    s->question.own_node = s->question.direction == INGRESS && was_generated_here(skb, s, direction);
    s->question.allow_expired = s->packet.protocol == PROTOCOL_TCP && !is_bare_syn(&s->packet);
    return 1;
}

// Whether one more judgement is due after this one: the reverse orientation of a denial, the shadow ruleset of an accept.
static INLINE int has_next_step(struct scratch *s, struct endpoint *ep)
{
    if (s->job.step == STEP_SHADOW)
        return 0;
    if (s->finding.verdict == VERDICT_DENY) {
        if (s->job.mode == MODE_AGAIN || s->job.step == STEP_REVERSE)
            return 0;
        s->job.step = STEP_REVERSE;
        return find_orientations(&s->packet) & ORIENTATION_REVERSE;
    }
    if (s->finding.verdict != VERDICT_ALLOW || !ep->ruleset[2 + (s->question.direction & 1)])
        return 0;
    s->shadow = s->finding;
    s->job.step = STEP_SHADOW;
    return 1;
}

// The shadow ruleset opens nothing: it turns an accept into an audited one. Its default may be AUDIT, which is no accept.
static INLINE void merge_shadow(struct __sk_buff *skb, struct scratch *s)
{
    struct finding full = s->finding;

    count_rule(find_counter(s), skb->len); // every judgement: else the use of a rule under audit would be nobody's news
    s->finding = s->shadow;
    if (full.verdict == VERDICT_ALLOW)
        return;
    s->finding.verdict = VERDICT_AUDIT;
    s->shadow = full;
    s->shadow.verdict = VERDICT_AUDIT;
    s->audited = 1;
}

static INLINE struct finding *find_told(struct scratch *s)
{
    return s->audited ? &s->shadow : &s->finding;
}

static INLINE void make_flow(struct __sk_buff *skb, struct scratch *s, __u8 state)
{
    struct flow *flow = &s->flow;

    flow->epoch = s->job.epoch;
    flow->sent.packets = 1;
    flow->sent.bytes = skb->len;
    flow->replies.packets = flow->replies.bytes = 0;
    flow->sent.renewed = flow->replies.renewed = 0;
    flow->domain = s->finding.domain;
    flow->counter = find_counter(s);
    flow->dns_sequence = 0;
    flow->bit = s->finding.bit;
    flow->direction = s->question.direction;
    flow->state = state;
    flow->verdict = s->finding.verdict;
    flow->tier = s->finding.tier;
    flow->reason = s->finding.reason;
    flow->dns = is_resolver_port(s->key.peer_port_be) ? FLOW_DNS_PORT : 0;
    flow->audited_by = s->finding.verdict == VERDICT_AUDIT ? find_told(s)->ruleset : 0;
    flow->expires = s->job.ticks + find_timeout(s->key.protocol, 0);
    count_rule(flow->counter, skb->len);
}

static INLINE void finish_fragment(struct scratch *s, struct endpoint *ep)
{
    if (s->packet.fragment == FRAGMENT_FIRST)
        remember_fragment(s, ep, s->job.ticks);
}

static INLINE void admit_new(struct __sk_buff *skb, struct scratch *s, struct endpoint *ep, int direction)
{
    __u8 state = 0;

    if (is_bare_syn(&s->packet))
        state |= FLOW_SYN_SENT;
    if (s->finding.reason == REASON_OWN_NODE && s->question.direction == INGRESS)
        state |= FLOW_OWN_NODE;
    if (s->finding.reason == REASON_HAIRPIN)
        state |= FLOW_HAIRPIN;
    count_reason(direction, s->finding.reason, skb->len);
    make_flow(skb, s, state);
    if (s->packet.tcp_flags & TCP_RST)
        return;
    note_reach(s, ep);
    if (!insert_flow(s, ep, s->job.ticks))
        count_reason(direction, REASON_MAP_FULL, skb->len);
}

// Returns whether the flow is to be told: as audited, once under every ruleset that says so.
static INLINE int readmit(struct __sk_buff *skb, struct scratch *s, struct endpoint *ep, int direction)
{
    struct flow *flow = flows.lookup(&s->key);
    __u32 counter = find_counter(s);
    int is_news;

    if (!flow)
        return 0;
    is_news = s->finding.verdict == VERDICT_AUDIT && flow->audited_by != find_told(s)->ruleset;
    if (is_news && !s->job.related)
        flow->audited_by = find_told(s)->ruleset;
    if (counter != flow->counter) // a rule that has let nothing in yet, and yet is in use
        count_rule(counter, skb->len);
    flow->domain = s->finding.domain;
    flow->counter = counter;
    flow->bit = s->finding.bit;
    flow->tier = s->finding.tier;
    flow->reason = s->finding.reason;
    flow->verdict = s->finding.verdict;
    if (is_resolver_port(s->key.peer_port_be) != (flow->dns & FLOW_DNS_PORT))
        flow->dns ^= FLOW_DNS_PORT;
    if (s->job.related) {
        count_reason(direction, REASON_RELATED, skb->len);
        if (!is_news) // else the flow's own next packet is judged, and told
            flow->epoch = s->job.epoch;
        return 0;
    }
    flow->epoch = s->job.epoch;
    touch_flow(skb, s, flow, direction, ep, s->job.ticks);
    return is_news;
}

static INLINE void swap_ends(struct packet *p)
{
    struct address source = p->source;
    __u16 port_be = p->source_port_be;

    p->source = p->destination;
    p->destination = source;
    p->source_port_be = p->destination_port_be;
    p->destination_port_be = port_be;
}

// An accept as it is told: a live flow by who opened it, whichever side's packet was judged.
static INLINE void tell_accept(struct __sk_buff *skb, struct scratch *s, struct endpoint *ep, int direction)
{
    int is_reply = s->job.mode == MODE_AGAIN && direction != s->question.direction;

    if (is_reply)
        swap_ends(&s->packet);
    emit_verdict(skb, s, find_told(s), ep, is_reply ? !direction : direction, s->audited);
    if (is_reply)
        swap_ends(&s->packet);
}

// A TCP flow that policy admits no more stays, at its old epoch: each packet is judged again by who opened it. Without it
// the next one would be in the middle of an unknown connection, and adopted if the other side might have opened it.
static INLINE int deny(struct __sk_buff *skb, struct scratch *s, struct endpoint *ep, int direction)
{
    if (s->job.mode == MODE_AGAIN && s->key.protocol != PROTOCOL_TCP)
        flows.delete(&s->key);
    count_reason(direction, s->finding.reason, skb->len);
    count_rule(find_counter(s), skb->len);
    emit_verdict(skb, s, &s->finding, ep, direction, 0);
    return TC_ACT_SHOT;
}

// What a verdict leads to that a denial by today's rules does not: another judgement, a flow, the name that it is due to.
static INLINE int finish(struct __sk_buff *skb, struct scratch *s, struct endpoint *ep)
{
    int direction = s->job.direction & 1;

    if (s->walk.wanted_bit != NO_MATCH)
        find_domain(s, ep);
    if (!s->job.hairpin && has_next_step(s, ep)) {
        tails.call(skb, TAIL_JUDGE);
        return TC_ACT_SHOT;
    }
    if (s->job.step == STEP_SHADOW)
        merge_shadow(skb, s);
    if (s->finding.verdict == VERDICT_DENY)
        return deny(skb, s, ep, direction);
    if (s->job.mode == MODE_NEW)
        admit_new(skb, s, ep, direction);
    if (s->job.mode == MODE_NEW || readmit(skb, s, ep, direction))
        tell_accept(skb, s, ep, direction);
    finish_fragment(s, ep);
    finish_dns(skb, s, ep);
    return TC_ACT_UNSPEC;
}

// Whether the packet is dropped whatever else might be asked. Most denials are: a flood of them costs least.
static INLINE int is_denied_at_once(struct scratch *s)
{
    if (s->finding.verdict != VERDICT_DENY || s->walk.wanted_bit != NO_MATCH || s->job.step != STEP_PACKET)
        return 0;
    return s->job.hairpin || s->job.mode == MODE_AGAIN || !(find_orientations(&s->packet) & ORIENTATION_REVERSE);
}

// What no live flow covers: the verdict. Everything it needs is in scratch.
static INLINE int judge(struct __sk_buff *skb, struct scratch *s, struct endpoint *ep)
{
    s->walk.wanted_bit = NO_MATCH;
    if (s->job.mode == MODE_REFUSED)
        return deny(skb, s, ep, s->job.direction & 1);
    if (s->job.hairpin) {
        judge_hairpin(s, ep);
    } else if (!prepare(skb, s, ep, s->job.direction & 1)) {
        refuse(s, REASON_UNKNOWN);
        return deny(skb, s, ep, s->job.direction & 1);
    } else {
        match_rules(s, ep);
        decide(s);
    }
    if (is_denied_at_once(s))
        return deny(skb, s, ep, s->job.direction & 1);
    tails.call(skb, TAIL_FINISH);
    return TC_ACT_SHOT;
}

int judge_packet(struct __sk_buff *skb)
{
    struct scratch *s = find_scratch();
    struct endpoint *ep = find_endpoint(skb->ifindex);

    return s && ep ? judge(skb, s, ep) : TC_ACT_SHOT;
}

int finish_packet(struct __sk_buff *skb)
{
    struct scratch *s = find_scratch();
    struct endpoint *ep = find_endpoint(skb->ifindex);

    return s && ep ? finish(skb, s, ep) : TC_ACT_SHOT;
}

// ----------------------------------------------------------------------------------------------------------------------
// One packet.

static INLINE int leave(struct scratch *s, int mode)
{
    s->job.mode = mode;
    s->job.step = STEP_PACKET;
    s->audited = 0;
    return OUTCOME_JUDGE;
}

static INLINE int handle_flow(struct __sk_buff *skb, struct scratch *s, struct endpoint *ep, int direction)
{
    __u32 zero = 0;
    __u64 *now = epoch.lookup(&zero);
    struct flow *flow;

    if (!now)
        return refuse(s, REASON_UNKNOWN);
    s->job.epoch = *now; // before any lookup: what changes meanwhile makes the flow stale, not wrong
    flow = flows.lookup(&s->key);
    if (s->job.related) {
        if (!flow || (__s32)(flow->expires - s->job.ticks) < 0)
            return refuse(s, REASON_ICMP_UNRELATED);
    } else if (!flow || !is_continued(flow, &s->packet, direction, s->job.ticks)) {
        s->job.hairpin = direction == INGRESS && skb->ingress_ifindex == skb->ifindex;
        return leave(s, MODE_NEW);
    }
    if (flow->epoch != s->job.epoch) {
        s->job.hairpin = (flow->state & FLOW_HAIRPIN) != 0;
        return leave(s, MODE_AGAIN);
    }
    if (s->job.related)
        count_reason(direction, REASON_RELATED, skb->len);
    else
        touch_flow(skb, s, flow, direction, ep, s->job.ticks);
    finish_fragment(s, ep);
    return OUTCOME_PASS;
}

static INLINE int handle_related(struct __sk_buff *skb, struct scratch *s, struct endpoint *ep, int direction)
{
    if (s->packet.fragment != FRAGMENT_WHOLE) // they fit the least MTU (RFC 1812 4.3.2.3, RFC 4443 2.4): a channel
        return refuse(s, REASON_ICMP_UNRELATED);
    if (direction == EGRESS && !may_send_icmp_error(ep, s->job.ticks))
        return refuse(s, REASON_ICMP_UNRELATED);
    if (make_quoted_key(skb, s, direction))
        return refuse(s, REASON_ICMP_UNRELATED);
    s->job.related = 1;
    return handle_flow(skb, s, ep, direction);
}

// The endpoint's own address on its side of the packet: its number, or NOT_OWN.
static INLINE __u8 check_addresses(struct scratch *s, struct endpoint *ep, int direction)
{
    struct packet *p = &s->packet;

    if (direction == EGRESS)
        return number_own_address(s, ep, &p->source, p->family);
    if (is_multicast(p))
        return 0;
    return number_own_address(s, ep, &p->destination, p->family);
}

static INLINE int handle(struct __sk_buff *skb, struct scratch *s, struct endpoint *ep, int direction)
{
    int checked = parse(skb, &s->packet, &s->l4, s->headers);
    __u8 own;

    s->job.ticks = read_ticks(s);
    s->job.direction = direction;
    s->job.related = 0;
    s->job.dns = DNS_NONE;
    s->job.hairpin = 0;
    if (ep->flags & ENDPOINT_CLAIMED_TWICE)
        return refuse(s, REASON_CLAIMED_TWICE);
    if (checked == PARSE_ARP)
        checked = check_arp(skb, s, ep, direction);
    else if (!checked && s->packet.fragment == FRAGMENT_LATER)
        checked = recall_fragment(s, ep, s->job.ticks);
    if (!checked)
        checked = check_always(skb, s, ep, direction);
    if (checked == PASSES) {
        count_reason(direction, REASON_ALWAYS, skb->len);
        return OUTCOME_PASS;
    }
    if (checked)
        return refuse(s, checked);
    own = check_addresses(s, ep, direction);
    if (own == NOT_OWN)
        return refuse(s, direction == EGRESS ? REASON_SPOOFED_SOURCE : REASON_WRONG_DESTINATION);
    make_key(s, ep->ifindex, direction, own);
    if (is_icmp_error(&s->packet))
        return handle_related(skb, s, ep, direction);
    read_dns(skb, s, ep, direction);
    return handle_flow(skb, s, ep, direction);
}

static INLINE int leave_packet(struct __sk_buff *skb, struct scratch *s, struct endpoint *ep, int outcome)
{
    if (outcome == OUTCOME_PASS) {
        finish_dns(skb, s, ep);
        return TC_ACT_UNSPEC;
    }
    tails.call(skb, TAIL_JUDGE);
    return TC_ACT_SHOT;
}

static INLINE int handle_slowly(struct __sk_buff *skb, int direction)
{
    struct scratch *s = find_scratch();
    struct endpoint *ep = find_endpoint(skb->ifindex);

    if (!s || !ep) {
        count_reason(direction, REASON_NO_ENDPOINT, skb->len);
        return TC_ACT_SHOT;
    }
    return leave_packet(skb, s, ep, handle(skb, s, ep, direction));
}

// A plain datagram to or from a port where trusted resolvers listen, which the first program has parsed.
static INLINE int handle_datagram(struct __sk_buff *skb, int direction)
{
    struct scratch *s = find_scratch();
    struct endpoint *ep = find_endpoint(skb->ifindex);

    if (!s || !ep) {
        count_reason(direction, REASON_NO_ENDPOINT, skb->len);
        return TC_ACT_SHOT;
    }
    read_dns(skb, s, ep, direction);
    return leave_packet(skb, s, ep, handle_flow(skb, s, ep, direction));
}

int dns_from_pod(struct __sk_buff *skb)
{
    return handle_datagram(skb, EGRESS);
}

int dns_to_pod(struct __sk_buff *skb)
{
    return handle_datagram(skb, INGRESS);
}

int handle_from_pod(struct __sk_buff *skb)
{
    return handle_slowly(skb, EGRESS);
}

int handle_to_pod(struct __sk_buff *skb)
{
    return handle_slowly(skb, INGRESS);
}

static INLINE int leave_datagram(struct __sk_buff *skb, struct endpoint *ep, const struct plain *plain, int direction)
{
    struct scratch *s = find_scratch();

    if (!s)
        return 0;
    begin_datagram(skb, s, ep, plain, direction);
    tails.call(skb, direction == EGRESS ? TAIL_DNS_FROM_POD : TAIL_DNS_TO_POD);
    return TC_ACT_SHOT;
}

// 0 where ``handle`` has to see the packet: no program of ours returns TC_ACT_OK.
static INLINE int handle_plain(struct __sk_buff *skb, int direction)
{
    struct endpoint *ep = find_endpoint(skb->ifindex);
    struct scratch *s;
    struct plain plain;
    struct flow *flow;
    __u32 zero = 0;
    __u64 *now = epoch.lookup(&zero), judged;

    if (!ep || !now || !read_plain(skb, ep, direction, &plain))
        return 0;
    if (plain.key.protocol == PROTOCOL_UDP && is_resolver_port(plain.key.peer_port_be))
        return leave_datagram(skb, ep, &plain, direction);
    judged = *now; // before any lookup: what changes meanwhile makes a flow stale, not wrong
    flow = flows.lookup(&plain.key);
    if (flow)
        return is_established(skb, &plain, flow, direction, judged) ? TC_ACT_UNSPEC : 0;
    s = find_scratch();
    if (!s || is_resolver_port(plain.key.peer_port_be))
        return 0;
    begin_new(skb, s, ep, &plain, direction, judged);
    return judge(skb, s, ep);
}

int from_pod(struct __sk_buff *skb)
{
    int action = handle_plain(skb, EGRESS);

    if (action)
        return action;
    tails.call(skb, TAIL_FROM_POD);
    return TC_ACT_SHOT;
}

int to_pod(struct __sk_buff *skb)
{
    int action = handle_plain(skb, INGRESS);

    if (action)
        return action;
    tails.call(skb, TAIL_TO_POD);
    return TC_ACT_SHOT;
}
