// Whose packet it is, and what policy says of a new flow.
//
// ``judge`` is the whole of policy: a constant number of lookups whatever the number of rules. Peers that match OR-ed,
// AND ports that match, is a mask of rules in order of evaluation; its first bit decides, tier by tier.
// services/nodeagent/judge.py says the same of the same tables in Python, and a test holds the two equal.
//
// Zero denies: a missing ruleset, row or set shuts.

// The endpoint behind an interface, or null: not ours, or not known yet.
static INLINE struct endpoint *find_endpoint(__u32 ifindex)
{
    __u32 slot = ifindex & (ENDPOINT_SLOTS - 1);
    struct endpoint *ep = endpoints.lookup(&slot);

    if (ep && ep->ifindex == ifindex)
        return ep;
    ep = endpoints_far.lookup(&ifindex);
    return ep && ep->ifindex == ifindex ? ep : 0;
}

#define NOT_OWN 255
// The number of one of the endpoint's own addresses (0: the first of its family), or NOT_OWN.
static INLINE __u8 number_own_address(struct scratch *s, struct endpoint *ep, const struct address *a, __u8 family)
{
    __u32 *number;

    if (family == 4 && ep->address4 && a->word[3] == ep->address4)
        return 0;
    if (family == 6 && !is_unspecified(&ep->address6) && is_same_address(a, &ep->address6))
        return 0;
    if (!(ep->flags & ENDPOINT_MORE_ADDRESSES))
        return NOT_OWN;
    s->own_key.endpoint = ep->id;
    s->own_key.pad = 0;
    s->own_key.address = *a;
    number = endpoint_addresses.lookup(&s->own_key);
    return number ? (__u8)*number : NOT_OWN;
}

// ----------------------------------------------------------------------------------------------------------------------
// What always passes: exactly these. 1: passes, 0: judged on, else a reason to drop.

#define PASSES 1

struct arp_body {
    __u16 hardware, protocol;
    __u8 hardware_bytes, protocol_bytes;
    __u16 operation;
    __u8 sender_hardware[6];
    __u8 sender[4];
    __u8 target_hardware[6];
    __u8 target[4];
};

// ARP from the pod: the sender is the endpoint's own, or it could draw its neighbours' traffic.
static INLINE int check_arp(struct __sk_buff *skb, struct scratch *s, struct endpoint *ep, int direction)
{
    struct arp_body *arp = (struct arp_body *)s->headers;
    struct address sender;
    __u32 ipv4;

    if (bpf_skb_load_bytes(skb, s->packet.network, arp, sizeof(*arp)))
        return REASON_BAD_ARP;
    if (arp->hardware != bpf_htons(1) || arp->protocol != bpf_htons(ETHER_IPV4) || arp->hardware_bytes != 6 ||
        arp->protocol_bytes != 4)
        return REASON_BAD_ARP;
    if (direction == INGRESS)
        return PASSES;
    __builtin_memcpy(&ipv4, arp->sender, 4);
    set_mapped(&sender, ipv4);
    s->packet.source = sender;
    return number_own_address(s, ep, &sender, 4) == NOT_OWN ? REASON_BAD_ARP : PASSES;
}

#define ND_ROUTER_SOLICIT 133
#define ND_ROUTER_ADVERT 134
#define ND_NEIGHBOUR_ADVERT 136
#define ND_REDIRECT 137

static INLINE int is_own_or_local(struct scratch *s, struct endpoint *ep, const struct address *a)
{
    if (is_link_local6(a))
        return is_unspecified(&ep->gateway6) || !is_same_address(a, &ep->gateway6);
    return number_own_address(s, ep, a, 6) != NOT_OWN;
}

// Neighbour discovery, RFC 4861: hop limit 255, code 0, to the link. From a pod never an advertisement of routes, nor
// of another's address. A link-local target must be the sender itself: nobody tells us which link-local is the pod's.
static INLINE int check_discovery(struct __sk_buff *skb, struct scratch *s, struct endpoint *ep, int direction)
{
    struct packet *p = &s->packet;
    struct address *target = (struct address *)s->headers;
    struct address *to = &p->destination;

    if (p->icmp_code || p->hop_limit != 255)
        return REASON_ND_REFUSED;
    if (direction == INGRESS) {
        if (is_link_multicast6(to) || is_link_local6(to) || number_own_address(s, ep, to, 6) != NOT_OWN)
            return PASSES;
        return REASON_ND_REFUSED;
    }
    if (p->icmp_type == ND_ROUTER_ADVERT || p->icmp_type == ND_REDIRECT)
        return REASON_ND_REFUSED;
    if (!is_link_multicast6(to) && !is_link_local6(to) &&
        (is_unspecified(&ep->gateway6) || !is_same_address(to, &ep->gateway6)))
        return REASON_ND_REFUSED;
    if (is_unspecified(&p->source))
        return is_link_multicast6(to) && p->icmp_type != ND_NEIGHBOUR_ADVERT ? PASSES : REASON_ND_REFUSED;
    if (!is_own_or_local(s, ep, &p->source))
        return REASON_ND_REFUSED;
    if (p->icmp_type != ND_NEIGHBOUR_ADVERT)
        return PASSES;
    if (p->transport + 24 > p->end || bpf_skb_load_bytes(skb, p->transport + 8, target, sizeof(*target)))
        return REASON_ND_REFUSED;
    if (is_link_local6(target))
        return is_same_address(target, &p->source) ? PASSES : REASON_ND_REFUSED;
    return number_own_address(s, ep, target, 6) != NOT_OWN ? PASSES : REASON_ND_REFUSED;
}

