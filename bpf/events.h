// What user space is told: counters for everything, events within each endpoint's budget.
//
// A token bucket per endpoint stands before every ring, so that one noisy pod cannot hide the others' verdicts; what it
// holds back is counted, and the number travels in that endpoint's next event.

#define ANSWERS_PER_TICK 4000 // resolution events of one endpoint in 1.07 s

static INLINE void count_reason(int direction, __u8 reason, __u32 bytes)
{
    __u32 index = direction * REASONS + (reason & (REASONS - 1));
    struct counter *c = reasons.lookup(&index);

    if (c) {
        __sync_fetch_and_add(&c->packets, 1);
        __sync_fetch_and_add(&c->bytes, bytes);
    }
}

static INLINE void count_rule(__u32 index, __u32 bytes)
{
    struct counter *c;

    if (index == NO_COUNTER)
        return;
    c = rule_counters.lookup(&index);
    if (c) {
        __sync_fetch_and_add(&c->packets, 1);
        __sync_fetch_and_add(&c->bytes, bytes);
    }
}

static INLINE void emit_verdict(struct __sk_buff *skb, struct scratch *s, struct finding *found, struct endpoint *ep,
                                int direction, __u32 shadow)
{
    struct config *c = find_config();
    struct quota *q = find_quota(ep->id);
    struct verdict_event *e;
    __u32 tick;

    if (!c || !q)
        return;
    if (found->verdict == VERDICT_ALLOW && !(c->flags & CONFIG_ALLOW_EVENTS))
        return;
    tick = s->job.ticks;
    if (q->event_tick != tick) {
        q->event_tick = tick;
        q->events = 0;
    }
    if (q->events >= c->events_per_second) {
        q->suppressed++;
        return;
    }
    q->events++;
    e = verdicts.ringbuf_reserve(sizeof(struct verdict_event));
    if (!e) {
        q->lost[RING_VERDICTS]++;
        q->suppressed++;
        return;
    }
    e->header.boottime_nanos = read_boot_nanos(s);
    e->header.endpoint = ep->id;
    e->header.suppressed = q->suppressed;
    q->suppressed = 0;
    e->source = s->packet.source;
    e->destination = s->packet.destination;
    e->source_port_be = s->packet.source_port_be;
    e->destination_port_be = s->packet.destination_port_be;
    e->protocol = s->packet.protocol;
    e->direction = direction;
    e->verdict = found->verdict;
    e->reason = found->reason;
    e->tier = found->tier;
    e->family = s->packet.family;
    e->bit = found->bit;
    e->ruleset = found->ruleset;
    e->domain = found->domain;
    e->peer_identity = found->identity;
    e->revision = c->revision;
    e->frame_bytes = skb->len;
    e->shadow = shadow;
    e->pad = 0;
    verdicts.ringbuf_submit(e, 0);
}
