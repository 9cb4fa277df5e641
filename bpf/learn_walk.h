// Walking the answer's records: where its addresses lie, and whether it belongs to a name without a search suffix.

// Whether a tail call may be spent on this message: any that is left, but for those that a stream needs behind it.
static INLINE int spend_call(struct scratch *s)
{
    if (s->job.dns != DNS_STREAM)
        return 1;
    if (s->dns.calls <= s->dns.reserve)
        return 0;
    s->dns.calls--;
    return 1;
}

// Done with a message: the next one of a stream, if this packet holds more. Its call is the first of the reserve.
static INLINE int leave_message(struct __sk_buff *skb, struct scratch *s)
{
    if (s->job.dns == DNS_STREAM && s->dns.stream_at < s->packet.end) {
        s->dns.calls--;
        tails.call(skb, TAIL_LEARN_STREAM);
    }
    return TC_ACT_UNSPEC;
}

static INLINE int count_learn(struct __sk_buff *skb, struct scratch *s, __u8 reason)
{
    count_reason(INGRESS, reason, skb->len);
    return leave_message(skb, s);
}

static INLINE void renew_budget(struct scratch *s, struct quota *q)
{
    if (q->answer_tick == s->job.ticks)
        return;
    q->answer_tick = s->job.ticks;
    q->answers = q->pieces = q->refusals = 0;
}

// Who told whom, in every event of the learner.
static INLINE void describe_event(struct scratch *s, struct endpoint *ep, __u32 suppressed)
{
    struct resolution_event *e = &s->event;

    e->header.boottime_nanos = bpf_ktime_get_boot_ns();
    e->header.endpoint = ep->id;
    e->header.suppressed = suppressed;
    e->resolver = s->packet.source;
    e->resolver_port_be = s->packet.source_port_be;
    e->own_port_be = s->packet.destination_port_be;
    e->protocol = s->packet.protocol;
    e->resolver_flags = s->dns.flags;
    e->checksum = 0;
}

// Tell user space: the message as far as it was read, and what was made of it. 0, or the ring is full.
static INLINE long send_answer(struct scratch *s, struct endpoint *ep, __u8 reason, __u32 suppressed)
{
    struct resolution_event *e = &s->event;
    __u64 size = s->dns.length;

    describe_event(s, ep, suppressed);
    e->message_bytes = size;
    e->reason = reason;
    e->learned = s->dns.learned > 255 ? 255 : s->dns.learned;
    e->answers = s->dns.found > 255 ? 255 : s->dns.found;
    e->domain = s->dns.domain;
    e->piece = PIECE_NONE;
    e->place = e->whole = e->id = 0;
    size = (size & DNS_MASK) + __builtin_offsetof(struct resolution_event, message);
    return resolution_events.ringbuf_output(e, size, 0);
}

static INLINE void emit_answer(struct scratch *s, struct endpoint *ep, __u8 reason)
{
    struct quota *q = find_quota(ep->id);

    if (!q)
        return;
    renew_budget(s, q);
    if (q->answers >= ANSWERS_PER_TICK) {
        q->answers_suppressed++;
        return;
    }
    q->answers++;
    if (send_answer(s, ep, reason, q->answers_suppressed)) {
        q->lost[RING_ANSWERS]++;
        q->answers_suppressed++;
    } else {
        q->answers_suppressed = 0;
    }
}

// No tail call is left for it: the recorder has the whole message, of which a part may be learned.
static INLINE int give_up(struct __sk_buff *skb, struct scratch *s, struct endpoint *ep)
{
    emit_answer(s, ep, REASON_LEARN_HANDED_OVER);
    return count_learn(skb, s, REASON_LEARN_HANDED_OVER);
}

enum walked { WALKED = 0, WALKED_MALFORMED = 1, WALKED_TOO_LONG = 2 };

