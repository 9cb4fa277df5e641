// Writing what was found: names into their pages, within quotas, and what is told of it; answers that say no.

static INLINE __u32 find_domain_row(struct scratch *s)
{
    __u32 length = s->dns.name_length & 255;
    struct domain_key *key = (struct domain_key *)(s->text + (TEXT_END - 4 - length));
    __u32 *row;

    key->prefix_bits = (length + 2) * 8; // its first dot, which is last, and the NUL
    row = domains.lookup(key);
    return row ? *row : 0;
}

static INLINE int is_refused_exactly(struct scratch *s, const struct address *a)
{
    struct known_address *known;
    __u32 *found;

    s->cidr_key.prefix_bits = 128;
    __builtin_memcpy(s->cidr_key.byte, a, 16);
    found = guard.lookup(&s->cidr_key);
    if (found && *found != GUARD_PERMIT)
        return 1;
    known = ipcache.lookup((struct address *)a);
    return known && known->identity;
}

// The IPv4 address inside an IPv6 one, where a translator would send its packets. 1: there is one.
static INLINE int find_embedded(const struct address *a, struct address *inner)
{
    if (a->word[0] == bpf_htonl(0x0064ff9b) && a->word[1] == 0 && a->word[2] == 0) { // NAT64, RFC 6052
        set_mapped(inner, a->word[3]);
        return 1;
    }
    if ((a->word[0] & bpf_htonl(0xffff0000)) == bpf_htonl(0x20020000)) { // 6to4, RFC 3056
        set_mapped(inner, a->word[0] >> 16 | a->word[1] << 16); // little endian: bytes 2..5
        return 1;
    }
    if (a->half[0] == 0 && a->word[2] == 0) { // v4-compatible, RFC 4291
        set_mapped(inner, a->word[3]);
        return 1;
    }
    return 0;
}

// The rebinding guard: no name may have the address of a pod, a node, a Service or of a range that is nobody's host.
static INLINE int is_refused(struct scratch *s, const struct address *a)
{
    struct address *inner = &s->resolver_key.address;

    if (s->dns.type == TYPE_AAAA && is_mapped(a)) // its 128-bit form is the IPv4 address's own
        return 1;
    if (is_refused_exactly(s, a))
        return 1;
    return s->dns.type == TYPE_AAAA && find_embedded(a, inner) && is_refused_exactly(s, inner);
}

static INLINE __u32 find_lifetime(const struct dns *d, __u32 ttl)
{
    if (ttl & 0x80000000) // RFC 2181: as if zero
        ttl = 0;
    if (ttl < d->min_ttl)
        ttl = d->min_ttl;
    return ttl > d->max_ttl ? d->max_ttl : ttl;
}

// Whether an expiry is still worth not renewing: more than half of the answer's own time is left.
static INLINE int is_fresh(__u32 expiry, __u32 now, __u32 lifetime)
{
    return (__s32)(expiry - now) > (__s32)(lifetime / 2);
}

// Signed: names carried over from a layout whose quotas were not are given back without having been charged.
static INLINE int is_over_quota(struct dns *d, struct endpoint *ep)
{
    struct quota *q = find_quota(ep->id);
    __u32 index = ep->id & (ENDPOINT_SLOTS - 1), *credited = credits.lookup(&index);

    return !q || !credited || (__s32)(q->learned - *credited) >= (__s32)d->names_limit;
}

static INLINE void charge(struct endpoint *ep)
{
    struct quota *q = find_quota(ep->id);

    if (q)
        __sync_fetch_and_add(&q->learned, 1);
}

enum written { NOT_WRITTEN = 0, WRITTEN = 1, IS_KNOWN = 2, AGAIN = 3 }; // AGAIN: the slot became another CPU's

// Into a page that exists: the row's own slot, else a free one, else one whose time is over.
static INLINE int write_slot(struct scratch *s, struct endpoint *ep, struct names *page, __u64 slot, __u32 lifetime)
{
    volatile __u32 *own = &s->slot_own, *free = &s->slot_free;
    __u32 index;
    __u64 old;

    *own = *free = NAME_SLOTS;
    for (int i = 0; i < NAME_SLOTS; i++) {
        __u64 there = page->slot[i];

        if (there >> 32 == slot >> 32 && there)
            *own = i;
        else if (!there)
            *free = i;
        else if (*free == NAME_SLOTS && (__u32)there <= s->dns.now)
            *free = i;
    }
    index = *own;
    if (index < NAME_SLOTS) {
        old = page->slot[index & (NAME_SLOTS - 1)];
        if (old >> 32 != slot >> 32)
            return AGAIN; // taken since its time was over
        if (is_fresh(old, s->dns.now, lifetime + s->dns.grace) || (__u32)old >= (__u32)slot)
            return IS_KNOWN;
        return __sync_val_compare_and_swap(&page->slot[index & (NAME_SLOTS - 1)], old, slot) == old ? WRITTEN : AGAIN;
    }
    index = *free;
    if (index >= NAME_SLOTS || is_over_quota(&s->dns, ep))
        return NOT_WRITTEN;
    old = page->slot[index & (NAME_SLOTS - 1)];
    if (old && (__u32)old > s->dns.now)
        return AGAIN;
    if (__sync_val_compare_and_swap(&page->slot[index & (NAME_SLOTS - 1)], old, slot) != old)
        return AGAIN;
    page->owner[index & (NAME_SLOTS - 1)] = ep->id;
    charge(ep);
    return WRITTEN;
}