static INLINE int is_listener_report(const struct packet *p) // MLD: RFC 2710, 3810
{
    return ((p->icmp_type >= 130 && p->icmp_type <= 132) || p->icmp_type == 143) && p->hop_limit == 1;
}

static INLINE int check_icmpv6(struct __sk_buff *skb, struct scratch *s, struct endpoint *ep, int direction)
{
    struct packet *p = &s->packet;

    if (p->icmp_type >= ND_ROUTER_SOLICIT && p->icmp_type <= ND_REDIRECT)
        return p->fragment == FRAGMENT_WHOLE ? check_discovery(skb, s, ep, direction) : REASON_ND_REFUSED;
    if (!is_listener_report(p) || !is_link_multicast6(&p->destination))
        return 0;
    if (direction == EGRESS && !is_unspecified(&p->source) && !is_own_or_local(s, ep, &p->source))
        return 0;
    return PASSES;
}

#define PORT_DHCP_SERVER 67
#define PORT_DHCP_CLIENT 68
#define PORT_DHCP6_CLIENT 546
#define PORT_DHCP6_SERVER 547

static INLINE int is_dhcp4(struct __sk_buff *skb, struct scratch *s, struct endpoint *ep, int direction)
{
    struct packet *p = &s->packet;

    if (direction == EGRESS)
        return p->source_port_be == bpf_htons(PORT_DHCP_CLIENT) &&
               p->destination_port_be == bpf_htons(PORT_DHCP_SERVER) && p->destination.word[3] == 0xffffffff &&
               (p->source.word[3] == 0 || number_own_address(s, ep, &p->source, 4) != NOT_OWN);
    return p->source_port_be == bpf_htons(PORT_DHCP_SERVER) && p->destination_port_be == bpf_htons(PORT_DHCP_CLIENT) &&
           (p->destination.word[3] == 0xffffffff ||
            (skb->ingress_ifindex == 0 && number_own_address(s, ep, &p->destination, 4) != NOT_OWN));
}

static INLINE int is_dhcp6(struct scratch *s, int direction)
{
    struct packet *p = &s->packet;

    if (direction == EGRESS)
        return p->source_port_be == bpf_htons(PORT_DHCP6_CLIENT) &&
               p->destination_port_be == bpf_htons(PORT_DHCP6_SERVER) && is_link_multicast6(&p->destination) &&
               is_link_local6(&p->source);
    return p->source_port_be == bpf_htons(PORT_DHCP6_SERVER) &&
           p->destination_port_be == bpf_htons(PORT_DHCP6_CLIENT) && is_link_local6(&p->destination) &&
           is_link_local6(&p->source);
}

static INLINE int check_always(struct __sk_buff *skb, struct scratch *s, struct endpoint *ep, int direction)
{
    struct packet *p = &s->packet;

    if (p->fragment == FRAGMENT_LATER)
        return 0;
    if (p->protocol == PROTOCOL_ICMPV6 && p->family == 6)
        return check_icmpv6(skb, s, ep, direction);
    if (p->protocol != PROTOCOL_UDP || p->fragment != FRAGMENT_WHOLE)
        return 0;
    if (p->family == 4)
        return is_dhcp4(skb, s, ep, direction);
    return is_dhcp6(s, direction);
}

// ----------------------------------------------------------------------------------------------------------------------
// The rules whose peer and port match.

static INLINE __u32 find_port_index(__u8 protocol, __u16 port_be)
{
    __u32 port = bpf_ntohs(port_be);

    if (protocol == PROTOCOL_TCP)
        return PORT_SLOT_TCP * 65536 + port;
    if (protocol == PROTOCOL_UDP)
        return PORT_SLOT_UDP * 65536 + port;
    if (protocol == PROTOCOL_SCTP)
        return PORT_SLOT_SCTP * 65536 + port;
    return PORT_SLOTS_OTHER + protocol;
}

// Where a row of this key would be in an array of ``places``, a power of two.
static INLINE __u32 choose_place(__u64 key, __u32 places)
{
    return (key ^ key >> 32) * 0x9e3779b97f4a7c15ULL >> 32 & (places - 1);
}

// A copy of a row of a hash, or null.
static INLINE struct mask *copy_far(struct scratch *s, const struct mask *row, enum far_row as)
{
    if (!row)
        return 0;
    s->far[as] = *row;
    s->job.has_far = 1;
    return &s->far[as];
}

static INLINE void clear_far(struct scratch *s)
{
    if (s->job.has_far)
        __builtin_memset(s->far, 0, sizeof(s->far));
    s->job.has_far = 0;
}

