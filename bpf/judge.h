// The verdict on one new flow: ``question`` in, ``finding`` out. The rules that match, those that names bring among them
// where the ruleset has any, are one mask (match_rules); the tiers are walked over it (decide).

static INLINE void conclude(struct scratch *s, __u8 verdict, __u8 reason, __u8 tier, __u16 bit)
{
    s->finding.verdict = verdict;
    s->finding.reason = reason;
    s->finding.tier = tier;
    s->finding.bit = bit;
}

static INLINE void conclude_rule(struct scratch *s, struct ruleset *rs, __u8 tier, __u32 bit)
{
    conclude(s, has_bit(rs->deny, bit) ? VERDICT_DENY : VERDICT_ALLOW, REASON_RULE, tier, bit);
    if (s->job.has_names && has_bit(s->names.word, bit)) {
        s->walk.wanted_bit = bit;
        s->walk.wants_live = 1;
    }
}

// Denied by isolation or by default. A name whose time is over and whose rule would have opened is the better reason.
// ``words``: of the tiers that were walked.
static INLINE void conclude_closed(struct scratch *s, __u8 reason, __u8 tier, int words)
{
    __u32 bit = NO_MATCH;

    conclude(s, VERDICT_DENY, reason, tier, NO_BIT);
    if (s->job.has_names)
        bit = find_first(s->expired.word, 0, words);
    if (bit == NO_MATCH)
        return;
    s->finding.reason = REASON_NAME_EXPIRED;
    s->walk.wanted_bit = bit;
    s->walk.wants_live = 0;
}

// A Pass at ``bit`` ends its tier: a name whose rule comes after it would have opened nothing. Words [first, last).
static INLINE void expire_until(struct scratch *s, __u32 bit, int first, int last)
{
#pragma unroll
    for (int i = 0; i < YETT_WORDS; i++) {
        if (i < first || i >= last || i < (bit >> 6))
            continue;
        s->expired.word[i] &= i == (bit >> 6) ? (1ULL << (bit & 63)) - 1 : 0;
    }
}

static INLINE int has_resolver_port(const struct config *c, __u16 port_be)
{
    return port_be == c->resolver_port_be[0] || port_be == c->resolver_port_be[1] ||
           port_be == c->resolver_port_be[2] || port_be == c->resolver_port_be[3] ||
           c->flags & CONFIG_MANY_RESOLVER_PORTS;
}

static INLINE int is_resolver_port(__u16 port_be)
{
    struct config *c = find_config();

    return c && has_resolver_port(c, port_be);
}

// Its flags if it is one of the few in the settings, else 0; without a branch for each.
static INLINE __u32 find_near_resolver(const struct config *c, const struct address *a, __u16 port_be)
{
    __u32 found = 0;

#pragma unroll
    for (int i = 0; i < NEAR_RESOLVERS; i++) {
        const struct near_resolver *r = &c->resolver[i];
        __u64 differs = (r->address.half[0] ^ a->half[0]) | (r->address.half[1] ^ a->half[1]) | (r->port_be ^ port_be);

        found |= r->flags & ((differs | -differs) >> 63) - 1;
    }
    return found;
}

static INLINE __u32 find_resolver(struct scratch *s, const struct address *a, __u16 port_be)
{
    struct config *c = find_config();
    __u32 near, *far;

    if (!c || !port_be || !has_resolver_port(c, port_be))
        return 0;
    near = find_near_resolver(c, a, port_be);
    if (near || !(c->flags & CONFIG_MANY_RESOLVERS))
        return near & RESOLVER_TRUSTED ? near : 0;
    s->resolver_key.address = *a;
    s->resolver_key.port_be = port_be;
    __builtin_memset(s->resolver_key.pad, 0, sizeof(s->resolver_key.pad));
    far = resolvers.lookup(&s->resolver_key);
    return far && *far & RESOLVER_TRUSTED ? *far : 0;
}

static INLINE int is_implicit_dns(struct scratch *s, struct ruleset *rs)
{
    struct question *q = &s->question;

    if (!(rs->flags & RULESET_DNS_IMPLICIT) || q->direction != EGRESS)
        return 0;
    if (q->protocol != PROTOCOL_UDP && q->protocol != PROTOCOL_TCP)
        return 0;
    return find_resolver(s, &q->peer, q->port_be) != 0;
}

static INLINE int is_own_node(struct scratch *s)
{
    if (s->question.direction == INGRESS)
        return s->question.own_node;
    return s->job.peer_flags & ADDRESS_OWN_NODE;
}

