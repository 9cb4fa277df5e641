// What a pod reached, and what reached it: one row for each peer, port and protocol of the new flows that were let in.
//
// Rows lie in an array with a fixed part for every endpoint and direction, as queries do: a pod that scans, or an outsider
// who scans a pod, fills that one part, and what finds no room is counted there. The agent reads a row and then frees it,
// by the tag alone, so that nothing a program claims meanwhile is lost. Denials are not here: each is told by an event.
// Deliberately absent: names and owners of addresses, which the agent knows; established flows.

static INLINE __u64 stir(__u64 x)
{
    x ^= x >> 32;
    x *= 0xd6e8feb86659fd93ULL;
    return x ^ x >> 32;
}

static INLINE int is_reach(const struct reach *r, const struct address *peer, __u64 what)
{
    return r->what == what && is_same_address(&r->peer, peer);
}

// The tag is published last: a row that is being written is nobody's, and two CPUs may write one peer twice.
static INLINE void claim_reach(struct reach_set *set, const struct address *peer, __u64 what, __u64 tag)
{
#pragma unroll
    for (int i = 0; i < REACH_WAYS; i++) {
        struct reach *r = &set->way[i];

        if (r->tag || __sync_val_compare_and_swap(&r->tag, 0, REACH_BUSY))
            continue;
        r->peer = *peer;
        r->what = what;
        r->flows = 1;
        __sync_val_compare_and_swap(&r->tag, REACH_BUSY, tag);
        return;
    }
    __sync_fetch_and_add(&set->lost, 1);
}

static INLINE void note_reach(struct scratch *s, struct endpoint *ep)
{
    struct question *q = &s->question;
    __u8 how = s->finding.reason & REACH_REASON;
    __u32 who = s->finding.identity, index;
    struct reach_set *set;
    __u64 what, tag;

    if (s->finding.reason == REASON_HAIRPIN) // itself
        return;
    if (s->finding.domain) {
        who = s->finding.domain;
        how |= REACH_NAMED;
    }
    if (s->finding.verdict == VERDICT_AUDIT)
        how |= REACH_AUDITED;
    what = (__u64)who << 32 | (__u64)how << 24 | (__u64)q->protocol << 16 | (has_ports(q->protocol) ? q->port_be : 0);
    tag = stir(stir(q->peer.half[0] ^ what) ^ q->peer.half[1]) | 2;
    index = ((ep->id & (ENDPOINT_SLOTS - 1)) * 2 + (q->direction & 1)) * REACH_SETS + (tag >> 32 & (REACH_SETS - 1));
    set = reached.lookup(&index);
    if (!set)
        return;
#pragma unroll
    for (int i = 0; i < REACH_WAYS; i++) {
        if (set->way[i].tag == tag && is_reach(&set->way[i], &q->peer, what)) {
            __sync_fetch_and_add(&set->way[i].flows, 1);
            return;
        }
    }
    claim_reach(set, &q->peer, what, tag);
}