static INLINE struct mask *find_ports(struct scratch *s, __u8 protocol, __u16 port_be, enum far_row as)
{
    struct peer_key key;
    __u32 index = find_port_index(protocol, port_be), place;
    __u32 *class = port_classes.lookup(&index);
    struct row *near;

    key.word = (__u64)(class ? *class : 0) << 32 | s->question.ruleset;
    place = choose_place(key.word, PORT_ROWS);
    near = near_ports.lookup(&place);
    if (near && (near->key & ~ROW_FAR) == key.word)
        return &near->mask;
    return near && near->key & ROW_FAR ? copy_far(s, ports.lookup(&key), as) : 0;
}

static INLINE struct row *find_near(struct scratch *s, __u64 key)
{
    __u32 place = choose_place(key, PEER_ROWS);

    return near_peers.lookup(&place);
}

static INLINE struct mask *find_peers(struct scratch *s, __u32 class, enum far_row as)
{
    struct peer_key key;
    struct row *near;

    if (!class)
        return 0;
    key.word = (__u64)class << 32 | s->question.ruleset;
    near = find_near(s, key.word);
    if (near && (near->key & ~ROW_FAR) == key.word)
        return &near->mask;
    return near && near->key & ROW_FAR ? copy_far(s, peers.lookup(&key), as) : 0;
}

// The rules of a domain row, where they are.
static INLINE struct mask *find_name_peers(struct scratch *s, __u32 domain)
{
    struct peer_key key = {.word = (__u64)(CLASS_DOMAIN | domain) << 32 | s->question.ruleset};
    struct row *near = find_near(s, key.word);

    if (near && (near->key & ~ROW_FAR) == key.word)
        return &near->mask;
    return near && near->key & ROW_FAR ? peers.lookup(&key) : 0;
}

static INLINE struct mask *find_identity_peers(struct scratch *s, __u32 identity, enum far_row as)
{
    __u32 *class = classes.lookup(&identity);

    return class ? find_peers(s, *class, as) : 0;
}

static INLINE struct cidr *find_cidr(struct scratch *s, const struct address *a)
{
    if (is_mapped(a)) {
        struct cidr4_key key = {.prefix_bits = 32};

        __builtin_memcpy(key.byte, &a->word[3], 4);
        return cidrs4.lookup(&key);
    }
    s->cidr_key.prefix_bits = 128;
    __builtin_memcpy(s->cidr_key.byte, a, 16);
    return cidrs6.lookup(&s->cidr_key);
}

// matched = (any | a | b) & ports; each of the three masks may be null.
static INLINE void match(struct scratch *s, struct ruleset *rs, struct mask *a, struct mask *b, struct mask *ports_mask)
{
    __u64 all = 0;

    a = a ? a : &s->far[FAR_PEERS];
    b = b ? b : &s->far[FAR_MORE_PEERS];
    ports_mask = ports_mask ? ports_mask : &s->far[FAR_PORTS];
#pragma unroll
    for (int i = 0; i < YETT_WORDS; i++) {
        __u64 word = (rs->any[i] | a->word[i] | b->word[i]) & ports_mask->word[i];

        s->matched.word[i] = word;
        all |= word;
    }
    s->job.has_match = all != 0;
}

// The same for what else may match.
static INLINE void match_more(struct scratch *s, struct ruleset *rs, struct mask *a, struct mask *b,
                              struct mask *ports_mask)
{
    if (!ports_mask)
        return;
    a = a ? a : &s->far[FAR_BEHIND + FAR_PEERS];
    b = b ? b : &s->far[FAR_BEHIND + FAR_MORE_PEERS];
#pragma unroll
    for (int i = 0; i < YETT_WORDS; i++)
        s->matched.word[i] |= (rs->any[i] | a->word[i] | b->word[i]) & ports_mask->word[i];
    s->job.has_match = 1;
}

// Without a branch: 64 known results would be 64 states to verify. x is not 0.
static INLINE __u32 count_trailing_zeros(__u64 x)
{
    x = (x & -x) - 1;
    x = x - (x >> 1 & 0x5555555555555555ULL);
    x = (x & 0x3333333333333333ULL) + (x >> 2 & 0x3333333333333333ULL);
    x = (x + (x >> 4)) & 0x0f0f0f0f0f0f0f0fULL;
    return x * 0x0101010101010101ULL >> 56;
}

// The lowest bit set in words [first, last), as a rule number, or NO_MATCH.
static INLINE __u32 find_first(const __u64 *word, int first, int last)
{
#pragma unroll
    for (int i = 0; i < YETT_WORDS; i++) {
        if (i >= first && i < last && word[i])
            return i * 64 + count_trailing_zeros(word[i]);
    }
    return NO_MATCH;
}

static INLINE int has_bit(const __u64 *word, __u32 bit)
{
    __u32 index = bit >> 6;

    FORGET(index); // the compiler knows that it is below 8 and drops the bound, which kernel 6.1 then misses
    return word[index & (YETT_WORDS - 1)] >> (bit & 63) & 1;
}