// The tiers in order. ``can_be_own``: not through a Service, which is judged before the own node's pass.
static INLINE void walk_tiers(struct scratch *s, struct ruleset *rs, int can_be_own)
{
    __u32 bit = NO_MATCH;
    int is_own;

    if (s->job.has_match)
        bit = find_first(s->matched.word, 0, WORDS_ADMIN);
    if (bit != NO_MATCH && !(rs->pass[(bit >> 6) & 3] >> (bit & 63) & 1)) {
        conclude_rule(s, rs, TIER_ADMIN, bit);
        return;
    }
    if (bit != NO_MATCH)
        expire_until(s, bit, 0, WORDS_ADMIN);
    if (is_implicit_dns(s, rs)) {
        conclude(s, VERDICT_ALLOW, REASON_DNS_IMPLICIT, TIER_NETWORK_POLICY, NO_BIT);
        return;
    }
    bit = NO_MATCH;
    if (s->job.has_match)
        bit = find_first(s->matched.word, WORDS_ADMIN, WORDS_ADMIN + WORDS_NETWORK_POLICY);
    if (bit != NO_MATCH) {
        conclude_rule(s, rs, TIER_NETWORK_POLICY, bit);
        return;
    }
    is_own = can_be_own && is_own_node(s);
    if (rs->flags & RULESET_ISOLATED) {
        if (!is_own) {
            conclude_closed(s, REASON_ISOLATED, TIER_NETWORK_POLICY, YETT_WORDS - 1);
            return;
        }
    } else {
        if (s->job.has_match)
            bit = find_first(s->matched.word, YETT_WORDS - 1, YETT_WORDS);
        if (bit != NO_MATCH && !(rs->pass[WORDS_ADMIN] >> (bit & 63) & 1)) {
            conclude_rule(s, rs, TIER_BASELINE, bit);
            return;
        }
        if (bit != NO_MATCH)
            expire_until(s, bit, YETT_WORDS - 1, YETT_WORDS);
    }
    if (is_own)
        conclude(s, VERDICT_ALLOW, REASON_OWN_NODE, TIER_NONE, NO_BIT);
    else if (rs->default_verdict == DEFAULT_ALLOW)
        conclude(s, VERDICT_ALLOW, REASON_DEFAULT, TIER_DEFAULT, NO_BIT);
    else if (rs->default_verdict == DEFAULT_AUDIT)
        conclude(s, VERDICT_AUDIT, REASON_DEFAULT, TIER_DEFAULT, NO_BIT);
    else
        conclude_closed(s, REASON_DEFAULT, TIER_DEFAULT, YETT_WORDS);
}

static INLINE void judge_mixed(struct scratch *s, __u32 set)
{
    struct mixed_key key = {.ruleset = s->question.ruleset, .set = set};
    struct mixed *m = mixed.lookup(&key);

    s->job.concluded = 1;
    if (!m)
        conclude(s, VERDICT_DENY, REASON_MIXED_BACKENDS, TIER_NONE, NO_BIT);
    else
        conclude(s, m->verdict, m->reason, m->tier, m->bit);
}

// A Service's address: pod peers are matched with the backends and their port, CIDR peers with the packet.
static INLINE void match_frontend(struct scratch *s, struct ruleset *rs, struct frontend *f)
{
    struct question *q = &s->question;
    struct mask *behind = 0, *outside = 0, *front = 0;
    struct cidr *c;

    if (f->kind == FRONTEND_TOO_MANY) {
        s->job.concluded = 1;
        conclude(s, VERDICT_DENY, REASON_TOO_MANY_BACKENDS, TIER_NONE, NO_BIT);
        return;
    }
    if (f->kind == FRONTEND_MIXED) {
        judge_mixed(s, f->target);
        return;
    }
    s->job.by_frontend = FRONT_NO_BACKEND;
    c = find_cidr(s, &q->peer);
    front = c ? find_peers(s, c->class, FAR_PEERS) : 0;
    match(s, rs, front, 0, find_ports(s, q->protocol, q->port_be, FAR_PORTS));
    if (f->kind == FRONTEND_UNIFORM) {
        s->job.by_frontend = FRONT_BACKENDS;
        behind = find_identity_peers(s, f->target, FAR_BEHIND + FAR_PEERS);
        if (!is_unspecified(&f->backend)) {
            c = find_cidr(s, &f->backend);
            outside = c ? find_peers(s, c->class, FAR_BEHIND + FAR_MORE_PEERS) : 0;
        }
        match_more(s, rs, behind, outside, find_ports(s, q->protocol, f->port_be, FAR_BEHIND + FAR_PORTS));
    }
}