static INLINE int make_page(struct scratch *s, struct endpoint *ep, __u64 slot)
{
    if (is_over_quota(&s->dns, ep))
        return NOT_WRITTEN;
    __builtin_memset(&s->fresh, 0, sizeof(s->fresh));
    s->fresh.slot[0] = slot;
    s->fresh.owner[0] = ep->id;
    if (resolutions.insert(&s->resolution_key, &s->fresh))
        return NOT_WRITTEN; // full, or another CPU was first
    charge(ep);
    return WRITTEN;
}

// The set of ``kept_key`` in ``seen``, which is filled for an address, or for the whole answer of a type (address null).
static INLINE struct kept_set *find_seen(struct scratch *s, struct endpoint *ep, const struct address *a, __u64 kind)
{
    struct kept_key *key = &s->kept_key;
    __u32 index;

    if (a)
        key->one = *a;
    else
        key->one.half[0] = key->one.half[1] = 0;
    key->two.half[0] = s->dns.name_hash;
    key->two.half[1] = key->four = 0;
    key->three = kind << 32 | ep->id;
    index = choose_set(ep, SETS_OF(SEEN), key);
    return seen.lookup(&index);
}

static INLINE struct kept_set *find_seen_answer(struct scratch *s, struct endpoint *ep, int is_a)
{
    return find_seen(s, ep, 0, is_a ? SEEN_ANSWER_A : SEEN_ANSWER_AAAA);
}

// Whether what was told until ``expires`` need not be told again: the cluster has it for the grace longer, and more than
// half of the answer's time and grace is left. The recorder publishes by the same half.
static INLINE int is_told(const struct dns *d, __u32 expires, __u32 lifetime)
{
    return is_fresh(expires + d->grace, d->now, lifetime + d->grace);
}

static INLINE void note_told(struct dns *d, __u32 expires)
{
    if ((__s32)(expires - d->told) < 0)
        d->told = expires;
}

// Whether this (endpoint, name, address) is news, and note it.
static INLINE int is_news(struct scratch *s, struct endpoint *ep, const struct address *a, __u32 lifetime)
{
    struct kept_set *set = find_seen(s, ep, a, SEEN_ADDRESS);
    __u32 expires = s->dns.now + lifetime;
    struct kept *known;
    int is_old;

    if (!set)
        return 1;
    known = find_kept(set, &s->kept_key);
    is_old = known && known->value == s->dns.domain && is_told(&s->dns, known->stamp.expires, lifetime);
    if (is_old)
        expires = known->stamp.expires;
    else
        keep(set, &s->kept_key, expires, s->dns.domain);
    note_told(&s->dns, expires);
    return !is_old;
}

// Whether nothing would be written for this address: the name has it, for longer than half of the answer's time. Asked
// before the guard, which nearly every answer passed when it was first told; what it refuses since is not renewed.
static INLINE int is_known(struct scratch *s)
{
    struct dns *d = &s->dns;
    struct names *page;
    __u32 expiry;

    if (d->type == TYPE_AAAA && is_mapped(&s->found)) // its slot would be an IPv4 address's own
        return 0;
    page = find_names(s, &s->found, d->scope, 0);
    if (!page)
        return 0;
    expiry = page->slot[0];
    if (page->slot[0] >> 32 == d->domain) // most addresses have one name
        return is_fresh(expiry, d->now, d->lifetime + d->grace);
    expiry = 0;
#pragma unroll
    for (int i = 1; i < NAME_SLOTS; i++) {
        __u64 there = page->slot[i], differs = (there >> 32) ^ d->domain;

        expiry |= (__u32)there & (__u32)((differs - 1) >> 32); // without a branch: of the row's own slot alone
    }
    return expiry && is_fresh(expiry, d->now, d->lifetime + d->grace);
}

