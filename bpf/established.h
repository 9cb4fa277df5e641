// What nearly every packet is: a plain one of a live flow. Read by direct access, answered with one lookup.
//
// Plain: IPv4 without options or fragment, or IPv6 without extension headers; TCP without SYN, FIN, RST, or UDP; between
// the endpoint's first address and a port where no trusted resolver listens. Every such packet that a flow covers would
// pass ``handle`` too, which parses again whatever is not let through here: this file can only say "established".
// It keeps the working memory of nothing but the clock: the key is on the stack.

static INLINE int read_plain_transport(const struct l4_header *l4, void *end, __u32 room, __u8 protocol, int direction,
                                       __u32 ifindex, struct flow_key *key)
{
    if (protocol == PROTOCOL_TCP) {
        __u32 header;

        if ((void *)l4 + sizeof(*l4) > end)
            return 0;
        header = (l4->data_offset >> 4) * 4;
        if (header < sizeof(*l4) || header > room || l4->flags & (TCP_SYN | TCP_FIN | TCP_RST))
            return 0;
    } else if (protocol == PROTOCOL_UDP) {
        __u32 length;

        if ((void *)l4 + 8 > end)
            return 0;
        length = bpf_ntohl(l4->sequence_be) >> 16;
        if (length < 8 || length > room)
            return 0;
    } else {
        return 0;
    }
    if (direction == EGRESS)
        fill_key(key, ifindex, l4->source_be, l4->destination_be, protocol, 0);
    else
        fill_key(key, ifindex, l4->destination_be, l4->source_be, protocol, 0);
    return 1;
}

static INLINE int read_plain4(struct __sk_buff *skb, struct endpoint *ep, int direction, struct flow_key *key)
{
    void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
    struct ipv4_header *ip = data + ETHER_BYTES;
    __u32 length, own;

    if ((void *)(ip + 1) > end || ip->version_ihl != 0x45 || ip->fragment_be & bpf_htons(0x3fff))
        return 0;
    length = bpf_ntohs(ip->length_be);
    own = direction == EGRESS ? ip->source : ip->destination;
    if (length < sizeof(*ip) || ETHER_BYTES + length > skb->len || !own || own != ep->address4)
        return 0;
    set_mapped(&key->peer, direction == EGRESS ? ip->destination : ip->source);
    return read_plain_transport((void *)(ip + 1), end, length - sizeof(*ip), ip->protocol, direction, ep->ifindex, key);
}

static INLINE int read_plain6(struct __sk_buff *skb, struct endpoint *ep, int direction, struct flow_key *key)
{
    void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
    struct ipv6_header *ip = data + ETHER_BYTES;
    __u32 length;

    if ((void *)(ip + 1) > end || *(__u8 *)ip >> 4 != 6)
        return 0;
    length = bpf_ntohs(ip->length_be);
    if (!length || ETHER_BYTES + sizeof(*ip) + length > skb->len || is_unspecified(&ep->address6) ||
        !is_same_address(direction == EGRESS ? &ip->source : &ip->destination, &ep->address6))
        return 0;
    key->peer = direction == EGRESS ? ip->destination : ip->source;
    if (is_mapped(&key->peer)) // its flow would be an IPv4 one's
        return 0;
    return read_plain_transport((void *)(ip + 1), end, length, ip->next, direction, ep->ifindex, key);
}

static INLINE int read_plain(struct __sk_buff *skb, struct endpoint *ep, int direction, struct flow_key *key)
{
    if (ep->flags & ENDPOINT_CLAIMED_TWICE)
        return 0;
    if (skb->protocol == bpf_htons(ETHER_IPV4))
        return read_plain4(skb, ep, direction, key);
    if (skb->protocol == bpf_htons(ETHER_IPV6))
        return read_plain6(skb, ep, direction, key);
    return 0;
}

// Whether a live flow, judged under today's epoch, covers this packet; then it is counted in the flow.
static INLINE int is_established(struct __sk_buff *skb, int direction)
{
    struct endpoint *ep = find_endpoint(skb->ifindex);
    struct scratch *s = find_scratch();
    struct flow_key key;
    struct flow *flow;
    __u32 zero = 0, ticks, expires;
    __u64 *now = epoch.lookup(&zero), judged;

    if (!ep || !s || !now || !read_plain(skb, ep, direction, &key) || is_resolver_port(key.peer_port_be))
        return 0;
    judged = *now; // before the flow is looked up: what changes meanwhile makes it stale, not wrong
    flow = flows.lookup(&key);
    if (!flow || flow->epoch != judged)
        return 0;
    ticks = read_ticks(s);
    if ((__s32)(flow->expires - ticks) < 0 || flow->state & (FLOW_FIN_OPENER | FLOW_FIN_REPLY | FLOW_RESET))
        return 0;
    if (direction != flow->direction && !(flow->state & FLOW_ANSWERED)) // the first reply promotes it
        return 0;
    count_in_flow(flow, direction != flow->direction, skb->len);
    expires = ticks + find_timeout(key.protocol, flow->state);
    if (expires != flow->expires)
        flow->expires = expires;
    return 1;
}
