// The names an address has now, and the rules they bring.
//
// An address has up to 64 names at once: pages of eight slots, each one 64-bit word so that it can be claimed by
// compare-and-swap. Expired slots are not free for the taking by readers: they tell why a packet is denied.

static INLINE struct names *find_names(struct scratch *s, const struct address *a, __u32 scope, __u32 page)
{
    s->resolution_key.address = *a;
    s->resolution_key.scope = scope;
    s->resolution_key.page = page;
    return resolutions.lookup(&s->resolution_key);
}

// 1 if it counts, without a branch: each one doubles what the verifier walks.
static INLINE __u64 is_live(const struct question *q, __u64 slot)
{
    __u64 left = (__u64)q->now - (__u32)slot; // below zero

    return (left >> 63 | q->allow_expired) & 1;
}

// One slot: its rules go to those of live names, or to those that a name would bring were its time not over.
static INLINE void add_name(struct scratch *s, __u64 slot)
{
    struct mask *m = find_name_peers(s, slot >> 32);
    __u64 is_over = 1 - is_live(&s->question, slot);
    struct mask *to = &s->names;

    if (!m)
        return;
    FORGET(is_over);
    to += is_over & 1; // ``expired`` follows ``names``
#pragma unroll
    for (int i = 0; i < YETT_WORDS; i++)
        to->word[i] |= m->word[i];
}

// The domain row whose rules hold the wanted bit. Kept apart from ``add_name``: only a verdict by name asks for it.
static INLINE void match_name(struct scratch *s, __u64 slot)
{
    struct mask *m;

    if (s->finding.domain || is_live(&s->question, slot) != s->walk.wants_live)
        return;
    m = find_name_peers(s, slot >> 32);
    if (m && has_bit(m->word, s->walk.wanted_bit))
        s->finding.domain = slot >> 32;
}

#define FOR_ADD 0
#define FOR_MATCH 1
static INLINE void visit_page(struct scratch *s, struct names *page, int what)
{
    for (int i = 0; i < NAME_SLOTS; i++) {
        __u64 slot = page->slot[i];

        if (!slot)
            continue;
        if (what == FOR_ADD)
            add_name(s, slot);
        else
            match_name(s, slot);
    }
}

// Whether there are more than fit the pages.
static INLINE int visit_scope(struct scratch *s, __u32 scope, int what)
{
    for (__u32 i = 0; i < NAME_PAGES; i++) {
        struct names *page = find_names(s, &s->question.peer, scope, i);

        if (!page)
            return 0;
        visit_page(s, page, what);
        if (!page->more)
            return 0;
    }
    return 1;
}

static INLINE void visit_names(struct scratch *s, struct endpoint *ep, int what)
{
    int has_own = visit_scope(s, SCOPE_LEARNED, what);

    visit_scope(s, SCOPE_SHARED, what);
    if (has_own || ep->flags & ENDPOINT_SCOPED_NAMES)
        visit_scope(s, ep->id, what);
}

// Fills ``names`` and ``expired``. The name that admitted a flow counts while the flow lives, whatever its time.
static INLINE void add_names(struct scratch *s, struct endpoint *ep, const struct mask *ports_mask)
{
    s->job.has_names = 1;
    s->ports = *ports_mask; // so that the verifier walks the names once, not for every place that the mask has
#pragma unroll
    for (int i = 0; i < YETT_WORDS; i++)
        s->names.word[i] = s->expired.word[i] = 0;
    visit_names(s, ep, FOR_ADD);
    if (s->question.stored_domain)
        add_name(s, (__u64)s->question.stored_domain << 32 | 0xffffffff);
#pragma unroll
    for (int i = 0; i < YETT_WORDS; i++) {
        __u64 word = s->ports.word[i];

        s->names.word[i] &= word;
        s->expired.word[i] &= word;
        s->matched.word[i] |= s->names.word[i];
        s->job.has_match |= s->names.word[i] != 0;
    }
}

static INLINE void find_domain(struct scratch *s, struct endpoint *ep)
{
    if (s->question.stored_domain && s->walk.wants_live)
        match_name(s, (__u64)s->question.stored_domain << 32 | 0xffffffff);
    visit_names(s, ep, FOR_MATCH);
}