// Take up the next address: is it news, and may the name have it. ``placing``: it wants a slot.
static INLINE void take_address(struct scratch *s, struct endpoint *ep, __u32 at)
{
    struct dns *d = &s->dns;
    const __u8 *message = s->event.message;
    struct address *a = &s->found;

    d->lifetime = find_lifetime(d, read_u32(message, at - 6));
    if (d->type == TYPE_A)
        set_mapped(a, bpf_htonl(read_u32(message, at)));
    else
        __builtin_memcpy(a, message + (at & DNS_MASK), 16);
    if (!d->quiet && is_news(s, ep, a, d->lifetime))
        d->news++;
    if (!d->domain)
        return;
    if (is_known(s)) {
        d->learned++;
        return;
    }
    if (is_refused(s, a)) {
        d->refused++;
        return;
    }
    d->placing = 1;
    d->page = 0;
}

// Where the pages that all share are full, the endpoint's own follow: a neighbour's names take no place from its own.
static INLINE struct names *find_page(struct scratch *s, struct endpoint *ep)
{
    __u32 scope = s->dns.scope;

    if (s->dns.page >= NAME_PAGES)
        scope = ep->id;
    return find_names(s, &s->found, scope, s->dns.page & (NAME_PAGES - 1));
}

static INLINE int write_page(struct scratch *s, struct endpoint *ep)
{
    struct dns *d = &s->dns;
    __u64 slot = (__u64)d->domain << 32 | (d->now + d->lifetime + d->grace);
    struct names *page = find_page(s, ep);
    int written;

    if (!page) {
        written = make_page(s, ep, slot);
        if (written)
            return written;
        page = find_page(s, ep);
        if (!page)
            return NOT_WRITTEN;
    }
    written = write_slot(s, ep, page, slot, d->lifetime);
    if (!written)
        page->more = 1;
    return written;
}

// One page for the address that was taken up. No page after the last: it stays unlearned.
static INLINE void place_address(struct scratch *s, struct endpoint *ep)
{
    struct dns *d = &s->dns;
    __u32 pages = d->scope == SCOPE_LEARNED ? 2 * NAME_PAGES : NAME_PAGES;
    int written = write_page(s, ep);

    if (written == AGAIN) // the same page: there is another slot, or none
        return;
    if (written) {
        d->learned++;
        d->placing = 0;
        return;
    }
    d->page++;
    if (d->page < pages)
        return;
    d->full++;
    d->placing = 0;
}

// Of two TTLs, one of them as on the wire (see find_lifetime); without a branch, which each doubles what is verified.
static INLINE __s32 find_shorter(__s32 one, __s32 other)
{
    other &= ~(other >> 31);
    return one + ((other - one) & (other - one) >> 31);
}

// What tells this answer from others: its addresses and, apart, the shortest of their times.
static INLINE void sum_addresses(struct scratch *s)
{
    struct dns *d = &s->dns;
    const __u8 *message = s->event.message;
    __s32 shortest = 0x7fffffff;

    d->sum.half[0] = d->sum.half[1] = 0;
    for (__u32 i = 0; i < WALK_BITE; i++) {
        __u64 high, low;
        __u32 at;

        if (i >= d->found)
            break;
        at = s->at[i];
        high = read_u32(message, at);
        low = 0;
        if (d->type == TYPE_AAAA) {
            high = high << 32 | read_u32(message, at + 4);
            low = (__u64)read_u32(message, at + 8) << 32 | read_u32(message, at + 12);
        }
        d->sum.half[0] += mix(mix(HASH_BASIS, high), low); // whatever the order
        d->sum.half[1] += mix(mix(HASH_PRIME, low), high);
        shortest = find_shorter(shortest, read_u32(message, at - 6));
    }
    d->shortest = find_lifetime(d, shortest);
    d->told = d->now + d->max_ttl;
}

static INLINE __u64 digest_answer(const struct dns *d)
{
    return (mix(mix(d->sum.half[0], d->sum.half[1]), d->domain) | 2) & ~SEEN_GIVEN; // never 0
}

// Whether this very answer was told, and not long ago. Where it was refused since, that it is given again is news.
static INLINE int is_quiet(struct scratch *s, struct endpoint *ep)
{
    struct dns *d = &s->dns;
    struct kept_set *set = find_seen_answer(s, ep, d->type == TYPE_A);
    struct kept *known = set ? find_kept(set, &s->kept_key) : 0;

    if (!known)
        return 0;
    if (!known->value)
        d->news = 1;
    return d->found <= WALK_BITE && (known->value & ~SEEN_GIVEN) == digest_answer(d) &&
           is_told(d, known->stamp.expires, d->shortest);
}

static INLINE void note_answer(struct scratch *s, struct endpoint *ep)
{
    struct dns *d = &s->dns;
    struct kept_set *set = find_seen_answer(s, ep, d->type == TYPE_A);

    if (set)
        keep(set, &s->kept_key, d->told, digest_answer(d) | (d->refused < d->found ? SEEN_GIVEN : 0));
}