// The owner name of a record: labels, then the end or a pointer back. Leaves the cursor behind it.
static INLINE int skip_owner(struct dns *d, const __u8 *message, __u32 record)
{
    volatile __u32 *cursor = &d->cursor;

    for (int i = 0; i < OWNER_LABELS; i++) {
        __u32 at = *cursor;
        __u8 byte = message[at & DNS_MASK];

        if (at >= d->length)
            return WALKED_MALFORMED;
        if (byte == 0) {
            *cursor = at + 1;
            return WALKED;
        }
        if (byte >= 192) {
            __u32 to = read_u16(message, at) & 0x3fff;

            *cursor = at + 2;
            return to >= DNS_HEADER && to < record ? WALKED : WALKED_MALFORMED;
        }
        if (byte > 63)
            return WALKED_MALFORMED;
        *cursor = at + 1 + byte;
    }
    return WALKED_TOO_LONG;
}

static INLINE int walk_record(struct dns *d, const __u8 *message, __u16 *found_at)
{
    volatile __u32 *cursor = &d->cursor;
    __u32 at, type, class, size;
    int walked = skip_owner(d, message, *cursor);

    if (walked)
        return walked;
    at = *cursor;
    if (at + 10 > d->length)
        return WALKED_MALFORMED;
    type = read_u16(message, at);
    class = read_u16(message, at + 2);
    size = read_u16(message, at + 8);
    at += 10;
    if (at + size > d->length)
        return WALKED_MALFORMED;
    if (type == d->type && class == CLASS_IN) {
        __u32 found = d->found;

        if (size != (type == TYPE_A ? 4 : 16))
            return WALKED_MALFORMED;
        if (found >= ANSWERS - 1)
            return WALKED_TOO_LONG;
        found_at[found & (ANSWERS - 1)] = at;
        d->found = found + 1;
    } else if (type == TYPE_CNAME && class == CLASS_IN && d->first) {
        d->alias = at;
        d->alias_length = size;
    }
    d->first = 0;
    *cursor = at + size;
    return WALKED;
}

static INLINE int start_walk(struct scratch *s, struct endpoint *ep)
{
    struct dns *d = &s->dns;
    struct config *c = find_config();
    int checked = check_answer(s);

    if (checked)
        return checked;
    if (!c)
        return NOTHING_TO_LEARN;
    d->started = 1;
    d->first = 1;
    d->alias = d->alias_length = 0;
    d->found = d->applied = d->learned = d->news = d->refused = d->full = d->placing = 0;
    d->domain = 0;
    d->now = read_boot_seconds(s);
    d->scope = d->flags & RESOLVER_OUTSIDE ? ep->id : SCOPE_LEARNED;
    d->min_ttl = c->ttl_min_seconds;
    d->max_ttl = c->ttl_max_seconds;
    d->grace = c->grace_seconds;
    d->names_limit = c->names_per_endpoint;
    return 0;
}

int learn_walk(struct __sk_buff *skb)
{
    struct scratch *s = find_scratch();
    struct endpoint *ep = find_endpoint(skb->ifindex);
    int checked, walked = WALKED;

    if (!s || !ep)
        return TC_ACT_UNSPEC;
    if (!s->dns.started) {
        checked = start_walk(s, ep);
        if (checked == REASON_LEARN_RCODE)
            count_reason(INGRESS, checked, skb->len);
        if ((checked == REASON_LEARN_RCODE || checked == REASON_LEARN_NO_ADDRESS) && spend_call(s))
            tails.call(skb, TAIL_LEARN_REFUSED);
        if (checked == NOTHING_TO_LEARN)
            return leave_message(skb, s);
        if (checked)
            return count_learn(skb, s, checked);
    }
    for (int i = 0; i < WALK_BITE; i++) {
        __u32 left = *(volatile __u32 *)&s->dns.left;

        if (!left)
            break;
        walked = walk_record(&s->dns, s->event.message, s->at);
        if (walked)
            break;
        s->dns.left = left - 1;
    }
    if (walked == WALKED_MALFORMED)
        return count_learn(skb, s, REASON_LEARN_MALFORMED);
    if (walked == WALKED_TOO_LONG || !spend_call(s))
        return give_up(skb, s, ep);
    if (s->dns.left)
        tails.call(skb, TAIL_LEARN_WALK);
    else if (s->dns.alias)
        tails.call(skb, TAIL_LEARN_ALIAS);
    else if (s->dns.found)
        tails.call(skb, TAIL_LEARN_WRITE);
    else
        tails.call(skb, TAIL_LEARN_REFUSED);
    return give_up(skb, s, ep);
}