static INLINE struct frontend *find_frontend(struct scratch *s)
{
    struct question *q = &s->question;

    if (q->direction != EGRESS || !(s->job.peer_flags & ADDRESS_FRONTEND) || !has_ports(q->protocol))
        return 0;
    s->frontend_key.address = q->peer;
    s->frontend_key.port_be = q->port_be;
    s->frontend_key.protocol = q->protocol;
    __builtin_memset(s->frontend_key.pad, 0, sizeof(s->frontend_key.pad));
    return frontends.lookup(&s->frontend_key);
}

// Of a pod or a node no name counts: one may have been taught before the address was theirs.
static INLINE int may_have_names(struct scratch *s, struct ruleset *rs)
{
    return s->question.direction == EGRESS && rs->flags & RULESET_HAS_DOMAINS && !s->finding.identity;
}

static INLINE void match_address(struct scratch *s, struct endpoint *ep, struct ruleset *rs)
{
    struct question *q = &s->question;
    struct mask *by_identity = 0, *by_cidr = 0, *ports_mask;

    if (!s->finding.identity || rs->flags & RULESET_HAS_CIDRS) {
        struct cidr *c = find_cidr(s, &q->peer);

        if (c && c->flags & CIDR_UNKNOWN_POD && !s->finding.identity && !is_own_node(s)) {
            s->job.concluded = 1;
            conclude(s, VERDICT_DENY, REASON_UNKNOWN_POD, TIER_NONE, NO_BIT);
            return;
        }
        if (c && rs->flags & RULESET_HAS_CIDRS)
            by_cidr = find_peers(s, c->class, FAR_MORE_PEERS);
    }
    if (s->finding.identity && rs->flags & RULESET_HAS_IDENTITIES)
        by_identity = find_identity_peers(s, s->finding.identity, FAR_PEERS);
    ports_mask = find_ports(s, q->protocol, q->port_be, FAR_PORTS);
    match(s, rs, by_identity, by_cidr, ports_mask);
    if (ports_mask && may_have_names(s, rs))
        add_names(s, ep, ports_mask);
}

static INLINE void know_peer(struct scratch *s)
{
    struct known_address *known = ipcache.lookup(&s->question.peer);

    s->finding.identity = known ? known->identity : 0;
    s->job.peer_flags = known ? known->flags : 0;
}

// Fills ``matched``, or concludes.
static INLINE void match_rules(struct scratch *s, struct endpoint *ep)
{
    struct ruleset *rs = rulesets.lookup(&s->question.ruleset);
    struct frontend *f;

    s->finding.ruleset = s->question.ruleset;
    s->finding.domain = 0;
    s->job.by_frontend = FRONT_NONE;
    s->job.concluded = s->job.has_match = s->job.has_names = 0;
    clear_far(s);
    if (!rs || !(rs->flags & RULESET_VALID)) {
        s->job.concluded = 1;
        s->finding.identity = 0;
        conclude(s, VERDICT_DENY, REASON_NO_RULESET, TIER_NONE, NO_BIT);
        return;
    }
    know_peer(s);
    f = find_frontend(s);
    if (f) {
        s->finding.identity = 0;
        match_frontend(s, rs, f);
        return;
    }
    match_address(s, ep, rs);
}

static INLINE void decide(struct scratch *s)
{
    struct ruleset *rs = rulesets.lookup(&s->question.ruleset);

    if (s->job.concluded)
        return;
    conclude(s, VERDICT_DENY, REASON_NO_RULESET, TIER_NONE, NO_BIT);
    if (!rs)
        return;
    walk_tiers(s, rs, s->job.by_frontend == FRONT_NONE);
    if (s->job.by_frontend == FRONT_NO_BACKEND && s->finding.verdict == VERDICT_DENY &&
        s->finding.reason != REASON_RULE)
        s->finding.reason = REASON_NO_BACKEND;
}

// Index of the rule's counter: a ruleset's counters are dense, in order of its tiers.
static INLINE __u32 find_counter(struct scratch *s)
{
    __u32 bit = s->finding.bit;
    struct ruleset *rs;

    if (bit == NO_BIT)
        return NO_COUNTER;
    rs = rulesets.lookup(&s->finding.ruleset);
    if (!rs)
        return NO_COUNTER;
    if (bit < BIT_NETWORK_POLICY)
        return rs->counters + bit;
    if (bit < BIT_BASELINE)
        return rs->counters + rs->admin_rules + bit - BIT_NETWORK_POLICY;
    return rs->counters + rs->admin_rules + rs->network_policy_rules + bit - BIT_BASELINE;
}