static INLINE void finish_learning(struct __sk_buff *skb, struct scratch *s, struct endpoint *ep)
{
    struct dns *d = &s->dns;
    __u8 reason = 0;

    if (d->refused)
        reason = REASON_LEARN_REFUSED_ADDRESS;
    else if (d->full)
        reason = is_over_quota(d, ep) ? REASON_LEARN_QUOTA : REASON_MAP_FULL;
    if (reason)
        count_reason(INGRESS, reason, skb->len);
    if (d->quiet)
        return;
    note_answer(s, ep);
    if (d->news)
        emit_answer(s, ep, reason);
}

int learn_write(struct __sk_buff *skb)
{
    struct scratch *s = find_scratch();
    struct endpoint *ep = find_endpoint(skb->ifindex);

    if (!s || !ep)
        return TC_ACT_UNSPEC;
    if (!s->dns.found)
        return leave_message(skb, s);
    if (s->dns.started == 1) {
        s->dns.started = 2;
        s->dns.domain = find_domain_row(s);
        sum_addresses(s);
        s->dns.quiet = is_quiet(s, ep);
    }
    for (int i = 0; i < WRITE_BITE; i++) {
        __u32 index = *(volatile __u32 *)&s->dns.applied;

        if (!*(volatile __u32 *)&s->dns.placing) {
            if (index >= s->dns.found)
                break;
            take_address(s, ep, s->at[index & (ANSWERS - 1)]);
            s->dns.applied = index + 1;
        }
        if (*(volatile __u32 *)&s->dns.placing)
            place_address(s, ep);
    }
    if (s->dns.placing || s->dns.applied < s->dns.found) {
        if (spend_call(s))
            tails.call(skb, TAIL_LEARN_WRITE);
        return give_up(skb, s, ep);
    }
    finish_learning(skb, s, ep);
    return leave_message(skb, s);
}

// ----------------------------------------------------------------------------------------------------------------------
// The gate is open and DNS said no: a name that some pattern covers, and an answer without an address. User space decides
// what is worth telling; here is left out what every lookup brings: that the other type's question found addresses.

#define REFUSALS_PER_TICK 32 // told of one endpoint

// Whether neither this question nor the one for the other family gives addresses now. What is refused vouches no more.
static INLINE int is_refusal(struct scratch *s, struct endpoint *ep)
{
    __u32 now = s->dns.now, grace = s->dns.grace;
    struct kept_set *set = find_seen_answer(s, ep, s->dns.type == TYPE_A);
    struct kept *known = set ? find_kept(set, &s->kept_key) : 0;

    if (known && known->value)
        keep(set, &s->kept_key, now, 0);
    set = find_seen_answer(s, ep, s->dns.type != TYPE_A);
    known = set ? find_kept(set, &s->kept_key) : 0;
    return !known || !(known->value & SEEN_GIVEN) || (__s32)(known->stamp.expires + grace - now) <= 0;
}

static INLINE void emit_refusal(struct scratch *s, struct endpoint *ep, __u8 reason)
{
    struct quota *q = find_quota(ep->id);

    if (!q)
        return;
    renew_budget(s, q);
    s->dns.learned = s->dns.found = 0;
    if (q->refusals >= REFUSALS_PER_TICK) {
        q->refusals_suppressed++;
        return;
    }
    if (send_answer(s, ep, reason, q->refusals_suppressed)) {
        q->lost[RING_ANSWERS]++;
        q->refusals_suppressed++;
        return;
    }
    q->refusals++;
    q->refusals_suppressed = 0;
}

int learn_refused(struct __sk_buff *skb)
{
    struct scratch *s = find_scratch();
    struct endpoint *ep = find_endpoint(skb->ifindex);
    struct config *c = find_config();
    struct dns *d;
    __u8 reason;

    if (!s || !ep || !c)
        return TC_ACT_UNSPEC;
    d = &s->dns;
    reason = s->event.message[3] & 15 ? REASON_LEARN_RCODE : REASON_LEARN_NO_ADDRESS;
    if (d->class != CLASS_IN || (d->type != TYPE_A && d->type != TYPE_AAAA) || d->bad_name ||
        s->event.message[2] & HEADER_TRUNCATED) // asked again over TCP
        return leave_message(skb, s);
    d->now = read_boot_seconds(s);
    d->grace = c->grace_seconds; // longer than it takes until such an answer is no longer quiet
    d->domain = find_domain_row(s);
    if (!d->domain || !is_refusal(s, ep))
        return leave_message(skb, s);
    if (reason == REASON_LEARN_NO_ADDRESS)
        count_reason(INGRESS, reason, skb->len);
    emit_refusal(s, ep, reason);
    return leave_message(skb, s);
}