// ----------------------------------------------------------------------------------------------------------------------
// CoreDNS autopath: the asked name ends in a search suffix, and the first record is a CNAME to the name without it.

// Whether the alias is the beginning of the asked name; sets ``short_length``.
static INLINE int is_alias_of_beginning(struct scratch *s)
{
    struct dns *d = &s->dns;
    const __u8 *message = s->event.message;
    const volatile __u32 *length = &d->alias_length;

    if (*length < 3 || *length > NAME_WIRE_BYTES || *length - 2 >= d->name_length)
        return 0;
    if (message[(d->alias + *length - 1) & DNS_MASK])
        return 0;
    for (__u32 i = 0; i < NAME_WIRE_BYTES; i++) {
        if (i + 1 >= *length)
            break;
        if (fold(message[(d->alias + i) & DNS_MASK]) != fold(message[DNS_HEADER + i]))
            return 0;
    }
    d->short_length = *length - 2;
    return 1;
}

// Whether what follows the beginning is the suffix, or one label and the suffix (a namespace). Lengths are read again
// from memory at every step: each way out of a loop would else be remembered by how far it got.
static INLINE int is_suffix(struct scratch *s, const struct suffix *suffix)
{
    volatile __u32 *at = &s->dns.cursor, *rest = &s->dns.left;
    const volatile __u32 *length = &suffix->length;

    if (!*length || *length > SUFFIX_BYTES || s->dns.name_length < s->dns.short_length + *length)
        return 0;
    *at = TEXT_END - s->dns.name_length;
    for (__u32 i = 0; i < SUFFIX_BYTES; i++) {
        __u32 index = i;

        if (i >= *length)
            break;
        FORGET(index);
        if (s->text[*at & 511] != suffix->name[index & (SUFFIX_BYTES - 1)])
            return 0;
        *at = *at + 1;
    }
    *rest = s->dns.name_length - s->dns.short_length - *length; // reversed: suffix, then this, then the beginning
    if (*rest == 0)
        return 1;
    if (*rest < 2 || *rest > 64)
        return 0;
    for (__u32 i = 0; i < 63; i++) {
        if (*rest == 1)
            break;
        if (s->text[*at & 511] == '.')
            return 0;
        *at = *at + 1;
        *rest = *rest - 1;
    }
    return s->text[*at & 511] == '.';
}

// Take the name without its suffix: a shorter end of ``text``, and that name's hash.
static INLINE void shorten_name(struct scratch *s)
{
    s->dns.name_length = s->dns.short_length;
    read_words(s, s->dns.short_length + 1);
    write_dots(s);
}

int learn_alias(struct __sk_buff *skb)
{
    struct scratch *s = find_scratch();
    struct endpoint *ep = find_endpoint(skb->ifindex);
    struct config *c = find_config();
    int shortened = 0;

    if (!s || !ep || !c)
        return TC_ACT_UNSPEC;
    if (is_alias_of_beginning(s)) {
        for (int i = 0; i < SEARCH_SUFFIXES; i++) {
            if (!shortened && is_suffix(s, &c->suffix[i]))
                shortened = 1;
        }
    }
    if (shortened)
        shorten_name(s);
    s->dns.left = 0;
    if (spend_call(s)) {
        if (s->dns.found)
            tails.call(skb, TAIL_LEARN_WRITE);
        else
            tails.call(skb, TAIL_LEARN_REFUSED);
    }
    return give_up(skb, s, ep);
}
